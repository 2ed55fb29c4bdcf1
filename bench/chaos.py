"""Kill trainer, sidecar and judge at random moments, start them again, and compare with a calm run.

    python bench/chaos.py [--kills=30] [--steps=10] [--seed=0] [--out=FOLDER]

A run of the tiny world, smaller than its preset: first one that nobody touches, then the same
command again and again in another folder, while one of the three processes gets SIGKILL at random
moments: some seconds after the run has come none, one or two steps, comparisons or parts of its
proof further. Where it ends before all kills are spent the next one begins. Every run must
end with the same bits: adapters, optimizer and memory of the newest checkpoint, record, proof and
export. Prints a line for each kill, then the counts; the exit status is 1 where anything differs.
"""

import argparse
import hashlib
import json
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx2

from evoid_jax import files

SMALL = """
save_every=1 data.pairs=2 data.seeds=2 data.heldout_identities=4 data.heldout_seeds=1
rollout.steps=2 rollout.videos_per_device=2 train.timesteps=1 reward.timeout=120
watch.every=3 watch.identities=2 watch.seeds=1
"""
AGAIN = 10  # times that a trainer may end by itself in one run
PATIENCE = 900.0  # seconds in which a run must come further
SOON = 0.1  # seconds: the least time before a kill
FURTHER = 2  # things that a run may make, at most, before the next kill
SERVERS = {"sidecar": "evoid_jax.sidecars.serve", "judge": "evoid_jax.sidecars.tiny.judge"}


class Server:
    """A sidecar or a judge on a port of its own, started again when it has died."""

    def __init__(self, kind: str, logs: Path):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.command = [sys.executable, "-m", SERVERS[kind], "--port", str(self.port)]
        self.log = (logs / f"{kind}.log").open("a")
        self.start()

    def start(self) -> None:
        """Start the process; returns at once."""
        self.process = subprocess.Popen(self.command, stdout=self.log, stderr=subprocess.STDOUT)

    def ready(self) -> None:
        """Wait until it answers."""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            try:
                httpx2.get(f"http://127.0.0.1:{self.port}/health", timeout=5.0, trust_env=False)
                return
            except httpx2.TransportError:
                time.sleep(0.2)
        raise TimeoutError(f"{self.command} does not answer; see {self.log.name}")

    def kill(self) -> None:
        """End it as the kernel does where memory runs out."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


class Trainer:
    """The run's own process, the same command each time."""

    def __init__(self, workdir: Path, servers: dict[str, Server], steps: int, cache: Path):
        flags = [f"--config.{setting}" for setting in SMALL.split()]
        flags += [f"--config.steps={steps}", f"--config.data.cache={cache}"]
        flags += [f"--config.reward.sidecars=http://127.0.0.1:{servers['sidecar'].port}"]
        flags += [f"--config.reward.judge=http://127.0.0.1:{servers['judge'].port}/v1"]
        self.command = [sys.executable, "-m", "evoid_jax.train", "--config=configs/evoid.py:tiny"]
        self.command += [f"--workdir={workdir}", *flags]
        self.log = workdir.with_suffix(".log").open("a")
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(self.command, stdout=self.log, stderr=subprocess.STDOUT)

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


def run_calmly(workdir: Path, servers: dict[str, Server], steps: int, cache: Path) -> float:
    """Make a run that nobody touches; returns its seconds."""
    began = time.monotonic()
    trainer = Trainer(workdir, servers, steps, cache)
    if trainer.process.wait(PATIENCE * 2):
        raise RuntimeError(f"the calm run failed; see {trainer.log.name}")
    return time.monotonic() - began


def run_hurt(
    workdir: Path,
    servers: dict[str, Server],
    steps: int,
    cache: Path,
    victims: list[str],
    pause: float,
    numbers: random.Random,
) -> int:
    """Make a run while its processes are killed; returns how many kills of `victims` it took.

    A trainer that ends by itself, as one does that starts while its judge is away, is started
    again, as a scheduler would.

    pause: the longest one before a kill, in seconds, after the run has come as far as it should.
    """
    trainer, spent, again = Trainer(workdir, servers, steps, cache), 0, 0
    goal, due = numbers.randint(0, FURTHER), None
    try:
        while (code := trainer.process.poll()) != 0:
            time.sleep(0.05)
            if code is not None and (again := again + 1) > AGAIN:
                raise RuntimeError(f"the run ended with status {code}; see {trainer.log.name}")
            if code is not None:
                print(
                    f"the trainer ended by itself, status {code}, and is started again", flush=True
                )
                trainer.start()
            if due is None and sum(made(workdir).values()) >= goal:
                due = time.monotonic() + moment(numbers, pause)
            if spent == len(victims) or due is None or time.monotonic() < due:
                continue
            victim = victims[spent]
            hurt = trainer if victim == "trainer" else servers[victim]
            hurt.kill()
            so_far = made(workdir)
            said = ", ".join(f"{count} {what}" for what, count in so_far.items() if count)
            print(f"kill {victim:8s} after {said or 'nothing'}", flush=True)
            hurt.start()
            spent += 1
            goal, due = sum(so_far.values()) + numbers.randint(0, FURTHER), None
    finally:
        trainer.kill()
    return spent


def moment(numbers: random.Random, longest: float) -> float:
    """Draw seconds whose every size is as likely: a start takes many, a step or a write few."""
    share = numbers.random()
    return SOON ** (1 - share) * longest**share


def made(workdir: Path) -> dict[str, int]:
    """Return how much a run has made so far."""
    record = workdir / "metrics.jsonl"
    return {
        "steps": record.read_text().count("\n") if record.is_file() else 0,
        "comparisons": len(list(workdir.glob("watch/step_*.json"))),
        "parts of the proof": len(list(workdir.glob("proof/*.npz"))),
    }


def ending(workdir: Path) -> dict[str, str]:
    """Return digests of what a run has left, by name, without what a clock or an address says."""
    left = {}
    for step in sorted((workdir / "checkpoints").iterdir(), key=lambda folder: int(folder.name)):
        for item in ("digests", "host"):
            content = json.dumps(files.read_json(step / item / "metadata"), sort_keys=True)
            left[f"checkpoint {step.name}: {item}"] = content
    record = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    for line in record:
        del line["seconds"]
        line["judge"] = {}  # how often it was asked: answers that were lost are asked for again
    left["metrics.jsonl"] = json.dumps(record)
    summary = files.read_json(workdir / "summary.json")
    left["summary.json"] = json.dumps({k: v for k, v in summary.items() if k != "seconds"})
    left["scores.json"] = (workdir / "scores.json").read_text()
    exported = next((workdir / "export").glob("*.safetensors"))
    left[exported.name] = hashlib.sha256(exported.read_bytes()).hexdigest()
    for video in sorted((workdir / "samples").glob("*.mp4")):
        left[video.name] = hashlib.sha256(video.read_bytes()).hexdigest()
    return {name: hashlib.sha256(text.encode()).hexdigest() for name, text in left.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--out", type=Path, help="kept; without, a temporary folder")
    args = parser.parse_args()
    out = (args.out or Path(tempfile.mkdtemp(prefix="chaos_"))).resolve()
    out.mkdir(parents=True, exist_ok=True)
    numbers, different, runs, spent = random.Random(args.seed), [], 0, 0
    kinds = ("trainer", *SERVERS)
    victims = [kinds[k % len(kinds)] for k in range(args.kills)]
    numbers.shuffle(victims)
    servers = {kind: Server(kind, out) for kind in SERVERS}
    try:
        for server in servers.values():
            server.ready()
        seconds = run_calmly(out / "calm", servers, args.steps, out / "cache")
        print(f"calm run: {seconds:.0f} s", flush=True)
        want = ending(out / "calm")
        while spent < args.kills:
            runs += 1
            place = out / f"hurt_{runs}"
            left = victims[spent:]
            pause = seconds / 3
            spent += run_hurt(place, servers, args.steps, out / "cache", left, pause, numbers)
            found = ending(place)
            wrong = [name for name in want | found if want.get(name) != found.get(name)]
            different += [f"hurt_{runs}: {name}" for name in wrong]
            said = f": {wrong}" if wrong else " ended as the calm one"
            print(f"run {runs}{said}", flush=True)
    finally:
        for server in servers.values():
            server.kill()
    counts = {kind: victims[:spent].count(kind) for kind in kinds}
    print(f"{spent} kills ({counts}) in {runs} runs of {args.steps} steps: ", end="")
    print("; ".join(different) or "every run ended with the same bits")
    if not args.out:
        shutil.rmtree(out)
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
