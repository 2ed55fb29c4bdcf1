"""Photos without a face are refused at the start, by whichever sidecar can tell.

A sidecar that has `"photos": true` in its /info looks at photos for itself and says what keeps each
from being a reference (docs/sidecar_protocol.md). Of several with one preset the first is asked.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from PIL import Image
from tqdm import tqdm

from evoid_jax import canvas, config, distributed, media
from evoid_jax.data import pairs
from evoid_jax.rewards import background
from evoid_jax.rewards.transport import SidecarError, ask
from evoid_jax.sidecars import wire

LARGEST = 2048  # pixels of a photo's longer side on its way; a face that is lost by it is tiny
TOGETHER = 4  # photos of a request
SHOWN = 5  # photos that a message names


def refuse(cfg: config.Config, splits: pairs.Splits, urls: list[str], infos: list[dict]) -> None:
    """Raise where a sidecar says that a photo of a folder cannot be a reference. Collective.

    Drawn portraits are not looked at.

    Args:
      urls, infos: of the sidecars, and what their /info says.

    Raises:
      ValueError: names the lines, the photos and what is wrong with them.
      ConnectionError: a sidecar fails to answer.
    """
    asked = _askers(urls, infos)
    origins = _origins(splits)
    if not asked or not origins:
        return
    found: list[str] = []
    if distributed.leads():
        found = list(_problems(cfg, origins, asked))
    found = distributed.exchange(found)[0]
    if found:
        more = f"; and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
        raise ValueError(
            f"{len(found)} of {len(origins)} photos cannot be references: "
            f"{'; '.join(found[:SHOWN])}{more}. Replace them, or take their lines out"
        )


def _askers(urls: list[str], infos: list[dict]) -> dict[str, str]:
    """Return preset: address of the sidecars that look at photos, one for each preset."""
    asked: dict[str, str] = {}
    for url, info in zip(urls, infos, strict=True):
        if info.get("photos") is True:
            asked.setdefault(str(info.get("preset") or url), url)
    return asked


def _origins(splits: pairs.Splits) -> dict[str, str]:
    """Return file: the first line that names it, of all photos of all splits."""
    origins: dict[str, str] = {}
    for data in splits:
        for row in data.rows:
            for picture in row.pictures:
                origins.setdefault(picture.file, row.origin)
    return origins


def _problems(cfg: config.Config, origins: dict[str, str], asked: dict[str, str]) -> Iterator[str]:
    """Yield one sentence for each photo and sidecar that will not take it."""
    files = list(origins)
    starts = range(0, len(files), TOGETHER)
    for start in tqdm(starts, desc="photos", dynamic_ncols=True, leave=False):
        some = files[start : start + TOGETHER]
        body = wire.encode_photos([_sent(cfg, file) for file in some])
        for preset, url in asked.items():
            problems = _ask(url, body, len(some), cfg.reward.timeout)
            for file, problem in zip(some, problems, strict=True):
                if problem:
                    yield f"{origins[file]}: {file}: {problem} (says {preset})"


def _sent(cfg: config.Config, file: str) -> np.ndarray:
    """Return a photo as scorers will see it, but no larger than LARGEST."""
    image_HWC = media.read_image(file)
    if cfg.reward.photos == "canvas":
        return canvas.seen(image_HWC, cfg.video.height, cfg.video.width)
    height, width = image_HWC.shape[:2]
    scale = LARGEST / max(height, width)
    if scale >= 1:
        return image_HWC
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return np.asarray(Image.fromarray(image_HWC).resize(size, Image.Resampling.BOX))


def _ask(url: str, body: bytes, count: int, timeout: float) -> list[str | None]:
    """Return what a sidecar finds wrong with each photo, None for nothing.

    Raises:
      ConnectionError: it does not answer, or not with one text or null for each photo.
    """
    address = f"{url.rstrip('/')}/photos"
    try:
        reply = background.run(ask("POST", address, timeout, [body]))
    except SidecarError as error:
        raise ConnectionError(f"config.reward.sidecars: {error}") from error
    problems = reply.get("problems")
    good = isinstance(problems, list) and len(problems) == count
    if not good or not all(isinstance(one, str | None) for one in problems):
        raise ConnectionError(
            f"config.reward.sidecars: {address}: expected {count} problems, each a text or null, "
            f"got {problems!r:.80}"
        )
    return problems
