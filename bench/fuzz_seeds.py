"""Inputs that the targets of bench/fuzz_targets.py like: small, whole files, made here."""

import io
import json
import shutil
import struct
import tempfile
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, TiffImagePlugin

from evoid_jax import config, media, metrics, proof, provenance, triples
from evoid_jax.evaluate import table
from evoid_jax.fields import locate
from evoid_jax.models import scheduler
from evoid_jax.rewards import rubrics
from evoid_jax.sidecars import wire

TINY = Path(locate(config.TINY))


def dumps(value) -> bytes:
    return json.dumps(value).encode()


def of_lines(rows: list, rest: bytes) -> bytes:
    return b"".join(dumps(row) + b"\n" for row in rows)


def of_framed(form: str, rows: list, rest: bytes) -> bytes:
    head = dumps(rows[0])
    return struct.pack(form, len(head)) + head + rest


def pictures() -> list[bytes]:
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


def videos() -> list[bytes]:
    video_FHWC = np.random.default_rng(0).integers(0, 255, (4, 16, 16, 3), np.uint8)
    return [media.encode(video_FHWC, 8), media.encode(video_FHWC, 24, lossless=True)]


def adapter(alpha: float | None = None, header: dict | None = None, peft: bool = False) -> bytes:
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
    return of_framed("<Q", [entries], content)


def adapters() -> list[bytes]:
    settled = json.dumps({"r": 2, "lora_alpha": 4, "alpha_pattern": {"to_q": 4}})
    headers = ({"scale": "1"}, {"lora_adapter_metadata": settled}, {"ss_network_alpha": "2"})
    return [adapter(), adapter(alpha=2.0), *(adapter(header=header) for header in headers)]


def peft() -> list[bytes]:
    plain = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "use_rslora": False, "bias": "none"}
    patterns = {"rank_pattern": {"to_q": 2}, "alpha_pattern": {"blocks.0.attn1.to_q": 8}}
    return [dumps(plain), dumps(plain | patterns | {"init_lora_weights": True})]


def models() -> list[bytes]:
    names = ("transformer/config.json", "vae/config.json", "text_encoder/config.json")
    names += (scheduler.FILE, "model_index.json")
    return [dumps({name: json.loads((TINY / name).read_text()) for name in names})]


def pairs() -> list[bytes]:
    rows = [{"image": "a.png", "prompt": "A person waves.", "identity": "anna"}]
    rows += [{"image": ["b.png"], "prompt": "A person nods.", "split": "evolution"}]
    return [of_lines(rows, b""), b"\xef\xbb\xbf" + of_lines(rows[:1], b"")]


def steps() -> list[dict]:
    score = {"arcface": 0.5, "vqscore": 0.4}
    one = {"loss": {"total": 0.1, "policy": 0.1}, "reward": {"score": score, "raw": score}}
    one |= {"weights": score, "attention": {"identity": 3.0}, "drift": {"evo_stb": 0.1}}
    one |= {"grad_norm": 1.0, "valid_fraction": 1.0, "seconds": {"total": 2.0}, "missing": score}
    return [{"step": step} | one for step in range(3)]


@cache
def runs() -> list[bytes]:
    """Return the files of a finished run."""
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
    arms, photos = (base_BM, evolved_BM), ["0123456789abcdef"] * len(rows)
    triples.write(place, names, [0.4, 0.6], rows, arms, (watched, watched), photos=photos)
    held = {"config.json": json.loads(config.dumps(config.from_dict({})))}
    held |= {"metrics.jsonl": steps(), "summary.json": made}
    held |= {"scores.json": json.loads((place / triples.FILE).read_text())}
    entry = {"k": 0, "prompt": "A person waves.", "identity": "0", "seed": 0}
    held |= {"samples/heldout.json": [entry], "watch/pairs.json": [entry]}
    held |= {"watch/step_000010.json": made | {"drift": 0.1}}
    start = provenance.collect(["train.py"], [], judge_model="heuristic", judge_address="local")
    held |= {"run.json": {"schema": provenance.SCHEMA, "starts": [start]}}
    shutil.rmtree(place)
    return [dumps(metrics.plain(held))]


def answers() -> list[bytes]:
    row = {"trial": "t", "question": "likeness", "left": "a", "right": "b", "choice": "a"}
    return [dumps({"schema": 1, "study": "s", "rater": "r", "answers": [row | {"seconds": 1.0}]})]


def replies() -> list[bytes]:
    made = []
    for text in ('{"identity": 7, "text": 3}', '<think>x</think>```{"prompts": ["a", "b"]}```'):
        others = [{"token": "3", "logprob": -1.0}]
        rows = [{"token": letter, "logprob": -0.1, "top_logprobs": others} for letter in text]
        choice = {"message": {"content": text}, "finish_reason": "stop"}
        made.append(dumps({"choices": [choice | {"logprobs": {"content": rows}}]}))
    return made


def rows() -> list[bytes]:
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
    return [dumps(held)]


def bodies() -> list[bytes]:
    videos_BFHWC = np.zeros((1, 1, 2, 2, 3), np.uint8)
    more = {"references": [[np.zeros((2, 2, 3), np.uint8)]], "prompts": ["x"], "ids": ["a"]}
    more |= {"attributes": [[1.0, 2.0]], "rewards": ["arcface"], "monitors": True}
    more |= {"others": [[np.ones((1, 1, 3), np.uint8)]]}
    return [wire.encode(videos_BFHWC, **more), wire.encode_mp4(videos()[:1], **more)]


def noise() -> list[bytes]:
    out = io.BytesIO()
    np.save(out, np.zeros((1, 4, 1, 2, 2), np.float32))
    return [out.getvalue()]


def rubric() -> list[bytes]:
    """Return a rubric file with two texts: a string of JSON is one of TOML."""
    texts = {"vqscore": rubrics.VQSCORE, "naturalness": rubrics.NATURALNESS}
    return ["\n".join(f"{key} = {json.dumps(text)}" for key, text in texts.items()).encode()]
