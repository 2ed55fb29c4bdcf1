"""Run what test_context.py asks about on eight CPU devices; print {fact: number} as JSON.

A process of its own, since the number of devices is fixed once JAX has started.
"""

import json
import os
import tempfile
from pathlib import Path
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
from compare import apart, apart_whole
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from three_steps import GRID, PAIRS, VIDEOS, WAN, inputs, placed_base, shaken_base, trained

from evoid_jax import checkpoint, evolve, flow, rollout, sharding
from evoid_jax.models import attention as local
from evoid_jax.models import context, vae

MESHES = [(8, 1, 1), (1, 8, 1), (2, 2, 2), (1, 2, 4), (1, 1, 8)]

results = {}


def mesh_of(sizes, devices=None):
    data, fsdp, context = sizes
    return sharding.make_mesh(data=data, fsdp=fsdp, context=context, devices=devices)


ONE = mesh_of((1, 1, 1), jax.devices()[:1])


# --- attention


def attended(heads, mesh, length, rows, poison):
    """Return output and gradients of the true rows; the padding holds `poison`."""
    keys = jax.random.split(jax.random.key(heads), 4)
    fill = lambda x: jnp.pad(x, ((0, 0), (0, rows - length), (0, 0), (0, 0)))
    poisoned = lambda x: jnp.where(jnp.arange(rows)[None, :, None, None] < length, x, poison)
    q, k, v, g = (fill(jax.random.normal(key, (8, length, heads, 8))) for key in keys)
    see = lambda q, k, v: context.self_attention(q, k, v, length, mesh, local.EXACT)

    def both(q, k, v, g):
        out, pull = jax.vjp(see, q, poisoned(k), poisoned(v))
        return jax.tree.map(lambda x: x[:, :length], (out, *pull(g)))

    spec = P() if mesh is None else sharding.token_spec(8, mesh)
    put = lambda x: x if mesh is None else jax.device_put(x, NamedSharding(mesh, spec))
    q, k, v, g = map(put, (q, k, v, g))
    return jax.device_get(jax.jit(both)(q, k, v, g))


def check_attention():
    for heads, length in ((8, 13), (3, 13), (3, 16), (3, 3)):
        want = attended(heads, None, length, length, 0.0)
        for sizes in MESHES[2:]:
            rows = -(-length // sizes[2]) * sizes[2]
            for blocks in (1, 2):
                local.MAX_LOGITS = 2**27 if blocks == 1 else 8 // (sizes[0] * sizes[1]) * heads * 4
                got = attended(heads, mesh_of(sizes), length, rows, jnp.nan)
                results[f"attention {heads} heads {length} tokens {sizes} {blocks}"] = apart(
                    got, want
                )
    local.MAX_LOGITS = 2**27


# --- the model


def check_training(base):
    want, _ = trained(base, ONE)
    largest = [float(abs(x).max()) for x in jax.tree.leaves(want["gradient"])]
    results["gradient is not zero"] = min(largest)
    for sizes in MESHES:
        got, state = trained(base, mesh_of(sizes))
        placed = jax.tree.leaves(evolve.placement(state, mesh_of(sizes)))
        stayed = [
            x.sharding.is_equivalent_to(where, x.ndim)
            for x, where in zip(jax.tree.leaves(state), placed, strict=True)
        ]
        results[f"state {sizes}"] = int(all(stayed))
        results[f"saved {sizes}"] = saved_and_restored(state)
        for name, x in got.items():
            results[f"{name} {sizes}"] = apart(x, want[name])
        results[f"whole gradient {sizes}"] = apart_whole(got["gradient"], want["gradient"])


def saved_and_restored(state) -> float:
    """Return how far a state whose moments are in pieces is from what a checkpoint gives whole."""
    with tempfile.TemporaryDirectory() as folder:
        saved = checkpoint.open_folder(Path(folder), keep=1)
        checkpoint.save(saved, 1, state, {})
        saved.manager.wait_until_finished()
        like = sharding.replicate(jax.tree.map(jnp.zeros_like, state), ONE)
        restored = checkpoint.restore(saved, like).state
        checkpoint.close(saved)
    return apart(*jax.device_get((restored, state)))


def check_weights(base):
    for sizes in MESHES:
        kernel = placed_base(base, mesh_of(sizes))["blocks"]["ffn_up"]["kernel"]
        shapes = {shard.data.shape for shard in kernel.addressable_shards}
        results[f"weights {sizes}"] = int(shapes == {(2, 64 // sizes[1], 48)})


def generated(base, mesh):
    _, text, control = inputs()
    pair_B, noise_BTHWC = sharding.place_batch(
        (jnp.arange(VIDEOS) % PAIRS, rollout.noise(np.arange(VIDEOS), (*GRID, 4))), mesh
    )
    text, control, solver = sharding.replicate(
        (text, control, flow.schedule("unipc", 3, 3.0)), mesh
    )
    return rollout.sample(
        WAN.clone(mesh=mesh),
        placed_base(base, mesh),
        None,
        text[pair_B],
        text[:1],
        control[pair_B],
        noise_BTHWC,
        solver,
        guidance=3.0,
    )


def check_rollout(base):
    mesh = mesh_of((2, 2, 2))
    got = generated(base, mesh)
    results["rollout"] = apart(jax.device_get(got), jax.device_get(generated(base, ONE)))
    sizes = {"base_dim": 4, "z_dim": 4, "dim_mult": (1, 2), "num_res_blocks": 1}
    sizes |= {"latents_mean": (0.0,) * 4, "latents_std": (1.0,) * 4}
    small = vae.VAEConfig(**sizes, temperal_downsample=(True,))
    params = vae.init(jax.random.key(1), small)
    frozen = lambda params, mesh: SimpleNamespace(
        vae_params=params, vae_config=small, wan=WAN.clone(mesh=mesh)
    )
    want = np.asarray(rollout.decode(frozen(params, None), jax.device_get(got)[:, 1:]), int)
    params = sharding.replicate(params, mesh)
    for count in (8, 4):  # over all devices; over data and fsdp, planes in pieces over context
        for whole in (2**22, 0):
            rollout.WHOLE, video = whole, sharding.place_batch(got[:count, 1:], mesh)
            video = np.asarray(rollout.decode(frozen(params, mesh), video), int)
            results[f"decode {count} {whole}"] = int(abs(video - want[:count]).max())
            jax.clear_caches()  # WHOLE is no argument


def main():
    base = shaken_base()
    check_attention()
    for check in (check_weights, check_rollout, check_training):
        check(base)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
