"""What preset `paper` is told on the command line: which rewards, where weights lie, which device.

    python -m evoid_jax.sidecars.serve --preset paper --rewards=arcface,gme --weights=FOLDER \
        --device=cuda --judge=http://HOST:8200/v1

Everything has a default; docs/rewards_paper.md tells what each reward needs.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import NamedTuple

import torch

from evoid_jax import files

REWARDS = ("arcface", "curricularface", "gme", "aesthetic", "qalign", "naturalness", "flow")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
VARIABLE = "EVOID_JAX_PAPER"


class Options(NamedTuple):
    """How preset `paper` is set up."""

    rewards: tuple[str, ...] = REWARDS
    weights: Path | None = None  # None: `folder()`
    device: str = "auto"  # cuda where there is one, else cpu; also cuda:1
    dtype: str = "auto"  # of GME and one-align: float16 on a GPU, as the benchmark, else float32
    memory: float = 4.0  # GiB that a batch may take beside the weights
    pack: str = ""  # of insightface; "" is the only one that is there
    gme: str = ""  # folder name of GME; "" is the only one that is there
    stride: int = 1  # every n-th frame of the temporal reward; only 1 is the benchmark's number
    judge: str = ""  # base URL of an OpenAI API, for naturalness
    judge_model: str = ""  # as the judge names it; "" is the only one that it has
    judge_key_env: str = "OPENAI_API_KEY"  # the variable with its key; "" sends none


DEFAULT = Options()


def folder() -> Path:
    """Return where weights lie unless told: $EVOID_JAX_PAPER, else ~/.cache/evoid_jax/paper."""
    return files.user_path(os.environ.get(VARIABLE) or "~/.cache/evoid_jax/paper")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of preset `paper` to a parser that has --preset and --weights."""
    usual = DEFAULT
    group = parser.add_argument_group("preset paper (docs/rewards_paper.md)")
    group.add_argument("--rewards", default=",".join(REWARDS), help="between commas; all if absent")
    group.add_argument("--device", default=usual.device, help="auto, cpu, cuda or cuda:1")
    group.add_argument("--dtype", default=usual.dtype, choices=["auto", *DTYPES])
    group.add_argument("--memory", type=float, default=usual.memory, help="GiB for a batch")
    group.add_argument("--pack", default=usual.pack, help="insightface's, such as antelopev2")
    group.add_argument("--gme", default=usual.gme, help="such as gme-Qwen2-VL-2B-Instruct")
    group.add_argument("--stride", type=int, default=usual.stride, help="frames of qalign; 1: all")
    group.add_argument("--judge", default=usual.judge, help="base URL for naturalness")
    group.add_argument("--judge_model", default=usual.judge_model, help="'': the only one there")
    group.add_argument("--judge_key_env", default=usual.judge_key_env, help="variable with its key")


def from_arguments(args: argparse.Namespace) -> Options:
    """Return what was told on the command line.

    Raises:
      ValueError: a reward that there is not, a number out of bounds, or flags of this preset for
        another one.
    """
    options = Options(
        rewards=tuple(name for name in args.rewards.split(",") if name),
        weights=files.user_path(args.weights) if args.weights else None,
        device=args.device,
        dtype=args.dtype,
        memory=args.memory,
        pack=args.pack,
        gme=args.gme,
        stride=args.stride,
        judge=args.judge,
        judge_model=args.judge_model,
        judge_key_env=args.judge_key_env,
    )
    check(options)
    both = zip(Options._fields, options, DEFAULT, strict=True)
    told = [f"--{name}" for name, value, usual in both if value != usual and name != "weights"]
    if args.preset != "paper" and told:
        raise ValueError(f"{', '.join(told)}: of --preset paper, not of {args.preset}")
    return options


def check(options: Options) -> None:
    """Raise ValueError where options cannot be."""
    unknown = [name for name in options.rewards if name not in REWARDS]
    if unknown or not options.rewards:
        came = f"{unknown[0]!r}" if unknown else "none"
        raise ValueError(f"--rewards must be some of {', '.join(REWARDS)}; got {came}")
    if options.stride < 1:
        raise ValueError(f"--stride must be 1 or more; got {options.stride}")
    if not options.memory > 0:
        raise ValueError(f"--memory must be more than 0 GiB; got {options.memory}")
    if options.dtype not in ("auto", *DTYPES):
        raise ValueError(f"--dtype must be auto or one of {list(DTYPES)}; got {options.dtype!r}")


def device(options: Options) -> torch.device:
    """Return the device of the nets.

    Raises:
      ValueError: no such device, or CUDA was asked for and is not there.
    """
    if options.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        place = torch.device(options.device)
    except RuntimeError as error:
        raise ValueError(
            f"--device must be auto, cpu, cuda or cuda:1; got {options.device!r}"
        ) from error
    if place.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            f"--device={options.device}: PyTorch {torch.__version__} sees no GPU; install its CUDA "
            "build, or take --device=cpu"
        )
    return place


def dtype(options: Options) -> torch.dtype:
    """Return the floating-point type of GME and one-align; the small nets stay in float32."""
    if options.dtype != "auto":
        return DTYPES[options.dtype]
    return torch.float16 if device(options).type == "cuda" else torch.float32
