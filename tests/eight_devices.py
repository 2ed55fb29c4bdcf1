"""Run what test_context.py asks about on eight CPU devices; print {fact: number} as JSON.

A process of its own, since the number of devices is fixed once JAX has started.
"""

import json
import os
from types import SimpleNamespace

# Many programs that run once: the compiler's time is most of it.
os.environ["XLA_FLAGS"] = (
    "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0 "
    "--xla_llvm_disable_expensive_passes=true"
)

import conftest  # noqa: F401  exact matmuls, compiled programs cached
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from evoid_jax import config, evolve, flow, rollout, sharding
from evoid_jax.models import attention as local
from evoid_jax.models import context, vae
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
MESHES = [(8, 1, 1), (1, 8, 1), (2, 2, 2), (1, 2, 4), (1, 1, 8)]

found = {}


def mesh_of(sizes, devices=None):
    return sharding.make_mesh(*sizes, devices=devices)


ONE = mesh_of((1, 1, 1), jax.devices()[:1])


def apart(a, b) -> float:
    """Return the largest relative L2 difference of two trees' leaves."""
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    norm = lambda x: np.linalg.norm(np.asarray(x, np.float64))
    return max(float(norm(np.asarray(x) - np.asarray(y)) / (norm(y) + 1e-30)) for x, y in pairs)


def apart_whole(a, b) -> float:
    """Return the relative L2 difference of two trees, each taken as one vector."""
    flat = lambda tree: np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])
    return apart(flat(a), flat(b))


# --- attention


def attended(heads, mesh, length, rows, poison):
    """Return output and gradients of the true rows; the padding holds `poison`."""
    keys = jax.random.split(jax.random.key(heads), 4)
    fill = lambda x: jnp.pad(x, ((0, 0), (0, rows - length), (0, 0), (0, 0)))
    where = lambda x: jnp.where(jnp.arange(rows)[None, :, None, None] < length, x, poison)
    q, k, v, g = (fill(jax.random.normal(key, (8, length, heads, 8))) for key in keys)
    see = lambda q, k, v: context.self_attention(q, k, v, length, mesh, local.EXACT)

    def both(q, k, v, g):
        out, pull = jax.vjp(see, q, where(k), where(v))
        return jax.tree.map(lambda x: x[:, :length], (out, *pull(g)))

    spec = P() if mesh is None else sharding.token_spec(8, mesh)
    put = lambda x: x if mesh is None else jax.device_put(x, NamedSharding(mesh, spec))
    return jax.device_get(jax.jit(both)(*map(put, (q, k, v, g))))


def check_attention():
    for heads, length in ((8, 13), (3, 13), (3, 16), (3, 3)):
        want = attended(heads, None, length, length, 0.0)
        for sizes in MESHES[2:]:
            rows = -(-length // sizes[2]) * sizes[2]
            for blocks in (1, 2):
                local.MAX_LOGITS = 2**27 if blocks == 1 else 8 // (sizes[0] * sizes[1]) * heads * 4
                got = attended(heads, mesh_of(sizes), length, rows, jnp.nan)
                found[f"attention {heads} heads {length} tokens {sizes} {blocks}"] = apart(
                    got, want
                )
    local.MAX_LOGITS = 2**27


# --- the model


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
    put = lambda path, x: jax.device_put(x, NamedSharding(mesh, spec(path, x)))
    return traverse_util.unflatten_dict({path: put(path, x) for path, x in flat.items()})


def trained(base, mesh):
    """Return the loss terms of each step, the first step's gradient, and both adapters at last."""
    move = lambda key: lambda x: x + 0.05 * jax.random.normal(jax.random.key(key), x.shape)
    state = evolve.init(CFG, base, WAN.config)
    adapters = {"evolving": jax.tree.map(move(1), state.evolving)}
    adapters["stable"] = jax.tree.map(move(2), state.stable)
    state = sharding.replicate(state._replace(**adapters), mesh)
    clean, text, control = inputs()
    valid, reward = jnp.ones(VIDEOS).at[3].set(0), jnp.linspace(0.1, 0.9, VIDEOS)
    of_video = sharding.place_batch((clean, jnp.arange(VIDEOS) % PAIRS, reward, valid), mesh)
    scored = evolve.Scored(*of_video, *sharding.replicate((text, control), mesh))
    base, terms = placed_base(base, mesh), []
    static = {"cfg": CFG, "wan": WAN.clone(mesh=mesh), "mesh": mesh, "references": 1}
    for step in range(STEPS):
        state, now = evolve.train_step(state, base, scored, **static)
        terms.append(jax.device_get(now))
        if step == 0:  # Adam's first moment is a tenth of the clipped gradient
            gradient = jax.device_get(state.opt[1][0].mu)
    whole = [x.sharding.is_fully_replicated for x in jax.tree.leaves(state)]
    found[f"state {tuple(mesh.shape.values())}"] = int(all(whole))
    return terms, gradient, jax.device_get((state.evolving, state.stable))


def check_training(base):
    want = trained(base, ONE)
    found["gradient is not zero"] = min(float(abs(x).max()) for x in jax.tree.leaves(want[1]))
    for sizes in MESHES:
        got = trained(base, mesh_of(sizes))
        for name, a, b in zip(("terms", "gradient", "adapters"), got, want, strict=True):
            found[f"{name} {sizes}"] = apart(a, b)
        found[f"whole gradient {sizes}"] = apart_whole(got[1], want[1])


def check_weights(base):
    for sizes in MESHES:
        kernel = placed_base(base, mesh_of(sizes))["blocks"]["ffn_up"]["kernel"]
        shapes = {shard.data.shape for shard in kernel.addressable_shards}
        found[f"weights {sizes}"] = int(shapes == {(2, 64 // sizes[1], 48)})


def generated(base, mesh):
    _, text, control = inputs()
    pair_B, noise_BTHWC = sharding.place_batch(
        (jnp.arange(VIDEOS) % PAIRS, rollout.noise(np.arange(VIDEOS), (*GRID, 4))), mesh
    )
    text, control, solver = sharding.replicate(
        (text, control, flow.schedule("unipc", 3, 3.0)), mesh
    )
    cond = text[pair_B], text[:1], control[pair_B]
    model, base = WAN.clone(mesh=mesh), placed_base(base, mesh)
    return rollout.sample(model, base, None, *cond, noise_BTHWC, solver, 3.0)


def check_rollout(base):
    mesh = mesh_of((2, 2, 2))
    got = generated(base, mesh)
    found["rollout"] = apart(jax.device_get(got), jax.device_get(generated(base, ONE)))
    sizes = {"base_dim": 4, "z_dim": 4, "dim_mult": (1, 2), "num_res_blocks": 1}
    sizes |= {"latents_mean": (0.0,) * 4, "latents_std": (1.0,) * 4}
    small = vae.VAEConfig(**sizes, temperal_downsample=(True,))
    params = vae.init(jax.random.key(1), small)
    frozen = lambda params, mesh: SimpleNamespace(
        vae_params=params, vae_config=small, wan=WAN.clone(mesh=mesh)
    )
    want = np.asarray(rollout.decode(frozen(params, None), jax.device_get(got)[:, 1:]), int)
    params = sharding.replicate(params, mesh)
    for count in (
        8,
        4,
    ):  # over all devices; over data and fsdp, in pieces of the plane over context
        for whole in (2**22, 0):
            rollout.WHOLE, video = whole, sharding.place_batch(got[:count, 1:], mesh)
            video = np.asarray(rollout.decode(frozen(params, mesh), video), int)
            found[f"decode {count} {whole}"] = int(abs(video - want[:count]).max())
            jax.clear_caches()  # WHOLE is no argument


def main():
    fresh = wan_model.init(jax.random.key(0), WAN)  # shaken: its VACE hints are zero
    base = jax.tree.map(lambda x: x + 0.05 * jax.random.normal(jax.random.key(7), x.shape), fresh)
    check_attention()
    for check in (check_weights, check_rollout, check_training):
        check(base)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
