"""Weights from files into nets: every tensor must have its place, and every place its tensor."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from safetensors import safe_open
from torch import nn

from evoid_jax import files

FORMS = ("model.safetensors", "pytorch_model.bin")


def digest(paths: list[Path]) -> str:
    """Return the sha256 of a file, or of the digests of several in the order of their names."""
    digests = [files.sha256(path) for path in sorted(paths)]
    if len(digests) == 1:
        return digests[0]
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()


def weight_files(folder: Path) -> list[Path]:
    """Return the weight files of a folder in Hugging Face's layout: one, or those of its index.

    Raises:
      FileNotFoundError: none is there, or one that the index names is not.
    """
    for form in FORMS:
        index = folder / f"{form}.index.json"
        if index.is_file():
            names = sorted(set(files.read_json(index)["weight_map"].values()))
            return [files.require_file(folder / name, f"{index.name} names it") for name in names]
        if (folder / form).is_file():
            return [folder / form]
    raise FileNotFoundError(f"{folder} has no weights; expected {' or '.join(FORMS)}, or an index")


def read_pickle(file: Path) -> dict[str, torch.Tensor]:
    """Read a state dict of PyTorch's own format; nothing but tensors is unpickled.

    Raises:
      ValueError: it holds something else.
    """
    try:
        try:
            # mmap: shards of ten gigabytes are read when they are copied, not twice.
            state = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError:  # the format of before PyTorch 1.6 cannot be mapped
            state = torch.load(file, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # whatever a file leads torch into, its refusal of programs too
        raise ValueError(f"{file} holds no state dict: {error!s:.200}") from error
    if not isinstance(state, dict) or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise ValueError(f"{file} holds no state dict; expected names and tensors")
    return state


def tensors(paths: list[Path]) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the names and tensors of weight files, one tensor in memory at a time."""
    for path in paths:
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                names = file.keys()
                for name in names:
                    yield name, file.get_tensor(name)
        else:
            yield from read_pickle(path).items()


def fill(
    net: nn.Module,
    paths: list[Path],
    device: torch.device,
    dtype: torch.dtype,
    ignore: Callable[[str], bool] = lambda name: False,
) -> nn.Module:
    """Put the tensors of files into a net that was built on the meta device.

    Args:
      net: its names are the checkpoint's.
      paths: weight files.
      device, dtype: of the net afterwards; whole numbers keep their type.
      ignore: names that the net needs not, though the checkpoint has them.

    Returns:
      The net, in eval mode, without gradients.

    Raises:
      ValueError: a tensor of another shape, one too many or one too few; names it.
    """
    places, state = net.state_dict(), {}
    source = paths[0].parent if len(paths) > 1 else paths[0]
    for name, tensor in tensors(paths):
        if ignore(name):
            continue
        if name not in places:
            raise ValueError(f"{source} has {name!r}, which this net has not; is it another model?")
        if tensor.shape != places[name].shape:
            raise ValueError(
                f"{source}: {name} is {tuple(tensor.shape)}; expected {tuple(places[name].shape)}"
            )
        kind = dtype if tensor.is_floating_point() else tensor.dtype
        state[name] = tensor.to(device, kind)
    missing = sorted(set(places) - set(state))
    if missing:
        some = ", ".join(missing[:3])
        raise ValueError(f"{source} lacks {len(missing)} tensors that this net needs: {some} ..")
    net.load_state_dict(state, assign=True)
    return net.eval().requires_grad_(False)


def strictly(info: dict, source: Path, ignored: tuple[str, ...] = ()) -> None:
    """Check what transformers says of a checkpoint that it has loaded (output_loading_info).

    Args:
      ignored: beginnings of names that the checkpoint may have besides.

    Raises:
      ValueError: a tensor is missing, too many, or of another shape.
    """
    unexpected = [k for k in info["unexpected_keys"] if not k.startswith(ignored)]
    for what, names in (
        ("lacks", info["missing_keys"]),
        ("has, against expectation,", unexpected),
        ("has in another shape", info["mismatched_keys"]),
    ):
        if names:
            some = ", ".join(sorted(map(str, names))[:3])
            raise ValueError(f"{source} {what} {len(names)} tensors: {some} ..; other model?")
