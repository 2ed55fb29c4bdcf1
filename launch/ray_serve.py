"""Serve reward sets on Ray Serve: replicas behind one address, over the machines of a Ray cluster.

    python launch/ray_serve.py open:2 [SET:REPLICAS ..] [--port=8100] [--gpus=1] [--address=auto]
    python launch/ray_serve.py paper:4 --gpus=1 --weights=FOLDER --judge=http://HOST:8200/v1

The flags of the sets are those of evoid_jax/sidecars/serve.py. Then
--config.reward.sidecars=http://HOST:8100/open, one address for each set. Ray starts a replica again
when its process ends or its health check fails, and spreads requests by load. Beyond
requirements-sidecars.txt its environment needs ray[serve] 2.60 or newer.

Loopback is the default; --host names another interface, and wants --token-env, whose variable every
machine of the cluster has: replicas read it where they run, and Ray is never told the token. Ray's
own ports ask nobody for anything, and keep no time limits: let no stranger reach the cluster.
"""

import argparse
import ipaddress
import signal
import socket
from pathlib import Path
from typing import NamedTuple

import ray
from fastapi import FastAPI
from ray import serve

from evoid_jax.sidecars import door, listen
from evoid_jax.sidecars import serve as sidecar
from evoid_jax.sidecars.paper import options as paper

WAITING = 16  # requests sent to a replica at once: what it has no room for, it answers with 429


class Settings(NamedTuple):
    """Of a replica; what is secret is named, and read where the replica runs."""

    preset: str
    weights: Path | None
    options: paper.Options
    queue_gib: float
    request_gib: float
    replicas: int
    host: str
    token_env: str
    trusted: bool

    def token(self) -> str | None:
        """Return the token to ask for. Raises a ValueError where there must be one and is none."""
        address = ipaddress.ip_address(socket.gethostbyname(self.host))
        return door.token(self.token_env, self.host, address.is_loopback, self.trusted)


@serve.ingress()
class Sidecar:
    """One replica of a reward set."""

    def __init__(self, settings: Settings):
        token = settings.token()
        self.api = sidecar.app(
            sidecar.load(settings.preset, settings.weights, settings.options),
            settings.queue_gib,
            settings.replicas,
            request_gib=settings.request_gib,
            token=token,
        )

    def __serve_build_asgi_app__(self) -> FastAPI:
        return self.api

    def check_health(self) -> None:
        """Raise where nothing would be scored any more; Ray then starts another replica."""
        if not self.api.state.desk.queue.alive():
            raise RuntimeError("the thread that scores has ended")


def settings(preset: str, replicas: int, args: argparse.Namespace) -> Settings:
    """Return a set's settings by the flags."""
    return Settings(
        preset=preset,
        weights=args.weights,
        options=paper.from_arguments(args) if preset == "paper" else paper.DEFAULT,
        queue_gib=args.queue,
        request_gib=args.request,
        replicas=replicas,
        host=args.host,
        token_env=args.token_env,
        trusted=args.trusted_network,
    )


def application(preset: str, replicas: int, args: argparse.Namespace) -> serve.Application:
    """Return a reward set as Ray Serve deploys it."""
    deployment = serve.deployment(
        Sidecar,
        name=preset,
        num_replicas=replicas,
        max_ongoing_requests=WAITING,
        health_check_period_s=args.health,
        health_check_timeout_s=30,
        ray_actor_options={"num_cpus": args.cpus, "num_gpus": args.gpus},
    )
    return deployment.bind(settings(preset, replicas, args))


def parse(text: str) -> tuple[str, int]:
    """Read SET or SET:REPLICAS."""
    preset, _, count = text.partition(":")
    if not preset or (count and not (count.isdigit() and int(count))):
        raise argparse.ArgumentTypeError(f"expected SET or SET:REPLICAS, got {text!r}")
    return preset, int(count or 1)


def settle(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Set `args.preset`, whose flags they are; end the program where they do not fit the sets."""
    names = [name for name, _ in args.sets]
    if args.weights and len(names) > 1:
        parser.error(f"--weights is the folder of one set, and there are {len(names)}: {names}")
    args.preset = "paper" if "paper" in names else names[0]
    try:
        paper.from_arguments(args)
        settings(names[0], 1, args).token()
    except (ValueError, OSError) as error:
        parser.error(str(error))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sets", nargs="+", type=parse, metavar="SET:REPLICAS")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8100)
    parser.add_argument("--address", help="of a running cluster, or auto; without, one starts here")
    parser.add_argument("--cpus", type=float, default=1.0, help="for each replica")
    parser.add_argument("--gpus", type=float, default=0.0, help="for each replica")
    sidecar.add_queue_arguments(parser)
    listen.add_token_arguments(parser)
    parser.add_argument("--health", type=float, default=5.0, help="seconds between health checks")
    parser.add_argument("--weights", type=Path, help="the folder of a set's weights")
    paper.add_arguments(parser)
    args = parser.parse_args()
    settle(parser, args)
    ray.init(address=args.address, include_dashboard=False)
    serve.start(http_options={"host": args.host, "port": args.port})
    for preset, replicas in args.sets:
        serve.run(application(preset, replicas, args), name=preset, route_prefix=f"/{preset}")
        print(f"http://{args.host}:{args.port}/{preset}", flush=True)
    signal.sigwait({signal.SIGINT, signal.SIGTERM})
    serve.shutdown()


if __name__ == "__main__":
    main()
