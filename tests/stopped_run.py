"""The run of test_train.py in a process of its own, which may be stopped.

python stopped_run.py WORKDIR CACHE
"""

from pathlib import Path

import conftest  # noqa: F401  the same arithmetic, and compiled programs
from small_run import settings

from evoid_jax import commandline, interruption, train


def main(argv: list[str]) -> None:
    try:
        train.train(settings(argv[2], 4), Path(argv[1]))
    except interruption.Interrupted as stop:
        interruption.insist(stop)
        raise


if __name__ == "__main__":
    commandline.run(main)
