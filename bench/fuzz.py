"""Fuzz every reader of users' files, guided by coverage; a time for each target.

    python -m venv fuzz && fuzz/bin/pip install -r requirements.txt atheris
    PYTHONPATH=. fuzz/bin/python bench/fuzz.py --seconds=600 [TARGET ...]

A reader may answer or raise a ValueError or an OSError of one line that names the file. A fault is
any other exception, a message that does not say which file, or more memory or time than the bounds
below. Faults are told apart by where they come from; one input of each is kept in
`OUT/TARGET/faults`. The corpus in `OUT/TARGET/corpus` is gone on with the next time.

Atheris is no dependency of the project: it has wheels for Linux and Python 3.11 to 3.13 only.
"""

import argparse
import contextlib
import hashlib
import io
import json
import random
import re
import resource
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["evoid_jax"], exclude=["evoid_jax.sidecars.open"]):
    import fuzz_targets
    from fuzz_targets import Target

SECONDS = 10  # of CPU time that one input may take
MEGABYTES = 2500  # that reading any input may take beyond what reading the seeds took
DONE = re.compile(r"Done (\d+) runs in (\d+) second")
# What a value of JSON is replaced by.
NASTY = [None, True, False, 0, -1, 1.5, 1e308, float("nan"), float("inf"), 10**400, 2**63]
NASTY += ["", "x", "\0", "\ud800", "é" * 300, "../../x", "nan", "1e999", -(10**9)]
NASTY += [[], {}, [[]], [0, 0], {"": 0}]


def main() -> None:
    options = _parser().parse_args()
    if options.child:
        _fuzz(fuzz_targets.TARGETS[options.child], options.out / options.child, options.seconds)
        return
    faulty = 0
    print("| target | seconds | inputs | faults |\n|---|---|---|---|")
    for name in options.targets or list(fuzz_targets.TARGETS):
        seconds, inputs, faults = _run(name, options.out, options.seconds)
        faulty += bool(faults)
        print(f"| {name} | {seconds} | {inputs} | {faults} |", flush=True)
    raise SystemExit(1 if faulty else 0)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("targets", nargs="*", metavar="TARGET", choices=[*fuzz_targets.TARGETS, []])
    parser.add_argument("--seconds", type=int, default=600, help="for each target (default: 600)")
    parser.add_argument("--out", type=Path, default=Path("runs/fuzz"), help="corpora and faults")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    return parser


def _run(name: str, out: Path, seconds: int) -> tuple[str, str, str]:
    """Fuzz one target in a process of its own; returns seconds, inputs and faults as texts."""
    place = out / name
    (place / "faults").mkdir(parents=True, exist_ok=True)
    for old in (place / "faults").iterdir():
        old.unlink()
    words = [sys.executable, __file__, f"--child={name}", f"--out={out}", f"--seconds={seconds}"]
    with open(place / "log.txt", "w") as log:
        done = subprocess.run(words, stdout=log, stderr=log, check=False)
    said = DONE.findall((place / "log.txt").read_text(errors="replace"))
    count = len(list((place / "faults").glob("*.txt")))
    if done.returncode or not said:
        return "-", "-", f"{count}, and it ended with {done.returncode}: {place / 'log.txt'}"
    inputs, took = said[-1]
    return took, inputs, str(count)


def _fuzz(target: Target, place: Path, seconds: int) -> None:
    """Fuzz one target until its time is over; ends the process."""
    corpus = place / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f"fuzz_{target.name}_"))
    seen: set[str] = set()
    for seed in target.seeds():
        (corpus / hashlib.sha256(seed).hexdigest()[:16]).write_bytes(seed)
        # A seed that is refused would leave most of a reader unvisited.
        target.read(folder, seed)
    calm = _megabytes()

    def one(data: bytes) -> None:
        started = time.process_time()
        fault = _fault(target, folder, data)
        if (took := time.process_time() - started) > SECONDS:
            fault = f"time: {took:.0f} seconds"
        if (more := _megabytes() - calm) > MEGABYTES and "memory" not in seen:
            fault = f"memory: {more} megabytes more than the seeds"
        if fault and (kind := fault.partition(":")[0] + fault.rpartition("File ")[2]) not in seen:
            seen.update({kind, kind.partition(":")[0]})
            stem = place / "faults" / hashlib.sha256(kind.encode()).hexdigest()[:12]
            stem.with_suffix(".bin").write_bytes(data)
            stem.with_suffix(".txt").write_text(fault)

    flags = [f"-max_total_time={seconds}", f"-max_len={target.longest}", "-timeout=300"]
    flags += ["-rss_limit_mb=8000", f"-artifact_prefix={place}/", "-print_final_stats=1"]
    mutate = {"custom_mutator": lambda *given: _mutated(target, *given)} if target.join else {}
    atheris.Setup([sys.argv[0], *flags, str(corpus)], one, **mutate)
    atheris.Fuzz()


def _fault(target: Target, folder: Path, data: bytes) -> str:
    """Read one input; returns what is wrong with how it was answered, or ""."""
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            target.read(folder, data)
    except (ValueError, OSError) as error:
        text = str(error)
        if not text.strip() or target.called not in text:
            return f"message that does not name the file: {_trace(error)}"
    except BaseException as error:  # a panic of Rust code is no Exception
        if isinstance(error, KeyboardInterrupt):
            raise
        return f"{type(error).__name__}: {_trace(error)}"
    return ""


def _trace(error: BaseException) -> str:
    """Return a traceback whose last line is the innermost place in our own code."""
    lines = traceback.format_exception(error)
    places = [at for at in traceback.extract_tb(error.__traceback__) if "evoid_jax" in at.filename]
    last = f'File "{places[-1].filename}", line {places[-1].lineno}' if places else "File elsewhere"
    return "".join(lines)[-6000:] + f"\n{last}"


def _megabytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


# --- changes that keep what is JSON so


def _mutated(target: Target, data: bytes, most: int, seed: int) -> bytes:
    """Change a value of the JSON in an input, or sometimes any bytes."""
    draw = random.Random(seed)
    try:
        rows, rest = target.split(data)
    except (ValueError, RecursionError):
        rows = []
    if not rows or draw.random() < 0.2:
        return atheris.Mutate(data, most)
    try:
        for _ in range(draw.choice((1, 1, 1, 2, 4))):
            number = draw.randrange(len(rows))
            rows[number] = _changed(rows[number], draw)
        if draw.random() < 0.1:
            rest = atheris.Mutate(rest, most) if rest else rest
        made = target.join(rows, rest)
    except (ValueError, RecursionError):  # too deep, or too long a number, to be written
        return data
    return made if len(made) <= most else data


def _changed(value, draw: random.Random):
    """Return JSON with one of its values changed, in place where it can be."""
    places = list(_places(value))
    if not places or draw.random() < 0.02:
        return draw.choice(NASTY)
    holder, key = draw.choice(places)
    way, old = draw.random(), holder[key]
    if way < 0.5:
        holder[key] = json.loads(json.dumps(draw.choice(NASTY)))
    elif way < 0.6:
        del holder[key]
    elif way < 0.75:  # something of the same file in another place
        other, place = draw.choice(places)
        holder[key] = json.loads(json.dumps(other.get(place) if isinstance(other, dict) else old))
    elif way < 0.85:
        nested = old
        for _ in range(draw.choice((1, 3, 120, 900))):
            nested = [nested]
        holder[key] = nested
    elif type(old) in (int, float) and abs(old) < 1e300:
        holder[key] = draw.choice((old + 1, old - 1, -old, old * 1000, old / 2, str(old)))
    elif isinstance(holder, dict):
        holder[draw.choice(("", "x", "digest", "name", "step", f"{key}x"))] = old
    else:
        holder.append(old)
    return value


def _places(value):
    """Yield (holder, key) of every value inside of JSON, however deep."""
    left = [value]
    while left:
        holder = left.pop()
        pairs = list(holder.items()) if isinstance(holder, dict) else []
        pairs += list(enumerate(holder)) if isinstance(holder, list) else []
        for key, inner in pairs:
            yield holder, key
            left.append(inner)


if __name__ == "__main__":
    main()
