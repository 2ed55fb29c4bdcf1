"""Whoever waits for servers that hang can be stopped, and the process ends."""

import signal
import subprocess
import sys
import time

import programs
import pytest
from fake_judge import FakeJudge, Slow
from fake_sidecar import Fake
from servers import serve

from evoid_jax.rewards import threads


def test_ctrl_c_ends_a_run_whose_sidecar_and_judge_hang(tmp_path):
    sidecar, judge = Fake(before=[900.0] * 9), FakeJudge(Slow(900.0))
    with serve(sidecar.app()) as url, serve(judge.app()) as judge_url:
        command = [sys.executable, "tests/hanging_run.py", url, f"{judge_url}/v1", str(tmp_path)]
        run = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=programs.environment(),
            cwd=programs.ROOT,
        )
        try:
            assert run.stdout.readline() == "collecting\n"
            end = time.monotonic() + 120
            while not (sidecar.posts and judge.asked) and time.monotonic() < end:
                time.sleep(0.05)
            run.send_signal(signal.SIGINT)
            _, errors = run.communicate(timeout=120)  # far less than the deadline of 900 s
        finally:
            run.kill()
    assert run.returncode != 0 and "KeyboardInterrupt" in errors


def test_a_thread_that_waits_for_ever_does_not_keep_the_process():
    code = "import threading; from evoid_jax.rewards import threads\n"
    code += "threads.start(threading.Event().wait)\n"
    code += "first = threads.each(lambda i: i * i, 5, 2)\n"
    code += "print(first)"
    assert programs.python("-c", code, timeout=120) == "[0, 1, 4, 9, 16]\n"


def test_what_a_thread_raises_is_raised_by_who_waits():
    def divide(i):
        return 6 / i

    assert threads.start(divide, 3).result() == 2
    with pytest.raises(ZeroDivisionError):
        threads.each(divide, 2, 8)
