"""A batch of videos on its way to the scorers and back; see panel.py.

B videos.
"""

from __future__ import annotations

import itertools

import numpy as np

from evoid_jax.rewards import absent, client
from evoid_jax.sidecars import wire

_numbers = itertools.count()


def monitor(name: str) -> str:
    """Return what a monitor is called where rewards are named too: names may be the same."""
    return f"{name} (never rewarded)"


class Request:
    """A batch of videos to be scored: what scorers see besides pixels, and what came of it.

    Answers are entered here and nowhere else. Two batches under way at once cannot mix, and an
    answer that comes after its batch has been dropped is dropped with it.

    number: by which its videos name it on their way through the callback.
    references: of each video the photos of its person, uint8 (h, w, 3) of any sizes; videos of one
    person share the arrays, which are then sent once. prompts: B. attributes: B lists, truth of the
    tiny world for the monitors, or None. monitors: whether to ask for the measures that are never
    rewarded. others: of each video other photos of its person, which monitors alone see, or None.
    proof: whether the proof's rewards count and not the update's.
    sent: rows in the order in which they were submitted, by any process.
    videos: by row, those of this process. reasons: by row, reward -> why it is missing. blanks:
    (row, reward) that a scorer could not measure. monitor: name -> (B,).
    why: after `Panel.collect`, how many scores that count are missing for each reason, on every
    process.
    lost, unseen: then too, the rewards that count and the monitors that another try may bring.
    """

    def __init__(
        self,
        references: wire.Photos,
        prompts: list[str],
        attributes: list | None = None,
        monitors: bool = False,
        proof: bool = False,
        others: wire.Photos | None = None,
    ):
        self.references, self.prompts, self.attributes = references, prompts, attributes
        self.others = others
        self.monitors, self.proof, self.number = monitors, proof, next(_numbers)
        self.sent: list[int] = []
        self.videos: dict[int, np.ndarray] = {}
        self.reasons: dict[int, dict[str, str]] = {}
        self.blanks: set[tuple[int, str]] = set()
        self.monitor: dict[str, np.ndarray] = {}
        self.why: dict[str, int] = {}
        self.lost: list[str] = []
        self.unseen: list[str] = []

    def missed(self) -> list[str]:
        """Return the rewards and monitors that are waited for."""
        return [*self.lost, *map(monitor, self.unseen)]

    def known(self, had: list) -> absent.Known:
        """Return what this process can tell the others. had: scores of the last try."""
        missing = [(row, dict(of_row)) for row, of_row in list(self.reasons.items())]
        return absent.Known(sorted(self.blanks), missing, had, watched=sorted(self.monitor))

    def enter(self, rows: list[int], scores: client.Scores) -> None:
        """Keep what came of some rows besides their scores; of other rewards what there was."""
        for b, row in enumerate(rows):
            earlier = self.reasons.get(row, {})
            others = {name: why for name, why in earlier.items() if name not in scores.names}
            self.reasons[row] = others | scores.reasons[b]
            self.blanks -= {(row, name) for name in scores.names}
            blank_M = np.flatnonzero(scores.table.blank_BM[b])
            self.blanks |= {(row, scores.names[m]) for m in blank_M}
            for name, value_b in scores.monitor.items():
                nothing_B = np.full(len(self.prompts), np.nan)
                self.monitor.setdefault(name, nothing_B)[row] = value_b[b]
