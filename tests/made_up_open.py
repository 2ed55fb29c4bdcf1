"""A folder with files like those of preset `open`: the right shapes, random numbers, few words."""

import json
import struct
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers

from evoid_jax.sidecars.open import catalogue, dlib_resnet, efficientnet, minilm, sface, transnet

WORDS = ["[PAD]", "[UNK]", "a", "photo", "of", "thing", "person", "waves", "rides"]


def fill(folder: Path) -> Path:
    """Write all files but the face detector's; `WORDS` and one layer are MiniLM's sizes."""
    rng = np.random.default_rng(0)
    path = lambda file: _made(folder / file.path)
    path(catalogue.SFACE).write_bytes(onnx(sface_arrays(rng)))
    manifest, weights = dlib_files(rng)
    path(catalogue.DLIB_MANIFEST).write_text(manifest)
    path(catalogue.DLIB).write_bytes(weights)
    torch.save(state(efficientnet.EfficientNet()), path(catalogue.EFFICIENTNET))
    torch.save(state(transnet.TransNet()), path(catalogue.TRANSNET))
    path(catalogue.LABELS).write_text(json.dumps([f"thing {i}" for i in range(1000)]))
    save_file(bert(minilm.MiniLM().state_dict()), path(catalogue.MINILM))
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(path(catalogue.TOKENIZER)))
    path(catalogue.BRISQUE_MODEL).write_text(brisque_model(rng))
    path(catalogue.BRISQUE_RANGE).write_text(brisque_range())
    return folder


def _made(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def state(net: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return a fresh net's tensors, drawn by a fixed seed."""
    torch.manual_seed(0)
    tensors = net.state_dict()
    for name, tensor in tensors.items():
        if tensor.dim() > 1:
            torch.nn.init.kaiming_normal_(tensors[name])
    return tensors


def bert(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rename our tensors as BERT's files have them, with one that is not used here."""
    theirs = {own: name for name, own in minilm.NAMES.items()}
    named = {}
    for name, tensor in tensors.items():
        if name.startswith("layers."):
            _, number, own, kind = name.split(".")
            name = f"encoder.layer.{number}.{theirs[own]}.{kind}"
        named[name] = tensor.clone()
    return named | {"pooler.dense.bias": torch.zeros(minilm.WIDTH)}


def sface_arrays(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Return weights by the names and in the blocks of the Zoo's file."""
    arrays, net = {}, sface.Net()
    for name, (conv, _, _) in net.layers.items():
        arrays |= blocks(rng, f"{name}_conv2d_weight", tuple(conv.weight.shape), 64)
        arrays |= norm(rng, f"{name}_batchnorm", len(conv.weight))
        arrays[f"{name}_relu_gamma"] = np.full((len(conv.weight), 1, 1), 0.25, np.float32)
    arrays |= norm(rng, "bn1", 1024) | norm(rng, "fc1", 128)
    arrays |= blocks(rng, "pre_fc1_weight", (128, 50176), 64)
    return arrays | blocks(rng, "pre_fc1_bias", (128,), 64)


def blocks(rng, name: str, shape: tuple, most: int) -> dict[str, np.ndarray]:
    """Return a weight in 8 bits: rows cut into blocks with a scale each."""
    rows = (shape[0], int(np.prod(shape[1:]))) if len(shape) > 1 else shape
    size = min(most, rows[-1])
    scales = (*rows[:-1], rows[-1] // size)
    fan = rows[-1] if len(shape) > 1 else 100
    return {
        f"{name}_quantized": rng.integers(-100, 100, rows).astype(np.int8),
        f"{name}_scales": np.full(scales, 0.03 / np.sqrt(fan), np.float32),
        f"{name}_zero_point": np.ones(scales, np.int8),
        f"{name}_shape": np.array(shape, np.int64),
    }


def norm(rng, name: str, size: int) -> dict[str, np.ndarray]:
    """Return a batch norm's four vectors."""
    vector = lambda middle: (middle + 0.1 * rng.standard_normal(size)).astype(np.float32)
    means = {f"{name}_beta": vector(0), f"{name}_moving_mean": vector(0)}
    return means | {f"{name}_gamma": vector(1), f"{name}_moving_var": np.ones(size, np.float32)}


def dlib_files(rng: np.random.Generator) -> tuple[str, bytes]:
    """Return a manifest and weights of face-api's layout, a bias being float32."""
    sizes = [("conv32_down", 7, 3, 32)]
    for name, c_in, c_out, _ in dlib_resnet.BLOCKS:
        sizes += [(f"{name}/conv1", 3, c_in, c_out), (f"{name}/conv2", 3, c_out, c_out)]
    entries, parts = [], []

    def add(name: str, shape: list[int], spread: float):
        entries.append({"name": name, "shape": shape, "dtype": "float32"})
        values = rng.integers(0, 256, shape)
        if name.endswith("conv/bias"):
            parts.append(np.zeros(shape, np.float32).tobytes())
            return
        grid = {"dtype": "uint8", "scale": spread / 128, "min": -spread}
        entries[-1]["quantization"] = grid
        parts.append(values.astype(np.uint8).tobytes())

    for name, kernel, c_in, c_out in sizes:
        spread = 1 / np.sqrt(kernel * kernel * c_in)
        add(f"{name}/conv/filters", [kernel, kernel, c_in, c_out], spread)
        add(f"{name}/conv/bias", [c_out], 0)
        add(f"{name}/scale/weights", [c_out], 2)
        add(f"{name}/scale/biases", [c_out], 0.1)
    add("fc", [256, 128], 0.1)
    return json.dumps([{"weights": entries, "paths": ["x.bin"]}]), b"".join(parts)


def brisque_model(rng: np.random.Generator) -> str:
    """Return a regression with three support vectors, as OpenCV writes one."""
    vectors = "\n".join(
        f"      - [ {', '.join(map(str, row))} ]" for row in rng.normal(size=(3, 36))
    )
    return (
        "%YAML:1.0\n---\nopencv_ml_svm:\n   svmType: EPS_SVR\n   kernel:\n      type: RBF\n"
        f"      gamma: 0.05\n   support_vectors:\n{vectors}\n   decision_functions:\n      -\n"
        "         rho: -50.0\n         alpha: [ 20., -10., 5. ]\n"
    )


def brisque_range() -> str:
    """Return ranges from 0 to 2 for every feature."""
    data = ", ".join(["0."] * 36 + ["2."] * 36)
    return (
        "%YAML:1.0\n---\nrange: !!opencv-matrix\n   rows: 2\n   cols: 36\n   dt: f\n"
        f"   data: [ {data} ]\n"
    )


def onnx(arrays: dict[str, np.ndarray]) -> bytes:
    """Write an ONNX file that holds weights and nothing else; float32 as floats, others raw."""
    kinds = {"float32": 1, "int8": 3, "int64": 7}
    tensors = []
    for name, array in arrays.items():
        sizes = b"".join(_field(1, size) for size in array.shape)
        kind = _field(2, kinds[array.dtype.name])
        data = _field(4 if array.dtype == np.float32 else 9, array.tobytes())
        tensors.append(_field(5, sizes + kind + _field(8, name.encode()) + data))
    return _field(1, 8) + _field(7, b"".join(tensors))


def _field(number: int, value: int | bytes) -> bytes:
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    return _varint(number << 3 | 2) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    parts = []
    while value > 127:
        parts.append(value & 127 | 128)
        value >>= 7
    return struct.pack(f"{len(parts) + 1}B", *parts, value)
