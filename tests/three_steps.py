"""Three updates of a small model on random videos, on any mesh.

What eight_devices.py and two_processes.py compare; needs no device before it is called.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jax.sharding import NamedSharding

from evoid_jax import config, evolve, sharding
from evoid_jax.models import wan as wan_model

SIZES = {"num_attention_heads": 4, "attention_head_dim": 12, "num_layers": 2, "ffn_dim": 64}
SIZES |= {"text_dim": 24, "text_len": 8, "freq_dim": 32, "in_channels": 4, "out_channels": 4}
WAN = wan_model.Wan(wan_model.WanConfig(**SIZES, vace_layers=(0,)))
CFG = config.Config(
    lora=config.Lora(rank=4, alpha=4.0),
    train=config.Train(lr=1e-3, timesteps=1, videos_per_device=8),
)
VIDEOS, PAIRS, STEPS = 8, 2, 3
GRID = 3, 6, 2  # latent frames, of which one is a reference: 9 tokens, and 6 for the teacher


def shaken_base():
    """Return the base's weights, moved: fresh VACE hints are zero."""
    fresh = wan_model.init(jax.random.key(0), WAN)
    return jax.tree.map(lambda x: x + 0.05 * jax.random.normal(jax.random.key(7), x.shape), fresh)


def inputs():
    keys = jax.random.split(jax.random.key(5), 3)
    return (
        jax.random.normal(keys[0], (VIDEOS, *GRID, 4)),
        jax.random.normal(keys[1], (PAIRS, 5, 24)),
        jax.random.normal(keys[2], (PAIRS, *GRID, 96)),
    )


def placed_base(base, mesh):
    flat = traverse_util.flatten_dict(base)
    spec = lambda path, x: sharding.weight_spec("/".join(path), x.shape, mesh)

    def put(path, x):
        host = np.asarray(x)  # every process lays out its own devices' pieces
        return jax.make_array_from_callback(
            host.shape, NamedSharding(mesh, spec(path, x)), lambda at: host[at]
        )

    return traverse_util.unflatten_dict({path: put(path, x) for path, x in flat.items()})


def trained(base, mesh):
    """Return terms of each step, the first gradient, both adapters at last, by name; the state."""
    move = lambda key: lambda x: x + 0.05 * jax.random.normal(jax.random.key(key), x.shape)
    state = evolve.init(CFG, base, WAN.config)
    adapters = {"evolving": jax.tree.map(move(1), state.evolving)}
    adapters["stable"] = jax.tree.map(move(2), state.stable)
    state = state._replace(**adapters)
    state = sharding.place(state, evolve.placement(state, mesh))
    clean, text, control = inputs()
    valid, reward = jnp.ones(VIDEOS).at[3].set(0), jnp.linspace(0.1, 0.9, VIDEOS)
    clean, pair, reward, valid = sharding.place_batch(
        (clean, jnp.arange(VIDEOS) % PAIRS, reward, valid), mesh
    )
    text, control = sharding.replicate((text, control), mesh)
    scored = evolve.Scored(
        clean_BTHWC=clean,
        pair_B=pair,
        reward_B=reward,
        valid_B=valid,
        text_PSE=text,
        null_1SE=text[:1],
        control_PTHWC=control,
    )
    base, terms = placed_base(base, mesh), []
    setup = evolve.Setup(CFG, WAN.clone(mesh=mesh), mesh, references=1)
    for step in range(STEPS):
        state, now = evolve.train_step(state, base, scored, None, setup=setup)
        terms.append(jax.device_get(now))
        if step == 0:  # Adam's first moment is a tenth of the clipped gradient
            gradient = jax.device_get(sharding.replicate(state.opt[1][0].mu, mesh))
    got = {"terms": terms, "gradient": gradient}
    got["adapters"] = jax.device_get((state.evolving, state.stable))
    return got, state
