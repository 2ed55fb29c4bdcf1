"""Time how fast a model's folder gets to the device, against a plain read of the same files.

    python bench/load.py [--model=evoid_jax/assets/tiny] [--dtype=bfloat16] [--runs=5]

One process, the two in turn, files in the page cache after a first round that is not counted.
Prints medians in seconds, GB/s, and the ratio ours / plain, the median over pairs of neighbours.
"""

import argparse
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from evoid_jax import rollout, sharding
from evoid_jax.models.pipeline import PARTS


def plain(files: list[Path]) -> None:
    """Read every byte once, into one buffer."""
    buffer = memoryview(bytearray(2**24))
    for file in files:
        with open(file, "rb", buffering=0) as f:
            while f.readinto(buffer):
                pass


def ours(folder: str, dtype, mesh) -> None:
    frozen = rollout.load(folder, dtype, mesh=mesh)
    jax.block_until_ready((frozen.wan_params, frozen.vae_params, frozen.umt5_params))


def timed(function) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="evoid_jax/assets/tiny")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--fsdp", type=int, default=1, help="devices that share the transformer")
    parser.add_argument("--runs", type=int, default=5)
    args = parser.parse_args()
    files = [f for part in PARTS for f in sorted((Path(args.model) / part).glob("*.safetensors"))]
    size = sum(f.stat().st_size for f in files) / 1e9
    mesh = sharding.make_mesh(fsdp=args.fsdp)
    a = lambda: ours(args.model, jnp.dtype(args.dtype), mesh)
    b = lambda: plain(files)
    a(), b()
    rows = np.array([(timed(a), timed(b)) for _ in range(args.runs)])
    load, read = np.median(rows, axis=0)
    print(f"{args.model}: {size:.3f} GB in {len(files)} files, {args.runs} runs, {args.dtype}")
    print(f"ours {load:.3f} s ({size / load:.2f} GB/s), plain read {read:.3f} s", end=" ")
    print(f"({size / read:.2f} GB/s), ours / plain {np.median(rows[:, 0] / rows[:, 1]):.2f}")


if __name__ == "__main__":
    main()
