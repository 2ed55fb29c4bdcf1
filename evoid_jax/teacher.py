"""The T2V teacher: the base's own main blocks, or a second transformer where those differ.

VACE training is said to change no weight of the T2V model it starts from. Where that is so, the
base without hints is the teacher and costs no memory; where it is not, sharing would hold the
evolution to another model than the one that was asked for.
"""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from pathlib import Path

from jax.sharding import Mesh, NamedSharding

from evoid_jax import distributed, rollout, sharding
from evoid_jax.config import Config
from evoid_jax.models import loading, pipeline, weights
from evoid_jax.models.wan import WanConfig


def asked(cfg: Config) -> str:
    """Return the folder or name of the teacher; "" where it is the base, or nobody asks it."""
    return cfg.teacher if cfg.algorithm == "evoid" else ""


def load(folder: str, model: str | Path, frozen: rollout.Frozen, mesh: Mesh) -> dict | None:
    """Return the teacher's parameters, or None where the base serves as the teacher.

    Args:
      folder: of a T2V model in either layout; "" trusts that the base's main blocks are its.
      model: folder of the base, whose bytes are compared.
      frozen: the base, loaded.
      mesh: where the parameters go, by the table of `sharding`.

    Raises:
      OSError, ValueError: as `pipeline.open_transformer`, or a teacher of another size.
    """
    if not folder:
        return None
    described, tensors = _open(folder, model, frozen.wan.config)
    compared = pipeline.compare(folder, model)
    different = [key for key, outcome in compared.items() if outcome != "equal"]
    if not different:
        distributed.say(
            f"teacher: {folder} is byte-equal to the main blocks of {model}, which serve for it"
        )
        return None
    distributed.say(
        f"teacher: {len(different)} of {len(compared)} tensors differ from {model}, such as "
        f"{different[0]} ({compared[different[0]]}); {folder} is loaded beside it"
    )
    rules = [rule for rule in described.rules if not rule.path[0].startswith("vace_")]
    shapes = {rule.path: described.shapes[rule.path] for rule in rules}
    main = {key: tensors[key] for key in weights.expected(rules, shapes)}
    spec = lambda path, shape: sharding.weight_spec("/".join(path), shape, mesh)
    place = lambda path, shape: NamedSharding(mesh, spec(path, shape))
    dtype_of = partial(rollout.wan_dtype, frozen.wan.dtype)
    return loading.load(main, rules, shapes, dtype_of, place, "teacher")


def check(folder: str, model: str | Path, base: WanConfig) -> None:
    """Raise what `load` would, before the base is loaded; no tensor is read."""
    if folder:
        _open(folder, model, base)


def _open(folder: str, model: str | Path, base: WanConfig):
    """Return a teacher's part and its tensors, none of them read; it is of the base's size."""
    described, tensors = pipeline.open_transformer(folder)
    _check_size(described.config, base, folder, model)
    return described, tensors


def _check_size(teacher: WanConfig, base: WanConfig, folder: str, model: str | Path) -> None:
    """Raise ValueError, naming the sizes, unless the teacher's main blocks are of the base's."""
    adapter = {"vace_layers", "vace_in_channels"}
    mine, its = (asdict(config) for config in (base, teacher))
    wrong = [f"{k} {its[k]}, not {mine[k]}" for k in mine.keys() - adapter if its[k] != mine[k]]
    if wrong:
        told = "; ".join(sorted(wrong))
        raise ValueError(f"config.teacher: {folder} is of another size than {model}: {told}")
