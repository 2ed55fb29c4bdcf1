"""Real sidecars, as processes: killed, hung and started again while videos are under way."""

import os
import signal

import pytest
import replica_checks as checks

from evoid_jax.rewards import local

pytestmark = pytest.mark.slow


def test_one_is_killed_and_one_hangs(tmp_path):
    servers = [local.start_sidecar("tiny", tmp_path / str(k), 900.0) for k in range(3)]
    try:
        urls, made = [server.url for server in servers], checks.clips()
        checks.check_scores(urls, made)
        checks.check_refusal(urls[0])

        def hurt():
            os.killpg(servers[0].pid, signal.SIGKILL)
            os.killpg(servers[1].pid, signal.SIGSTOP)

        checks.check_loss(urls, made, hurt)
        os.killpg(servers[1].pid, signal.SIGCONT)
        os.killpg(servers[2].pid, signal.SIGSTOP)
        checks.check_loss(urls, made, hurt=lambda: None)  # by the one that hung before
    finally:
        for server in servers:
            if server.alive():
                os.killpg(server.pid, signal.SIGCONT)
            server.stop()
