"""The settings of the rewards: which there are, who gives them, how many become one number.

Beside groups.py, as one file of both would be too long to read.
"""

from __future__ import annotations

from dataclasses import MISSING, dataclass

from evoid_jax.fields import COUNT, NOT_NEGATIVE, POSITIVE, SHARE, Bounds, one_of, setting
from evoid_jax.groups import FEW, PATH, STEPS

# The metrics that the judge grades; all others come from sidecars. EVOSCORE is in no table unless a
# file of settings adds its row.
JUDGE, EVOSCORE = "vqscore", "evoscore"
GROUPS = ("identity", "text", "quality")

NAME = Bounds(pattern=r".*\S.*", form="a name")
URL = r"https?://\S+"


@dataclass(frozen=True)
class Metric:
    """One reward."""

    name: str = setting(
        MISSING, "column", Bounds(pattern=r"(?!total$)[^\W\d]\w*", form="a name such as arcface")
    )
    group: str = setting(MISSING, "what it tells of", one_of(*GROUPS))
    prior: float = setting(MISSING, "weight; need not sum to 1, and 0 only watches", NOT_NEGATIVE)
    floor: float = setting(
        0.0,
        "a smaller spread within a pair, of scores from 0 to 1, is noise; 0: reward.floor says it",
        NOT_NEGATIVE,
    )


# The K = 8 rewards: seven objective metrics and the judge's preference.
#
# Priors are the weights of the total in OpenS2V-Eval v1.1, human domain (OpenS2V-Nexus,
# eval/merge_result.py): aesthetic .18, smoothness .09, amplitude .03, face similarity .25, GME .15,
# naturalness .30. The benchmark has one face similarity; its weight is halved over our two face
# encoders. The paper prints no priors. They need not sum to one: `fuse.final_weights` normalises.
#
# None has a floor of its own: how far the seeds of a pair spread differs between rewards, and one
# number would mute those that live in a narrow band (motion smoothness: 0.97 to 0.99).
METRICS = (
    Metric("arcface", "identity", 0.125),
    Metric("curricularface", "identity", 0.125),
    Metric("gme", "text", 0.15),
    Metric("aesthetic", "quality", 0.18),
    Metric("qalign", "quality", 0.09),  # temporal quality: the benchmark's motion smoothness
    Metric("naturalness", "quality", 0.30),
    Metric("flow", "quality", 0.03),  # the benchmark's motion amplitude
    # The judge's group and prior are our choice: it grades the whole video, like naturalness.
    Metric(JUDGE, "quality", 0.30),
)


@dataclass(frozen=True)
class Reward:
    """Who scores, and how scores become one reward."""

    table: tuple[Metric, ...] = setting(
        METRICS, "the rewards by name, each with its group, prior and floor"
    )
    sidecars: tuple[str, ...] = setting(
        ("local",),
        "who scores: local starts a server here, else addresses",
        Bounds(pattern=f"local|{URL}", form="local, or an address such as http://host:8100"),
        free=True,
    )
    preset: str = setting("tiny", "reward set of the local sidecar", NAME)
    judge: str = setting(
        "local",
        "local starts the heuristic, '' is none, else the base URL of an OpenAI API",
        Bounds(pattern=f"(local|{URL})?", form="local, '' or an address such as http://host/v1"),
        free=True,
    )
    photos: str = setting(
        "original",
        "of the reference photos that scorers see; original: all pixels, canvas: as the model does",
        one_of("original", "canvas"),
    )
    judge_model: str = setting("heuristic", "Qwen/Qwen3-VL-30B-A3B-Instruct (paper)", NAME)
    judge_key_env: str = setting(
        "OPENAI_API_KEY",
        "name of the environment variable with the judge's key; '' sends none",
        Bounds(pattern=r"([A-Za-z_]\w*)?", form="'' or the name of an environment variable"),
        free=True,
    )
    judge_frames: int = setting(8, "frames of a video that the judge sees", FEW)
    judge_side: int = setting(
        512, "longest side of a picture that it sees", Bounds(least=16, most=16384)
    )
    judge_rubric: str = setting("", "TOML file with questions in place of ours", PATH)
    judge_extra: str = setting(
        "",
        "JSON object of fields that every request to the judge has besides; they go before ours",
        Bounds(pattern=r"(\{.*\})?", form="'' or a JSON object {...}"),
        free=True,
    )
    judge_tokens: int = setting(
        4096, "longest answer in tokens; a model that thinks needs them", COUNT, free=True
    )
    judge_workers: int = setting(8, "questions under way at once, per process", FEW, free=True)
    judge_expected: bool = setting(
        False, "grades as expected values over the answer's logprobs, where the server gives them"
    )
    preference: bool = setting(
        True,
        "VQScore among the update's rewards (paper: PR); in the proof it is there if a judge is",
    )
    dynamic: bool = setting(True, "MLLM dynamic weighting (paper: MDW); False is gamma 0")
    uniform: bool = setting(False, "uniform priors (paper: UWR)")
    tau: float = setting(
        1.0, "smoothing in units of attention (0-10); not in the paper", NOT_NEGATIVE
    )
    gamma: float = setting(0.5, "share of the judge in the group weights; not in the paper", SHARE)
    attention_memory: float = setting(
        0.5, "EMA of the attention over steps; not in the paper", SHARE
    )
    clip: float = setting(
        2.0, "in standard deviations; in a group of 8, |z| never exceeds 2.65", POSITIVE
    )
    floor: float = setting(
        0.25,
        "of a reward's usual spread within a pair; a smaller one is noise (not in the paper)",
        NOT_NEGATIVE,
    )
    timeout: float = setting(
        300.0,
        "seconds for a scoring request with all its tries; as many for the judge and a batch",
        Bounds(above=0, most=1e6),
        free=True,
    )
    encoding: str = setting(
        "raw",
        "of the videos on their way to sidecars; h264 is 75 times smaller and changes scores a "
        "little, lossless changes none: docs/throughput.md",
        one_of("raw", "h264", "lossless"),
    )
    patience: float = setting(
        600.0,
        "seconds for which a reward with weight that no video of a step has is asked for again",
        Bounds(least=0, most=1e6),
        free=True,
    )
    on_missing: str = setting(
        "stop",
        "then: stop, or go_on by the other rewards alone",
        one_of("stop", "go_on"),
        free=True,
    )
    versions: str = setting(
        "same",
        "of the sidecars' rewards when a run goes on: the same as before, or any",
        one_of("same", "any"),
        free=True,
    )
    idle_steps: int = setting(
        5,
        "steps in a row without any video to learn from that end the run; 0: none do",
        STEPS,
        free=True,
    )
    stop_on_hacking: bool = setting(
        False,
        "end the run when the watch sees a reward rise while what is not rewarded falls",
        free=True,
    )
