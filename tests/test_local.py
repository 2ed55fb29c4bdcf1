"""Servers of our own that end or hang are started again, where they were."""

import logging
import os
import signal
import time

import httpx2
import jax
import numpy as np
import programs
import pytest
import replica_checks

from evoid_jax import config, sharding
from evoid_jax.rewards import local
from evoid_jax.rewards.panel import Panel
from evoid_jax.rewards.request import Request


@pytest.fixture
def started(monkeypatch, tmp_path):
    """Start plain servers, which are stopped at the end."""
    monkeypatch.setenv("PYTHONPATH", programs.environment()["PYTHONPATH"])
    servers = []

    def start(*args):
        servers.append(local.start_local("plain_server", list(args), tmp_path, timeout=60.0))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


def until(true, seconds=60.0):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.05)


def answers(url: str) -> bool:
    try:
        return httpx2.get(f"{url}/health", timeout=1.0, trust_env=False).status_code == 200
    except httpx2.TransportError:
        return False


@pytest.mark.parametrize("signal_number", [signal.SIGKILL, signal.SIGSTOP], ids=["ends", "hangs"])
def test_a_server_that_ends_or_hangs_is_started_again_at_its_address(
    started, signal_number, caplog
):
    server = started("often")
    url, first = server.url, server.pid
    server.keep(silence=2.0, timeout=60.0)
    for again in (1, 2):
        pid = server.pid
        os.killpg(pid, signal_number)
        until(lambda again=again: caplog.text.count("runs again") == again)
        assert server.pid != pid and server.url == url and answers(url)
        assert f"it is started again, {again} of 5" in caplog.text
    server.stop()
    pid = server.pid
    assert pid != first and not server.alive()
    time.sleep(1.5)
    assert server.pid == pid and not server.alive()  # what was stopped stays so


def test_a_server_that_cannot_start_again_is_left_with_words(started, caplog):
    caplog.set_level(logging.WARNING)
    server = started("once")
    server.keep(most=2, silence=60.0, timeout=60.0)
    os.killpg(server.pid, signal.SIGKILL)
    until(lambda: "is left now" in caplog.text)
    assert "not again" in caplog.text  # the end of its log
    assert caplog.text.count("it is started again") == 2 and not server.alive()


@pytest.mark.slow
@pytest.mark.parametrize("signal_number", [signal.SIGKILL, signal.SIGSTOP], ids=["end", "hang"])
def test_a_run_goes_on_when_its_own_servers_end_or_hang(tmp_path, monkeypatch, signal_number):
    """Its sidecar and its judge; what is asked meanwhile waits for them."""
    keep = local.Local.keep
    monkeypatch.setattr(local.Local, "keep", lambda server: keep(server, silence=5.0))
    made = replica_checks.clips(2)
    cfg = config.Reward(timeout=600.0)
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    with Panel(cfg, mesh, 8, tmp_path) as panel:
        for _ in range(2):
            for server in panel._servers:
                os.killpg(server.pid, signal_number)
            asked = Request(made.references, made.prompts)
            rows = np.arange(2, dtype=np.int32)
            scores = panel.collect([panel.submit(made.video_BFHWC, asked, rows)], asked)
            assert scores.valid_BM.all(), asked.why
            np.testing.assert_allclose(scores.score_BM[:, :7], made.score_BM, atol=1e-4)
