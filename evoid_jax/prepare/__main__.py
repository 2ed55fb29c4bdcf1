"""Make a folder of pairs for training from a folder of photos.

    python -m evoid_jax.prepare --photos=DIR --out=FOLDER

Finds faces, refuses with a reason what cannot serve, tells who is who, sets people apart for the
proof, cuts out, adds prompts, and writes prompts.jsonl and a contact sheet to look at. Called
again, it looks at new photos alone. Nothing leaves the machine but for --judge, which gets the
cut-out pictures. docs/data.md has the details.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
from absl import app, flags, logging

from evoid_jax import commandline, files
from evoid_jax.prepare import finder, job, prompts, proposals, refuse, summary


def define_flags(values: flags.FlagValues):
    """Define the command line in `values`."""
    usual, limits = job.Options(Path(), Path(), [], {}), refuse.Limits()
    string, number, whole, truth = (
        partial(define, flag_values=values)
        for define in (
            flags.DEFINE_string,
            flags.DEFINE_float,
            flags.DEFINE_integer,
            flags.DEFINE_bool,
        )
    )
    string("photos", None, "Folder of photos, with folders in it or not.", required=True)
    string("out", None, "Folder to write, for --config.data.dir.", required=True)
    string("prompts", None, "Text file, one prompt a line; default the built-in 144.")
    string("judge", None, "Address of a judge that proposes prompts for each photo; it sees them.")
    string("judge_model", "", "Name of the judge's model; default the only one that it has.")
    string("judge_key_env", "OPENAI_API_KEY", "Environment variable with the judge's key, if any.")
    whole("per_face", usual.per_face, "Prompts of each photo.", 1, 100_000)
    string("weights", None, "Folder of preset open's weights; default where fetch puts them.")
    string("people", None, 'JSON file of names, {"a/1.jpg": "anna"}, over what faces look like.')
    truth("folders", False, "Each folder in --photos holds one person, of its name.")
    number("heldout", usual.heldout, "Share of the people for the proof.", 0, 0.9)
    number("validation", usual.validation, "Share of the people for the watch.", 0, 0.9)
    whole("height", usual.canvas[0], "Of the videos, pixels.", 16, 16384)
    whole("width", usual.canvas[1], "Of the videos, pixels.", 16, 16384)
    number("crop", usual.crop, "Side of what is cut out, in faces; 0: the whole photo.", 0, 100)
    number("min_face", limits.side, "Pixels of a face's shorter side, at least.", 16, 16384)
    sharp = "Of a face, at least; docs/data.md has numbers."
    number("min_sharpness", limits.sharpness, sharp, 0, 1e6)
    number("alike", usual.alike, "Cosine from which faces are one person's.", 0.05, 0.95)


def options(args) -> job.Options:
    """Read the flags and try every file that they name, and the judge.

    Raises:
      ValueError, OSError: a flag is wrong; the message names it.
    """
    photos, out = files.user_path(args.photos), files.user_path(args.out)
    if not photos.is_dir():
        raise FileNotFoundError(f"--photos: there is no folder {photos.absolute()}")
    inner, outer = out.resolve(), photos.resolve()
    if inner == outer or outer in inner.parents:
        raise ValueError(f"--out={out} is in --photos={photos}; give a folder elsewhere")
    files.check_writable(out / "prompts.jsonl")
    for flag in ("height", "width"):
        if getattr(args, flag) % 16:
            raise ValueError(f"--{flag} must be a multiple of 16, got {getattr(args, flag)}")
    if args.heldout + args.validation >= 1:
        raise ValueError("--heldout and --validation leave nobody to train on; lower them")
    if args.prompts and args.judge:
        raise ValueError("--prompts and --judge both give prompts; use one")
    pool = prompts.read(args.prompts) if args.prompts else prompts.bank()
    if args.per_face > len(pool):
        raise ValueError(f"--per_face is {args.per_face}, but there are {len(pool)} prompts")
    return job.Options(
        photos=photos,
        out=out,
        pool=pool,
        per_face=args.per_face,
        judge=_judge(args.judge, args.judge_model, args.judge_key_env) if args.judge else None,
        given=job.read_people(args.people) if args.people else {},
        folders=args.folders,
        canvas=(args.height, args.width),
        crop=args.crop,
        limits=refuse.Limits(args.min_face, args.min_sharpness),
        alike=args.alike,
        validation=args.validation,
        heldout=args.heldout,
    )


def _judge(url: str, model: str, key_env: str) -> proposals.Asked:
    """Return a judge, which is reached when the first photo needs prompts."""

    def reach() -> proposals.Propose:
        from evoid_jax.rewards import judge, judge_chat, judge_server  # they take a second

        server = judge_server.Server(url, model=model, key_env=key_env, setting="--judge")
        chat = judge_chat.Chat(server)
        chat.check()

        def propose(photo_HWC: np.ndarray, count: int) -> list[str]:
            try:
                return judge.propose(chat, photo_HWC, count)
            except judge_server.JudgeError as error:
                raise ValueError(f"the judge: {error}") from None

        return propose

    return proposals.Asked(f"{model} at {url}", reach)


def main(argv: list[str]):
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    logging.set_verbosity(logging.ERROR)
    asked = options(flags.FLAGS)
    result = job.run(asked, finder.of_folder(flags.FLAGS.weights))
    told = "\n".join(summary.lines(asked, result))
    print(told.encode(errors="backslashreplace").decode())  # names of files that are no text


if __name__ == "__main__":
    define_flags(flags.FLAGS)
    commandline.run(main)
