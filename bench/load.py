"""Time how fast a model's folder gets to the device, against a plain read of the same files.

    python bench/load.py [--model=evoid_jax/assets/tiny] [--dtype=bfloat16] [--runs=5]

One process, the two in turn, files in the page cache after a first round that is not counted; with
--cold (root, Linux) the page cache is emptied before every read, as a first start on a machine
finds it. Prints medians in seconds, GB/s, and the ratio ours / plain, the median over pairs of
neighbours, and the peak memory of the process against the loaded arrays.
"""

import argparse
import os
import resource
import time
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from evoid_jax import rollout, sharding
from evoid_jax.models.pipeline import PARTS


def plain(files: list[Path]) -> None:
    """Read every byte once, each file into memory of its own."""
    for file in files:
        np.fromfile(file, np.uint8)


def ours(folder: str, dtype, mesh) -> int:
    """Load the model and return its bytes."""
    frozen = rollout.load(folder, dtype, mesh=mesh)
    held = jax.block_until_ready((frozen.wan_params, frozen.vae_params, frozen.umt5_params))
    return sum(x.nbytes for x in jax.tree.leaves(held))


def timed(function, cold: bool) -> float:
    """Return how many seconds a call takes; cold: after the page cache was emptied."""
    if cold:
        os.sync()
        Path("/proc/sys/vm/drop_caches").write_text("3")
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="evoid_jax/assets/tiny")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--fsdp", type=int, default=1, help="devices that share the transformer")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--cold", action="store_true", help="empty the page cache before each read")
    args = parser.parse_args()
    files = [f for part in PARTS for f in sorted((Path(args.model) / part).glob("*.safetensors"))]
    size = sum(f.stat().st_size for f in files) / 1e9
    mesh = sharding.make_mesh(fsdp=args.fsdp)
    load_all = partial(ours, args.model, jnp.dtype(args.dtype), mesh)
    read_all = partial(plain, files)
    arrays = load_all() / 1e9  # before the plain read, whose memory would count too
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9  # Linux counts in KiB
    read_all()
    rows = np.array(
        [(timed(load_all, args.cold), timed(read_all, args.cold)) for _ in range(args.runs)]
    )
    load, read = np.median(rows, axis=0)
    print(f"{args.model}: {size:.3f} GB in {len(files)} files, {args.runs} runs, {args.dtype}")
    print(f"ours {load:.3f} s ({size / load:.2f} GB/s), plain read {read:.3f} s", end=" ")
    print(f"({size / read:.2f} GB/s), ours / plain {np.median(rows[:, 0] / rows[:, 1]):.2f}")
    print(f"peak {peak:.2f} GB for {arrays:.2f} GB of arrays, {peak / arrays:.2f}")


if __name__ == "__main__":
    main()
