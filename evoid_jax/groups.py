"""The groups of a run's settings: each with its unit or its source, its default and its bounds.

`NFT` below is DiffusionNFT, the method EvoID's loss descends from; what the paper itself states is
marked (paper). Those of the rewards are in reward_groups.py; config.py puts all together.
"""

from __future__ import annotations

from dataclasses import dataclass

from evoid_jax.fields import COUNT, DECAY, NOT_NEGATIVE, POSITIVE, SHARE, Bounds, one_of, setting

# A video has 1024 places along each of its axes: rows and columns of 16 pixels, latent frames of 4.
SIXTEENS = Bounds(least=16, most=1024 * 16, multiple=16)
FRAMES = Bounds(least=1, most=1023 * 4 + 1, multiple=4, plus=1)
THOUSAND = Bounds(least=1, most=1000)  # Wan tells apart a thousand times, no more
FEW = Bounds(least=1, most=1000)
GUIDANCE = Bounds(least=0, most=1000)
SHIFT = Bounds(above=0, most=1000)
STEPS = Bounds(least=0, most=1_000_000)
AXIS = Bounds(least=1, most=100_000)  # devices
TEXT = Bounds(pattern=r".*", form="a text")
PATH = Bounds(pattern=r".*", form="a path", path=True)
FOLDER = Bounds(pattern=r".*\S.*", form="a folder", path=True)

# A percentile interval over n identities is too narrow when n is small: with normal effects it
# covers the truth in 0.50, 0.79, 0.89, 0.93 of all cases for n = 2, 4, 8, 32, instead of in 0.95.
ENOUGH = 8  # people for any verdict


@dataclass(frozen=True)
class Data:
    """Which (identity image, prompt) pairs, and how many of them make a step."""

    source: str = setting(
        "",
        "portraits of the drawn world; '' is dir, or for the embedded model portraits",
        one_of("", "portraits"),
    )
    dir: str = setting("", "a folder with images and prompts.jsonl; wins over source", PATH)
    cache: str = setting(
        "~/.cache/evoid_jax", "where prepared data sets are kept", FOLDER, free=True
    )
    pairs: int = setting(4, "pairs of a step (paper)", FEW)
    seeds: int = setting(
        8, "videos of a pair, which are compared (paper)", Bounds(least=2, most=1000)
    )
    validation: float = setting(
        0.0,
        "share of a folder's people kept for the watch; 0: the pairs trained on, with new seeds",
        Bounds(least=0, below=1),
    )
    heldout: float = setting(
        0.0,
        "share of a folder's people kept for the proof; 0: the pairs trained on, with new seeds",
        Bounds(least=0, below=1),
    )
    heldout_identities: int = setting(32, "faces for the proof at the end", COUNT)
    heldout_seeds: int = setting(2, "videos of each held-out face", FEW)


@dataclass(frozen=True)
class Video:
    """Size of the generated videos."""

    frames: int = setting(81, "4 k + 1, as Wan2.1 needs", FRAMES)
    height: int = setting(480, "pixels", SIXTEENS)
    width: int = setting(832, "pixels", SIXTEENS)
    fps: int = setting(16, "frames per second", Bounds(least=1, most=240))


@dataclass(frozen=True)
class Rollout:
    """How the stable transformer generates."""

    scheduler: str = setting("unipc", "solver; unipc is Wan2.1's own", one_of("unipc", "euler"))
    steps: int = setting(20, "denoising steps (paper)", THOUSAND)
    shift: float = setting(
        16.0, "time shift; official VACE command line, diffusers writes 3", SHIFT
    )
    reference_order: str = setting(
        "diffusers", "of several faces; diffusers takes the last first", one_of("diffusers", "vace")
    )
    videos_per_device: int = setting(1, "generated at once", FEW, free=True)
    split: bool = setting(
        False, "the guidance's two prompts one after the other, in half the memory", free=True
    )


# Wan2.1's own (wan/configs/shared_config.py, sample_neg_prompt): its command lines read "" as this.
NEGATIVE_PROMPT = (
    "色调艳丽，过曝，静态，细节模糊不清，字幕，风格，作品，画作，画面，静止，整体发灰，最差质量，低质量，"
    "JPEG压缩残留，丑陋的，残缺的，多余的手指，画得不好的手部，画得不好的脸部，畸形的，毁容的，形态畸形的肢体，"
    "手指融合，静止不动的画面，杂乱的背景，三条腿，背景人很多，倒着走"
)


@dataclass(frozen=True)
class Guidance:
    """Classifier-free guidance v_null + g (v - v_null) wherever the model is used; off up to 1.

    The paper has one number, 5, and says that inference uses it.
    """

    rollout: float = setting(1.0, "of the videos that are scored and learned from", GUIDANCE)
    train: float = setting(1.0, "of every velocity in the loss", GUIDANCE)
    proof: float = setting(
        1.0,
        "of both arms of the proof and of the watch; a finished run may be proved again",
        GUIDANCE,
        free=True,
    )
    deploy: float = setting(1.0, "written into the export, for whoever generates", GUIDANCE)
    negative_prompt: str = setting(
        NEGATIVE_PROMPT, "what guidance steers away from; Wan2.1's own", TEXT
    )
    null: str = setting(
        "adapter",
        "the negative prompt's velocity is taken with the adapter, as diffusers does, or of the "
        "base; with the adapter, null_share holds it",
        one_of("adapter", "base"),
    )
    null_share: float = setting(
        0.1, "share of trained videos that see the negative prompt, where null is adapter", SHARE
    )

    @property
    def used(self) -> bool:
        """Whether guided videos are what the adapter is for, or what it learns from."""
        return max(self.rollout, self.train, self.deploy) > 1


@dataclass(frozen=True)
class Lora:
    """The adapter that evolves."""

    rank: int = setting(32, "rank (paper)", Bounds(least=1, most=8192))
    alpha: float = setting(32.0, "scale is alpha / rank (paper, in its Chinese notes)", POSITIVE)
    targets: str = setting(
        "main", "blocks; main lets all roles share the hints", one_of("main", "main+vace")
    )
    modules: tuple[str, ...] = setting(
        ("to_q", "to_k", "to_v", "to_out"),
        "layers of a block; the default is identity-grpo's on VACE-1.3B",
        one_of("to_q", "to_k", "to_v", "to_out", "ffn_up", "ffn_down"),
    )
    init: str = setting("", "a LoRA file or folder to start from", PATH)

    @property
    def scale(self) -> float:
        """What the adapter is multiplied by: the only place where rank and alpha meet."""
        return self.alpha / self.rank


@dataclass(frozen=True)
class Loss:
    """Weights of the objective."""

    beta: float = setting(
        1.0,
        "not in the paper: NFT's default; small beta hands the step to the anchors",
        POSITIVE,
    )
    lambda_t2v: float = setting(0.01, "pull towards the teacher (paper)", NOT_NEGATIVE)
    lambda_self: float = setting(0.2, "pull towards the initial model (paper)", NOT_NEGATIVE)


@dataclass(frozen=True)
class Train:
    """The evolutionary update."""

    lr: float = setting(
        1e-4,
        "learning rate of AdamW (paper); a run may go on with another",
        Bounds(above=0, most=1),
        free=True,
    )
    lr_end: float = setting(
        1.0, "share of lr that is left after lr_steps, falling linearly; 1 is constant", SHARE
    )
    # Not config.steps: a run that is resumed to more steps must not change its past.
    lr_steps: int = setting(200, "steps over which lr falls", COUNT)
    b1: float = setting(0.9, "AdamW's first decay (NFT, identity-grpo)", DECAY)
    b2: float = setting(0.999, "AdamW's second decay (NFT, identity-grpo)", DECAY)
    eps: float = setting(1e-8, "AdamW's epsilon (NFT, identity-grpo)", Bounds(above=0, most=1))
    weight_decay: float = setting(
        1e-4, "AdamW's decay (NFT, identity-grpo)", Bounds(least=0, most=100)
    )
    # On the embedded model's run one gradient of 66 was longer than twice the median, by a quarter;
    # a fixed norm of 1.0 (NFT, identity-grpo) never acted.
    clip_factor: float = setting(
        2.0,
        "longest gradient, in median norms of the last 16 steps; not in the paper, ours",
        POSITIVE,
    )
    drift: float = setting(
        1.0,
        "most drift/evo_init, beyond which updates are refused; a velocity's own square is near 2; "
        "0: any",
        NOT_NEGATIVE,
        free=True,
    )
    refused: int = setting(
        3,
        "refused updates in a row (not finite, too long, too far) that end the run",
        COUNT,
        free=True,
    )
    ema_decay: float = setting(
        0.9, "slow EMA (paper); 0.9 keeps stable about 9 updates behind", SHARE
    )
    timesteps: int = setting(
        4, "K times per video and step; not in the paper: Flow-Factory's Wan2.1 recipe", THOUSAND
    )
    grid: int = setting(20, "times that the K are drawn from, stratified; the rollout's", THOUSAND)
    shift: float = setting(
        5.0, "time shift of the grid; 16 would never train t < 0.46 (our choice)", SHIFT
    )
    videos_per_device: int = setting(1, "in one forward; the rest is accumulated", FEW, free=True)
    remat: str = setting(
        "full",
        "recomputed going backward: whole blocks, all but attention, or nothing",
        one_of("full", "attention", "none"),
        free=True,
    )


@dataclass(frozen=True)
class Watch:
    """A small held-out comparison while a run goes on, on validation pairs; see watch.py."""

    every: int = setting(
        10,
        "steps between two of them, each about half a step long; 0 is off",
        STEPS,
        free=True,
    )
    identities: int = setting(16, f"faces, of which {ENOUGH} are the least for any verdict", COUNT)
    seeds: int = setting(2, "videos of each face", FEW)
    patience: int = setting(
        0,
        "comparisons without a better total that end the run; 0: none do",
        STEPS,
        free=True,
    )
    drift: float = setting(
        0.0, "drift/evo_init above which the run ends; 0: none does", NOT_NEGATIVE, free=True
    )
    export: str = setting(
        "last", "adapter that is exported and proved", one_of("last", "best"), free=True
    )


@dataclass(frozen=True)
class Mesh:
    """Devices along each axis; -1 for data or fsdp takes what is left."""

    data: int = setting(-1, "copies of the model", AXIS._replace(also=-1), free=True)
    fsdp: int = setting(
        1, "pieces of the model, gathered layer by layer", AXIS._replace(also=-1), free=True
    )
    context: int = setting(
        1,
        "pieces of a video's tokens; fastest where it divides the heads (12 or 40)",
        AXIS,
        free=True,
    )
