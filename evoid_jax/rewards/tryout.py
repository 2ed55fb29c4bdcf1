"""One real question to every scorer before a run begins: one that is up may still be unable to.

The question is about a video that stands still, made of the run's own first photo at the run's own
size, and goes the way of all others. Besides: the versions are those that the run began with.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from evoid_jax import canvas, config, provenance
from evoid_jax.data import pairs
from evoid_jax.rewards import blend, client, servers, table, threads
from evoid_jax.rewards.panel import Panel
from evoid_jax.sidecars.wire import Photos

MOST = 8  # sidecars asked at once


def check(cfg: config.Config, workdir: Path, data: pairs.Pairs, panel: Panel) -> None:
    """Raise where a scorer is not what it was, or does not answer a question.

    Raises:
      ValueError: a run goes on with other versions, and `config.reward.versions` is same.
      ConnectionError: a scorer fails; the message names it and says why.
    """
    reward = cfg.reward
    if reward.versions == "same":
        sidecars = zip(reward.sidecars, panel.infos, strict=True)
        provenance.check_versions(workdir, reward.table, sidecars)
    drawn = pairs.batch(data, 0, 1)
    photos, video = list(drawn.images[0]), cfg.video
    if reward.photos == "canvas":
        photos = [canvas.seen(photo, video.height, video.width) for photo in photos]
    asked = still(photos[0], video), [photos], list(drawn.prompts)
    problems = threads.each(lambda i: _problem(cfg, panel, i, *asked), len(panel.urls), MOST)
    if wrong := [problem for problem in problems if problem]:
        raise ConnectionError(
            f"config.reward.sidecars: asked about a video made of the first photo, "
            f"{'; '.join(wrong)}. See the sidecar's log; a reward that cannot be had does without: "
            "--config.reward.table.NAME.prior=0"
        )
    if panel.judge is not None:
        _check_judge(panel, *asked)


def still(photo_HWC: np.ndarray, video: config.Video) -> np.ndarray:
    """Return a video (1, F, H, W, 3), uint8, that shows a photo and a little noise."""
    seen_HWC = canvas.seen(photo_HWC, video.height, video.width)
    shape = (1, video.frames, *seen_HWC.shape)
    # Another one each time: an answer that the judge's cache holds would say nothing of the judge.
    noise = np.random.default_rng().integers(0, 8, shape, np.uint8)
    return np.minimum(seen_HWC, 247) + noise


def _problem(
    cfg: config.Config,
    panel: Panel,
    i: int,
    video_BFHWC: np.ndarray,
    references: Photos,
    prompts: list[str],
) -> str:
    """Ask a sidecar for its rewards that count; say what is wrong with it, or return ""."""
    url, offered = panel.urls[i], panel.infos[i]["names"]
    counts_M = (blend.priors(cfg.reward) > 0) | (blend.proof_priors(cfg.reward) > 0)
    rows = zip(table.names(cfg.reward.table), counts_M, strict=True)
    names = tuple(name for name, counts in rows if counts and name in offered)
    if not names:
        return ""
    options = servers.options(cfg.reward, cfg.video.fps)
    scores = client.score([url], names, video_BFHWC, references, prompts, options=options)
    had_M = (scores.table.valid_BM | scores.table.blank_BM)[0]
    lost = [name for name, had in zip(names, had_M, strict=True) if not had]
    why = {scores.reasons[0].get(name, "no reason is known") for name in lost}
    return f"{url} has no {', '.join(lost)} ({'; '.join(sorted(why))})" if lost else ""


def _check_judge(
    panel: Panel, video_BFHWC: np.ndarray, references: Photos, prompts: list[str]
) -> None:
    judge = panel.judge
    _, _, valid_B = judge.vqscore(video_BFHWC, references, prompts)
    judge.chat.usage.take()  # not the first step's
    if not valid_B.all():
        raise ConnectionError(
            f"{judge.chat.server.setting}: asked to grade a video made of the first photo, the "
            f"judge gave no usable answer ({judge.chat.why}); its replies are in "
            "logs/judge_replies.jsonl"
        )
