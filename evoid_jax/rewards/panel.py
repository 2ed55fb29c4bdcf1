"""The rewards of a run: who scores, from start to end, and what they need to know of each video.

B videos, M rewards in the order of `config.reward.table`, G groups. The panel owns the local
servers it started; servers given by address are left alone. Every process has a panel and asks its
own servers about the videos on its own devices; `collect`, `attention` and `monitors` tell every
process the same. What is missing is told and waited for as absent.py says.
"""

from __future__ import annotations

import logging
import weakref
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh

from evoid_jax import distributed, interruption, sharding
from evoid_jax.reward_groups import EVOSCORE, GROUPS, JUDGE, Reward
from evoid_jax.rewards import (
    absent,
    blend,
    callback,
    client,
    judge_record,
    local,
    replica,
    servers,
    sharing,
    table,
)
from evoid_jax.rewards.judge import Judge, open_judge
from evoid_jax.rewards.request import Request, monitor
from evoid_jax.rewards.table import ScoreTable

log = logging.getLogger(__name__)
ASKED_AGAIN = 8  # videos in one go: all that a process has may be gigabytes


class Panel:
    """Scores videos through the host callback.

    Use: `submit(video_BFHWC, request, rows)` for each part of a request's videos, then
    `collect(tickets, request)`, and `attention` or `monitors` if wanted.

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
        self.judge: Judge | None = None
        try:
            self.urls = [self._address(url, cfg.preset, log_dir) for url in cfg.sidecars]
            self.judge = self._open_judge(cfg, fps, log_dir)
            self._options = servers.options(cfg, fps)
            self.infos = [servers.info(url, self._options) for url in self.urls]
            servers.check_offered(cfg, self.infos)
            sharing.check_encoding(cfg.encoding, self.urls, self.infos)
            for sentence in sharing.unasked(self.urls, self.infos, table.names(cfg.table)):
                log.warning("%s", sentence)
        except BaseException:
            self.close()
            raise
        self._cfg, self._names = cfg, table.names(cfg.table)
        # The monitors that are asked for: those of the first sidecar that has any. The first
        # process says which, since all must wait alike.
        first = sharing.first_with_monitors(self.infos)
        self.monitored = distributed.exchange(first["monitors"] if first else [])[0]
        self._watchers = sharing.alike(self.urls, self.infos, first)
        self._told: set[str] = set()  # kinds of reasons that a warning has named
        self._given_up: set[str] = set()  # rewards and monitors that are not waited for any more
        self._blank: dict[str, int] = {}  # rewards that no video of the last so many steps has
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
        return self._kept(local.start_sidecar(preset, log_dir)).url

    def _kept(self, server: local.Local) -> local.Local:
        """Start a server again where it ends, and stop it with this panel."""
        self._servers.append(server)
        server.keep()
        return server

    def _open_judge(self, cfg: Reward, fps: int, log_dir) -> Judge | None:
        url = cfg.judge
        if not url:
            return None
        if url == "local":
            url = self._kept(local.start_judge(log_dir)).url + "/v1"
        return open_judge(cfg, url, fps, log_dir)

    def scorers(self) -> list[tuple[str, str, str]]:
        """Return name, version and digest of every reward that the sidecars offer.

        How many give it, and in which order they were named, counts for nothing.
        """
        return sorted({entry for info in self.infos for entry in replica.kind(info)})

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
        request.sent += [int(row) for row in rows]
        number_B = np.full(len(rows), request.number)
        label_B2 = np.stack([number_B, rows], axis=1).astype(np.int32)
        return self._callback.submit(video_BFHWC, sharding.place_batch(label_B2, self._mesh))

    def _score(self, video_bFHWC: np.ndarray, label_b2: np.ndarray) -> callback.Tables:
        """Score one shard's videos, in a thread of the host."""
        request = self._requests[int(label_b2[0, 0])]  # held while it is scored
        rows = label_b2[:, 1].tolist()
        request.videos |= dict(zip(rows, video_bFHWC, strict=True))
        scores = self._ask(request, rows, video_bFHWC, self._names, self._options)
        request.enter(rows, scores)
        return scores.table.raw_BM, scores.table.score_BM, scores.table.valid_BM

    def _ask(
        self,
        request: Request,
        rows: list[int],
        video_bFHWC: np.ndarray,
        names: tuple[str, ...],
        options: client.Options,
        monitors: bool | None = None,
    ) -> client.Scores:
        """Ask for these rewards of some rows of a request."""
        truth = request.attributes
        judged = [name for name in self._judged(request.proof) if name in names]
        return client.score(
            self.urls,
            names,
            video_bFHWC,
            [request.references[row] for row in rows],
            [request.prompts[row] for row in rows],
            attributes=None if truth is None else [truth[row] for row in rows],
            monitors=self._watchers if (request.monitors if monitors is None else monitors) else (),
            options=options,
            judge=self.judge,
            judged=tuple(judged),
            first=rows[0],
            others=None if request.others is None else [request.others[row] for row in rows],
        )

    def _judged(self, proof: bool) -> list[str]:
        """Return the columns that the judge is asked for: all in the proof, else what counts."""
        prior_M = blend.priors(self._cfg)
        counts = dict(zip(self._names, prior_M > 0, strict=True))
        vqscore = self._cfg.preference or proof
        evoscore = proof or counts.get(EVOSCORE, False)
        return [name for name, asked in ((JUDGE, vqscore), (EVOSCORE, evoscore)) if asked]

    def collect(self, tickets: list[jax.Array], request: Request) -> ScoreTable:
        """Wait for the scores of a request; the same on every process.

        A reward that counts and that none of its videos has is asked for again, for
        `config.reward.patience` seconds, and so is a monitor.

        Args:
          tickets: of all of the request's videos, in the order in which they were submitted.

        Returns:
          The scores by row.

        Raises:
          MissingReward: there is still such a reward, and `config.reward.on_missing` is stop. Or
            one could be measured in no video for `config.reward.idle_steps` steps.
        """
        for ticket_B in tickets:
            self._callback.wait(ticket_B)
        arrays = [distributed.whole(self._callback.collect(ticket_B)) for ticket_B in tickets]
        raw_BM, score_BM, valid_BM = (np.concatenate(parts) for parts in zip(*arrays, strict=True))
        order_B = np.argsort(request.sent)
        scores = ScoreTable(
            raw_BM=raw_BM[order_B],
            score_BM=score_BM[order_B],
            valid_BM=valid_BM[order_B],
            blank_BM=np.zeros_like(valid_BM),
        )
        priors = blend.proof_priors if request.proof else blend.priors
        return self._completed(request, scores, priors(self._cfg) > 0)

    def _completed(self, request: Request, scores: ScoreTable, counts_M) -> ScoreTable:
        """Tell what is missing, and wait for the rewards and monitors that no video has."""
        scores = self._shared(request, scores, counts_M, again=[])
        for pause, left in absent.pauses(self._cfg.patience):
            if self._given_up.issuperset(request.missed()):
                break
            distributed.say(
                f"waiting for {', '.join(request.missed())}, which no video of this step "
                f"has ({absent.because(request.why)}); the next try is in {pause:g} s, and {left:g}"
                " s of patience are left then"
            )
            interruption.pause(pause)
            scores = self._shared(request, scores, counts_M, again=self._again(request))
        if request.lost and self._cfg.on_missing == "stop":
            raise absent.stopped(request.lost, self._cfg.patience, request.why)
        self._go_on(request, scores, counts_M)
        return scores

    def _go_on(self, request: Request, scores: ScoreTable, counts_M: np.ndarray) -> None:
        """Remember what there was not, and say what a comparison then cannot tell."""
        if request.unseen and not self._given_up.issuperset(request.missed()):
            distributed.say(
                f"going on without {', '.join(map(monitor, request.unseen))}: nothing tells "
                "whether a reward is gamed. See the sidecar's log"
            )
        # What is not asked for while the run learns may still be given up when it is next.
        kept = () if request.monitors else self._given_up.intersection(map(monitor, self.monitored))
        self._given_up = {*request.missed(), *kept}
        if not request.proof:
            blank = absent.all_blank(self._names, counts_M, scores)
            self._blank = {name: self._blank.get(name, 0) + 1 for name in blank}
            absent.check_blank(self._cfg.idle_steps, self._blank, request.why)

    def _again(self, request: Request) -> list[tuple[int, str, float, float]]:
        """Ask once more for what this process's videos miss; return row, reward, raw, score."""
        had, rows, names = [], sorted(request.videos), tuple(request.lost)
        monitors = bool(request.unseen)
        once = self._options._replace(attempts=1, patience=0.0)
        for start in range(0, len(rows), ASKED_AGAIN):
            some = rows[start : start + ASKED_AGAIN]
            video_bFHWC = np.stack([request.videos[row] for row in some])
            scores = self._ask(request, some, video_bFHWC, names, once, monitors)
            request.enter(some, scores)
            for b, m in np.argwhere(scores.table.valid_BM).tolist():
                raw, score = scores.table.raw_BM[b, m], scores.table.score_BM[b, m]
                had.append((some[b], names[m], float(raw), float(score)))
            if not had and not scores.monitor:
                break  # still nobody there: the other videos would only wait for the same
        return had

    def _shared(
        self, request: Request, scores: ScoreTable, counts_M: np.ndarray, again: list
    ) -> ScoreTable:
        """Return the scores with what all processes know besides, and say why some are missing.

        again: what this process had of the last try, as `_again` returns it.
        """
        own = request.known(again)
        known = [absent.Known._make(lists) for lists in distributed.exchange(own)]
        scores = absent.completed(self._names, scores, known)
        request.why = absent.reasons(self._names, counts_M, scores, known)
        for reason in request.why:
            kind = absent.kind(reason)
            if kind not in self._told and distributed.leads():
                log.warning("scores are missing (this is told once): %s", reason)
            self._told.add(kind)
        watched = {name for of_process in known for name in of_process.watched}
        wanted = self.monitored if request.monitors else ()
        request.unseen = [name for name in wanted if name not in watched]
        request.lost = absent.nobody_has(self._names, counts_M, scores)
        return scores

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

    def judge_usage(self) -> dict[str, float | None] | None:
        """Return what the judge took since the last call, of all processes; None without a judge.

        The names are those of `judge_record.COUNTS`; what no reply told is None.
        """
        if self.judge is None:
            return None
        return judge_record.total(distributed.exchange(self.judge.chat.usage.take()))

    def monitors(self, request: Request) -> dict[str, np.ndarray]:
        """Return a request's measures that are never rewarded: name -> (B,), NaN where unknown.

        All that the sidecars offer are there where they were asked for.
        """
        own = {name: value_B.tolist() for name, value_B in request.monitor.items()}
        nothing_B = np.full(len(request.prompts), np.nan)
        known = {name: nothing_B.copy() for name in request.unseen}
        for share in distributed.exchange(own):
            for name, values in share.items():
                column_B = known.setdefault(name, nothing_B.copy())
                column_B[:] = np.where(np.isnan(column_B), values, column_B)
        return known

    def close(self) -> None:
        """Stop the threads and the servers that this panel started."""
        if hasattr(self, "_callback"):
            self._callback.close()
        if self.judge is not None:
            self.judge.chat.close()
        for server in self._servers:
            server.stop()

    def __enter__(self) -> Panel:
        return self

    def __exit__(self, *_) -> None:
        self.close()
