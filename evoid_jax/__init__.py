"""EvoID in JAX; README.md tells what it is."""

import sys


def _in_one_line(kind, error, traceback, usual=sys.excepthook) -> None:
    """Show an error as ever, but Ctrl-C in a line."""
    if issubclass(kind, KeyboardInterrupt):
        print("\nstopped; nothing had been started", file=sys.stderr)
    else:
        usual(kind, error, traceback)


# While Python looks for the module of `python -m evoid_jax.NAME`, argv begins so. The program then
# imports its libraries for seconds before commandline.run, which knows better words, has begun.
if sys.argv[:1] == ["-m"]:
    sys.excepthook = _in_one_line
