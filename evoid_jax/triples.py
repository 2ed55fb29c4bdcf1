"""What each video of the proof scored, kept beside the summary: `scores.json` in a run's folder.

    {"schema": 1, "prior": {REWARD: float}, "made_by": str, "triples": [TRIPLE, ...]}

made_by is `proof_parts.key` of the evolved model; it is not there in an older run's file. A proof
writes it to `samples/made_by.json` when it begins: where that has another one, the videos in there
are no longer all those that were scored.

A TRIPLE is a face, a prompt and a seed, which both arms were given, in the order of the proof:

    identity, prompt   str; seed int
    photo              str, see media.digest; not there in an older run's file
    base, evolved      {REWARD: score in [0, 1] or null}
    monitor            {"base": {NAME: value or null}, "evolved": {NAME: value or null}}

Shape key: B triples, M rewards.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy import special

from evoid_jax import files, proof

FILE = "scores.json"
BEGUN = "samples/made_by.json"
SCHEMA = 1


class Triple(NamedTuple):
    """One face, prompt and seed, and what both arms' videos of it scored; None where missing."""

    identity: str
    prompt: str
    seed: int
    base: dict[str, float | None]
    evolved: dict[str, float | None]
    monitor_base: dict[str, float | None]
    monitor_evolved: dict[str, float | None]
    photo: str | None = None  # the person's first; see media.digest

    @property
    def key(self) -> tuple[str, str, int]:
        """What the run calls the triple; with other data it may be of another person."""
        return self.identity, self.prompt, self.seed


class Scores(NamedTuple):
    """The content of scores.json."""

    prior: dict[str, float]
    triples: tuple[Triple, ...]
    made_by: str | None = None  # see above


class WinRate(NamedTuple):
    """How often the second of two was ahead; a tie counts half."""

    rate: float | None  # 0 to 1
    low: float | None  # 95 %, over identities
    high: float | None
    ahead: int
    ties: int
    pairs: int
    identities: int


def write(
    workdir: str | Path,
    names: Sequence[str],
    prior_M: Sequence[float],
    triples: Sequence[tuple[str, str, int]],
    score_BM: tuple[np.ndarray, np.ndarray],
    monitor: tuple[Mapping[str, Sequence], Mapping[str, Sequence]],
    photos: Sequence[str] | None = None,
    made_by: str | None = None,
) -> Path:
    """Write scores.json.

    Args:
      names, prior_M: of the M rewards.
      triples: (identity, prompt, seed) of each of the B videos.
      score_BM: of base and evolved, in [0, 1], NaN where missing.
      monitor: of base and evolved, name -> B values, NaN or None where missing.
      photos: of each of the B videos, see media.digest; None where they are not known.
      made_by: see above; None where it is not known.
    """
    rows = []
    for b, (identity, prompt, seed) in enumerate(triples):
        base, evolved = (dict(zip(names, arm_BM[b], strict=True)) for arm_BM in score_BM)
        watched = [{name: values[b] for name, values in arm.items()} for arm in monitor]
        named = {"identity": str(identity), "prompt": prompt, "seed": int(seed)}
        rows.append(
            (named if photos is None else named | {"photo": photos[b]})
            | {"base": base, "evolved": evolved}
            | {"monitor": dict(zip(("base", "evolved"), watched, strict=True))}
        )
    prior = dict(zip(names, prior_M, strict=True))
    made = {"schema": SCHEMA, "prior": prior}
    made |= {} if made_by is None else {"made_by": made_by}
    made |= {"triples": rows}
    return proof.write_json(Path(workdir) / FILE, made)


def read(workdir: str | Path) -> Scores | None:
    """Return what scores.json holds; None where there is none, as in an older run.

    Raises:
      ValueError: it is not what `write` writes; the message names the file.
    """
    file = Path(workdir) / FILE
    if not file.exists():
        return None
    made = files.read_json(file)
    if made.get("schema") != SCHEMA:
        raise ValueError(
            f"{file} has schema {made.get('schema')!r:.60}, expected {SCHEMA}: read it with the "
            "version that wrote it, or remove it to go on without scores of single videos"
        )
    prior, rows, made_by = made.get("prior"), made.get("triples"), made.get("made_by")
    weighs = lambda value: value is not None and value >= 0
    sound = _numbers(prior) and all(map(weighs, prior.values())) and isinstance(rows, list)
    if not sound:
        raise ValueError(
            f"{file}: expected a prior of each reward, at least 0, and a list of triples"
        )
    if not isinstance(made_by, str | None):
        raise ValueError(f"{file}: expected made_by to be a text, got {made_by!r:.60}")
    held = tuple(_triple(file, i, row) for i, row in enumerate(rows))
    return Scores(prior=prior, triples=held, made_by=made_by)


def outdated(workdir: str | Path, scores: Scores | None) -> bool:
    """Tell whether a later proof has begun, which replaces the videos that were scored.

    Raises:
      ValueError: `samples/made_by.json` is no JSON object; the message names the file.
    """
    file = Path(workdir) / BEGUN
    if scores is None or not file.exists():
        return False
    return files.read_json(file).get("made_by") != scores.made_by


def totals(scores: Scores) -> tuple[np.ndarray, np.ndarray]:
    """Return the totals (B,) of base and evolved; NaN where there is none.

    As in proof.py a score that one arm lacks counts in neither.
    """
    arms_BM = [
        np.array([[_value(arm, name) for name in scores.prior] for arm in arms])
        for arms in ([t.base for t in scores.triples], [t.evolved for t in scores.triples])
    ]
    prior_M = list(scores.prior.values())
    if not scores.triples or not any(prior > 0 for prior in prior_M):
        return (np.full(len(scores.triples), np.nan),) * 2
    both_BM = np.isfinite(arms_BM[0]) & np.isfinite(arms_BM[1])
    base_B, evolved_B = (
        proof.total(np.where(both_BM, arm_BM, np.nan), prior_M) for arm_BM in arms_BM
    )
    return base_B, evolved_B


def of_reward(scores: Scores, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return one reward's scores (B,) of base and evolved; NaN where missing."""
    return (
        np.array([_value(t.base, name) for t in scores.triples]),
        np.array([_value(t.evolved, name) for t in scores.triples]),
    )


def between(first: Scores, second: Scores) -> Scores:
    """Return two runs as the two arms of one comparison, on the triples that both have.

    base is then what the first run's evolved model scored, evolved what the second's did. A triple
    whose photo is another in the second run is left out; a photo that is not known is no other.
    """
    rows = {triple.key: triple for triple in second.triples}
    prior = {name: prior for name, prior in first.prior.items() if name in second.prior}
    shared = [
        one._replace(
            base=one.evolved,
            evolved=rows[one.key].evolved,
            monitor_base=one.monitor_evolved,
            monitor_evolved=rows[one.key].monitor_evolved,
        )
        for one in first.triples
        if one.key in rows and not _differ(one.photo, rows[one.key].photo)
    ]
    return Scores(prior=prior, triples=tuple(shared))


def win_rate(first_B, second_B, cluster_B) -> WinRate:
    """Count how often the second is ahead of the first, with an interval over clusters.

    Args:
      first_B, second_B: (B,) of the same triples; where either is NaN the triple is dropped.
      cluster_B: (B,) identity of each triple.

    Returns:
      The rate with `interval`'s ends: None for all three where no triple is left, and for the ends
      where all are of one identity, which says nothing about others.
    """
    first_B, second_B = np.asarray(first_B, float), np.asarray(second_B, float)
    keep_B = np.isfinite(first_B) & np.isfinite(second_B)
    # 1 for a win, 1/2 for a tie, 0 for a loss
    won_B = (1 + np.sign(second_B - first_B)[keep_B]) / 2
    people_B = np.asarray(cluster_B)[keep_B]
    low, high = interval(won_B, people_B)
    return WinRate(
        rate=float(won_B.mean()) if keep_B.any() else None,
        low=low,
        high=high,
        ahead=int((won_B == 1).sum()),
        ties=int((won_B == 0.5).sum()),
        pairs=int(keep_B.sum()),
        identities=len(np.unique(people_B)),
    )


def interval(won_B: np.ndarray, cluster_B: np.ndarray) -> tuple[float, float] | tuple[None, None]:
    """Return the 95 % interval of a share: Wilson's, with an effective number of observations.

    A bootstrap of rows that are all won gives no width, and over 8 to 32 identities misses a share
    of 0.95 in a fifth to two thirds of all cases. Wilson's interval (1927) keeps its width there.
    It needs independent observations, which two seeds of one face are not, so that their number is
    the one that would give a plain share the variance that is seen between the clusters; a factor
    makes up for estimating it from few of them (Korn and Graubard 1998, Survey Methodology 24; for
    its coverage in clusters Dean and Pagano 2015, J. Survey Statistics and Methodology 3). With one
    or two videos of 8 to 32 faces and shares of 0.5 to 0.95 it covers in 0.94 to 1.00 of all cases.

    Args:
      won_B: (B,) in [0, 1]; a tie is 1/2.
      cluster_B: (B,) identity of each.

    Returns:
      (low, high) in [0, 1], never equal; None for both where there are fewer than two clusters.
    """
    _, cluster_B = np.unique(cluster_B, return_inverse=True)
    size_C = np.bincount(cluster_B)
    clusters, videos = len(size_C), len(won_B)
    if clusters < 2:
        return None, None
    share = won_B.mean()
    off_C = np.bincount(cluster_B, weights=won_B - share)
    # Of a ratio of sums, as clusters may differ in size.
    variance = clusters / (clusters - 1) * (off_C**2).sum() / videos**2
    # Clusters that are all alike tell no variance: each is then one observation, the least it is.
    count = min(share * (1 - share) / variance, videos) if variance > 1e-12 else clusters
    normal, student = special.ndtri(0.975), special.stdtrit(clusters - 1, 0.975)
    count *= (normal / student) ** 2
    scale = 1 + normal**2 / count
    middle = (share + normal**2 / (2 * count)) / scale
    half = normal * np.sqrt(share * (1 - share) / count + normal**2 / (4 * count**2)) / scale
    # At 0 and 1 an end is the share itself, but for rounding.
    low, high = np.clip([middle - half, middle + half], [0, share], [share, 1])
    return float(low), float(high)


def rewards_won(triple: Triple) -> tuple[int, int]:
    """Return in how many rewards evolved is ahead, and how many both arms have."""
    both = [
        (base, triple.evolved.get(name))
        for name, base in triple.base.items()
        if base is not None and triple.evolved.get(name) is not None
    ]
    return sum(evolved > base for base, evolved in both), len(both)


def _triple(file: Path, index: int, row) -> Triple:
    row = row if isinstance(row, dict) else {}
    monitor = row.get("monitor") if isinstance(row.get("monitor"), dict) else {}
    arms = [row.get("base"), row.get("evolved"), monitor.get("base"), monitor.get("evolved")]
    photo = row.get("photo")
    named = isinstance(row.get("identity"), str) and isinstance(row.get("prompt"), str)
    named = named and isinstance(photo, str | None)
    if not named or type(row.get("seed")) is not int or not all(map(_numbers, arms)):
        raise ValueError(
            f"{file}: triple {index} is not an identity, a prompt, a seed and the scores of base "
            "and evolved; remove the file to go on without scores of single videos"
        )
    return Triple(row["identity"], row["prompt"], row["seed"], *arms, photo=photo)


def _numbers(values) -> bool:
    """Tell whether something is an object of numbers and nulls, none beyond all floats."""
    return isinstance(values, dict) and all(
        value is None or (isinstance(value, int | float) and abs(value) < 1e300)
        for value in values.values()
    )


def _differ(photo: str | None, other: str | None) -> bool:
    return photo is not None and other is not None and photo != other


def _value(arm: Mapping, name: str) -> float:
    value = arm.get(name)
    return np.nan if value is None else float(value)
