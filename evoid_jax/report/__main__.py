"""Turn a run folder into one self-contained page, `report.html`.

    python -m evoid_jax.report --workdir=FOLDER

The page holds the headline with its interval and verdict, videos of base and evolved side by side,
what the rewards are, curves, the table of numbers, how the run was made and its config. Videos and
images are inside it as data URIs and it loads nothing, so it can be mailed. An unfinished run gives
a page that says so. The path of the page is printed.
"""

import argparse

from evoid_jax.report import page


def main() -> None:
    first = __doc__.splitlines()[0]
    parser = argparse.ArgumentParser(prog="python -m evoid_jax.report", description=first)
    parser.add_argument("--workdir", required=True, help="run folder written by evoid_jax.train")
    parser.add_argument("--videos", type=_count, default=12, help="triples to show (default: 12)")
    options = parser.parse_args()
    try:
        print(page.write(options.workdir, options.videos))
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from error


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected a whole number, 0 or more, got {text!r}")
    return int(text)


if __name__ == "__main__":
    main()
