"""Generate videos: prompts and reference images in, latents and pixels out.

Does what WanVACEPipeline of diffusers 0.42 does without a control video ("reference to video"),
for many videos at once. Every reference image is a latent frame of its own in front of the video:
denoised along with it, conditioned on by VACE, and cut off before decoding.

Shape letters: B videos, F pixel frames, T H W C latent frames/height/width/channels (T counts the
reference frames too where a name says so), S text tokens, E text width, R references.
"""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jax.sharding import Mesh, NamedSharding

from evoid_jax import flow, sharding
from evoid_jax.canvas import on_canvas
from evoid_jax.models import loading, pipeline, umt5, vae, wan
from evoid_jax.models.folder import VACE

ORDERS = ("diffusers", "vace")
WHOLE = 2**22  # more pixels than this of a device go through the VAE one latent frame at a time


class Frozen(NamedTuple):
    """A pretrained pipeline; no part of it is ever trained."""

    wan: wan.Wan
    wan_params: dict
    vae_config: vae.VAEConfig
    vae_params: dict
    umt5_config: umt5.UMT5Config
    umt5_params: dict
    tokenizer: object
    scheduler: dict  # scheduler_config.json
    blank: dict  # memo: (frames, height, width) -> latents of the empty control video


def load(
    folder: str | Path, dtype=jnp.float32, remat: str = "full", mesh: Mesh | None = None
) -> Frozen:
    """Read a diffusers WanVACEPipeline folder, each tensor straight to its devices.

    Args:
      dtype: of the transformer's and the text encoder's matmuls and weights; the VAE is float32.
      mesh: where weights live: the transformer's by the table of `sharding`, the VAE's everywhere,
        the text encoder's in pieces on each process's own devices. None: all on the first device.

    Raises:
      OSError, ValueError: as `pipeline.open_diffusers`, which checks the folder before any tensor
        is read; or as `put`.
    """
    return put(pipeline.open_diffusers(folder, (VACE,)), dtype, remat, mesh)


def put(
    opened: pipeline.Opened, dtype=jnp.float32, remat: str = "full", mesh: Mesh | None = None
) -> Frozen:
    """Read the tensors of an opened WanVACEPipeline to their devices. Args: as `load`.

    Raises:
      OSError, ValueError: a tensor cannot be read, or is not finite.
    """
    (parts, tensors, _), tokenizer, scheduler = opened
    place = mesh or sharding.make_mesh(devices=jax.local_devices()[:1])
    own = sharding.make_mesh(fsdp=len(place.local_devices), devices=place.local_devices)

    def read(part: str, dtype_of, spec_of, mesh):
        to = lambda path, shape: NamedSharding(mesh, spec_of("/".join(path), shape, mesh))
        rules, shapes = parts[part].rules, parts[part].shapes
        return loading.load(tensors[part], rules, shapes, dtype_of, to, part)

    everywhere = lambda *_: sharding.REPLICATED
    wan_of = partial(wan_dtype, dtype)
    return Frozen(
        wan=wan.Wan(parts["transformer"].config, dtype, remat=remat, mesh=mesh),
        wan_params=read("transformer", wan_of, sharding.weight_spec, place),
        vae_config=parts["vae"].config,
        vae_params=read("vae", lambda _: jnp.float32, everywhere, place),
        umt5_config=parts["text_encoder"].config,
        umt5_params=read("text_encoder", lambda _: dtype, sharding.text_spec, own),
        tokenizer=tokenizer,
        scheduler=scheduler,
        blank={},
    )


def usual_dtype() -> str:
    """Return the dtype in which a model generates where none is asked for."""
    return "float32" if jax.default_backend() == "cpu" else "bfloat16"


def wan_dtype(dtype, path: tuple[str, ...]):
    """Return what `wan.cast` makes of a float32 weight at `path`."""
    one = traverse_util.unflatten_dict({path: jax.ShapeDtypeStruct((), jnp.float32)})
    return jax.tree.leaves(jax.eval_shape(lambda x: wan.cast(x, dtype), one))[0].dtype


def encode_text(frozen: Frozen, prompts: list[str], length: int | None = None) -> jax.Array:
    """Encode prompts.

    Args:
      prompts: B; what is longer than the model reads is cut, as in diffusers.
      length: S; None is the longest prompt's (a multiple of 8). A fixed one keeps programs that
        take the text from being compiled again, and changes no number.

    Returns:
      BSE, zero past each prompt's end.

    Raises:
      ValueError: a prompt is longer than `length`.
    """
    ids_BS, mask_BS = umt5.tokenize(frozen.tokenizer, prompts, frozen.wan.config.text_len)
    if length is not None:
        missing = length - ids_BS.shape[1]
        used = int(mask_BS.sum(1).max())
        if used > length:
            raise ValueError(f"a prompt has {used} tokens, more than the length {length}")
        pad = ((0, 0), (0, max(missing, 0)))
        ids_BS, mask_BS = (np.pad(x, pad)[:, :length] for x in (ids_BS, mask_BS))
    mesh = frozen.umt5_params["shared"].sharding.mesh
    return _encode_text(frozen.umt5_params, frozen.umt5_config, ids_BS, mask_BS, mesh)


def check_size(frozen: Frozen, frames: int, height: int, width: int) -> None:
    """Raise a ValueError that names the size which the model cannot make."""
    check_size_of(frozen.wan.config, frozen.vae_config, frames, height, width)


def check_size_of(
    transformer: wan.WanConfig, vae_config: vae.VAEConfig, frames: int, height: int, width: int
) -> None:
    """Do as `check_size` with the sizes alone, before a model is read."""
    multiple = vae_config.stride_s * transformer.patch_size[1]
    stride = vae_config.stride_t
    if frames < 1 or (frames - 1) % stride:
        raise ValueError(f"frames must be 1 plus a multiple of {stride}, got {frames}")
    for name, value in (("height", height), ("width", width)):
        if value < multiple or value % multiple:
            raise ValueError(f"{name} must be a positive multiple of {multiple}, got {value}")


def latent_shape(
    frozen: Frozen, frames: int, height: int, width: int, references: int
) -> tuple[int, int, int, int]:
    """Return THWC of one video's latents, reference frames included."""
    config = frozen.vae_config
    frames = references + (frames - 1) // config.stride_t + 1
    return frames, height // config.stride_s, width // config.stride_s, config.z_dim


def control(
    frozen: Frozen,
    images: list[list[np.ndarray]],
    frames: int,
    height: int,
    width: int,
    order: str = "diffusers",
) -> jax.Array:
    """Make VACE's control: reference frames [z, 0, mask 0], then video frames [Z0, Z0, mask 1].

    z encodes one image, Z0 the grey video of which all is to be made (mask 1).

    Args:
      images: for each video its reference images, uint8 (height, width, 3) of any size, as many
        for every video; may be none.
      frames, height, width: of the video in pixels.
      order: "diffusers" puts the last image first, as its loop does; "vace" keeps the order, as
        the official VACE code does. The same for one image.

    Returns:
      BTHWC float32, T counts the references, C = 2 z_dim + 64.
    """
    check_size(frozen, frames, height, width)
    counts = {len(of_video) for of_video in images}
    if len(counts) != 1:
        raise ValueError(f"every video needs as many reference images, got {sorted(counts)}")
    if order not in ORDERS:
        raise ValueError(f"reference order {order!r}; expected one of {ORDERS}")
    B, R = len(images), counts.pop()
    # T counts the references; the mask has one channel for each pixel that a latent stands for.
    T, H, W, C = latent_shape(frozen, frames, height, width, R)
    mask = frozen.vae_config.stride_s**2
    blank_BTHWC = jnp.repeat(_blank(frozen, frames, height, width), B, axis=0)
    ones_BTHWC = jnp.ones((B, T - R, H, W, mask), jnp.float32)
    video_BTHWC = jnp.concatenate([blank_BTHWC, blank_BTHWC, ones_BTHWC], axis=-1)
    if not R:
        return video_BTHWC
    stride = frozen.vae_config.stride_s
    step = -1 if order == "diffusers" else 1
    canvases = [on_canvas(i, height, width, stride) for v in images for i in v[::step]]
    # Each photo is a video of one frame. Its place says "keep this": mask 0, and nothing to fill.
    z = _encode(frozen.vae_params, frozen.vae_config, np.stack(canvases)[:, None])
    head_BTHWC = jnp.pad(z.reshape(B, R, H, W, C), ((0, 0),) * 4 + ((0, C + mask),))
    return jnp.concatenate([head_BTHWC, video_BTHWC], axis=1)


@partial(jax.jit, static_argnames="shape")
def noise(seeds_B, shape: tuple[int, ...]) -> jax.Array:
    """Draw standard normal latents.

    A video's noise depends on its own seed alone, not on the batch it is in.

    Args:
      seeds_B: (B,) whole numbers.
      shape: of one video's latents, THWC.

    Returns:
      (B, T, H, W, C) float32.
    """
    draw = lambda seed: jax.random.normal(jax.random.key(seed), shape)
    return jax.vmap(draw)(jnp.asarray(seeds_B))


@partial(jax.jit, static_argnames=("model", "guidance", "split"))
def sample(
    model: wan.Wan,
    base,
    lora,
    text_BSE: jax.Array,
    null_BSE: jax.Array | None,
    control_BTHWC: jax.Array,
    noise_BTHWC: jax.Array,
    table: flow.Table,
    guidance: float,
    split: bool = False,
    null_weights: tuple | None = None,
) -> jax.Array:
    """Generate latents from noise, all steps in one program.

    Args:
      base, lora: weights and adapter (or None), as `models.wan.velocity` takes them.
      null_BSE: the negative prompt's text; one row serves every video. Its S may differ.
      control_BTHWC, noise_BTHWC: both with the reference frames.
      table: of `flow.schedule`; tables of as many steps share one program.
      guidance: v_null + guidance (v - v_null); up to 1 is off, as in diffusers, and null unused.
      split: run the two prompts one after the other, in half the memory, not side by side.
      null_weights: (base, lora) for the negative prompt, run on its own; None: as for the prompt.

    Returns:
      BTHWC float32, reference frames included: the pipeline's output_type="latent".
    """
    velocity_fn = guided(
        model, base, lora, text_BSE, null_BSE, control_BTHWC, guidance, split, null_weights
    )
    return flow.solve(table, velocity_fn, noise_BTHWC)


@partial(jax.jit, static_argnames=("model", "guidance", "split"))
def denoise(
    model: wan.Wan,
    base,
    lora,
    text_BSE: jax.Array,
    null_BSE: jax.Array | None,
    control_BTHWC: jax.Array,
    state: flow.SolverState,
    table: flow.Table,
    guidance: float,
    split: bool = False,
) -> flow.SolverState:
    """Run only some rows of a table from a solver state, to show progress.

    Args: as `sample`, but for the state: of `flow.start`, or as this function returned it.

    Returns:
      the state after those rows, all BTHWC; its x is the sample.
    """
    velocity_fn = guided(model, base, lora, text_BSE, null_BSE, control_BTHWC, guidance, split)
    return flow.advance(table, velocity_fn, state)


def guided(
    model,
    base,
    lora,
    text_BSE,
    null_BSE,
    control_BTHWC,
    guidance: float,
    split: bool = False,
    null_weights: tuple | None = None,
):
    """Return the guided velocity of (x_BTHWC, timestep 0..1000), BTHWC. Args: as `sample`."""

    def velocity(x_BTHWC, timestep, text_BSE, control_BTHWC, weights=(base, lora)):
        t_B = jnp.full(x_BTHWC.shape[:1], timestep)
        hints_VBLD = wan.hints(model, *weights, x_BTHWC, t_B, text_BSE, control_BTHWC)
        return wan.velocity(model, *weights, x_BTHWC, t_B, text_BSE, hints_VBLD)

    if guidance <= 1:
        return lambda x, timestep: velocity(x, timestep, text_BSE, control_BTHWC)
    both_2BSE = _pair(text_BSE, null_BSE)
    if null_weights is not None:

        def velocities(x, timestep):
            v = velocity(x, timestep, both_2BSE[0], control_BTHWC)
            return v, velocity(x, timestep, both_2BSE[1], control_BTHWC, null_weights)
    elif split:

        def velocities(x, timestep):
            return jax.lax.map(lambda text: velocity(x, timestep, text, control_BTHWC), both_2BSE)
    else:
        # Side by side with a video's two prompts adjacent, so that a sharded B stays in place.
        wide_BSE = jnp.moveaxis(both_2BSE, 0, 1).reshape(-1, *both_2BSE.shape[2:])
        wide_BTHWC = jnp.repeat(control_BTHWC, 2, axis=0)

        def velocities(x, timestep):
            v = velocity(jnp.repeat(x, 2, axis=0), timestep, wide_BSE, wide_BTHWC)
            return v[0::2], v[1::2]

    def guided_velocity(x, timestep):
        v, v_null = velocities(x, timestep)
        return v_null + guidance * (v - v_null)

    return guided_velocity


def decode(frozen: Frozen, latents_BTHWC: jax.Array) -> jax.Array:
    """Decode latents to pixels.

    Truncates rather than rounds, as diffusers' `export_to_video` of the pipeline's frames does.

    Args:
      latents_BTHWC: without reference frames, `latents[:, R:]`.

    Returns:
      BFHWC uint8, F = 1 + 4 (T - 1).
    """
    return to_uint8(decode_float(frozen, latents_BTHWC))


def decode_float(frozen: Frozen, latents_BTHWC: jax.Array) -> jax.Array:
    """Decode latents to float32 in [0, 1], the pipeline's output_type="np". Args: as `decode`."""
    return decode_on(frozen.vae_params, frozen.vae_config, latents_BTHWC, frozen.wan.mesh)


@partial(jax.jit, static_argnames=("config", "mesh"))
def decode_on(params, config, latents_BTHWC, mesh):
    """Decode on a mesh, each device its videos or its piece of their planes. See `decode_float`."""
    pixels = math.prod(latents_BTHWC.shape[:4]) * config.stride_t * config.stride_s**2
    in_turn = pixels * sharding.share(latents_BTHWC.shape, mesh) > WHOLE
    decode = lambda params, x: vae.decode(params, config, x, in_turn) * 0.5 + 0.5
    return sharding.per_video(decode, params, latents_BTHWC, mesh)


@jax.jit
def to_uint8(video_BFHWC):
    """Return float32 pixels in [0, 1] as uint8, truncated."""
    return (video_BFHWC * 255).astype(jnp.uint8)


@partial(jax.jit, static_argnames=("config", "in_turn"))
def _encode(params, config, video_BFHWC, in_turn=False):
    """Encode video by video: memory does not grow with their number."""
    one = lambda x_FHWC: vae.encode(params, config, x_FHWC[None], in_turn)[0]
    return jax.lax.map(one, video_BFHWC)


@partial(jax.jit, static_argnames=("config", "mesh"))
def _encode_text(params, config, ids_BS, mask_BS, mesh):
    return umt5.encode(params, config, ids_BS, mask_BS, mesh)


def _blank(frozen: Frozen, frames: int, height: int, width: int) -> jax.Array:
    """Encode the grey video, (1, T, H, W, z_dim): a constant of the size, so kept."""
    size = frames, height, width
    if size not in frozen.blank:
        grey = jnp.zeros((1, *size, 3), jnp.float32)
        in_turn = frames * height * width > WHOLE
        frozen.blank[size] = _encode(frozen.vae_params, frozen.vae_config, grey, in_turn)
    return frozen.blank[size]


def _pair(text_BSE: jax.Array, null_BSE: jax.Array) -> jax.Array:
    """Stack a text and its negative, the shorter one padded with rows of zeros."""
    S = max(text_BSE.shape[1], null_BSE.shape[1])
    both = [jnp.pad(x, ((0, 0), (0, S - x.shape[1]), (0, 0))) for x in (text_BSE, null_BSE)]
    return jnp.stack([both[0], jnp.broadcast_to(both[1], both[0].shape)])
