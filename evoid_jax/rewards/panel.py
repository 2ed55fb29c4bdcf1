"""The rewards of a run: who scores, from start to end, and what they need to know of each video.

B videos, M rewards in the order of `config.reward.table`, G groups. The panel owns the local
servers it started; servers given by address are left alone. Every process has a panel and asks its
own servers about the videos on its own devices; `collect`, `attention` and `monitors` tell every
process the same.
"""

from __future__ import annotations

import itertools
import weakref
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh

from evoid_jax import distributed, sharding
from evoid_jax.config import GROUPS, JUDGE, Reward
from evoid_jax.rewards import callback, client, local, table
from evoid_jax.rewards.judge import Judge
from evoid_jax.rewards.table import ScoreTable
from evoid_jax.sidecars import wire

_numbers = itertools.count()


def check_offered(cfg: Reward, infos: list[dict]) -> None:
    """Raise a ValueError where a reward with weight is offered by no sidecar.

    Such a reward would be missing from every video, and the proof could give no verdict.

    infos: what `client.info` returned of each sidecar.
    """
    offered = {name for info in infos for name in info["names"]}
    counting = [row.name for row in cfg.table if row.prior > 0 and row.name != JUDGE]
    if absent := [name for name in counting if name not in offered]:
        zero = " ".join(f"--config.reward.table.{name}.prior=0" for name in absent)
        raise ValueError(
            f"config.reward.table has {', '.join(absent)}, which no sidecar offers (they offer "
            f"{', '.join(sorted(offered)) or 'nothing'}); add one to config.reward.sidecars, or do "
            f"without: {zero}"
        )


class Request:
    """A batch of videos to be scored: what scorers see besides pixels, and what came of it.

    Answers are entered here and nowhere else. Two batches under way at once cannot mix, and an
    answer that comes after its batch has been dropped is dropped with it.

    number: by which its videos name it on their way through the callback.
    references: of each video the photos of its person, uint8 (h, w, 3) of any sizes; videos of one
    person share the arrays, which are then sent once. prompts: B. attributes: B lists, truth of the
    tiny world for the monitors, or None. monitors: whether to ask for the measures that are never
    rewarded.
    videos, reasons: by row, of the videos that this process has scored. monitor: name -> (B,).
    """

    def __init__(
        self,
        references: wire.Photos,
        prompts: list[str],
        attributes: list | None = None,
        monitors: bool = False,
    ):
        self.references, self.prompts, self.attributes = references, prompts, attributes
        self.monitors, self.number = monitors, next(_numbers)
        self.videos: dict[int, np.ndarray] = {}
        self.reasons: dict[int, dict[str, str]] = {}
        self.monitor: dict[str, np.ndarray] = {}

    def enter(self, rows: list[int], video_bFHWC: np.ndarray, scores: client.Scores) -> None:
        """Keep what came of some rows besides their scores."""
        for b, row in enumerate(rows):
            self.videos[row], self.reasons[row] = video_bFHWC[b], scores.reasons[b]
            for name, value_b in scores.monitor.items():
                nothing_B = np.full(len(self.prompts), np.nan)
                self.monitor.setdefault(name, nothing_B)[row] = value_b[b]


class Panel:
    """Scores videos through the host callback.

    Use: `submit(video_BFHWC, request, rows)` for each part of a request's videos, then
    `collect(tickets)`, and `attention` or `monitors` if wanted.

    Args:
      cfg: config.reward.
      mesh: of the videos.
      fps: of the videos.
      log_dir: where local servers write their logs.

    Raises:
      ConnectionError: a server is not there or is not what it should be.
      ValueError: a reward that counts is given by nobody.
    """

    def __init__(self, cfg: Reward, mesh: Mesh, fps: int, log_dir: str | Path):
        self._servers: list[local.Local] = []
        try:
            self.urls = [self._address(url, cfg.preset, log_dir) for url in cfg.sidecars]
            self.judge = self._open_judge(cfg, fps, log_dir)
            self._options = client.Options(timeout=cfg.timeout, fps=fps)
            self.infos = [self._info(url) for url in self.urls]
            check_offered(cfg, self.infos)
        except BaseException:
            self.close()
            raise
        self._names = table.names(cfg.table)
        self._grades = self.judge if cfg.preference and JUDGE in self._names else None
        # By number; a request lives as long as whoever made it holds it.
        self._requests: weakref.WeakValueDictionary[int, Request] = weakref.WeakValueDictionary()
        self._mesh = mesh
        self._callback = callback.make(
            self._score,
            mesh,
            axes=("data", "fsdp"),
            metrics=len(self._names),
            timeout=2 * cfg.timeout,
        )

    def _address(self, url: str, preset: str, log_dir) -> str:
        if url != "local":
            return url
        self._servers.append(local.start_sidecar(preset, log_dir))
        return self._servers[-1].url

    def _info(self, url: str) -> dict:
        try:
            return client.info(url, self._options)
        except client.SidecarError as error:
            raise ConnectionError(
                f"config.reward.sidecars: {error}; start a reward sidecar there, or correct the "
                "address"
            ) from None

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

    def submit(self, video_BFHWC: jax.Array, request: Request, rows: np.ndarray) -> jax.Array:
        """Hand videos over to be scored, at once.

        Args:
          video_BFHWC: uint8, spread over the mesh.
          request: whose videos they are.
          rows: (B,) which of the request's they are.

        Returns:
          ticket_B, one for each video, for `collect`.
        """
        self._requests[request.number] = request
        number_B = np.full(len(rows), request.number)
        label_B2 = np.stack([number_B, rows], axis=1).astype(np.int32)
        return self._callback.submit(video_BFHWC, sharding.place_batch(label_B2, self._mesh))

    def _score(self, video_bFHWC: np.ndarray, label_b2: np.ndarray) -> ScoreTable:
        """Score one shard's videos, in a thread of the host."""
        request = self._requests[int(label_b2[0, 0])]  # held while it is scored
        rows = label_b2[:, 1].tolist()
        truth = request.attributes
        scores = client.score(
            self.urls,
            self._names,
            video_bFHWC,
            [request.references[row] for row in rows],
            [request.prompts[row] for row in rows],
            attributes=None if truth is None else [truth[row] for row in rows],
            monitors=request.monitors,
            options=self._options,
            judge=self._grades,
            first=rows[0],
        )
        request.enter(rows, video_bFHWC, scores)
        return scores.table

    def collect(self, tickets: list[jax.Array]) -> ScoreTable:
        """Wait for the scores of all tickets, in their order; the same on every process."""
        arrays = [distributed.whole(self._callback.collect(ticket_B)) for ticket_B in tickets]
        return table.join([ScoreTable(*three) for three in arrays])

    def attention(
        self, request: Request, pair_B: np.ndarray, reward_B: np.ndarray, valid_B: np.ndarray
    ) -> tuple[np.ndarray, bool]:
        """Ask the judge which group of rewards a batch needs most.

        Every process asks about each pair that it holds videos of, and all take the mean over the
        answers. A pair that is spread over processes is asked about by each of them, with the best
        and the worst of the videos it has.

        Args:
          request: of the batch, scored.
          pair_B: (B,) ints, equal for videos of one pair.
          reward_B, valid_B: (B,) by which the best and the worst are told.

        Returns:
          attention_G in 0..10, zeros without an answer, and whether there was any.
        """
        own_G, count = self._own_attention(request, pair_B, reward_B, valid_B)
        shares = distributed.exchange([own_G.tolist(), count])
        total = sum(count for _, count in shares)
        sum_G = np.sum([np.multiply(own_G, count) for own_G, count in shares], axis=0)
        return (sum_G / max(total, 1)).astype(np.float32), total > 0

    def _own_attention(self, request, pair_B, reward_B, valid_B) -> tuple[np.ndarray, int]:
        """Return the mean answer on this process's videos, and how many answers there were."""
        if self.judge is None or not request.videos:
            return np.zeros(len(GROUPS), np.float32), 0
        rows = sorted(request.videos)
        return self.judge.attention(
            np.stack([request.videos[row] for row in rows]),
            [request.references[row] for row in rows],
            [request.prompts[row] for row in rows],
            group_B=np.asarray(pair_B)[rows],
            reward_B=np.asarray(reward_B)[rows],
            valid_B=np.asarray(valid_B)[rows],
        )

    def monitors(self, request: Request) -> dict[str, np.ndarray]:
        """Return a request's measures that are never rewarded: name -> (B,), NaN where unknown."""
        own = {name: value_B.tolist() for name, value_B in request.monitor.items()}
        known: dict[str, np.ndarray] = {}
        for share in distributed.exchange(own):
            for name, values in share.items():
                column_B = known.setdefault(name, np.full(len(values), np.nan))
                column_B[:] = np.where(np.isnan(column_B), values, column_B)
        return known

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
