"""What bench/fuzz.py fuzzes: every reader of users' files, with seeds that are made here.

An input of a target is bytes: a file, or JSON of several files by name.
"""

import json
import shutil
import struct
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import fuzz_seeds as seeds
import numpy as np

from evoid_jax import (
    config,
    deployment,
    generate,
    media,
    metrics,
    settings,
)
from evoid_jax.data import folder as data_folder
from evoid_jax.evaluate import cases, journal, table
from evoid_jax.models import adapters, lora, umt5, vae, weights
from evoid_jax.models import folder as model_folder
from evoid_jax.models import scheduler as model_scheduler
from evoid_jax.models.wan_config import WanConfig
from evoid_jax.prepare import prompts
from evoid_jax.report import choices, page
from evoid_jax.rewards import judge_answers, rubrics
from evoid_jax.sidecars import wire

TINY = seeds.TINY
WAN = WanConfig(num_attention_heads=1, attention_head_dim=4, num_layers=2, ffn_dim=8)


class Target(NamedTuple):
    """A reader, inputs that it likes, and how JSON is taken out of them to be changed."""

    name: str
    read: Callable[[Path, bytes], object]  # of an empty or used folder and an input
    seeds: Callable[[], list[bytes]]
    called: str = "input"  # what a message calls the file
    longest: int = 65536  # bytes of an input
    split: Callable[[bytes], tuple[list, bytes]] | None = None  # input -> its JSON, and the rest
    join: Callable[[list, bytes], bytes] | None = None  # the way back


def _object(data: bytes) -> dict:
    """Return the files that an input holds by name; none where it is no such JSON."""
    try:
        held = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return held if isinstance(held, dict) else {}


def _put(folder: Path, name: str, data: bytes) -> Path:
    """Write a file of a folder that held other inputs before."""
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data)
    return file


def _put_all(folder: Path, data: bytes) -> Path:
    """Write the files that an input names, in a folder of their own; others are left out."""
    place = folder / "input"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    for name, content in _object(data).items():
        if name in KNOWN:
            lines = content if name.endswith("jsonl") and isinstance(content, list) else [content]
            _put(place, name, b"\n".join(map(seeds.dumps, lines)))
    return place


KNOWN = ("config.json", "metrics.jsonl", "run.json", "summary.json", "scores.json")
KNOWN += ("samples/heldout.json", "watch/pairs.json", "watch/step_000010.json")
KNOWN += ("blind/answers.json", "a/total.json", "a/system.json", "b/total.json", "b/system.json")
KNOWN += tuple(
    f"{row}/metrics/{name}.json" for row in "ab" for name in ("aesthetic_score", "facesim")
)
KNOWN += ("a/scores.jsonl", "a/evoscore.json")

# --- ways to take an input apart


def _json(data: bytes) -> tuple[list, bytes]:
    return [json.loads(data)], b""


def _of_json(rows: list, rest: bytes) -> bytes:
    return seeds.dumps(rows[0])


def _lines(data: bytes) -> tuple[list, bytes]:
    return [json.loads(line) for line in data.split(b"\n") if line.strip()], b""


def _framed(form: str, data: bytes) -> tuple[list, bytes]:
    """Take apart a length, as much JSON, and bytes: a safetensors file, a request's body."""
    width = struct.calcsize(form)
    (length,) = struct.unpack(form, data[:width].ljust(width, b"\0"))
    return [json.loads(data[width : width + length])], data[width + length :]


JSON = {"split": _json, "join": _of_json}
LINES = {"split": _lines, "join": seeds.of_lines}
TENSORS = {"split": partial(_framed, "<Q"), "join": partial(seeds.of_framed, "<Q")}
BODY = {"split": partial(_framed, "<I"), "join": partial(seeds.of_framed, "<I")}

# --- pictures and videos


def _read_image(folder: Path, data: bytes) -> None:
    file = _put(folder, "input", data)
    try:
        image_HWC = media.read_image(file)
    except ValueError:
        # What is looked at in passing must be refused for the same reasons.
        try:
            media.check_image(file)
        except ValueError:
            raise
        return
    size = media.check_image(file)
    assert image_HWC.shape == (*size, 3), f"{image_HWC.shape} after a look that said {size}"


# --- adapters


def _read_adapter(folder: Path, data: bytes) -> None:
    file = _put(folder, "input.safetensors", data)
    lora.load(file, WAN)
    deployment.deployment(weights.read_header(file)[1])


def _read_peft(folder: Path, data: bytes) -> None:
    _put(folder / "input", adapters.FILES[0], seeds.adapter(peft=True))
    _put(folder / "input", "adapter_config.json", data)
    lora.load(folder / "input", WAN)


# --- models


def _read_model(folder: Path, data: bytes) -> None:
    """Read the configs of a model's folder, each as its file."""
    held, place = _object(data), folder / "input"
    readers = {"transformer": WanConfig, "vae": vae.VAEConfig, "text_encoder": umt5.UMT5Config}
    for name, kind in readers.items():
        _put(place, f"{name}/config.json", seeds.dumps(held.get(f"{name}/config.json")))
        kind.from_json(weights.read_config(place / name), str(place / name / "config.json"))
    file = _put(place, model_scheduler.FILE, seeds.dumps(held.get(model_scheduler.FILE)))
    model_scheduler.solver_of(weights.files.read_json(file), str(file))
    _put(place, "model_index.json", seeds.dumps(held.get("model_index.json")))
    model_folder.read_index(place, ("WanVACEPipeline", "WanPipeline"))


def _read_tokenizer(folder: Path, data: bytes) -> None:
    beside = (TINY / "tokenizer" / "tokenizer_config.json").read_bytes()
    _put(folder / "input", "tokenizer_config.json", beside)
    _put(folder / "input", "tokenizer.json", data)
    made = umt5.load_tokenizer(folder / "input")
    text_config = json.loads((TINY / "text_encoder" / "config.json").read_text())
    model_folder.check_tokenizer(made, folder / "input", text_config)


def _read_evoid(folder: Path, data: bytes) -> None:
    _put(folder / "input", "evoid.json", data)
    deployment.settings(folder / "input", {})


# --- data, runs, answers


def _read_pairs(folder: Path, data: bytes) -> None:
    place = folder / "input"
    if not (place / "a.png").exists():
        place.mkdir(exist_ok=True)
        for name in ("a.png", "b.png"):
            media.write_image(place / name, np.full((8, 8, 3), ord(name[0]), np.uint8))
    _put(place, data_folder.FILE, data)
    data_folder.read(place)


def _read_metrics(folder: Path, data: bytes) -> None:
    _put(folder / "input", metrics.FILE, data)
    metrics.read(folder / "input")


def _read_settings(folder: Path, data: bytes) -> None:
    _put(folder / "input", settings.FILE, data)
    settings.resumable(settings.stored(folder / "input"), config.Config())
    settings.read(folder / "input")


def _read_run(folder: Path, data: bytes) -> None:
    page.write(_put_all(folder, data))


def _read_answers(folder: Path, data: bytes) -> None:
    choices.read(_put(folder, "input.json", data))


def _read_reply(folder: Path, data: bytes) -> None:
    said = judge_answers.said(_object(data))
    if "prompts" in said.text:
        judge_answers.texts(said, "prompts", 2, 100)
    else:
        judge_answers.numbers(said, ("identity", "text"), 0, 10)


def _read_benchmark(folder: Path, data: bytes) -> None:
    if not (folder / "a.png").exists():
        media.write_image(folder / "a.png", np.zeros((8, 8, 3), np.uint8))
    cases.read(_put(folder, "input.json", data))


def _read_rows(folder: Path, data: bytes) -> None:
    place = _put_all(folder, data)
    journal.Journal(place / "a")
    if listed := table.load(place):
        table.write(place, listed)


def _read_rubric(folder: Path, data: bytes) -> None:
    rubrics.questions(_put(folder, "input.toml", data))


def _read_prompts(folder: Path, data: bytes) -> None:
    prompts.read(_put(folder, "input", data))


def _read_noise(folder: Path, data: bytes) -> None:
    generate.read_noise(_put(folder, "input.npy", data), (1, 2, 2, 4))


TARGETS = {
    target.name: target
    for target in (
        Target("image", _read_image, seeds.pictures),
        Target("video", lambda f, data: media.read(_put(f, "input", data)), seeds.videos),
        Target("wire", lambda _, data: wire.decode(data), seeds.bodies, called="", **BODY),
        Target("pairs", _read_pairs, seeds.pairs, **LINES),
        Target("metrics", _read_metrics, lambda: [seeds.of_lines(seeds.steps(), b"")], **LINES),
        Target(
            "settings",
            _read_settings,
            lambda: [config.dumps(config.from_dict({})).encode()],
            **JSON,
        ),
        Target("adapter", _read_adapter, seeds.adapters, **TENSORS),
        Target("peft", _read_peft, seeds.peft, **JSON),
        Target("model", _read_model, seeds.models, called="", **JSON),
        Target(
            "tokenizer",
            _read_tokenizer,
            lambda: [(TINY / "tokenizer" / "tokenizer.json").read_bytes()],
            longest=2**20,
            **JSON,
        ),
        Target(
            "deployment",
            _read_evoid,
            lambda: [(TINY / "evoid.json").read_bytes()],
            **JSON,
        ),
        Target("judge", _read_reply, seeds.replies, called="", **JSON),
        Target("rubric", _read_rubric, seeds.rubric),
        Target(
            "benchmark",
            _read_benchmark,
            lambda: [seeds.dumps({"singleface_1": {"img_paths": ["a.png"], "prompt": "Waves."}})],
            **JSON,
        ),
        Target("evaluated", _read_rows, seeds.rows, **JSON),
        Target("run", _read_run, seeds.runs, **JSON),
        Target("answers", _read_answers, seeds.answers, **JSON),
        Target("prompts", _read_prompts, lambda: [b"A.\nB."]),
        Target("noise", _read_noise, seeds.noise),
    )
}
