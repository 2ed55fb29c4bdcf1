"""Mirrors of a run's record: TensorBoard and Weights & Biases, both optional packages.

Letters: F H W C pixels.
"""

from __future__ import annotations

import importlib
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

PACKAGE = {"tensorboard": "tensorboardX", "wandb": "wandb"}  # of each mirror, for import and pip


def check(tensorboard: bool, wandb: str) -> None:
    """Raise a ValueError with the pip command unless the mirrors that are asked for can be used."""
    for mirror, wanted in (("tensorboard", tensorboard), ("wandb", wandb)):
        if wanted:
            _import(mirror)


def open_tensorboard(workdir: Path, start: int):
    """Return a writer of events, where those of steps from `start` on are dropped."""
    module = _import("tensorboard")
    return module.SummaryWriter(str(workdir / "tensorboard"), purge_step=start)


def open_wandb(workdir: Path, project: str, config: Mapping):
    """Return a run of W&B, offline unless WANDB_MODE says otherwise.

    config: plain settings without secrets, shown beside it.

    Raises:
      ValueError: it does not start.
    """
    module = _import("wandb")
    workdir.mkdir(parents=True, exist_ok=True)
    try:
        return module.init(
            project=project,
            name=workdir.resolve().name,
            dir=str(workdir),
            config=dict(config),
            mode=os.environ.get("WANDB_MODE", "offline"),
        )
    except Exception as error:  # its errors are classes of its own: no key, no network, a bad name
        raise ValueError(
            f"wandb does not start for project {project!r}: {error}. Set WANDB_MODE=offline, or "
            "switch it off with config.wandb="
        ) from error


def add_videos(board, name: str, videos: Sequence[np.ndarray], step: int) -> None:
    """Show videos in TensorBoard, which plays moving GIFs among its images.

    videos: uint8 FHWC.
    """
    from tensorboardX.proto.summary_pb2 import Summary

    for k, video_FHWC in enumerate(videos):
        _, height, width, _ = video_FHWC.shape
        image = Summary.Image(height=height, width=width, colorspace=3)
        image.encoded_image_string = gif(video_FHWC)
        value = Summary.Value(tag=f"{name}/{k}", image=image)
        board.file_writer.add_summary(Summary(value=[value]), step)


def wandb_videos(name: str, videos: Sequence[np.ndarray]) -> dict:
    """Return what W&B logs of videos, as moving GIFs: name -> object.

    videos: uint8 FHWC.
    """
    show = lambda video: _import("wandb").Video(io.BytesIO(gif(video)), format="gif")
    return {f"{name}/{k}": show(video) for k, video in enumerate(videos)}


def gif(video_FHWC: np.ndarray, fps: float = 8.0) -> bytes:
    """Return a video, uint8 FHWC, as the bytes of an endless GIF."""
    frames = [Image.fromarray(frame_HWC) for frame_HWC in video_FHWC]
    file = io.BytesIO()
    rest, pause = frames[1:], round(1000 / fps)  # milliseconds
    frames[0].save(file, "GIF", save_all=True, append_images=rest, duration=pause, loop=0)
    return file.getvalue()


def _import(mirror):
    package = PACKAGE[mirror]
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ValueError(
            f"config.{mirror} needs the package {package}, which cannot be imported ({error}): "
            f"run `pip install {package}` or leave config.{mirror} out"
        ) from error
