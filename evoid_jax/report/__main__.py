"""Turn a run folder into one page, `report.html`, or several into a page that compares them.

    python -m evoid_jax.report RUN [--blind] [--out=FOLDER]
    python -m evoid_jax.report RUN OTHER ... --out=FOLDER

The page of a run holds the headline with its interval and verdict, videos of base and evolved side
by side with their scores, what the rewards are, curves, tables, how the run was made and its
config. The other one, `FOLDER/compare.html`, sets runs against each other. They load nothing from
anywhere. Small videos are inside of a page, so that it can be mailed; large ones are files beside
it. An unfinished run gives a page that says so.

`blind/blind.html`, made with --blind and with every comparison, lets people choose between two
videos without knowing whose they are; the answers that it saves, put beside it, are counted when
the page is written again. What is written is printed.
"""

import argparse

from evoid_jax.report import compare, page, shelf
from evoid_jax.report import text as fmt


def main() -> None:
    options = _parser().parse_args()
    runs = [*options.runs, *([options.workdir] if options.workdir else [])]
    try:
        for file in _write(runs, options):
            print(fmt.whole(file))
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {fmt.whole(error)}") from error


def _write(runs: list[str], options: argparse.Namespace) -> list:
    if not runs:
        raise ValueError("name the folder of a run, or of several to compare them")
    if len(runs) > 1:
        out = options.out or "compare"
        return compare.write(runs, out, options.videos, options.media, options.answers)
    (run,) = runs
    written = [page.write(run, options.videos, options.media, options.answers, options.out)]
    return (
        [*written, page.write_blind(run, options.media, options.out)] if options.blind else written
    )


def _parser() -> argparse.ArgumentParser:
    first = __doc__.splitlines()[0]
    parser = argparse.ArgumentParser(prog="python -m evoid_jax.report", description=first)
    parser.add_argument("runs", nargs="*", metavar="RUN", help="folders that training wrote")
    parser.add_argument("--workdir", help="a run's folder, as training calls it")
    parser.add_argument("--videos", type=_count, default=12, help="triples to show (default: 12)")
    parser.add_argument(
        "--media",
        choices=shelf.MODES,
        default="auto",
        help="videos inside of the page or in files beside it (default: by their size)",
    )
    parser.add_argument(
        "--out", help="folder of the pages (default: the run's own, of several runs: compare)"
    )
    parser.add_argument("--blind", action="store_true", help="write a run's blind page too")
    parser.add_argument(
        "--answers",
        action="append",
        default=[],
        metavar="FILE",
        help="answers that the blind page saved, besides those in its folder; may be repeated",
    )
    return parser


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected a whole number, 0 or more, got {text!r}")
    return int(text)


if __name__ == "__main__":
    main()
