"""Measure models and systems on OpenS2V-Eval v1.1, Human-Domain: one command a row of the table.

    python -m evoid_jax.evaluate --data=Human-Domain_Eval.json --images=DIR --out=DIR \\
        (--model=FOLDER [--lora=FILE] | --videos=DIR,... | --metrics=DIR,...)

Makes the videos, or takes KEY.mp4 of any system, or the benchmark's metric files as they are;
scores them; writes the benchmark's metric files, the total, and one table over all rows of --out.
Called again, it makes no video and scores none that it has. docs/evaluation.md has the details.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging as std_logging
import math
import re
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
from absl import app, flags, logging

from evoid_jax import (
    commandline,
    deployment,
    distributed,
    fields,
    files,
    hub,
    rollout,
    run_lock,
)
from evoid_jax.evaluate import cases, kept, making, rows, scorers, scoring, table, upstream
from evoid_jax.evaluate.cases import Case
from evoid_jax.evaluate.journal import Journal
from evoid_jax.models import adapters
from evoid_jax.reward_groups import Reward

NAME = re.compile(r"[\w+-][\w.+-]*")  # of a row, and its folder's
LOGS = "logs"  # a folder beside those of the rows, with one for the first row of each command
TAKEN = (LOGS, table.TEXT, table.DATA)  # names in --out that no row can have
# Settings of a run's rewards that are asked for here too, and what they are here.
REWARD = {"sidecars": ["local"], "preset": "paper", "judge": ""}
REWARD |= {
    entry.name: entry.default
    for entry in dataclasses.fields(Reward)
    if entry.name == "timeout" or (entry.name.startswith("judge_"))
}


class Kind(NamedTuple):
    """What a row is made from: one of the three is there."""

    name: str
    how: making.How | None = None
    videos: Path | None = None
    metrics: Path | None = None


class Asked(NamedTuple):
    """What the flags say, checked."""

    listed: list[Case]
    kinds: list[Kind]
    out: Path
    reward: Reward
    against: str | None
    score: bool
    evoscore: bool
    workers: int


def define_flags(values: flags.FlagValues):
    """Define the command line in `values`."""
    string, whole, texts, truth = (
        partial(define, flag_values=values)
        for define in (
            flags.DEFINE_string,
            flags.DEFINE_integer,
            flags.DEFINE_list,
            flags.DEFINE_bool,
        )
    )
    string("data", None, "Human-Domain_Eval.json, or a list of its form.", required=True)
    string("images", None, "Folder that its photos are named below; default: its own.")
    string("out", None, "Folder of the table, with a folder for each row.", required=True)
    string("model", None, "Diffusers WanVACEPipeline to make videos with: folder or hub name.")
    string("lora", None, "Adapter for --model: its file or folder.")
    texts("videos", [], "Folders with KEY.mp4 of other systems.")
    texts("metrics", [], "Folders with metric files of the benchmark's own scripts.")
    texts("name", [], "Names of the rows, in this order; default: those of the folders.")
    string("against", None, "Row that the others are compared with; default: the oldest one.")
    truth("score", True, "Score the videos; --noscore only makes them.")
    truth("evoscore", True, "Ask the judge for EvoScore too, where there is one.")
    whole("workers", 4, "Videos that are scored at once.", 1, 1000)
    deployment.define_flags(values)
    whole("videos_per_device", 1, "Made at once.", 1, 1000)
    whole("fsdp", 1, "Pieces of the model; -1: as many as devices are left.", -1, 100_000)
    whole("context", 1, "Pieces of a video's tokens.", 1, 100_000)
    _define_reward_flags(values)


def _define_reward_flags(values: flags.FlagValues) -> None:
    """Define the settings of config.reward that are used here, as --reward.NAME."""
    makers = {str: flags.DEFINE_string, int: flags.DEFINE_integer, float: flags.DEFINE_float}
    makers |= {bool: flags.DEFINE_bool, fields.TEXTS: flags.DEFINE_list}
    for name, leaf in fields.leaves(Reward, "reward").items():
        short = name.removeprefix("reward.")
        if short in REWARD:
            words = leaf.entry.metadata["words"]
            makers[leaf.kind](name, REWARD[short], words, flag_values=values)


# --- what is asked for


def check(args: flags.FlagValues) -> Asked:
    """Read the flags and try whatever costs nothing.

    Raises:
      OSError, ValueError: a flag or a file is wrong; the message names it.
    """
    out = files.user_path(args.out)
    if distributed.leads():  # which alone writes it
        files.check_writable(out / table.TEXT)
    if args.lora and not args.model:
        raise ValueError("--lora is an adapter for --model, which is missing")
    if args.fsdp == 0:
        raise ValueError("--fsdp must be -1 or at least 1, got 0")
    listed = cases.read(args.data, args.images, with_photos=bool(args.model or args.videos))
    asked = {name: args[f"reward.{name}"].value for name in REWARD}
    reward = fields.build(Reward, asked, "--reward")
    kinds = _kinds(args, out)
    if not kinds:
        raise ValueError("give --model, --videos or --metrics: what is to be measured")
    for kind in kinds:
        if kind.videos is not None:
            cases.check_videos(kind.videos, listed)
    if args.score:
        table.check(out, anew=[kind.name for kind in kinds])
        for kind in kinds:
            kept.earlier(out / kind.name, today={})  # can be read
    if args.against is not None and args.score:
        table.check_name(out, args.against, [*table.names(out), *(kind.name for kind in kinds)])
    return Asked(
        listed=listed,
        kinds=kinds,
        out=out,
        reward=reward,
        against=args.against,
        score=args.score,
        evoscore=args.evoscore,
        workers=args.workers,
    )


def _kinds(args: flags.FlagValues, out: Path) -> list[Kind]:
    """Return the rows that are asked for, each with its name; `out` may have them already."""
    videos = [_folder("--videos", name) for name in args.videos]
    metrics = [_folder("--metrics", name) for name in args.metrics]
    kinds = []
    if args.model:
        adapter = adapters.locate(args.lora) if args.lora else None
        name = args.name[0] if args.name else _usual_name(args.model, adapter)
        kinds.append(Kind(name, how=_how(args, out / name)))
    kinds += [Kind(folder.resolve().name, videos=folder) for folder in videos]
    kinds += [Kind(folder.resolve().name, metrics=folder) for folder in metrics]
    if args.name and len(args.name) != len(kinds):
        raise ValueError(f"--name has {len(args.name)} names for {len(kinds)} rows")
    names = args.name or [kind.name for kind in kinds]
    for name in names:
        if not NAME.fullmatch(name) or name in TAKEN:
            raise ValueError(
                f"--name: a row cannot be called {name!r}; letters, digits and . + - _ make one, "
                f"but not {', '.join(TAKEN)}"
            )
        if names.count(name) > 1:
            raise ValueError(f"two rows are called {name}; give each a --name of its own")
    return [kind._replace(name=name) for kind, name in zip(kinds, names, strict=True)]


def _usual_name(model: str, adapter: Path | None) -> str:
    """Return the name of a model's row: its folder's, and that of the run that made its adapter."""
    name = Path(model).name.partition("@")[0]
    if adapter is None:
        return name
    folder = adapter.resolve().parent
    return f"{name}+{folder.parent.name if folder.name == 'export' else folder.name}"


def _folder(flag: str, name: str) -> Path:
    folder = files.user_path(name)
    if not folder.is_dir():
        raise FileNotFoundError(f"{flag}: there is no folder {folder.absolute()}")
    return folder


def _how(args: flags.FlagValues, row: Path) -> making.How:
    """Return how the videos of a model's row are made. Collective."""
    if args.shift is not None and not 0 < args.shift < math.inf:
        raise ValueError(f"--shift must be a number above 0, got {args.shift}")
    model, dtype = _settled(args, row)
    adapter, header = None, None
    if args.lora:
        adapter = files.require_file(adapters.locate(args.lora), "expected an adapter file")
        header = adapters.read(adapter).header
        if meant := deployment.told(args.flag_values_dict(), header):
            distributed.say(f"{row.name}: {meant}")
    settings_folder = hub.folder(model, with_weights=False)
    return making.How(
        model=model,
        lora=adapter,
        chosen=deployment.settings(settings_folder, args.flag_values_dict(), header),
        sampler=deployment.sampler(args.flag_values_dict(), header),
        seed=args.seed,
        dtype=dtype,
        together=args.videos_per_device,
        mesh=(1 if args.fsdp == -1 else -1, args.fsdp, args.context),
    )


def _settled(args: flags.FlagValues, row: Path) -> tuple[Path, str]:
    """Return the model and the dtype, which hang on the day and on the machine. Collective.

    A row that was begun has both: it goes on with them, unless a flag says otherwise.
    """
    chosen = None
    if distributed.leads():
        was, usual = rows.begun(row), rollout.usual_dtype()
        model = hub.pinned(files.user_path(args.model), was=str(was.get("model") or ""))
        begun = was.get("dtype") if was.get("dtype") in making.DTYPES else usual
        if args.dtype is None and begun != usual:
            distributed.say(f"{row.name}: {begun}, as it was begun; a new row here has {usual}")
        chosen = [str(model), args.dtype or begun]
    model, dtype = distributed.exchange(chosen)[0]
    return Path(model), dtype


# --- doing it


def run(asked: Asked) -> str:
    """Do what is asked. Collective: processes make videos together, the first one scores them.

    Returns:
      The table's text; "" in the other processes, and where nothing is to be scored.

    Raises:
      OSError, ValueError: the message tells the user what to do.
    """
    with _alone(asked):
        for kind in asked.kinds:
            folder = asked.out / kind.name
            if distributed.leads():
                rows.begin(folder, _facts(asked.listed, kind))
            if kind.how is not None:
                making.make(asked.listed, folder / rows.VIDEOS, kind.how)
        if not distributed.leads() or not asked.score:
            return ""
        for kind in asked.kinds:
            if kind.metrics is not None:
                rows.write_merged(asked.out / kind.name, asked.listed, kind.metrics)
        scored = [kind for kind in asked.kinds if kind.metrics is None]
        if scored:
            _score(asked, scored)
    with run_lock.turn(asked.out):
        return table.write(asked.out, table.load(asked.out, asked.against))


@contextlib.contextmanager
def _alone(asked: Asked) -> Iterator[None]:
    """Hold the rows' folders: several commands may fill one table, never one row."""
    with contextlib.ExitStack() as stack:
        for kind in asked.kinds:
            folder = asked.out / kind.name
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(run_lock.held(folder, flag="--name or --out"))
        yield


def _facts(listed: list[Case], kind: Kind) -> dict[str, Any]:
    """Return what a row's videos are, for its system.json."""
    if kind.how is not None:
        return making.facts(listed, kind.how)
    place = kind.videos or kind.metrics
    return {"videos" if kind.videos else "metrics": str(place.resolve())}


def _score(asked: Asked, kinds: list[Kind]) -> None:
    """Score some rows' videos, all by the same scorers."""
    logs = asked.out / LOGS / kinds[0].name
    distributed.say(f"scorers: starting, logs in {logs}")
    with scorers.open_scorers(asked.reward, logs, asked.evoscore) as who:
        for why in scorers.not_comparable(who.sources):
            distributed.say(f"NOT COMPARABLE with the leaderboard: {why}")
        before = [kept.earlier(asked.out / kind.name, who.sources) for kind in kinds]
        for kind, earlier in zip(kinds, before, strict=True):
            if lacking := _lacking({**earlier, **who.sources}):
                distributed.say(f"{kind.name}: no total: nobody measures {', '.join(lacking)}")
        for kind, earlier in zip(kinds, before, strict=True):
            folder = asked.out / kind.name
            videos = kind.videos or folder / rows.VIDEOS
            there = sum(cases.video(videos, case).is_file() for case in asked.listed)
            distributed.say(f"{kind.name}: {there} of {len(asked.listed)} videos are there")
            kept.note(folder, {**earlier, **who.sources})
            found, held = scoring.score(
                asked.listed, videos, who, earlier, Journal(folder), asked.workers
            )
            if held:
                distributed.say(f"{kind.name}: kept from an earlier command: {', '.join(held)}")
            rows.write(folder, asked.listed, found, who.sources, held)


def _lacking(sources: Mapping[str, scorers.Source]) -> list[str]:
    """Return the metrics that nobody measures."""
    needed = {metric.name: rows.REWARDS.get(metric.name) for metric in upstream.METRICS}
    return [
        name for name, reward in needed.items() if (reward or scorers.NATURALNESS) not in sources
    ]


def quiet() -> None:
    """Keep libraries' routine messages off the terminal."""
    for name in ("httpx", "httpx2", "openai"):
        std_logging.getLogger(name).setLevel(std_logging.WARNING)
    logging.set_verbosity(logging.WARNING)


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    quiet()
    with distributed.together(distributed.from_flags(), flags.FLAGS.silent):
        asked = check(flags.FLAGS)
        try:
            text = run(asked)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(
                f"stopped; what was made and scored is in {asked.out}, and the same command goes on"
            ) from None
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            raise OSError(
                "the devices have too little memory; give --fsdp=-1 or --context, or smaller videos"
            ) from error
        if text:
            print(text)
            print(f"table: {(asked.out / table.TEXT).resolve()}")


if __name__ == "__main__":
    define_flags(flags.FLAGS)
    distributed.define_flags()
    commandline.run(main, expected=distributed.EXPECTED)
