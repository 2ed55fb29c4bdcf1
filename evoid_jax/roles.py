"""The four networks of the update: what each of them predicts for the same noised videos.

All are one frozen base (paper, figure 2): evolving, stable and initial are that base with their
adapters, the teacher is the base without hints and without reference frames, or parameters of its
own. Where the config guides the trained forward, every prediction is the guided one.

Letters: B videos, T H W C latents, S text tokens, E text width, V VACE blocks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from evoid_jax.config import Config
from evoid_jax.models import wan as wan_model


class Noised(NamedTuple):
    """Videos at one time each, and their conditions."""

    x_BTHWC: jax.Array  # reference frames first
    t_B: jax.Array  # 0..1000
    text_BSE: jax.Array
    null_BSE: jax.Array  # the negative prompt, a row for each video
    control_BTHWC: jax.Array
    references: int  # latent frames in front, which are conditioning and enter no loss


See = Callable[[dict | None], jax.Array]  # adapter -> velocity BTHWC, without reference frames


def predict(wan: wan_model.Wan, base: dict, noised: Noised, cfg: Config) -> See:
    """Return the function from a role's adapter to what the role predicts in the loss."""
    see, scale = _seeing(wan, base, noised, noised.text_BSE, cfg), cfg.guidance.train
    if scale <= 1:
        return see
    see_null = _seeing(wan, base, noised, noised.null_BSE, cfg)
    if cfg.guidance.null == "base":
        v_null = see_null(None)  # one for all roles
        return lambda lora: guide(see(lora), v_null, scale)
    return lambda lora: guide(see(lora), see_null(lora), scale)


def predict_null(wan: wan_model.Wan, base: dict, noised: Noised, cfg: Config) -> See:
    """Return the function from a role's adapter to what it predicts for the negative prompt."""
    return _seeing(wan, base, noised, noised.null_BSE, cfg)


def teach(wan: wan_model.Wan, params: dict, noised: Noised, cfg: Config) -> jax.Array:
    """Return the teacher's velocity, BTHWC without reference frames.

    It is guided as its pupils are.
    """
    x_BTHWC = noised.x_BTHWC[:, noised.references :]
    see = lambda text_BSE: wan_model.velocity(wan, params, None, x_BTHWC, noised.t_B, text_BSE)
    if cfg.guidance.train <= 1:
        return see(noised.text_BSE)
    return guide(see(noised.text_BSE), see(noised.null_BSE), cfg.guidance.train)


def guide(v: jax.Array, v_null: jax.Array, scale: float) -> jax.Array:
    """Return the guided velocity v_null + scale (v - v_null), shaped as both."""
    return v_null + scale * (v - v_null)


def _seeing(wan: wan_model.Wan, base: dict, noised: Noised, text_BSE, cfg: Config) -> See:
    """Return the function from adapter to unguided velocity for a text."""

    def hints(lora):
        return wan_model.hints(
            wan, base, lora, noised.x_BTHWC, noised.t_B, text_BSE, noised.control_BTHWC
        )

    # Hints read no main block: one set serves every role.
    shared = hints(None) if cfg.lora.targets == "main" else None

    def see(lora):
        seen = hints(lora) if shared is None else shared
        v = wan_model.velocity(wan, base, lora, noised.x_BTHWC, noised.t_B, text_BSE, seen)
        return v[:, noised.references :]

    return see


def repeat(null_1SE: jax.Array, videos: int) -> jax.Array:
    """Return the negative prompt's text once for each video, BSE."""
    return jnp.broadcast_to(null_1SE, (videos, *null_1SE.shape[1:]))
