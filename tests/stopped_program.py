"""A program that is asked to end by signals; what it does stands in its first argument.

It prints "ready" when signals are heard, and what it saves.
"""

import signal
import sys
import threading
import time

from evoid_jax import commandline, interruption


def wait(seconds: float = 60.0) -> None:
    print("ready", flush=True)
    time.sleep(seconds)


def plain() -> None:
    """Wait, and save where the signal meets it."""
    with interruption.listening(grace=30):
        try:
            wait()
        except interruption.Interrupted as stop:
            print("saved", flush=True)
            raise interruption.Interrupted("7 steps are saved", *interruption.told(stop)) from None


def ignoring() -> None:
    """Do as `plain` under nohup."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    plain()


class Slow:
    """Something that takes its time to go."""

    def __del__(self):
        wait(1.0)


def finalizing() -> None:
    """Be in a finalizer, where Python drops whatever is raised; come to a point, in time."""
    with interruption.listening(grace=30):
        slow = Slow()
        del slow
        print("lost", flush=True)
        interruption.point()
        print("not ended", flush=True)


def shielded() -> None:
    """Be in the middle of what must not be torn apart."""
    with interruption.listening(grace=30), interruption.shielded():
        wait(1.0)
        print("whole", flush=True)


def stuck() -> None:
    """Hang where no signal is heard to the end."""
    with interruption.listening(grace=1.0), interruption.shielded():
        wait()


def held_up() -> None:
    """Be kept from ending by a thread."""
    try:
        with interruption.listening(grace=2.0):
            threading.Thread(target=time.sleep, args=(60,)).start()
            wait()
    except interruption.Interrupted as stop:
        interruption.insist(stop)
        raise


def afterwards() -> None:
    """Go on as before once the block is left: a later signal has its usual meaning."""
    with interruption.listening(grace=1.0):
        pass
    wait()


if __name__ == "__main__":
    known = (plain, ignoring, finalizing, shielded, stuck, held_up, afterwards)
    doing = {f.__name__: f for f in known}[sys.argv.pop(1)]
    commandline.run(lambda argv: doing())
