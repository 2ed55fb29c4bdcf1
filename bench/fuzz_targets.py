"""What bench/fuzz.py fuzzes: every reader of users' files, with seeds that are made here.

An input of a target is bytes: a file, or JSON of several files by name.
"""

import io
import json
import shutil
import struct
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, TiffImagePlugin

from evoid_jax import (
    config,
    deployment,
    generate,
    media,
    metrics,
    proof,
    provenance,
    settings,
    triples,
)
from evoid_jax.data import folder as data_folder
from evoid_jax.evaluate import cases, journal, table
from evoid_jax.fields import locate
from evoid_jax.models import adapters, lora, umt5, vae, weights
from evoid_jax.models import folder as model_folder
from evoid_jax.models import scheduler as model_scheduler
from evoid_jax.models.wan_config import WanConfig
from evoid_jax.prepare import prompts
from evoid_jax.report import choices, page
from evoid_jax.rewards import judge_answers, rubrics
from evoid_jax.sidecars import wire

TINY = Path(locate(config.TINY))
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


def _dumps(value) -> bytes:
    return json.dumps(value).encode()


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
            _put(place, name, b"\n".join(map(_dumps, lines)))
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
    return _dumps(rows[0])


def _lines(data: bytes) -> tuple[list, bytes]:
    return [json.loads(line) for line in data.split(b"\n") if line.strip()], b""


def _of_lines(rows: list, rest: bytes) -> bytes:
    return b"".join(_dumps(row) + b"\n" for row in rows)


def _framed(form: str, data: bytes) -> tuple[list, bytes]:
    """Take apart a length, as much JSON, and bytes: a safetensors file, a request's body."""
    width = struct.calcsize(form)
    (length,) = struct.unpack(form, data[:width].ljust(width, b"\0"))
    return [json.loads(data[width : width + length])], data[width + length :]


def _of_framed(form: str, rows: list, rest: bytes) -> bytes:
    head = _dumps(rows[0])
    return struct.pack(form, len(head)) + head + rest


JSON = {"split": _json, "join": _of_json}
LINES = {"split": _lines, "join": _of_lines}
TENSORS = {"split": partial(_framed, "<Q"), "join": partial(_of_framed, "<Q")}
BODY = {"split": partial(_framed, "<I"), "join": partial(_of_framed, "<I")}

# --- pictures and videos


def _pictures() -> list[bytes]:
    """Return a small picture of every format and mode that is read."""
    colour_HWC = np.arange(8 * 12 * 4, dtype=np.uint8).reshape(8, 12, 4)
    picture, made = Image.fromarray(colour_HWC), []
    modes = {"PNG": "1 L LA P RGB RGBA I;16", "JPEG": "L RGB CMYK", "GIF": "P", "BMP": "L RGB"}
    modes |= {"WEBP": "RGB RGBA", "TIFF": "1 L RGB RGBA CMYK LAB I;16", "PPM": "L RGB"}
    modes |= {"AVIF": "RGB"}
    for kind, names in modes.items():
        for mode in names.split():
            deep = mode == "I;16"
            shown = Image.fromarray(colour_HWC[..., 0].astype(np.uint16) * 257) if deep else None
            out = io.BytesIO()
            (shown or picture.convert("RGB").convert(mode)).save(out, kind)
            made.append(out.getvalue())
    turned, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6
    picture.convert("RGB").save(turned, "JPEG", exif=exif)
    packed = io.BytesIO()
    picture.convert("RGB").save(packed, "TIFF", compression="tiff_lzw", tiffinfo=_tags())
    return [*made, turned.getvalue(), packed.getvalue()]


def _tags() -> TiffImagePlugin.ImageFileDirectory_v2:
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[270] = "a description"
    return tags


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


def _videos() -> list[bytes]:
    video_FHWC = np.random.default_rng(0).integers(0, 255, (4, 16, 16, 3), np.uint8)
    return [media.encode(video_FHWC, 8), media.encode(video_FHWC, 24, lossless=True)]


# --- adapters


def _adapter(alpha: float | None = None, header: dict | None = None, peft: bool = False) -> bytes:
    """Return a safetensors file of an adapter of the small transformer."""
    entries, content = {}, b""
    prefix = "base_model.model." if peft else "transformer."
    tensors = {f"{prefix}blocks.0.attn1.to_q.lora_A.weight": np.ones((2, 4), np.float32)}
    tensors |= {f"{prefix}blocks.0.attn1.to_q.lora_B.weight": np.ones((4, 2), np.float32)}
    if alpha is not None:
        tensors[f"{prefix}blocks.0.attn1.to_q.alpha"] = np.array(alpha, np.float32)
    for name, x in tensors.items():
        ends = [len(content), len(content) + x.nbytes]
        entries[name] = {"dtype": "F32", "shape": list(x.shape), "data_offsets": ends}
        content += x.tobytes()
    if header:
        entries["__metadata__"] = header
    return _of_framed("<Q", [entries], content)


def _adapters() -> list[bytes]:
    settled = json.dumps({"r": 2, "lora_alpha": 4, "alpha_pattern": {"to_q": 4}})
    headers = ({"scale": "1"}, {"lora_adapter_metadata": settled}, {"ss_network_alpha": "2"})
    return [_adapter(), _adapter(alpha=2.0), *(_adapter(header=header) for header in headers)]


def _read_adapter(folder: Path, data: bytes) -> None:
    file = _put(folder, "input.safetensors", data)
    lora.load(file, WAN)
    deployment.deployment(weights.read_header(file)[1])


def _read_peft(folder: Path, data: bytes) -> None:
    _put(folder / "input", adapters.FILES[0], _adapter(peft=True))
    _put(folder / "input", "adapter_config.json", data)
    lora.load(folder / "input", WAN)


def _peft() -> list[bytes]:
    plain = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "use_rslora": False, "bias": "none"}
    patterns = {"rank_pattern": {"to_q": 2}, "alpha_pattern": {"blocks.0.attn1.to_q": 8}}
    return [_dumps(plain), _dumps(plain | patterns | {"init_lora_weights": True})]


# --- models


def _models() -> list[bytes]:
    names = ("transformer/config.json", "vae/config.json", "text_encoder/config.json")
    names += (model_scheduler.FILE, "model_index.json")
    return [_dumps({name: json.loads((TINY / name).read_text()) for name in names})]


def _read_model(folder: Path, data: bytes) -> None:
    """Read the configs of a model's folder, each as its file."""
    held, place = _object(data), folder / "input"
    readers = {"transformer": WanConfig, "vae": vae.VAEConfig, "text_encoder": umt5.UMT5Config}
    for name, kind in readers.items():
        _put(place, f"{name}/config.json", _dumps(held.get(f"{name}/config.json")))
        kind.from_json(weights.read_config(place / name), str(place / name / "config.json"))
    file = _put(place, model_scheduler.FILE, _dumps(held.get(model_scheduler.FILE)))
    model_scheduler.solver_of(weights.files.read_json(file), str(file))
    _put(place, "model_index.json", _dumps(held.get("model_index.json")))
    model_folder.read_index(place, ("WanVACEPipeline", "WanPipeline"))


def _read_tokenizer(folder: Path, data: bytes) -> None:
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


def _pairs() -> list[bytes]:
    rows = [{"image": "a.png", "prompt": "A person waves.", "identity": "anna"}]
    rows += [{"image": ["b.png"], "prompt": "A person nods.", "split": "evolution"}]
    return [_of_lines(rows, b""), b"\xef\xbb\xbf" + _of_lines(rows[:1], b"")]


def _steps() -> list[dict]:
    score = {"arcface": 0.5, "vqscore": 0.4}
    one = {"loss": {"total": 0.1, "policy": 0.1}, "reward": {"score": score, "raw": score}}
    one |= {"weights": score, "attention": {"identity": 3.0}, "drift": {"evo_stb": 0.1}}
    one |= {"grad_norm": 1.0, "valid_fraction": 1.0, "seconds": {"total": 2.0}, "missing": score}
    return [{"step": step} | one for step in range(3)]


def _read_metrics(folder: Path, data: bytes) -> None:
    _put(folder / "input", metrics.FILE, data)
    metrics.read(folder / "input")


def _read_settings(folder: Path, data: bytes) -> None:
    _put(folder / "input", settings.FILE, data)
    settings.resumable(settings.stored(folder / "input"), config.Config())
    settings.read(folder / "input")


@cache
def _runs() -> list[bytes]:
    """Return the files of a finished run."""
    import tempfile

    place = Path(tempfile.mkdtemp())
    rng, names = np.random.default_rng(0), ("arcface", "vqscore")
    base_BM, evolved_BM = rng.random((8, 2)), rng.random((8, 2))
    watched = {"motion": rng.random(8)}
    made = proof.summary(
        names=names,
        prior_M=[0.4, 0.6],
        base_BM=base_BM,
        evolved_BM=evolved_BM,
        cluster_B=[str(b // 2) for b in range(8)],
        monitor_base=watched,
        monitor_evolved=watched,
        steps=3,
        seconds={"total": 9.0},
        heldout=proof.UNSEEN,
    )
    rows = [(str(b // 2), "A person waves.", b) for b in range(8)]
    triples.write(place, names, [0.4, 0.6], rows, (base_BM, evolved_BM), (watched, watched))
    held = {"config.json": json.loads(config.dumps(config.from_dict({})))}
    held |= {"metrics.jsonl": _steps(), "summary.json": made}
    held |= {"scores.json": json.loads((place / triples.FILE).read_text())}
    entry = {"k": 0, "prompt": "A person waves.", "identity": "0", "seed": 0}
    held |= {"samples/heldout.json": [entry], "watch/pairs.json": [entry]}
    held |= {"watch/step_000010.json": made | {"drift": 0.1}}
    start = provenance.collect(["train.py"], [], judge_model="heuristic", judge_address="local")
    held |= {"run.json": {"schema": provenance.SCHEMA, "starts": [start]}}
    shutil.rmtree(place)
    return [_dumps(metrics.plain(held))]


def _read_run(folder: Path, data: bytes) -> None:
    page.write(_put_all(folder, data))


def _read_answers(folder: Path, data: bytes) -> None:
    choices.read(_put(folder, "input.json", data))


def _answers() -> list[bytes]:
    row = {"trial": "t", "question": "likeness", "left": "a", "right": "b", "choice": "a"}
    return [_dumps({"schema": 1, "study": "s", "rater": "r", "answers": [row | {"seconds": 1.0}]})]


def _read_reply(folder: Path, data: bytes) -> None:
    said = judge_answers.said(_object(data))
    judge_answers.numbers(said, ("identity", "text"), 0, 10)
    judge_answers.texts(said, "prompts", 2, 100)


def _replies() -> list[bytes]:
    made = []
    for text in ('{"identity": 7, "text": 3}', '<think>x</think>```{"prompts": ["a", "b"]}```'):
        others = [{"token": "3", "logprob": -1.0}]
        rows = [{"token": letter, "logprob": -0.1, "top_logprobs": others} for letter in text]
        choice = {"message": {"content": text}, "finish_reason": "stop"}
        made.append(_dumps({"choices": [choice | {"logprobs": {"content": rows}}]}))
    return made


def _read_benchmark(folder: Path, data: bytes) -> None:
    if not (folder / "a.png").exists():
        media.write_image(folder / "a.png", np.zeros((8, 8, 3), np.uint8))
    cases.read(_put(folder, "input.json", data))


def _rows() -> list[bytes]:
    """Return the files of two systems that were evaluated."""
    total = {"benchmark": "b", "name": "a", "comparable_with_the_leaderboard": True}
    total |= {"not_comparable_because": [], "total_score": None, "videos": 1, "missing": []}
    columns = [name for name in table.HEADS if name not in ("total_score", "evoscore")]
    total |= dict.fromkeys(columns, 0.5) | {"videos_with_metric": dict.fromkeys(columns, 1)}
    total |= {"metrics": "metrics", "sources": {}, "evoscore": None}
    total |= {"measured_by": dict.fromkeys(columns, "x"), "people": {"singleface_1": "a.png"}}
    held = {"a/scores.jsonl": [{"key": "k", "of": "o", "name": "n", "by": "b", "raw": 0.5}]}
    for row in "ab":
        held |= {f"{row}/total.json": total, f"{row}/system.json": {"added": "2026"}}
        held |= {f"{row}/metrics/aesthetic_score.json": {"singleface_1": {"aes_score": 5.0}}}
    return [_dumps(held)]


def _read_rows(folder: Path, data: bytes) -> None:
    place = _put_all(folder, data)
    journal.Journal(place / "a")
    if listed := table.load(place):
        table.write(place, listed)


def _read_rubric(folder: Path, data: bytes) -> None:
    rubrics.questions(_put(folder, "input.toml", data))


def _bodies() -> list[bytes]:
    videos_BFHWC = np.zeros((1, 1, 2, 2, 3), np.uint8)
    more = {"references": [[np.zeros((2, 2, 3), np.uint8)]], "prompts": ["x"], "ids": ["a"]}
    more |= {"attributes": [[1.0, 2.0]], "rewards": ["arcface"], "monitors": True}
    return [wire.encode(videos_BFHWC, **more), wire.encode_mp4(_videos()[:1], **more)]


def _read_prompts(folder: Path, data: bytes) -> None:
    prompts.read(_put(folder, "input", data))


def _read_noise(folder: Path, data: bytes) -> None:
    generate.read_noise(_put(folder, "input.npy", data), (1, 2, 2, 4))


def _noise() -> list[bytes]:
    out, several = io.BytesIO(), io.BytesIO()
    np.save(out, np.zeros((1, 4, 1, 2, 2), np.float32))
    np.savez(several, a=np.zeros(2))
    return [out.getvalue(), several.getvalue()]


TARGETS = {
    target.name: target
    for target in (
        Target("image", _read_image, _pictures),
        Target("video", lambda f, data: media.read(_put(f, "input", data)), _videos),
        Target("wire", lambda _, data: wire.decode(data), _bodies, called="", **BODY),
        Target("pairs", _read_pairs, _pairs, **LINES),
        Target("metrics", _read_metrics, lambda: [_of_lines(_steps(), b"")], **LINES),
        Target(
            "settings",
            _read_settings,
            lambda: [config.dumps(config.from_dict({})).encode()],
            **JSON,
        ),
        Target("adapter", _read_adapter, _adapters, **TENSORS),
        Target("peft", _read_peft, _peft, **JSON),
        Target("model", _read_model, _models, called="", **JSON),
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
        Target("judge", _read_reply, _replies, called="", **JSON),
        Target("rubric", _read_rubric, lambda: [b'vqscore = "x"\n']),
        Target(
            "benchmark",
            _read_benchmark,
            lambda: [_dumps({"singleface_1": {"img_paths": ["a.png"], "prompt": "Waves."}})],
            **JSON,
        ),
        Target("evaluated", _read_rows, _rows, **JSON),
        Target("run", _read_run, _runs, **JSON),
        Target("answers", _read_answers, _answers, **JSON),
        Target(
            "prompts", lambda f, data: prompts.read(_put(f, "input", data)), lambda: [b"A.\nB."]
        ),
        Target("noise", _read_noise, _noise),
    )
}
