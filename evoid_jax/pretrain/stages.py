"""Pretraining by imitation after the VAE: text encoder, T2V main blocks, VACE blocks.

Each stage is a function of what was rendered or encoded before it and returns parameters. The main
blocks are frozen before the VACE blocks are trained, so VACE is the T2V model plus an adapter.

Letters: B videos, F pixel frames, T H W C latents, S text tokens, E text width, R references (1),
K labels.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import traverse_util

from evoid_jax import flow
from evoid_jax.models import umt5
from evoid_jax.models import wan as wan_model
from evoid_jax.pretrain import kept
from evoid_jax.pretrain.fit import by_jax, fit
from evoid_jax.world import portraits, prompts


class Script(NamedTuple):
    """What the clips show, in words and numbers."""

    prompts: list[str]  # two per video: prompts[2 i] and prompts[2 i + 1]
    labels_BK: np.ndarray  # action, background, camera
    targets_BK: np.ndarray  # amplitude and identity attributes, in [0, 1]


class Latents(NamedTuple):
    """Footage as the transformer sees it: normalised latents and text embeddings."""

    video_BTHWC: np.ndarray
    reference_BTHWC: np.ndarray  # T = 1
    blank_THWC: np.ndarray  # the encoding of the mid-grey video, VACE's "nothing here"
    text_BSE: np.ndarray  # two per video
    null_SE: np.ndarray  # the empty prompt


class TextBatch(NamedTuple):
    """What a step of the text encoder's training sees."""

    ids_BS: jax.Array
    mask_BS: jax.Array  # 1 on tokens, 0 on padding
    labels_BK: jax.Array
    targets_BK: jax.Array


class LatentBatch(NamedTuple):
    """What a step of the transformer's training sees."""

    video_BTHWC: jax.Array
    reference_BTHWC: jax.Array  # T = 1
    text_BSE: jax.Array


def script(drawn: list[portraits.Scene], first: int = 0) -> Script:
    """Describe scenes, the first of which has the number `first`."""
    texts, labels, targets = [], [], []
    for i, scene in enumerate(drawn, first):
        texts += [prompts.prompt(scene, 2 * i), prompts.prompt(scene, 2 * i + 1)]
        labels.append(
            (
                portraits.ACTIONS.index(scene.action),
                portraits.BACKGROUNDS.index(scene.background),
                portraits.CAMERAS.index(scene.camera),
            )
        )
        targets.append((scene.amplitude, *scene.identity))
    return Script(texts, np.array(labels), np.array(targets, np.float32))


# --- text


def train_text(cfg, world: Script, folder: Path, place: kept.Place):
    """Train the text encoder to tell from a prompt what the scene holds.

    The heads (action, background, camera, amplitude, attributes) are thrown away afterwards.

    Args:
      folder: of the tokenizer.

    Returns:
      The parameters of `umt5.encode`.
    """
    tokenizer = umt5.load_tokenizer(folder)
    config = text_config(cfg, len(tokenizer))
    ids_BS, mask_BS = umt5.tokenize(tokenizer, world.prompts)
    # Both prompts of a scene have its labels.
    labels_BK, targets_BK = (np.repeat(x, 2, axis=0) for x in (world.labels_BK, world.targets_BK))
    counts = [len(portraits.ACTIONS), len(portraits.BACKGROUNDS), len(portraits.CAMERAS)]
    keys = jax.random.split(jax.random.key(cfg.seed + 1), 5)
    widths = [*counts, targets_BK.shape[1]]  # three choices, and one head for all numbers
    heads = {
        f"head_{i}": jax.random.normal(keys[i], (config.d_model, width)) * config.d_model**-0.5
        for i, width in enumerate(widths)
    }

    def loss_fn(params, key, batch: TextBatch):
        x_BSE = umt5.encode(params["umt5"], config, batch.ids_BS, batch.mask_BS)
        # Padding encodes to zeros, so the mean is over the prompt's own tokens.
        x_BE = x_BSE.sum(1) / batch.mask_BS.sum(1, keepdims=True)
        out = [x_BE @ params["heads"][f"head_{i}"] for i in range(4)]
        loss = jnp.mean((out[3] - batch.targets_BK) ** 2)
        for i in range(3):
            labels_B = batch.labels_BK[:, i]
            loss += optax.softmax_cross_entropy_with_integer_labels(out[i], labels_B).mean()
        return loss

    def batch_fn(step) -> TextBatch:
        rng = np.random.default_rng((cfg.seed, step))
        i = rng.integers(0, len(ids_BS), cfg.text_train.batch)
        return TextBatch(
            ids_BS=ids_BS[i],
            mask_BS=mask_BS[i],
            labels_BK=labels_BK[i],
            targets_BK=targets_BK[i],
        )

    params = {"umt5": umt5.init(keys[4], config), "heads": heads}
    gradient = by_jax(loss_fn, cfg.seed)
    return fit("text", gradient, params, batch_fn, cfg.text_train, place)["umt5"]


def text_config(cfg, vocab_size: int) -> umt5.UMT5Config:
    """Return the text encoder's config for a tokenizer of `vocab_size` entries."""
    return umt5.UMT5Config(**(dict(cfg.text) | {"vocab_size": vocab_size}))


# --- transformer


def noisy(key, clean_BTHWC, shift: float):
    """Noise latents at shifted uniform times, one for each video.

    Args:
      clean_BTHWC: normalised latents.
      shift: above 1 it moves times towards the noise.

    Returns:
      (x_BTHWC, v_BTHWC, t_B): the noisy latents, their velocity (noise minus clean), and the times
      in [0, 1), 0 being clean.
    """
    k_t, k_noise = jax.random.split(key)
    u_B = jax.random.uniform(k_t, clean_BTHWC.shape[:1])
    t_B = shift * u_B / (1 + (shift - 1) * u_B)
    noise = jax.random.normal(k_noise, clean_BTHWC.shape)
    t = t_B.reshape(-1, 1, 1, 1, 1)
    return flow.add_noise(clean_BTHWC, noise, t), flow.velocity(clean_BTHWC, noise), t_B


def wan_config(cfg) -> wan_model.WanConfig:
    """Return the transformer's config: Wan2.1-VACE with the sizes of `cfg.wan`."""
    return wan_model.WanConfig(
        **dict(cfg.wan),
        in_channels=cfg.vae.z_dim,
        out_channels=cfg.vae.z_dim,
        text_dim=cfg.text.d_model,
        freq_dim=256,
        vace_in_channels=2 * cfg.vae.z_dim + 64,
    )


def is_vace(path: tuple[str, ...]) -> bool:
    """Tell whether a leaf belongs to the VACE adapter."""
    return path[0].startswith("vace_")


def split(params) -> tuple[dict, dict]:
    """Return (main, vace) halves of the transformer's parameters."""
    flat = traverse_util.flatten_dict(params)
    main = {k: v for k, v in flat.items() if not is_vace(k)}
    vace = {k: v for k, v in flat.items() if is_vace(k)}
    return traverse_util.unflatten_dict(main), traverse_util.unflatten_dict(vace)


def latent_batches(cfg, data: Latents, train):
    """Return step -> LatentBatch: random videos, some with the empty prompt.

    Guidance needs a model that has seen the empty prompt.
    """

    def batch_fn(step) -> LatentBatch:
        rng = np.random.default_rng((cfg.seed, step))
        i = rng.integers(0, len(data.video_BTHWC), train.batch)
        text_BSE = data.text_BSE[2 * i + rng.integers(0, 2, train.batch)]  # one of its two prompts
        dropped = rng.random(train.batch) < train.text_dropout
        text_BSE[dropped] = data.null_SE
        return LatentBatch(
            video_BTHWC=data.video_BTHWC[i],
            reference_BTHWC=data.reference_BTHWC[i],
            text_BSE=text_BSE,
        )

    return batch_fn


def train_t2v(cfg, data: Latents, wan, place: kept.Place):
    """Train the main blocks by flow matching, half of the time with the portrait as first frame.

    VACE puts reference frames before the video; sequences of that kind must not be new to the main
    blocks when they are frozen.

    Returns:
      Parameters of `wan.velocity` and, untrained, those of `wan.hints`.
    """

    def matching(params, key, clean_BTHWC, text_BSE):
        """Return the flow matching loss: the mean of (prediction - velocity)^2."""
        x_t, v, t_B = noisy(key, clean_BTHWC, cfg.t2v_train.shift)
        v_pred = wan_model.velocity(wan, params, None, x_t, flow.TIMESTEPS * t_B, text_BSE)
        return jnp.mean((v_pred - v) ** 2)

    def loss_fn(params, key, batch: LatentBatch):
        k_plain, k_led = jax.random.split(key)
        video, text_BSE = batch.video_BTHWC, batch.text_BSE
        half = video.shape[0] // 2
        led = jnp.concatenate([batch.reference_BTHWC[half:], video[half:]], axis=1)
        # Two passes, since the portrait makes the second half a frame longer.
        plain = matching(params, k_plain, video[:half], text_BSE[:half])
        return 0.5 * plain + 0.5 * matching(params, k_led, led, text_BSE[half:])

    params, vace = split(wan_model.init(jax.random.key(cfg.seed + 3), wan))
    batch_fn = latent_batches(cfg, data, cfg.t2v_train)
    return fit("t2v", by_jax(loss_fn, cfg.seed), params, batch_fn, cfg.t2v_train, place) | vace


def control_of(data: Latents, reference_BTHWC):
    """Return VACE's control for one reference image and no other condition.

    Its channels are [inactive latents, reactive latents, 64 of the mask]: [z_ref, 0, 0] in the
    reference's frame, then [Z0, Z0, 1] in the video's, Z0 being the encoding of the grey video.

    Args:
      reference_BTHWC: latents of one image for each video, T = 1.

    Returns:
      control_BTHWC: T is 1 + the video's, C is 2 z_dim + 64.
    """
    b, _, h, w, _ = reference_BTHWC.shape
    blank = jnp.broadcast_to(data.blank_THWC[None], (b, *data.blank_THWC.shape))
    zeros, ones = jnp.zeros_like(reference_BTHWC), jnp.ones((b, blank.shape[1], h, w, 64))
    head = jnp.concatenate([reference_BTHWC, zeros, jnp.zeros((b, 1, h, w, 64))], axis=-1)
    body = jnp.concatenate([blank, blank, ones], axis=-1)
    return jnp.concatenate([head, body], axis=1)


def train_vace(cfg, data: Latents, wan, params, place: kept.Place):
    """Train the VACE blocks by flow matching from copies of main blocks, all else frozen.

    They learn from found pairs, in which people who look like their photo move little: the main
    blocks, which are the teacher later, never saw those.

    Args:
      params: of `train_t2v`; its main half comes back unchanged.

    Returns:
      Parameters of `wan.velocity` and `wan.hints`.
    """
    layers = np.array(wan.config.vace_layers)
    params["vace_blocks"] |= jax.tree.map(lambda x: x[layers], params["blocks"])
    main, vace = split(params)

    def loss_fn(vace, key, batch: LatentBatch):
        whole, text_BSE = main | vace, batch.text_BSE
        clean = jnp.concatenate([batch.reference_BTHWC, batch.video_BTHWC], axis=1)
        x_t, v, t_B = noisy(key, clean, cfg.vace_train.shift)
        step_B, control = flow.TIMESTEPS * t_B, control_of(data, batch.reference_BTHWC)
        hints = wan_model.hints(wan, whole, None, x_t, step_B, text_BSE, control)
        v_pred = wan_model.velocity(wan, whole, None, x_t, step_B, text_BSE, hints)
        return jnp.mean((v_pred - v) ** 2)

    batch_fn = latent_batches(cfg, data, cfg.vace_train)
    gradient = by_jax(loss_fn, cfg.seed)
    return main | fit("vace", gradient, vace, batch_fn, cfg.vace_train, place)
