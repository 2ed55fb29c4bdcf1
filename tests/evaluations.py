"""A small benchmark, folders of videos that score as they are told, and a command on them."""

import json

import numpy as np
from absl import flags
from fake_judge import FakeJudge
from fake_sidecar import Fake

from evoid_jax import media
from evoid_jax.evaluate import __main__ as evaluate
from evoid_jax.rewards import evoscore
from evoid_jax.world import portraits

KEYS = ("singleface_1", "singleface_2", "singlehuman_1")
NAMES = ("arcface", "curricularface", "gme", "aesthetic", "qalign", "flow", "naturalness")
LEVELS = (50, 100, 150)


def benchmark(folder, keys=KEYS):
    """Write a list of drawn people and its photos; two of the keys may be one person's."""
    folder.mkdir(parents=True, exist_ok=True)
    listed = {}
    for k, key in enumerate(keys):
        scene = portraits.scene(300 + k, k)
        image = f"Images/{key}.png"
        media.write_image(folder / image, portraits.reference(scene.identity))
        flag, label = ("wrong", "Wrong")[k % 2], ["Woman"]
        listed[key] = {"img_paths": [image], "prompt": portraits.prompt(scene)}
        listed[key] |= {"synthesis_flag": flag, "class_label": label}
    (folder / "list.json").write_text(json.dumps(listed))
    return folder / "list.json"


def clips(folder, levels, keys=KEYS):
    """Write a grey video for each key, whose first pixel is about its level."""
    for key, level in zip(keys, levels, strict=True):
        media.write(folder / f"{key}.mp4", np.full((5, 32, 32, 3), level, np.uint8), 8)
    return folder


def asked(data, out, *more):
    """Return what a command line asks for."""
    values = flags.FlagValues()
    evaluate.define_flags(values)
    values(["evaluate", f"--data={data}", f"--out={out}", *more])
    return evaluate.check(values)


def run(data, out, *more):
    """Run a command in this process; returns the table's text."""
    return evaluate.run(asked(data, out, *more))


def read(folder, name):
    return json.loads((folder / name).read_text())


def graded(lost=(), blame="out of memory"):
    """Turn a Fake's reply about a grey video of a level into numbers of the benchmark's kind.

    lost: pairs (measure, level) that have no number.
    """

    def change(reply):
        for name, column in reply["scores"].items():
            (score,) = column["score"]
            level = 50 * round(score * 255 / 50)
            share = level / 250
            own = {"aesthetic": 4 + 3 * share, "naturalness": 1 + 4 * share, "flow": 0.1 * share}
            column |= {"raw": [own.get(name, share)], "score": [share]}
            if (name, level) in lost:
                column |= {"raw": [None], "score": [None], "reason": [blame], "excused": [True]}
        return reply

    return change


def sidecar(preset="paper", names=NAMES, **changes):
    fake = Fake(names=names, change=graded(**changes))
    fake.column = {name: m for m, name in enumerate(NAMES)}
    fake.info = {"preset": preset}
    return fake


def judge_of(natural=(3, 4, 5), items=None, bare=False):
    """Return a judge that gives these grades of naturalness in turn, and these of EvoScore.

    bare: it may be asked without a form, and says the grade alone.
    """
    turn = iter(natural * 100)
    grades = dict(zip(evoscore.ITEMS, items or (10, 10, 10, 7, 9, 10, 8, 4, 10), strict=True))

    def answer(body):
        if bare and "response_format" not in body:
            return str(next(turn))
        asked = body["response_format"]["json_schema"]["name"]
        if asked == "evoscore":
            return grades
        grade = next(turn)
        return {"naturalness": grade} if isinstance(grade, int) else grade

    return FakeJudge(answer)
