"""Run a server as a child that does not outlive its parent.

    python -m evoid_jax.rewards.launch_server PARENT MODULE ARGUMENTS..

is `python -m MODULE ARGUMENTS..`, but ends when PARENT, the process id of its parent, is gone.
"""

from __future__ import annotations

import os
import runpy
import sys
import threading
import time

PERIOD = 1.0  # seconds between two looks


def watch(parent: int) -> None:
    """End this process as soon as `parent` is no longer its parent."""
    # A killed parent runs no exit handlers and signals nobody; its children get another parent.
    while os.getppid() == parent:
        time.sleep(PERIOD)
    os._exit(0)  # not sys.exit, which would end this thread alone


def main() -> None:
    parent, sys.argv = int(sys.argv[1]), sys.argv[2:]
    # Before the module is imported: that may take a minute, and the parent may be gone by then.
    threading.Thread(target=watch, args=(parent,), daemon=True).start()
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
