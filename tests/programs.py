"""Run Python programs beside a test, with this checkout and the files of tests/ on their path.

For what must hold in a process of its own: how many devices there are, what has been imported.
"""

import os
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent


def environment(**changes: str) -> dict[str, str]:
    """Return this process's environment with the checkout and tests/ on Python's path."""
    paths = os.pathsep.join(map(str, (ROOT, TESTS)))
    return os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": paths} | changes


def python(*arguments, timeout: float | None = None) -> str:
    """Run `python arguments..` at the checkout's root; return what it printed.

    It must end well: the test fails with the end of its errors otherwise.
    """
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=timeout,
        env=environment(),
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout
