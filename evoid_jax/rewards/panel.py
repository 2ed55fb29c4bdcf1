"""The rewards of a run: who scores, from start to end, and what they need to know of each video.

B videos, M metrics in the order of `table.NAMES`, G groups. The panel owns the local servers it
started; servers given by address are left alone. Every process has a panel and asks its own servers
about the videos on its own devices; `collect` leaves the scores with them, while `attention` and
`monitors` tell every process the same.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from evoid_jax import distributed, sharding
from evoid_jax.config import Reward
from evoid_jax.rewards import callback, client, local, table
from evoid_jax.rewards.judge import Judge


class Request(NamedTuple):
    """What the scorers see of a step's videos besides their pixels."""

    reference_BHWC: np.ndarray  # uint8
    prompts: list[str]
    attributes: list | None  # truth of the tiny world, for the monitors


class Panel:
    """Scores videos through the host callback.

    Use: `begin(request)`; then `submit(video_BFHWC, index_B)` for each part of the videos, where
    index_B are rows of the request; then `collect(ticket_B)` for each ticket, and `attention` or
    `monitors` if wanted.
    """

    def __init__(self, cfg: Reward, mesh: Mesh, fps: int, log_dir: str | Path):
        self._servers: list[local.Local] = []
        try:
            self.urls = [self._address(url, cfg.preset, log_dir) for url in cfg.sidecars]
            self.judge = self._open_judge(cfg, fps, log_dir)
            self._options = client.Options(timeout=cfg.timeout, fps=fps)
            self.infos = [client.info(url, self._options) for url in self.urls]
        except BaseException:
            self.close()
            raise
        self._grades = self.judge if cfg.preference else None
        axes = ("data", "fsdp")
        metrics = len(table.NAMES)
        self._callback = callback.make(self._score, mesh, axes, metrics, timeout=2 * cfg.timeout)
        self.collect = self._callback.collect
        self._mesh, self._watch, self._request = mesh, False, None
        self._monitor: dict[str, np.ndarray] = {}
        self.videos: dict[int, np.ndarray] = {}
        self.reasons: dict[int, dict[str, str]] = {}

    def _address(self, url: str, preset: str, log_dir) -> str:
        if url != "local":
            return url
        self._servers.append(local.start_sidecar(preset, log_dir))
        return self._servers[-1].url

    def _open_judge(self, cfg: Reward, fps: int, log_dir) -> Judge | None:
        url = cfg.judge
        if not url:
            return None
        if url == "local":
            self._servers.append(local.start_judge(log_dir))
            url = self._servers[-1].url + "/v1"
        judge = Judge(url, cfg.judge_model, timeout=cfg.timeout, fps=fps)
        judge.check()
        return judge

    def begin(self, request: Request, monitors: bool = False) -> None:
        """Take the next batch's faces and prompts; forget the last one's videos."""
        self._request, self._watch = request, monitors
        self.videos, self._monitor, self.reasons = {}, {}, {}

    def submit(self, video_BFHWC: jax.Array, index_B: np.ndarray) -> jax.Array:
        """Hand videos over to be scored, at once; returns their tickets, see `callback`."""
        return self._callback.submit(video_BFHWC, sharding.place_batch(index_B, self._mesh))

    def _score(self, video_bFHWC, index_b):
        r, rows = self._request, [int(i) for i in index_b]
        prompts = [r.prompts[i] for i in rows]
        truth = None if r.attributes is None else [r.attributes[i] for i in rows]
        found = client.score(
            self.urls,
            video_bFHWC,
            r.reference_BHWC[rows],
            prompts,
            truth,
            monitors=self._watch,
            options=self._options,
            judge=self._grades,
        )
        for b, i in enumerate(rows):
            self.videos[i], self.reasons[i] = video_bFHWC[b], found.reasons[b]
            for name, x_b in found.monitor.items():
                values = self._monitor.setdefault(name, np.full(len(r.prompts), np.nan))
                values[i] = x_b[b]
        return found.raw_BM, found.score_BM, found.valid_BM

    def attention(self, group_B, reward_B, valid_B) -> tuple[np.ndarray, bool]:
        """Ask the judge which group of rewards this batch needs most.

        Every process asks about each pair that it holds videos of, and all take the mean over the
        answers. A pair that is spread over processes is asked about by each of them, with the best
        and the worst of the videos it has.

        Returns:
          attention_G in 0..10, zeros without an answer, and whether there was any.
        """
        own_G, count = self._own_attention(group_B, reward_B, valid_B)
        shares = distributed.exchange([own_G.tolist(), count])
        total = sum(count for _, count in shares)
        sum_G = np.sum([np.multiply(own_G, count) for own_G, count in shares], axis=0)
        return (sum_G / max(total, 1)).astype(np.float32), total > 0

    def _own_attention(self, group_B, reward_B, valid_B) -> tuple[np.ndarray, int]:
        """Return the mean answer on this process's videos, and how many answers there were."""
        if self.judge is None or not self.videos:
            return np.zeros(len(table.GROUPS), np.float32), 0
        rows = sorted(self.videos)
        return self.judge.attention(
            np.stack([self.videos[i] for i in rows]),
            self._request.reference_BHWC[rows],
            [self._request.prompts[i] for i in rows],
            np.asarray(group_B)[rows],
            np.asarray(reward_B)[rows],
            np.asarray(valid_B)[rows],
        )

    def monitors(self) -> dict[str, np.ndarray]:
        """Return the measures that are never rewarded: name -> (B,), NaN where unknown."""
        found: dict[str, np.ndarray] = {}
        for share in distributed.exchange({k: x_B.tolist() for k, x_B in self._monitor.items()}):
            for name, values in share.items():
                column_B = found.setdefault(name, np.full(len(values), np.nan))
                column_B[:] = np.where(np.isnan(column_B), values, column_B)
        return found

    def close(self) -> None:
        """Stop the threads and the servers that this panel started."""
        if hasattr(self, "_callback"):
            self._callback.close()
        for server in self._servers:
            server.stop()

    def __enter__(self) -> Panel:
        return self

    def __exit__(self, *_) -> None:
        self.close()
