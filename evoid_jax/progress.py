"""How far a run has come: what it has reached and saves, and whether it still learns."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from absl import logging
from flax import traverse_util

from evoid_jax import checkpoint, config, distributed, evolve, interruption
from evoid_jax.interruption import Interrupted
from evoid_jax.rewards import absent
from evoid_jax.rewards.absent import MissingReward
from evoid_jax.rewards.blend import RewardMemory


class Reached:
    """What a run has come to: its state and memory after `step` steps, and where it is saved."""

    def __init__(
        self, saved: checkpoint.Checkpoints, step: int, state: evolve.State, memory: RewardMemory
    ):
        self.saved, self.step, self.state, self.memory = saved, step, state, memory
        self.sound = step > 0  # worth saving

    def follow(self, step: int, state: evolve.State, memory: RewardMemory, sound: bool) -> None:
        """Take over what a step has made. sound: whether its update was applied."""
        self.step, self.state, self.memory, self.sound = step, state, memory, sound

    def save(self) -> None:
        """Save it, unless it is the start, or an update was just refused."""
        if self.sound:
            checkpoint.save(self.saved, self.step, self.state, self.memory._asdict())

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Save it where a signal, or a reward that cannot be had, ends the block."""
        try:
            yield
        except (MissingReward, Interrupted):
            with interruption.shielded():
                self.save()
            raise


def due(cfg: config.Config, step: int, seconds: float) -> bool:
    """Say whether a checkpoint is saved after so many steps, of which the last took `seconds`.

    One that takes longer than the grace of a signal could not be made again in it, so that it is
    saved as soon as it is done.
    """
    regular = step % cfg.save_every == 0 or step == cfg.steps
    slow = distributed.exchange(seconds > cfg.grace)[0]  # clocks differ, and all must save
    return regular or slow


class Health:
    """Whether a run still learns: how many steps in a row were refused, or had nothing to learn.

    Every process comes to the same answers.
    """

    def __init__(self, cfg: config.Config):
        self._cfg, self._idle, self._refused, self._why = cfg, 0, 0, {}

    def after(self, reached: Reached, terms: dict, learned: bool, why: dict[str, int]) -> bool:
        """Look at the step that follows what was reached; returns whether its update was applied.

        Args:
          terms: as `evolve.train_step` returns them.
          learned: whether there was a video to learn from.
          why: how many scores are missing for each reason.

        Raises:
          FloatingPointError: too many in a row were refused. The newest checkpoint is of before.
        """
        step = reached.step
        self._idle = 0 if learned else self._idle + 1
        self._why = why
        if not terms["refused"]:
            self._refused = 0
            return True
        self._refused += 1
        refused = refusal(self._cfg, terms)
        if distributed.leads():
            logging.warning("step %d: the update was not applied: %s", step, refused)
        if self._refused >= self._cfg.train.refused:
            # A checkpoint may be of the very adapter that was found to be no good any more.
            checkpoint.settle(reached.saved)
            checkpoint.set_aside(reached.saved, after=step - self._refused)
            raise FloatingPointError(
                f"step {step}: {self._refused} updates in a row were not applied ({refused}). The "
                "newest checkpoint is of before; go on from it with a smaller "
                "--config.train.lr, or start again with config.dtype=float32"
            )
        return False

    def check_idle(self) -> None:
        """Raise MissingReward where too many steps in a row had nothing to learn from."""
        absent.check_idle(self._cfg.reward.idle_steps, self._idle, self._why)


def refusal(cfg: config.Config, terms: dict) -> str:
    """Say why an update was refused; see `clipping.sound`."""
    flat = traverse_util.flatten_dict(terms, sep="/")
    bad = [name for name, value in flat.items() if not np.isfinite(value)]
    if bad:
        return f"{', '.join(bad)} is not finite"
    drift = terms["drift"]["evo_init"]
    if cfg.train.drift and drift > cfg.train.drift:
        return f"drift/evo_init is {drift:.3g}, more than config.train.drift={cfg.train.drift:g}"
    return "it is not finite, or longer than the adapter itself"
