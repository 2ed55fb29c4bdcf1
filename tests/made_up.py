"""A made-up run folder, as training leaves one: for tests of what reads it."""

import io
import math
from functools import cache
from typing import NamedTuple

import av
import cv2
import numpy as np

from evoid_jax import media, metrics, proof, provenance, triples

REWARDS = {
    "arcface": (0.125, 0.41, 0.14),
    "curricularface": (0.125, 0.38, 0.12),
    "gme": (0.15, 0.55, 0.05),
    "aesthetic": (0.18, 0.48, 0.06),
    "qalign": (0.09, 0.52, 0.03),
    "naturalness": (0.30, 0.44, 0.09),
    "flow": (0.03, 0.36, -0.01),
    "vqscore": (0.30, 0.50, 0.07),
}


GROUP = dict(zip(REWARDS, ["identity"] * 2 + ["text"] + ["quality"] * 5, strict=True))
DIGEST = "0123456789ab"
INFO = {  # what the sidecar of preset tiny says of itself, shortened
    "preset": "tiny",
    "rewards": [
        {
            "name": name,
            "version": "tiny-1",
            "sha256": "ab" * 32,
            "about": f"stand-in: small {name}",
        }
        for name in list(REWARDS)[:7]
    ],
    "monitors": ["identity", "motion"],
}


class Metric(NamedTuple):
    """A row of a run's table of rewards."""

    name: str
    group: str
    prior: float


class Device(NamedTuple):
    """What provenance asks of a jax device."""

    device_kind: str = "TPU v6 lite"
    platform: str = "tpu"


def start(argv=("evoid_jax/train.py", "--config=configs/evoid.py:tiny"), **changes):
    """Describe a start of the made-up run."""
    return (
        provenance.collect(
            argv,
            [Device()] * 4,
            processes=2,
            table=[Metric(name, GROUP[name], prior) for name, (prior, *_) in REWARDS.items()],
            sidecars=[("local", INFO)],
            judge_model="heuristic",
            judge_address="local",
        )
        | changes
    )


@cache
def mp4(shift):
    """Encode 9 frames of a face-like blob that moves, 64x64 at 8 fps, H.264."""
    out = io.BytesIO()
    with av.open(out, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=8)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        for t in range(9):
            frame = av.VideoFrame.from_ndarray(portrait(shift, t), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return out.getvalue()


def portrait(shift, t):
    image = np.full((64, 64, 3), (120, 160 + 10 * shift, 200), np.uint8)
    x = 32 + int(6 * math.sin(t / 9 * 2 * math.pi))
    cv2.ellipse(image, (x, 70), (24, 20), 0, 0, 360, (60 + 40 * shift, 60, 110), -1)
    cv2.ellipse(image, (x, 32), (13, 17), 0, 0, 360, (226, 180 - 12 * shift, 150), -1)
    cv2.ellipse(image, (x, 22), (14, 10), 0, 180, 360, (70, 40 + 15 * shift, 30), -1)
    for side in (-5, 5):
        cv2.circle(image, (x + side, 32), 2, (30, 30, 40), -1)
    cv2.ellipse(image, (x, 41), (5, 2), 0, 0, 180, (160, 60, 70), 2)
    return image


def fill(workdir, steps=24, finished=True, samples=6, prompt="A woman with red hair nods slowly"):
    """Write a run folder with plausible numbers."""
    rng = np.random.default_rng(0)
    config = {
        "steps": 24,
        "lr": 1e-4,
        "data": {"pairs": 4, "seeds": 8},
        "model": "tiny",
        "digest": DIGEST,
    }
    proof.write_json(workdir / "config.json", config)
    with metrics.Writer(workdir, verbose=False) as writer:
        for step in range(steps):
            writer.write(step, record(step / 24, rng))
    (workdir / "samples").mkdir()
    entries = []
    for k in range(samples):
        entries.append(
            {"k": k, "prompt": prompt, "identity": f"person {300 + k}", "seed": 1000 + 2 * k}
        )
        for arm, shift in (("base", 0), ("evolved", 1)):
            (workdir / f"samples/heldout_{k:02d}_{arm}.mp4").write_bytes(mp4(k + shift))
        cv2.imwrite(f"{workdir}/samples/heldout_{k:02d}_reference.png", portrait(k, 0)[..., ::-1])
    proof.write_json(workdir / "samples/heldout.json", entries)
    provenance.write(workdir, start())
    if finished:
        (workdir / "export").mkdir()
        (workdir / "export/pytorch_lora_weights.safetensors").write_bytes(b"lora")
        provenance.finish(workdir)
        scores = scored(rng)
        proof.write_json(workdir / "summary.json", summary_of(scores))
        write_scores(workdir, scores, prompt)
    return workdir


def watch(workdir, steps=(10, 20)):
    """Write comparisons in which every reward rises and no monitor clearly falls."""
    (workdir / "watch").mkdir()
    (workdir / "watch/start_00.mp4").write_bytes(mp4(0))
    entry = {"k": 0, "prompt": "A man waves", "identity": "person 200", "seed": 2**21}
    proof.write_json(workdir / "watch/pairs.json", [entry])
    for step in steps:
        compared = made_up_summary(np.random.default_rng(step))
        compared |= {"steps": step, "drift": 0.001 * step}
        compared["monitor_delta"]["motion"]["ci95"] = [-0.01, 0.02]
        (workdir / f"watch/step_{step:06d}_00.mp4").write_bytes(mp4(step // 10))
        proof.write_json(workdir / f"watch/step_{step:06d}.json", compared)


def record(share, rng):
    rise = 1 - math.exp(-3 * share)
    score = {n: at + gain * rise + rng.normal(0, 0.03) for n, (_, at, gain) in REWARDS.items()}
    attention = {
        "identity": 7 - 3 * share,
        "text": 4 + rng.normal(0, 0.7),
        "quality": 3 + 4 * share,
    }
    weight = {n: p * (1 + rng.random() * 0.6) for n, (p, *_) in REWARDS.items()}
    mass = sum(weight.values())
    policy, t2v, anchor = 0.031 * math.exp(-share), 0.02 + 0.01 * share, 0.0004 * share
    return {
        "loss": {"total": policy + t2v / 100, "policy": policy, "t2v": t2v, "self": anchor},
        "reward": {"unified": 0.5 + rng.normal(0, 0.02), "raw": score, "score": score}
        | {"spread": dict.fromkeys(REWARDS, 0.05), "saturated": dict.fromkeys(REWARDS, 0.0)},
        "missing": dict.fromkeys(REWARDS, 0.0),
        "weights": {name: value / mass for name, value in weight.items()},
        "attention": attention,
        "drift": {"evo_stb": 0.002 * rise, "evo_init": 0.02 * rise, "evo_t2v": 0.3 + 0.01 * rise},
        "grad_norm": 0.2 + rng.random() * 0.1,
        "valid_fraction": 1 - (rng.random() < 0.2) / 32,
        "seconds": {
            "rollout": 11 + rng.random(),
            "decode": 1.4,
            "score": 3 + rng.random(),
            "train": 9.1,
        }
        | {"total": 25.0},
    }


def made_up_summary(rng):
    return summary_of(scored(rng))


class Scored(NamedTuple):
    """What 64 videos of each arm scored: two seeds of each of 32 people."""

    base_BM: np.ndarray
    evolved_BM: np.ndarray
    monitor_base: dict
    monitor_evolved: dict


def scored(rng) -> Scored:
    gain_M = [gain for *_, gain in REWARDS.values()]
    base_BM = np.array([[at for _, at, _ in REWARDS.values()]]) + rng.normal(0, 0.05, (64, 8))
    evolved_BM = base_BM + np.array([gain_M]) + rng.normal(0, 0.06, (64, 8))
    evolved_BM[:2, 7] = np.nan
    base = {"identity": rng.normal(0.5, 0.1, 64), "motion": rng.normal(0.4, 0.1, 64)}
    evolved = {
        "identity": base["identity"] + 0.05,
        "motion": base["motion"] + rng.normal(0, 0.1, 64),
    }
    return Scored(base_BM, evolved_BM, base, evolved)


def summary_of(scores: Scored) -> dict:
    return proof.summary(
        names=tuple(REWARDS),
        prior_M=[prior for prior, *_ in REWARDS.values()],
        base_BM=scores.base_BM,
        evolved_BM=scores.evolved_BM,
        cluster_B=[f"person {300 + b // 2}" for b in range(64)],
        monitor_base=scores.monitor_base,
        monitor_evolved=scores.monitor_evolved,
        steps=24,
        seconds={"train": 600.0, "heldout": 120.0, "total": 724.0},
        heldout=proof.UNSEEN,
    )


def write_scores(workdir, scores: Scored, prompt: str) -> None:
    triples.write(
        workdir,
        tuple(REWARDS),
        [prior for prior, *_ in REWARDS.values()],
        [(f"person {300 + b // 2}", prompt, 1000 + b) for b in range(64)],
        (scores.base_BM, scores.evolved_BM),
        (scores.monitor_base, scores.monitor_evolved),
        photos=[media.digest(portrait(b // 2 % 6, 0)) for b in range(64)],
    )
