"""Batches that fit into memory: as many items at once as a budget holds, fewer where it did not."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import torch

log = logging.getLogger(__name__)

GIB = 2**30


def transformer_bytes(tokens: int, width: int, inner: int, itemsize: int) -> int:
    """Return about how many bytes one item's activations take in a transformer without gradients.

    Only one layer is alive at a time: about eight arrays of the width (residual, norm, q, k, v,
    attention's output) and three of the feed-forward's inner width.
    """
    return tokens * (8 * width + 3 * inner) * itemsize


def most(bytes_each: int, gib: float) -> int:
    """Return how many items of that size a budget holds, at least one."""
    return max(1, int(gib * GIB // max(1, bytes_each)))


def run(function: Callable[[Sequence], torch.Tensor], items: Sequence, size: int) -> torch.Tensor:
    """Call a function on runs of at most `size` items and join what it returns.

    Where a GPU has no memory left, runs are halved until they fit: the budget is an estimate.

    Args:
      function: items -> tensor whose first axis is theirs.
      items: one or more.

    Raises:
      torch.OutOfMemoryError: a single item does not fit.
    """
    parts, start = [], 0
    while start < len(items):
        try:
            parts.append(function(items[start : start + size]))
        except torch.OutOfMemoryError:
            if size == 1:
                raise
            size = max(1, size // 2)
            torch.cuda.empty_cache()
            log.warning("the GPU's memory is full: batches of %d from here on", size)
            continue
        start += size
    return torch.cat(parts)
