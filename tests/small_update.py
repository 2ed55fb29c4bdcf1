"""An update of a transformer of two blocks, in parts that the tests of evolve.py put together."""

import dataclasses

import jax
import jax.numpy as jnp

from evoid_jax import config, evolve, sharding
from evoid_jax.models import wan as wan_model

VIDEOS, PAIRS = 4, 2
SIZES = dict(num_attention_heads=2, attention_head_dim=16, num_layers=2, ffn_dim=48, text_dim=24)
WAN = wan_model.Wan(
    wan_model.WanConfig(**SIZES, freq_dim=32, vace_layers=(0,), in_channels=4, out_channels=4)
)
CFG = config.Config(
    lora=config.Lora(rank=4, alpha=4.0),
    train=config.Train(lr=1e-2, timesteps=2, videos_per_device=VIDEOS, ema_decay=0.75),
)


def change(cfg, part, **values):
    return dataclasses.replace(cfg, **{part: dataclasses.replace(getattr(cfg, part), **values)})


def shaken_base():
    """A base whose VACE hints are not zero, as a fresh one's are."""
    fresh = wan_model.init(jax.random.key(0), WAN)
    return jax.tree.map(lambda x: x + 0.05 * jax.random.normal(jax.random.key(7), x.shape), fresh)


def one_device():
    return sharding.make_mesh(devices=jax.devices()[:1])


def drifted(base, cfg=CFG):
    """A state some steps into a run: both adapters are off zero, and apart."""
    state = evolve.init(cfg, base, WAN.config)
    move = lambda key: lambda x: x + 0.05 * jax.random.normal(jax.random.key(key), x.shape)
    return state._replace(
        evolving=jax.tree.map(move(1), state.evolving), stable=jax.tree.map(move(2), state.stable)
    )


def scored(valid=(1, 1, 1, 1), reward=(0.9, 0.1, 0.6, 0.4)):
    keys = jax.random.split(jax.random.key(5), 3)
    return evolve.Scored(
        clean_BTHWC=jax.random.normal(keys[0], (VIDEOS, 3, 4, 4, 4)),
        pair_B=jnp.array([0, 0, 1, 1]),
        reward_B=jnp.array(reward, jnp.float32),
        valid_B=jnp.array(valid, jnp.float32),
        text_PSE=jax.random.normal(keys[1], (PAIRS, 5, 24)),
        null_1SE=jax.random.normal(jax.random.key(6), (1, 5, 24)),
        control_PTHWC=jax.random.normal(keys[2], (PAIRS, 3, 4, 4, 96)),
    )


def sample(data, noise, t_B, clean_BTHWC=None):
    """The videos of `data` at one time each, weighed alike."""
    return evolve.Sample(
        clean_BTHWC=data.clean_BTHWC if clean_BTHWC is None else clean_BTHWC,
        noise_BTHWC=noise,
        t_B=t_B,
        text_BSE=data.text_PSE[data.pair_B],
        null_1SE=data.null_1SE,
        control_BTHWC=data.control_PTHWC[data.pair_B],
        reward_B=data.reward_B,
        share_B=jnp.full(VIDEOS, 1 / VIDEOS),
    )


def setup(mesh, cfg=CFG):
    return evolve.Setup(cfg, WAN, mesh, references=1)


def accumulate(state, base, data, mesh, cfg=CFG):
    both = jax.jit(lambda s, b, d: evolve.accumulate(s, b, d, None, setup(mesh, cfg)))
    return both(state, base, data)
