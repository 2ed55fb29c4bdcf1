"""How far results are apart, in relative L2: |got - want| / |want|."""

import jax
import numpy as np


def relative(got, want) -> float:
    """Return the distance of two arrays of one shape."""
    got, want = np.asarray(got), np.asarray(want)
    assert got.shape == want.shape, f"shapes differ: {got.shape}, {want.shape}"
    return float(np.linalg.norm(got - want) / np.linalg.norm(want))


def apart(a, b) -> float:
    """Return the largest distance of two trees' leaves."""
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    norm = lambda x: np.linalg.norm(np.asarray(x, np.float64))
    return max(float(norm(np.asarray(x) - np.asarray(y)) / (norm(y) + 1e-30)) for x, y in pairs)


def apart_whole(a, b) -> float:
    """Return the distance of two trees, each taken as one vector."""
    flat = lambda tree: np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])
    return apart(flat(a), flat(b))


def close(a, b, tolerance: float = 1e-5) -> None:
    """Fail where a leaf of tree `a` is further than `tolerance` from that of `b`."""
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
        assert np.linalg.norm(x - y) <= tolerance * max(np.linalg.norm(y), 1e-12)
