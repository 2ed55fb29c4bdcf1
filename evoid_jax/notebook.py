"""What a notebook needs, in five calls: load, generate, score, evolve, read.

    from evoid_jax import notebook as evoid

    model = evoid.load()  # the embedded one, or a diffusers folder
    video = evoid.generate(model, "face.png", "A person waves a hand.", seed=1)  # uint8 FHWC
    evoid.score([video], ["face.png"], ["A person waves a hand."])  # {"arcface": [0.61], ...}
    run = evoid.evolve("configs/evoid.py:tiny", "runs/notebook", {"steps": 2})
    run.summary["delta_total"], run.steps[-1]["loss"]
    better = evoid.load(adapter=run.adapter)

They call what the commands call. Letters: B videos, M rewards.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from evoid_jax import commandline, config, deployment, files, hub, media, rollout, train
from evoid_jax import generate as generation
from evoid_jax.models import adapters, lora
from evoid_jax.report import folder
from evoid_jax.report.folder import RunFolder
from evoid_jax.rewards import client, local


class Model(NamedTuple):
    """A model in memory, with the adapter that it is used with."""

    frozen: rollout.Frozen
    adapter: dict | None
    path: Path
    header: Mapping[str, str]  # of the adapter's file: how it is meant to be deployed


def load(path: str | Path = generation.TINY, adapter: str | Path = "", dtype: str = "") -> Model:
    """Load a diffusers WanVACEPipeline, and an adapter's file or folder for it.

    Args:
      path: its folder, or its name on the Hugging Face hub.
      dtype: float32 or bfloat16; "" is float32 on a CPU, else bfloat16.

    Raises:
      OSError, ValueError: a file is missing or of something else; the message names it.
    """
    kind = dtype or rollout.usual_dtype()
    frozen = rollout.load(path, jnp.dtype(kind), remat="none")
    tree, header = None, {}
    if adapter:
        file = files.user_path(adapter)
        tree, header = lora.load(file, frozen.wan.config), adapters.read(file).header
    folder = hub.folder(path, with_weights=False)  # here by now
    return Model(frozen=frozen, adapter=tree, path=folder, header=header)


def generate(
    model: Model,
    image: str | Path | np.ndarray,
    prompt: str,
    *,
    negative_prompt: str | None = None,
    seed: int = 0,
    steps: int | None = None,
    guidance: float | None = None,
    scheduler: str | None = None,
    shift: float | None = None,
    frames: int | None = None,
    height: int | None = None,
    width: int | None = None,
) -> np.ndarray:
    """Generate a video of the person in a photo.

    Args:
      image: a file, or uint8 (H, W, 3).
      seed: of the noise; the same seed and settings give the same video.
      negative_prompt, steps, guidance, frames, height, width: None is the adapter's or the model's
        own, see generate.py.
      scheduler: unipc or euler; None is the adapter's or the model's own, as of shift.
      shift: of the solver's times, above 0.

    Returns:
      uint8 (F, H, W, 3).

    Raises:
      OSError, ValueError: the photo, a setting or the size cannot be used; the message says why.
    """
    asked = {"steps": steps, "guidance": guidance, "negative_prompt": negative_prompt}
    asked |= {"frames": frames, "height": height, "width": width}
    asked |= {"scheduler": scheduler, "shift": shift}
    chosen = generation.settings(model.path, asked, model.header)
    sampler = deployment.sampler(asked, model.header)
    if told := deployment.told(asked, model.header):
        generation.say(told)
    size = chosen["frames"], chosen["height"], chosen["width"]
    rollout.check_size(model.frozen, *size)
    wan = model.frozen.wan.clone(residual=sampler["residual"])
    shape = rollout.latent_shape(model.frozen, *size, references=1)
    latents_BTHWC = generation.generate(
        model.frozen._replace(wan=wan),
        model.adapter,
        [_photo(image)],
        prompt,
        chosen["negative_prompt"],
        rollout.noise(np.uint32([seed]), shape),
        generation.schedule(model.frozen.scheduler, chosen["steps"], sampler),
        guidance=float(chosen["guidance"]),
        size=size,
    )
    return np.asarray(rollout.decode(model.frozen, latents_BTHWC[:, 1:]))[0]


def score(
    videos: Sequence[np.ndarray],
    images: Sequence[str | Path | np.ndarray | list],
    prompts: Sequence[str],
    *,
    sidecars: Sequence[str] = (),
    preset: str = "tiny",
    fps: int = 8,
) -> dict[str, list[float]]:
    """Score videos of one size with reward sidecars; the judge is not asked.

    Args:
      videos: B of uint8 (F, H, W, 3).
      images: the photo of each, a file or uint8 (H, W, 3) of any size; or a list of its photos.
      prompts: of each.
      sidecars: addresses; with none, a server of `preset` is started and stopped again.
      fps: frames per second.

    Returns:
      reward: B scores in [0, 1], higher is better; NaN where a score could not be had.

    Raises:
      ConnectionError: a sidecar does not answer.
      ValueError: the arguments do not fit each other.
    """
    lists = [image if isinstance(image, list) else [image] for image in images]
    references = [[_photo(image) for image in own] for own in lists]
    options = client.Options(fps=fps)
    with tempfile.TemporaryDirectory() as logs:
        server = None if sidecars else local.start_sidecar(preset, logs)
        try:
            urls = list(sidecars) or [server.url]
            offered = [name for url in urls for name in client.info(url, options)["names"]]
            names = tuple(dict.fromkeys(offered))
            scores = client.score(
                urls, names, np.stack(videos), references, list(prompts), options=options
            )
        finally:
            if server:
                server.stop()
    return dict(zip(names, scores.table.score_BM.T.tolist(), strict=True))


def evolve(spec: str, workdir: str | Path, changes: Mapping[str, Any] | None = None) -> RunFolder:
    """Run some steps, or all, and their proof, as `python -m evoid_jax.train` does.

    Args:
      spec: as --config takes it, such as "configs/evoid.py:tiny".
      workdir: the run's folder; resumed when it exists.
      changes: settings by dotted name, such as {"steps": 2, "train.lr": 1e-3}.

    Raises:
      OSError, ValueError: a setting, a file or a scorer is wrong; the message says what to do.
    """
    values = commandline.load(spec)
    for name, value in (changes or {}).items():
        commandline.change(values, name, value)
    train.train(config.from_dict(values.to_dict()), files.user_path(workdir))
    return read(workdir)


def read(workdir: str | Path) -> RunFolder:
    """Read a run's folder: its config, steps, summary, held-out samples and adapter."""
    run = folder.load(workdir)
    whole = None if run.adapter is None else str(files.user_path(workdir) / run.adapter)
    return run._replace(adapter=whole)


def _photo(image: str | Path | np.ndarray) -> np.ndarray:
    if isinstance(image, np.ndarray):
        return image
    return media.read_image(files.user_path(image))
