"""PyTorch's .pth files, for `convert` alone: the only place outside of the sidecars with torch."""

from __future__ import annotations

import pickle
import warnings
from pathlib import Path

import ml_dtypes
import numpy as np

from evoid_jax import files
from evoid_jax.models.weights import Tensor, beside, read_header, remove, write_tensors


def _torch(file: Path):
    try:
        import torch
    except ImportError:
        raise ImportError(
            f"{file} is a PyTorch file, and torch is not installed: pip install torch"
        ) from None
    return torch


def read(file: str | Path) -> dict[str, Tensor]:
    """Return the tensors of a .pth file, memory-mapped; no code in it is run.

    Raises:
      OSError: no such file.
      ImportError: torch is not installed.
      ValueError: cut off, older than PyTorch 1.6, or something other than tensors by name.
    """
    file = files.require_file(file)
    if (kind := files.kind_of(file)) and kind not in files.TORCH:
        raise ValueError(f"{file} is {kind}; expected a PyTorch file")
    torch = _torch(file)
    try:
        state = torch.load(file, map_location="cpu", mmap=True, weights_only=True)
    except (RuntimeError, EOFError, OSError, pickle.UnpicklingError) as error:
        reason = str(error).strip().splitlines()[0][:200]
        raise ValueError(f"{file} could not be read, it may be cut off: {reason}") from error
    tensors = {}
    for key, x in state.items() if isinstance(state, dict) else [("", state)]:
        name = f"tensor {key} of {file}"
        if not isinstance(x, torch.Tensor):
            raise ValueError(f"{name} is a {type(x).__name__}, not a tensor")
        array = _to_numpy(x.detach(), torch)
        tensors[key] = Tensor(array.dtype, array.shape, lambda array=array: array, name)
    return tensors


def _to_numpy(x, torch) -> np.ndarray:
    if x.dtype is torch.bfloat16:  # numpy has none of its own
        return x.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return x.numpy()


def write(file: str | Path, tensors: dict[str, Tensor]) -> None:
    """Write tensors as a .pth file that `torch.load(file, weights_only=True)` reads.

    torch wants all tensors at once. They are first written to a safetensors file and mapped from
    there, so that they need not fit in memory; for that time the disk holds them twice.

    Raises:
      ImportError: torch is not installed.
      ValueError, OSError: as `weights.write_tensors`; no file is left behind.
    """
    file = Path(file)
    torch = _torch(file)
    stage = file.with_name(file.name + ".staged.safetensors")
    try:
        write_tensors(stage, tensors)
        mapped = {key: tensor.read() for key, tensor in read_header(stage)[0].items()}
        with beside(file) as part, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that the maps are not writable
            torch.save({key: _to_torch(mapped[key], torch) for key in tensors}, part)
    except RuntimeError as error:  # how torch reports a full disk
        raise OSError(f"{file} could not be written: {error}") from error
    finally:
        remove(stage)


def _to_torch(x: np.ndarray, torch):
    if x.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(x.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(x)
