"""What `config.algorithm` changes in the update, beside EvoID's own (evolve.py, losses.py).

Three places: what a video's reward becomes before anything is noised, the loss on what the roles
predict, and how the stable transformer follows. Each is one function here; the formulas are in the
algorithms' own files.

Letters: B videos. Velocities are (B, ...), without reference frames.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from evoid_jax import losses
from evoid_jax.algorithms import grpo, imitation, nft, rwr
from evoid_jax.config import Config

# The lesson of a video that sees the negative prompt: its score says nothing of that. Where nothing
# but the video is learned from, it must not be learned that the negative prompt makes the best one.
NEUTRAL = {"evoid": 0.5, "nft": 0.5, "imitation": 0.0, "rwr": 0.0, "grpo": 0.0}


class Lessons(NamedTuple):
    """What each place in a batch trains on."""

    row_B: jax.Array | None  # int32, which video; None: its own
    lesson_B: jax.Array  # what its reward has become
    valid_B: jax.Array  # 1.0 or 0.0


class Seen(NamedTuple):
    """Videos at one time each, as all roles but the evolving one see them."""

    v: jax.Array  # the truth, noise - video
    v_stb: jax.Array
    v_init: jax.Array
    t_B: jax.Array  # in (0, 1]
    lesson_B: jax.Array
    step: grpo.Step | None  # of a walk; only grpo learns from one


def lessons(cfg: Config, reward_B: jax.Array, pair_B: jax.Array, valid_B: jax.Array) -> Lessons:
    """Return what an algorithm makes of a batch's rewards.

    Args:
      reward_B: unified, in [0, 1].
      pair_B: ints, equal for videos of one pair.
      valid_B: 1.0 or 0.0.

    Returns:
      row_B: for imitation of the best alone.
      lesson_B: a weight (imitation, rwr), an advantage (grpo) or the reward itself (nft).
    """
    row_B, lesson_B = None, reward_B
    if cfg.algorithm == "imitation":
        lesson_B = jnp.ones_like(reward_B)
        if cfg.imitation.target == "best":
            row_B, valid_B = imitation.best_of_pair(reward_B, pair_B, valid_B)
    elif cfg.algorithm == "rwr":
        lesson_B = rwr.weights(reward_B, valid_B, cfg.rwr.temperature)
    elif cfg.algorithm == "grpo":
        lesson_B = grpo.advantages(reward_B, pair_B, valid_B, cfg.grpo.adv_clip)
    return Lessons(row_B, lesson_B, valid_B)


def loss(cfg: Config, v_evo: jax.Array, seen: Seen) -> dict[str, dict[str, jax.Array]]:
    """Return an algorithm's terms by group and name, each (B,): what to descend is loss/total."""
    if cfg.algorithm == "imitation":
        return {"loss": {"total": seen.lesson_B * imitation.loss(v_evo, seen.v)}}
    if cfg.algorithm == "rwr":
        return {"loss": {"total": rwr.loss(v_evo, seen.v, seen.lesson_B)}}
    if cfg.algorithm == "nft":
        return {"loss": _nft(cfg.nft, v_evo, seen)}
    return _grpo(cfg.grpo, v_evo, seen)


def decay(cfg: Config, step: jax.Array) -> jax.Array | float:
    """Return the stable transformer's decay after an update; step counts updates from 0."""
    if cfg.algorithm == "nft" and cfg.nft.decay in nft.DECAYS:
        return nft.decay(step + 1, cfg.nft.decay)
    return cfg.train.ema_decay


def _nft(own, v_evo: jax.Array, seen: Seen) -> dict[str, jax.Array]:
    policy_B = nft.policy(
        v_evo, seen.v_stb, seen.v, seen.t_B, seen.lesson_B, own.beta, own.adv_clip
    )
    self_B = losses.anchor(v_evo, seen.v_init)
    return {"policy": policy_B, "self": self_B, "total": policy_B + own.kl * self_B}


def _grpo(own, v_evo: jax.Array, seen: Seen) -> dict[str, dict[str, jax.Array]]:
    log_ratio_B = grpo.log_ratio(v_evo, seen.v_stb, seen.step)
    policy_B = grpo.policy(log_ratio_B, seen.lesson_B, own.clip)
    kl_B = grpo.kl(v_evo, seen.v_init, seen.step)
    off_B = jnp.abs(jnp.exp(log_ratio_B) - 1)
    return {
        "loss": {"policy": policy_B, "kl": kl_B, "total": policy_B + own.kl * kl_B},
        "ratio": {"off": off_B, "clipped": (off_B > own.clip).astype(jnp.float32)},
    }
