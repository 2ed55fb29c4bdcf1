"""Who may come in, how much they may bring and how slowly, to the servers of ours."""

import argparse
import contextlib
import socket
import time
from urllib.parse import urlsplit

import httpx2
import numpy as np
import pytest
from fastapi import FastAPI, Request, Response
from servers import serve

from evoid_jax.rewards import background, faceless, transport
from evoid_jax.sidecars import door, limits, listen, preset, wire
from evoid_jax.sidecars import serve as sidecar
from evoid_jax.sidecars.tiny import judge

TOKEN = "0123456789abcdef"
NOTHING = preset.Preset("nothing", (), (), lambda request: ())
SERVERS = {
    "sidecar": lambda token: sidecar.app(NOTHING, token=token),
    "judge": lambda token: judge.app(token),
}


def echo(**options) -> FastAPI:
    """Return an app that tells how many bytes came, behind a door."""
    api = FastAPI()
    api.add_middleware(door.Door, **options)

    @api.get("/health")
    async def health():
        return "ok"

    @api.post("/size")
    async def size(request: Request):
        return len(await request.body())

    @api.get("/large")
    async def large():
        return Response(bytes(2**25))

    return api


def get(url: str, path: str, **headers) -> httpx2.Response:
    return httpx2.get(url + path, headers=headers, timeout=60, trust_env=False)


@contextlib.contextmanager
def connected(url: str, first: bytes = b""):
    """Yield a socket to a server, on which some bytes have been sent."""
    parts = urlsplit(url)
    with socket.create_connection((parts.hostname, parts.port), timeout=60) as peer:
        peer.sendall(first)
        yield peer


def until_closed(peer: socket.socket) -> bytes:
    """Return what a server still says before it ends the connection."""
    said = bytearray()
    with contextlib.suppress(ConnectionResetError):
        while some := peer.recv(2**16):
            said += some
    return bytes(said)


# --- the token


@pytest.mark.parametrize("name", SERVERS)
def test_a_token_is_wanted_everywhere_but_for_health(name):
    with serve(SERVERS[name](TOKEN)) as url:
        assert get(url, "/health").status_code == 200
        for path in ("/info", "/score", "/metrics", "/photos", "/v1/models", "/health/", "/no"):
            refused = get(url, path)
            assert refused.status_code == 401, path
            assert refused.headers["www-authenticate"] == "Bearer"
        for method in ("POST", "PUT", "OPTIONS", "HEAD", "TRACE"):
            path = f"{url}/v1/chat/completions"
            assert httpx2.request(method, path, trust_env=False).status_code == 401
        right = f"Bearer {TOKEN}"
        path = "/info" if name == "sidecar" else "/v1/models"
        assert get(url, path, Authorization=right).status_code == 200
        for wrong in (TOKEN, f"Basic {TOKEN}", right[:-1], right + "0", "Bearer", "é"):
            refused = get(url, path, Authorization=wrong.encode())
            assert refused.status_code == 401 and TOKEN not in refused.text


def test_the_token_is_compared_in_a_time_that_tells_nothing(monkeypatch):
    compared = []
    monkeypatch.setattr(door.hmac, "compare_digest", lambda *both: compared.append(both) or True)
    with serve(echo(most=9, token=TOKEN)) as url:
        assert get(url, "/large", Authorization="Bearer wrong").status_code == 200
    assert compared == [(b"wrong", TOKEN.encode())]


@pytest.mark.parametrize("name", SERVERS)
def test_without_a_token_nobody_is_asked(name):
    with serve(SERVERS[name](None)) as url:
        path = "/info" if name == "sidecar" else "/v1/models"
        assert get(url, path).status_code == 200


def test_a_run_sends_what_its_environment_says(monkeypatch):
    """Wherever it speaks to a sidecar: for what that is, for scores, for a look at photos."""
    seeing = NOTHING._replace(check_photo=lambda photo_HWC: "no face")
    photos = wire.encode_photos([np.zeros((2, 2, 3), np.uint8)])
    with serve(sidecar.app(seeing, token=TOKEN)) as url:
        monkeypatch.delenv(transport.TOKEN, raising=False)
        with pytest.raises(transport.SidecarError, match="401"):
            background.run(transport.ask("GET", f"{url}/info", 60.0))
        with pytest.raises(ConnectionError, match="401"):
            faceless._ask(url, photos, 1, timeout=30.0)
        monkeypatch.setenv(transport.TOKEN, TOKEN)
        told = background.run(transport.ask("GET", f"{url}/info", 60.0))
        assert told["preset"] == "nothing"
        looked = background.run(transport.ask("POST", f"{url}/photos", 60.0, [photos]))
        assert looked == {"problems": ["no face"]}
        assert faceless._ask(url, photos, 1, timeout=30.0) == ["no face"]


def test_a_page_in_a_browser_is_refused():
    """It would come from loopback, where there is no token."""
    with serve(sidecar.app(NOTHING)) as url:
        assert get(url, "/info", Origin="https://example.com").status_code == 403


@pytest.mark.parametrize(
    ("options", "result"),
    [
        ({"loopback": True}, None),
        ({"loopback": False, "trusted": True}, None),
        ({"loopback": True, "variable": "GOOD"}, TOKEN),
        ({"loopback": False, "variable": "GOOD"}, TOKEN),
        ({"loopback": False, "variable": "GOOD", "trusted": True}, TOKEN),
        ({"loopback": False, "variable": "NONE", "trusted": True}, None),
        ({"loopback": False}, "--trusted-network"),
        ({"loopback": False, "variable": "NONE"}, "is not set"),
        ({"loopback": True, "variable": "NONE"}, "is not set"),
        ({"loopback": True, "variable": "EMPTY"}, "is not set"),
        ({"loopback": False, "variable": "SHORT"}, "16 or more"),
        ({"loopback": False, "variable": "STRANGE"}, "of ASCII"),
        ({"loopback": False, "variable": "BLANK"}, "no blanks"),
    ],
)
def test_which_token_a_server_asks_for(monkeypatch, options, result):
    values = {"GOOD": TOKEN, "SHORT": "secret-but-few", "EMPTY": "", "BLANK": f"{TOKEN} {TOKEN}"}
    for name, value in (values | {"STRANGE": "é" * 20}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("NONE", raising=False)
    asked = {"variable": "", "host": "0.0.0.0", "trusted": False} | options
    if result in (None, TOKEN):
        assert door.token(**asked) == result
    else:
        with pytest.raises(ValueError, match=result) as caught:
            door.token(**asked)
        assert "secret-but-few" not in str(caught.value)


def flags(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    listen.add_arguments(parser, port=0)
    return parser.parse_args(words)


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_a_server_for_other_machines_does_not_start_without_a_token(host):
    with pytest.raises(SystemExit, match="is reached from other machines"):
        listen.bind(flags(f"--host={host}"))
    listener, asked = listen.bind(flags(f"--host={host}", "--trusted-network"))
    listener.close()
    assert asked is None


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1"])
def test_loopback_is_the_default_and_needs_no_token(host, tmp_path):
    assert flags().host == "127.0.0.1"
    args = flags(f"--host={host}", f"--port-file={tmp_path / 'port'}")
    listener, asked = listen.bind(args)
    with listener:
        address = listen.announce(listener, args)
        assert asked is None and str(urlsplit(address).port) == args.port_file.read_text().strip()
        taken = flags(f"--host={host}", f"--port={urlsplit(address).port}")
        with pytest.raises(SystemExit, match="cannot listen on"):
            listen.bind(taken)


# --- bodies


def test_a_body_that_says_it_is_too_large_is_refused_unread():
    head = b"POST /size HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"
    with serve(echo(most=1000)) as url:
        for length in (1001, 10**14, 10**400):
            with connected(url, head % length) as peer:
                assert peer.recv(2**16).startswith(b"HTTP/1.1 4")  # the last one by HTTP's rules
        reply = httpx2.post(f"{url}/size", content=bytes(1000), trust_env=False)
        assert reply.json() == 1000


def test_a_body_without_end_is_refused_when_it_is_too_large(monkeypatch):
    """In chunks, without a length; and then with less than what a length may announce."""
    sent = []

    def endless():
        while len(sent) < 10_000:
            sent.append(1)
            yield bytes(2**16)

    monkeypatch.setattr(limits, "UNTOLD", 2**18)
    with serve(echo(most=2**19), make=listen.server) as url, httpx2.Client(trust_env=False) as http:
        reply = http.post(f"{url}/size", content=iter([bytes(2**16)] * 4), timeout=60)
        assert reply.json() == 2**18
        assert http.post(f"{url}/size", content=bytes(2**19), timeout=60).json() == 2**19
        with contextlib.suppress(httpx2.WriteError):
            reply = http.post(f"{url}/size", content=endless(), timeout=60)
            assert reply.status_code == 413 and "262,144 bytes" in reply.json()["detail"]
        assert get(url, "/health").status_code == 200


def test_a_body_that_drips_is_given_up():
    head = b"POST /size HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n"
    with serve(echo(most=1000, patience=0.3, pace=2**20)) as url, connected(url, head) as peer:
        peer.settimeout(0.05)
        said, end = b"", time.monotonic() + 60
        while not said and time.monotonic() < end:
            peer.sendall(b"x")
            with contextlib.suppress(TimeoutError):
                said = peer.recv(2**16)
        assert said.startswith(b"HTTP/1.1 408") and b"too slowly" in said


def test_a_slow_body_that_brings_enough_is_read():
    """Longer than the first patience, since every byte buys a little more time."""
    head = b"POST /size HTTP/1.1\r\nHost: x\r\nContent-Length: 60\r\n\r\n"
    with serve(echo(most=1000, patience=1.0, pace=1.0)) as url, connected(url, head) as peer:
        for _ in range(6):
            peer.sendall(b"0123456789")
            time.sleep(0.3)
        assert peer.recv(2**16).startswith(b"HTTP/1.1 200")


# --- connections


def test_heads_that_never_end_are_given_up(monkeypatch):
    monkeypatch.setattr(listen, "HEAD_SECONDS", 0.3)
    starts = (b"", b"GET /he", b"POST /size HTTP/1.1\r\nHost: x\r\nX-More: ")
    with serve(echo(most=1000), make=listen.server) as url:
        for start in starts:
            with connected(url, start) as peer:
                assert until_closed(peer) == b""
        whole = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
        with connected(url, whole) as peer:  # a next request on the same connection
            assert peer.recv(2**16).startswith(b"HTTP/1.1 200")
            peer.sendall(b"GET /health HTT")
            assert until_closed(peer) == b""


def test_a_head_without_end_is_refused():
    head = b"GET /health HTTP/1.1\r\nX: " + b"x" * listen.HEAD_BYTES
    with serve(echo(most=1000), make=listen.server) as url, connected(url, head) as peer:
        peer.sendall(b"x" * 1000)
        assert until_closed(peer).startswith(b"HTTP/1.1 4")


def test_a_request_that_takes_long_is_no_slow_peer(monkeypatch):
    monkeypatch.setattr(listen, "HEAD_SECONDS", 0.2)
    head = b"POST /size HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\n12"
    with serve(echo(most=1000), make=listen.server) as url, connected(url, head) as peer:
        time.sleep(0.6)
        peer.sendall(b"34")
        assert peer.recv(2**16).startswith(b"HTTP/1.1 200")


def test_who_holds_many_connections_shuts_nobody_out(monkeypatch):
    """The oldest that wait without a request are ended; what is under way is not."""
    monkeypatch.setattr(listen, "CONNECTIONS", 8)
    under_way = b"POST /size HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\n12"
    with (
        serve(echo(most=1000), make=listen.server) as url,
        connected(url, under_way) as busy,
        contextlib.ExitStack() as stack,
    ):
        for _ in range(100):
            stack.enter_context(connected(url, b"GET /health HTTP/1.1\r\nHo"))
        for _ in range(3):
            assert get(url, "/health").status_code == 200
        busy.sendall(b"34")
        assert busy.recv(2**16).startswith(b"HTTP/1.1 200")


def test_a_reply_that_nobody_takes_is_given_up(monkeypatch):
    monkeypatch.setattr(listen, "REPLY_SECONDS", 0.3)
    running = []

    def make(app):
        running.append(listen.server(app))
        return running[0]

    with serve(echo(most=1000), make=make) as url:
        with connected(url, b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n") as peer:
            end = time.monotonic() + 60
            while not running[0].server_state.connections and time.monotonic() < end:
                time.sleep(0.01)
            while running[0].server_state.connections and time.monotonic() < end:
                time.sleep(0.01)
            assert not running[0].server_state.connections
            assert len(until_closed(peer)) < 2**25
        monkeypatch.setattr(listen, "REPLY_SECONDS", 60.0)
        with connected(url, b"GET /large HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n") as peer:
            assert len(until_closed(peer)) > 2**25
