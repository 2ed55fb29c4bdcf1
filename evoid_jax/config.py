"""Every setting of a run, typed, with its unit or its source.

`configs/*.py` give an ml_collections ConfigDict; `from_dict` turns it into frozen dataclasses here
and refuses a key that does not exist or a value that cannot be. `NFT` below is DiffusionNFT, the
method EvoID's loss descends from; what the paper itself states is marked (paper).
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
from dataclasses import dataclass, field
from typing import Any, get_type_hints

GROUPS = ("identity", "text", "quality")


@dataclass(frozen=True)
class Metric:
    """One reward: its group, its prior weight (any scale), and its least spread.

    A spread between the seeds of one pair below `floor`, in units of the [0, 1] score, counts as
    noise and is not blown up to full rewards. The paper has no floor; the values are ours.
    """

    name: str
    group: str  # identity | text | quality
    prior: float
    floor: float = 0.01


# Priors are the weights of the total in OpenS2V-Eval v1.1, human domain (OpenS2V-Nexus,
# eval/merge_result.py): aesthetic .18, smoothness .09, amplitude .03, face similarity .25, GME .15,
# naturalness .30. The benchmark has one face similarity; its weight is halved over our two face
# encoders. The paper prints no priors. They need not sum to one: `fuse.final_weights` normalises.
METRICS = (
    Metric("arcface", "identity", 0.125),
    Metric("curricularface", "identity", 0.125),
    Metric("gme", "text", 0.15),
    Metric("aesthetic", "quality", 0.18),
    Metric("qalign", "quality", 0.09),  # temporal quality: the benchmark's motion smoothness
    Metric("naturalness", "quality", 0.30),
    Metric("flow", "quality", 0.03),  # the benchmark's motion amplitude
    # The judge's group and prior are our choice: it grades the whole video, like naturalness.
    Metric("vqscore", "quality", 0.30),
)


@dataclass(frozen=True)
class Data:
    """Which (identity image, prompt) pairs, and how many of them make a step."""

    source: str = "portraits"  # the tiny world; ignored when `dir` is given
    dir: str = ""  # a folder with images and prompts.jsonl
    cache: str = "~/.cache/evoid_jax"  # where prepared data sets are kept
    pairs: int = 4  # per step (paper)
    seeds: int = 8  # videos per pair (paper)
    heldout: float = 0.0  # share of a folder's people kept for the proof; 0: its own pairs prove
    heldout_identities: int = 32  # for the proof at the end
    heldout_seeds: int = 2


@dataclass(frozen=True)
class Video:
    """Size of the generated videos."""

    frames: int = 81  # 4 k + 1, Wan2.1
    height: int = 480  # pixels, a multiple of 16
    width: int = 832
    fps: int = 16


@dataclass(frozen=True)
class Rollout:
    """How the stable transformer generates."""

    scheduler: str = "unipc"  # unipc | euler; Wan2.1's default
    steps: int = 20  # (paper)
    guidance: float = 5.0  # (paper)
    shift: float = 16.0  # official VACE command line; diffusers writes 3.0
    negative_prompt: str = ""
    reference_order: str = "diffusers"  # diffusers (last reference first) | vace
    videos_per_device: int = 1  # generated at once
    split: bool = False  # the guidance's two prompts one after the other, in half the memory


@dataclass(frozen=True)
class Lora:
    """The adapter that evolves."""

    rank: int = 32  # (paper)
    alpha: float = 32.0  # (paper, as reported in its Chinese notes)
    targets: str = "main"  # main | main+vace; main lets all roles share the hints
    modules: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out")  # identity-grpo on VACE-1.3B
    init: str = ""  # a LoRA file to start from


@dataclass(frozen=True)
class Loss:
    """Weights of the objective."""

    beta: float = 1.0  # not in the paper: NFT's default; small beta hands the step to the anchors
    lambda_t2v: float = 0.01  # (paper)
    lambda_self: float = 0.2  # (paper)


@dataclass(frozen=True)
class Train:
    """The evolutionary update."""

    lr: float = 1e-4  # AdamW (paper)
    lr_end: float = 1.0  # share of lr that is left after lr_steps, falling linearly; 1 is constant
    lr_steps: int = 200  # not `steps`: a run that is resumed to more steps must not change its past
    b1: float = 0.9  # b1 .. clip_norm: NFT and identity-grpo
    b2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 1e-4
    clip_norm: float = 1.0
    ema_decay: float = 0.9  # "slow EMA" (paper); 0.9 keeps stable about 9 updates behind
    timesteps: int = 4  # K per video and step; not in the paper: Flow-Factory's Wan2.1 recipe
    grid: int = 20  # the K times are drawn, stratified, from a list as long as the rollout's
    shift: float = 5.0  # of that list; 16 would never train t < 0.46 (our choice)
    videos_per_device: int = 1  # in one forward; the rest is accumulated
    remat: str = "full"  # recomputed going backward: full (blocks) | attention (all but it) | none


@dataclass(frozen=True)
class Reward:
    """Who scores, and how scores become one reward."""

    sidecars: tuple[str, ...] = ("local",)  # "local" starts one, else URLs
    preset: str = "tiny"  # of the local sidecar
    table: tuple[Metric, ...] = METRICS  # by name in a ConfigDict: {"flow": {"group": ...}}
    judge: str = "local"  # "local" starts the heuristic, "" is none, else an OpenAI base URL
    judge_model: str = "heuristic"  # Qwen/Qwen3-VL-30B-A3B-Instruct (paper)
    preference: bool = True  # VQScore among the rewards (paper: PR)
    dynamic: bool = True  # MLLM dynamic weighting (paper: MDW); False: gamma = 0
    uniform: bool = False  # uniform priors (paper: UWR)
    tau: float = 1.0  # smoothing in units of attention (0-10); not in the paper
    gamma: float = 0.5  # share of the judge in the group weights; not in the paper
    attention_memory: float = 0.5  # EMA of the attention over steps; not in the paper
    clip: float = 2.0  # in standard deviations; in a group of 8, |z| never exceeds 2.65
    floor: float = 0.25  # of the median group deviation so far: no noise amplification
    timeout: float = 300.0  # seconds for one scoring request


@dataclass(frozen=True)
class Mesh:
    """Devices along each axis; -1 for data or fsdp takes what is left."""

    data: int = -1  # copies of the model
    fsdp: int = 1  # pieces of the model, which are gathered layer by layer
    context: int = 1  # pieces of a video's tokens; fastest where it divides the heads (12 or 40)


@dataclass(frozen=True)
class Config:
    """One run."""

    model: str = "evoid_jax/assets/tiny"  # a diffusers folder
    teacher: str = ""  # a T2V folder; "" takes the model's main blocks, as VACE left them unchanged
    dtype: str = "bfloat16"  # of the frozen base: bfloat16 | float32
    attention: str = "auto"  # auto (by platform) | exact | cudnn (NVIDIA) | splash (TPU)
    seed: int = 0
    steps: int = 200  # evolution steps (paper)
    save_every: int = 10
    keep: int = 2  # checkpoints
    tensorboard: bool = False
    wandb: str = ""  # project name; empty is off
    data: Data = field(default_factory=Data)
    video: Video = field(default_factory=Video)
    rollout: Rollout = field(default_factory=Rollout)
    lora: Lora = field(default_factory=Lora)
    loss: Loss = field(default_factory=Loss)
    train: Train = field(default_factory=Train)
    reward: Reward = field(default_factory=Reward)
    mesh: Mesh = field(default_factory=Mesh)


def to_dict(config) -> dict[str, Any]:
    """Return the config as plain nested dicts; the table of rewards is one by name."""
    values = dataclasses.asdict(config)
    rows = values["reward"]["table"]
    values["reward"]["table"] = {row.pop("name"): row for row in rows}
    return values


def digest(config: Config) -> str:
    """Return twelve hex digits that change when any setting does."""
    text = json.dumps(to_dict(config), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def from_dict(values: dict[str, Any]) -> Config:
    """Build and check a Config.

    Raises:
      ValueError: an unknown key (names the nearest), a wrong type, or an impossible value.
    """
    config = _build(Config, dict(values), "config")
    for wrong, message in _checks(config):
        if wrong:
            raise ValueError(message)
    return config


def _build(kind, values: dict[str, Any], where: str):
    hints, made = get_type_hints(kind), {}
    for key, value in values.items():
        if key not in hints:
            near = difflib.get_close_matches(key, hints, n=1, cutoff=0.0)
            raise ValueError(f"{where}.{key} does not exist; did you mean {where}.{near[0]}?")
        if dataclasses.is_dataclass(hints[key]):
            made[key] = _build(hints[key], dict(value), f"{where}.{key}")
        else:
            made[key] = _typed(hints[key], value, f"{where}.{key}")
    return kind(**made)


def _metrics(values: dict, where: str) -> tuple[Metric, ...]:
    """Read the table. A ConfigDict forgets the order of its keys: ours first, then by name."""
    ours = [metric.name for metric in METRICS if metric.name in values]
    names = [*ours, *sorted(values.keys() - set(ours))]
    return tuple(_build(Metric, {"name": n, **values[n]}, f"{where}.{n}") for n in names)


def _typed(want, value, where: str):
    if want == tuple[Metric, ...]:
        return _metrics(dict(value), where)
    if want == tuple[str, ...] and isinstance(value, list | tuple):
        if all(isinstance(v, str) for v in value):
            return tuple(value)
    elif want is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    elif want in (int, str, bool) and type(value) is want:
        return value
    name = getattr(want, "__name__", str(want))
    raise ValueError(f"{where} must be {name}, got {value!r} ({type(value).__name__})")


def _checks(c: Config):
    """Yield (is wrong, message) for every rule between the fields."""
    v, r, t = c.video, c.rollout, c.train
    yield v.frames % 4 != 1, f"config.video.frames must be 4 k + 1, got {v.frames}"
    for name in ("height", "width"):
        size = getattr(v, name)
        yield size % 16 or size <= 0, f"config.video.{name} must be a multiple of 16, got {size}"
    choices = [
        ("config.dtype", c.dtype, ("bfloat16", "float32")),
        ("config.attention", c.attention, ("auto", "exact", "cudnn", "splash")),
        ("config.rollout.scheduler", r.scheduler, ("unipc", "euler")),
        ("config.rollout.reference_order", r.reference_order, ("diffusers", "vace")),
        ("config.train.remat", t.remat, ("full", "attention", "none")),
        ("config.lora.targets", c.lora.targets, ("main", "main+vace")),
    ]
    for name, value, allowed in choices:
        yield value not in allowed, f"{name} must be one of {', '.join(allowed)}, got {value!r}"
    wide = "config.attention=cudnn needs config.dtype=bfloat16; take auto or exact for float32"
    yield c.attention == "cudnn" and c.dtype == "float32", wide
    counts = {
        "config.steps": c.steps,
        "config.save_every": c.save_every,
        "config.data.pairs": c.data.pairs,
        "config.data.heldout_identities": c.data.heldout_identities,
        "config.data.heldout_seeds": c.data.heldout_seeds,
        "config.mesh.context": c.mesh.context,
        "config.rollout.steps": r.steps,
        "config.rollout.videos_per_device": r.videos_per_device,
        "config.train.videos_per_device": t.videos_per_device,
        "config.lora.rank": c.lora.rank,
        "config.train.lr_steps": t.lr_steps,
    }
    for name, value in counts.items():
        yield value < 1, f"{name} must be at least 1, got {value}"
    for axis in ("data", "fsdp"):
        size = getattr(c.mesh, axis)
        yield size < 1 and size != -1, f"config.mesh.{axis} must be -1 or at least 1, got {size}"
    both = c.mesh.data == c.mesh.fsdp == -1
    yield both, "one of config.mesh.data and config.mesh.fsdp may be -1, not both"
    few = f"config.data.seeds must be at least 2 to compare videos of a pair, got {c.data.seeds}"
    yield c.data.seeds < 2, few
    many = f"config.train.timesteps must be 1 to {t.grid} (config.train.grid), got {t.timesteps}"
    yield not 1 <= t.timesteps <= t.grid, many
    shares = {
        "config.train.ema_decay": t.ema_decay,
        "config.train.lr_end": t.lr_end,
        "config.reward.gamma": c.reward.gamma,
        "config.reward.attention_memory": c.reward.attention_memory,
    }
    for name, value in shares.items():
        yield not 0 <= value <= 1, f"{name} must be from 0 to 1, got {value}"
    positive = {"config.train.lr": t.lr, "config.loss.beta": c.loss.beta, "clip": c.reward.clip}
    for name, value in positive.items():
        yield value <= 0, f"{name} must be positive, got {value}"
    yield c.reward.tau < 0, f"config.reward.tau must not be negative, got {c.reward.tau}"
