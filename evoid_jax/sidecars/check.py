"""Tell which weights of preset `paper` are there, and whether they score as they should.

    python -m evoid_jax.sidecars.check --preset=paper --weights=FOLDER

Weight by weight: where it lies, its files with size and sha256, or where to get it and under which
licence. Then each reward loads alone, and scores a sample clip and a spoilt one (paper/trial.py).
The flags are the server's; --video, --photo and --prompt bring a clip of your own. Ends with status
0 where every wanted reward scores as expected, else 1.
"""

from __future__ import annotations

import argparse
import gc
import sys
from collections.abc import Iterator
from pathlib import Path

from evoid_jax.sidecars.paper import catalogue, checkpoints, options, rewards, trial
from evoid_jax.sidecars.paper.clips import Clip
from evoid_jax.sidecars.paper.options import Options

LINE = "  {:8} {:22} {}"


def weights(wanted: Options, digests: bool = True) -> Iterator[tuple[bool, str]]:
    """Yield on each weight that the wanted rewards need whether it is there, and lines about it."""
    for weight in catalogue.WEIGHTS:
        if not set(weight.rewards) & set(wanted.rewards):
            continue
        try:
            place = catalogue.find(weight, wanted)
        except (FileNotFoundError, ValueError) as error:
            yield False, LINE.format("missing", weight.name, error)
            continue
        lines = [LINE.format("found", weight.name, f"{place.path} (licence: {weight.licence})")]
        for file in place.files:
            digest = f"  sha256 {checkpoints.digest([file])}" if digests else ""
            size = f"{file.stat().st_size:>14,} bytes  {file.name}"
            lines.append(LINE.format("", "", size + digest))
        yield True, "\n".join(lines)


def verdict(name: str, wanted: Options, clip: Clip) -> tuple[bool, str]:
    """Return whether a reward scores as expected, and a line about it."""
    expected = trial.TRIALS[name]
    try:
        preset = rewards.load(options=wanted._replace(rewards=(name,)))
        column = preset.rewards[0].score([trial.changed(clip), expected.spoil(clip)])
    except Exception as error:  # a loader may fail in any way; the next reward's is another
        return False, f"cannot be had: {type(error).__name__}: {error}"
    if any(column.reasons):
        return False, f"has no score: {next(filter(None, column.reasons))}"
    raw, spoilt = (float(x) for x in column.raw_B)
    inside = expected.low <= raw <= expected.high
    told = raw - spoilt >= expected.below
    words = (
        f"raw {raw:.3f}, expected {expected.low:g} to {expected.high:g}; {expected.words} "
        f"{spoilt:.3f}, expected {expected.below:g} lower"
    )
    return inside and told, f"{'as expected' if inside and told else 'NOT AS EXPECTED'}: {words}"


def main(arguments: list[str] | None = None) -> int:
    """Print what there is; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="paper", choices=["paper"])
    parser.add_argument("--weights", help="$EVOID_JAX_PAPER, else ~/.cache/evoid_jax/paper")
    options.add_arguments(parser)
    parser.add_argument("--video", type=Path, help="a clip of your own, with --photo and --prompt")
    parser.add_argument("--photo", type=Path)
    parser.add_argument("--prompt", default="")
    parser.add_argument("--no-digest", action="store_true", help="large files take a minute each")
    parser.add_argument("--no-score", action="store_true", help="only look at the files")
    args = parser.parse_args(arguments)
    if (args.video is None) != (args.photo is None):
        parser.error("--video and --photo go together")
    try:
        wanted = options.from_arguments(args)
        print(f"weights in {catalogue.root(wanted)}")
        good = True
        for there, lines in weights(wanted, not args.no_digest):
            good &= there
            print(lines, flush=True)
        if args.no_score:
            return 0 if good else 1
        own = args.video and trial.read(args.video, args.photo, args.prompt)
        clip = own or trial.made_up()
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print("rewards")
    for name in wanted.rewards:
        fine, words = verdict(name, wanted, clip)
        good &= fine
        print(LINE.format("", name, words), flush=True)
        gc.collect()  # one model at a time: together they may not fit
    return 0 if good else 1


if __name__ == "__main__":
    raise SystemExit(main())
