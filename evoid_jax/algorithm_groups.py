"""Settings of the algorithms besides EvoID, with the values that they were published with.

What an algorithm shares with EvoID (rate, times, adapter, guidance) stays where it is;
docs/algorithms.md has the published values of those too.
"""

from __future__ import annotations

from dataclasses import dataclass

from evoid_jax.fields import NOT_NEGATIVE, POSITIVE, one_of, setting

ALGORITHMS = ("evoid", "imitation", "rwr", "nft", "grpo")


@dataclass(frozen=True)
class Imitation:
    """Flow matching on videos that are taken for right."""

    target: str = setting(
        "best",
        "best of a pair's generated videos, or clips: true ones, which only the portraits have",
        one_of("best", "clips"),
    )


@dataclass(frozen=True)
class Rwr:
    """Reward-weighted regression."""

    temperature: float = setting(
        1.0, "weights are exp(reward / temperature); Flow-RWR has exp(reward)", POSITIVE
    )


@dataclass(frozen=True)
class Nft:
    """DiffusionNFT; sources: its config/nft.py, config/base.py and training script."""

    beta: float = setting(
        1.0, "reach of the contrast; 0.1 for its OCR and several rewards", POSITIVE
    )
    adv_clip: float = setting(5.0, "scale of the loss: what an advantage is clipped to", POSITIVE)
    kl: float = setting(1e-4, "pull towards the initial model", NOT_NEGATIVE)
    decay: str = setting(
        "1",
        "how stable follows, by its decay_type; train: config.train.ema_decay",
        one_of("0", "1", "2", "train"),
    )


@dataclass(frozen=True)
class Grpo:
    """Flow-GRPO as for Wan2.1; sources: its config/grpo.py, and identity-grpo's config/dgx.py."""

    noise: str = setting(
        "linear",
        "of a step from t: linear is level t_1 t, root level sqrt(t / (1 - t)), as for images",
        one_of("linear", "root"),
    )
    level: float = setting(1.0, "how much noise; root was published with 0.7", POSITIVE)
    clip: float = setting(1e-3, "how far the ratio may leave 1 and still teach", POSITIVE)
    adv_clip: float = setting(5.0, "largest advantage, in a pair's standard deviations", POSITIVE)
    kl: float = setting(0.004, "weight of the divergence from the initial model", NOT_NEGATIVE)
