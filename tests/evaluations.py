"""A small benchmark, folders of videos that score as they are told, and a command on them."""

import json

import numpy as np
from absl import flags

from evoid_jax import media
from evoid_jax.evaluate import __main__ as evaluate
from evoid_jax.world import portraits

KEYS = ("singleface_1", "singleface_2", "singlehuman_1")


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
