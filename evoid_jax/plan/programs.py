"""The three programs of a step, traced for a mesh of devices that may not exist: no array is made.

They are the functions that a run calls, with shapes instead of weights and videos.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import traverse_util
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from evoid_jax import evolve, flow, hub, rollout, sharding, sources
from evoid_jax.algorithms import grpo
from evoid_jax.config import Config
from evoid_jax.models import umt5, vae, wan, weights

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
# The released sizes, by the folder that a preset names; a folder that is there is read instead.
RELEASED = {
    "Wan2.1-VACE-14B-diffusers": wan.WanConfig(
        num_attention_heads=40,
        attention_head_dim=128,
        num_layers=40,
        ffn_dim=13824,
        vace_layers=tuple(range(0, 40, 5)),
    ),
    "Wan2.1-VACE-1.3B-diffusers": wan.WanConfig(
        num_attention_heads=12,
        attention_head_dim=128,
        num_layers=30,
        ffn_dim=8960,
        vace_layers=tuple(range(0, 30, 2)),
    ),
}


class Models(NamedTuple):
    """Sizes of a pipeline's parts."""

    wan: wan.WanConfig
    vae: vae.VAEConfig
    umt5: umt5.UMT5Config


def models(folder: str) -> Models:
    """Read a model's configs. A released model need not be there, nor be asked of the hub.

    Raises:
      ValueError: neither a folder, nor released, nor a name on the hub; lists the released ones.
      OSError: as `hub.folder`.
    """
    name = Path(hub.repository(folder)).name
    if hub.is_id(folder) and name not in RELEASED:
        folder = str(hub.folder(folder, with_weights=False))
    if Path(folder).is_dir():
        read = lambda part: weights.read_config(Path(folder) / part)
        return Models(
            wan=wan.WanConfig.from_json(read("transformer")),
            vae=vae.VAEConfig.from_json(read("vae")),
            umt5=umt5.UMT5Config.from_json(read("text_encoder")),
        )
    if name not in RELEASED:
        known = ", ".join(RELEASED)
        raise ValueError(f"config.model: {folder} is no folder, and none of {known}")
    return Models(wan=RELEASED[name], vae=vae.VAEConfig(), umt5=umt5.UMT5Config())


class Setting(NamedTuple):
    """What every program below is traced from."""

    cfg: Config
    models: Models
    mesh: Mesh
    references: int = 1  # R

    @property
    def wan(self) -> wan.Wan:
        """The transformer as a run makes it, its adapter's strength included."""
        cfg = self.cfg
        return wan.Wan(
            self.models.wan,
            dtype=DTYPES[cfg.dtype],
            residual=cfg.residual,
            lora_scale=cfg.lora.scale,
            remat=cfg.train.remat,
            mesh=self.mesh,
            attention=cfg.attention,
        )

    @property
    def latent_THWC(self) -> tuple[int, int, int, int]:
        """One video's latents, reference frames included."""
        v, c = self.cfg.video, self.models.vae
        # The VAE is causal: the first frame is a latent frame of its own, then stride_t share one.
        frames = self.references + (v.frames - 1) // c.stride_t + 1
        return frames, v.height // c.stride_s, v.width // c.stride_s, c.z_dim

    @property
    def videos(self) -> int:
        """Videos of a step."""
        return self.cfg.data.pairs * self.cfg.data.seeds

    @property
    def together(self) -> int:
        """Videos that the whole mesh generates at once."""
        # as many parts as it takes, each of as many videos
        each = self.cfg.rollout.videos_per_device
        return self.videos // sharding.parts_of(self.videos, each, self.mesh)


def array(at: Setting, shape, dtype=jnp.float32, spec: P = sharding.REPLICATED):
    """Return an array's shape, type and place, without the array."""
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(at.mesh, spec))


def base(at: Setting):
    """Return the transformer's weights, as `rollout.load` places them: a tree of shapes."""
    module = wan.Wan(at.models.wan)  # float32: `wan_dtype` says what a file's weights become
    shapes = weights.shapes(lambda: wan.init(jax.random.key(0), module))
    dtype = DTYPES[at.cfg.dtype]

    def leaf(path, shape):
        spec = sharding.weight_spec("/".join(path), shape, at.mesh)
        return array(at, shape, rollout.wan_dtype(dtype, path), spec)

    return traverse_util.unflatten_dict({path: leaf(path, s) for path, s in shapes.items()})


def vae_params(at: Setting):
    """Return the VAE's weights, float32 and whole on every device: a tree of shapes."""
    shapes = weights.shapes(lambda: vae.init(jax.random.key(0), at.models.vae))
    return traverse_util.unflatten_dict({path: array(at, s) for path, s in shapes.items()})


def text_encoder_gib(at: Setting) -> float:
    """Return what the text encoder takes on each device: its process holds it in pieces."""
    devices = at.mesh.devices.flatten()
    # Prompts are encoded by each process for itself, on its own devices alone.
    own = [d for d in devices if d.process_index == devices[0].process_index]
    mesh = sharding.make_mesh(fsdp=len(own), devices=own)
    shapes = weights.shapes(lambda: umt5.init(jax.random.key(0), at.models.umt5))

    def piece(path: tuple[str, ...], shape: tuple[int, ...]) -> tuple[int, ...]:
        spec = sharding.text_spec("/".join(path), shape, mesh)
        return NamedSharding(mesh, spec).shard_shape(shape)

    count = sum(math.prod(piece(path, shape)) for path, shape in shapes.items())
    return count * jnp.dtype(DTYPES[at.cfg.dtype]).itemsize / 2**30


def state(at: Setting, weights) -> evolve.State:
    """Return the state on `base(at)`, as `train.begin` places it."""
    made = jax.eval_shape(lambda: evolve.init(at.cfg, weights, at.models.wan))
    place = lambda x, where: array(at, x.shape, x.dtype, where.spec)
    return jax.tree.map(place, made, evolve.placement(made, at.mesh))


def texts(at: Setting, count: int, spec: P = sharding.REPLICATED):
    """Return the shape of `count` encoded prompts, (count, S, E), padded as long as they can be."""
    shape = count, at.models.wan.text_len, at.models.wan.text_dim
    return array(at, shape, DTYPES[at.cfg.dtype], spec)


def control(at: Setting, count: int, spec: P = sharding.REPLICATED):
    """Return the shape of `count` VACE controls, BTHWC, reference frames included."""
    frames, height, width, _ = at.latent_THWC
    return array(at, (count, frames, height, width, at.models.wan.vace_in_channels), spec=spec)


def train_step(at: Setting):
    """Trace the update on all videos of a step."""
    params, videos, pairs = base(at), at.videos, at.cfg.data.pairs
    number = array(at, (videos,), spec=sharding.BATCH)
    scored = evolve.Scored(
        clean_BTHWC=array(at, (videos, *at.latent_THWC), spec=sharding.BATCH),
        pair_B=array(at, (videos,), jnp.int32, sharding.BATCH),
        reward_B=number,
        valid_B=number,
        text_PSE=texts(at, pairs),
        null_1SE=texts(at, 1),
        control_PTHWC=control(at, pairs),
        walk_BNTHWC=walk(at, videos),
    )
    setup = evolve.Setup(at.cfg, at.wan, at.mesh, at.references)
    no_teacher = None  # the base's main blocks are one
    return evolve.train_step.trace(state(at, params), params, scored, no_teacher, setup=setup)


def walk(at: Setting, count: int):
    """Return the states of `count` videos from noise to sample, None where none are kept."""
    if at.cfg.algorithm != "grpo":
        return None
    return array(at, (count, at.cfg.rollout.steps + 1, *at.latent_THWC), spec=sharding.BATCH)


def rollout_step(at: Setting):
    """Trace the generation of one part's videos, all solver steps; the loop holds them all."""
    r, params, count = at.cfg.rollout, base(at), at.together
    shapes = lambda made: jax.tree.map(lambda x: array(at, x.shape, x.dtype), made)
    table = shapes(flow.schedule(r.scheduler, r.steps, r.shift))
    sampler, first = rollout.sample, ()
    if at.cfg.algorithm == "grpo":
        seed_B = array(at, (count,), jnp.int32, sharding.BATCH)
        sampler, first = sources.walk, (seed_B, shapes(grpo.of_config(at.cfg)))
    # In the order of `session.sample`: text, negative prompt, control, noise.
    return sampler.trace(
        *first,
        at.wan,
        params,
        state(at, params).stable,
        texts(at, count, sharding.BATCH),
        texts(at, 1),
        control(at, count, sharding.BATCH),
        array(at, (count, *at.latent_THWC), spec=sharding.BATCH),
        table,
        guidance=at.cfg.guidance.rollout,
        split=r.split,
    )


def vae_decode(at: Setting):
    """Trace the decoding of one part's videos."""
    frames, height, width, channels = at.latent_THWC
    shape = at.together, frames - at.references, height, width, channels
    z = array(at, shape, spec=sharding.BATCH)
    return rollout.decode_on.trace(vae_params(at), at.models.vae, z, at.mesh)


def local_gib(tree) -> float:
    """Return what one device holds of a tree of shapes."""
    leaves = jax.tree.leaves(tree)
    sizes = (math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in leaves)
    return sum(sizes) / 2**30
