"""Turn a run folder into one page, `report.html`, or several into a page that compares them.

    python -m evoid_jax.report RUN
    python -m evoid_jax.report RUN OTHER ... --out=FOLDER

The page of a run holds the headline with its interval and verdict, videos of base and evolved side
by side with their scores, what the rewards are, curves, tables, how the run was made and its
config. It loads nothing from anywhere. Small videos are inside of it, so that it can be mailed;
large ones stay in the run's folder, from which it takes them. An unfinished run gives a page that
says so. What is written is printed.
"""

import argparse

from evoid_jax.report import page, shelf


def main() -> None:
    first = __doc__.splitlines()[0]
    parser = argparse.ArgumentParser(prog="python -m evoid_jax.report", description=first)
    parser.add_argument("--workdir", required=True, help="run folder written by evoid_jax.train")
    parser.add_argument("--videos", type=_count, default=12, help="triples to show (default: 12)")
    parser.add_argument("--media", choices=shelf.MODES, default="auto", help="where videos are")
    options = parser.parse_args()
    try:
        print(page.write(options.workdir, options.videos, options.media))
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from error


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected a whole number, 0 or more, got {text!r}")
    return int(text)


if __name__ == "__main__":
    main()
