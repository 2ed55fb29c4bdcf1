"""End one of two processes on purpose, for test_distributed.py, which starts both.

    python failing_process.py HOW WHO MEANWHILE      or      python failing_process.py alone

HOW process WHO ends (raise | vanish | stop, by a signal), and what the other one does MEANWHILE
(collective | asleep | working). It imports little, to be quick.
"""

import os
import signal
import sys
import time

import jax

from evoid_jax import distributed, interruption


def main(how: str, who: str = "", meanwhile: str = ""):
    if how == "alone":
        distributed.START = 5
    with distributed.together(distributed.settings(os.environ), silent=10):
        distributed.exchange(None)
        if jax.process_index() == int(who):
            if how == "raise":
                raise ValueError("the sidecar burns")
            if how == "vanish":
                os.kill(os.getpid(), signal.SIGKILL)
        if meanwhile == "asleep":
            time.sleep(900)
        if meanwhile == "working":
            work(stopped=jax.process_index() == int(who))
        distributed.exchange(None)
        print("went on alone")


def work(stopped: bool):
    """Do something together for long, and be asked to end."""
    with interruption.listening(grace=60):
        if stopped:
            os.kill(os.getpid(), signal.SIGTERM)
        interruption.pause(900)


main(*sys.argv[1:])
