"""Do the policy gradients of independent batches agree? If not, nothing can be learned from them.

    python bench/agreement.py --config=configs/evoid.py:tiny [--batches=10] [--config.NAME=VALUE]

Generates, scores and weighs as `train` does, always with what a run starts from, and takes for each
batch the gradient of the policy alone at the rewards as they are, at rewards permuted within every
pair, and at R = 1 for all. Prints the mean cosine between the gradients of different batches, with
a standard error over batches: clearly above that of permuted rewards, the batches say the same.
The gradient at R = 1 is common to all videos: what the model predicts of its own videos is off by
it. Where it is many times the norm of the reward's, it drowns that. Other guidance is a setting:
--config.guidance.rollout=5 --config.guidance.train=5, a distilled start --config.lora.init=FILE.
"""

import dataclasses
import tempfile
from pathlib import Path

import jax
import numpy as np
from absl import flags
from tqdm import tqdm

from evoid_jax import commandline, config, evolve, session, train
from evoid_jax.data import pairs
from evoid_jax.models import lora
from evoid_jax.rewards import blend, fuse

KINDS = ("rewards", "permuted", "all R = 1")


def unanchored(cfg: config.Config) -> config.Config:
    """Return the settings with the policy as the only term."""
    loss = dataclasses.replace(cfg.loss, lambda_t2v=0.0, lambda_self=0.0)
    return dataclasses.replace(cfg, loss=loss)


def start(run: session.Run) -> evolve.State:
    """Return the state that a run starts from."""
    cfg, base, wan = run.cfg, run.frozen.wan_params, run.frozen.wan.config
    state = evolve.init(cfg, base, wan)
    if cfg.lora.init:
        tree = lora.start(cfg.lora.init, state.evolving, wan, scale=cfg.lora.scale)
        state = evolve.init(cfg, base, wan, tree)
    return state


def played(run: session.Run, state: evolve.State, step: int):
    """Generate and score a step's videos; returns (batch, latents, total, fused)."""
    cfg = run.cfg
    batch = session.prepare(
        run, pairs.batch(run.data, step, cfg.data.pairs), session.seeds(cfg, step)
    )
    tickets, clean = [], []
    for part in session.generate(run, state.stable, batch, session.Clock(), cfg.guidance.rollout):
        tickets.append(run.panel.submit(part.video_BFHWC, batch.request, part.rows))
        clean.append(part.clean_BTHWC)
    scores = run.panel.collect(tickets, batch.request)
    silent = lambda reward_B, valid_B: (np.zeros(len(config.GROUPS), np.float32), False)
    _, fused = blend.blend(cfg.reward, blend.FORGOTTEN, scores, batch.pair_B, silent)
    return batch, jax.numpy.concatenate(clean), scores, fused


def gradients(run, state, batch, clean, fused, setup) -> list[np.ndarray]:
    """Return the gradient of the policy for each of KINDS, as one vector."""
    rng, reward_B = np.random.default_rng(int(state.step)), np.asarray(fused.reward_B)
    permuted_B = reward_B.copy()
    for pair in np.unique(batch.pair_B):
        permuted_B[batch.pair_B == pair] = rng.permutation(reward_B[batch.pair_B == pair])
    vectors = []
    for of_kind_B in (reward_B, permuted_B, np.ones_like(reward_B)):
        scored = session.to_device(batch, clean, fused._replace(reward_B=of_kind_B), run.mesh)
        grads, _ = accumulate(state, run.frozen.wan_params, scored, setup)
        vectors.append(np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(grads)]))
    return vectors


@jax.jit(static_argnames="setup")
def accumulate(state, base, scored, setup):
    return evolve.accumulate(state, base, scored, None, setup)


def cosine(vectors: list[np.ndarray]) -> tuple[float, float]:
    """Return the mean cosine between different vectors, and its standard error by jackknife."""
    unit = np.stack([vector / np.linalg.norm(vector) for vector in vectors])
    table, count = unit @ unit.T, len(unit)

    def mean(kept: np.ndarray) -> float:
        part = table[np.ix_(kept, kept)]
        return (part.sum() - len(kept)) / (len(kept) * (len(kept) - 1))

    every = np.arange(count)
    left_out = np.array([mean(np.delete(every, i)) for i in every])
    error = np.sqrt((count - 1) / count * np.square(left_out - left_out.mean()).sum())
    return mean(every), error


def main(argv: list[str]) -> None:
    train.quiet()
    cfg = unanchored(config.from_dict(flags.FLAGS.config.to_dict()))
    by_kind, spreads = {kind: [] for kind in KINDS}, []
    with (
        tempfile.TemporaryDirectory() as folder,
        session.open_run(cfg, Path(folder)) as run,
    ):
        state = start(run)
        for step in tqdm(range(flags.FLAGS.batches), desc="batches"):
            state = state._replace(step=jax.numpy.int32(step))
            batch, clean, scores, fused = played(run, state, step)
            setup = evolve.Setup(cfg, run.frozen.wan, run.mesh, batch.references)
            spreads.append(fuse.deviation(scores.score_BM, batch.pair_B))
            for kind, vector in zip(
                KINDS, gradients(run, state, batch, clean, fused, setup), strict=True
            ):
                by_kind[kind].append(vector)
    names = [metric.name for metric in cfg.reward.table]
    spread = dict(zip(names, np.mean(spreads, axis=0).round(4).tolist(), strict=True))
    print(f"usual spread within a pair: {spread}")
    for kind, vectors in by_kind.items():
        mean, error = cosine(vectors)
        norm = np.mean([np.linalg.norm(vector) for vector in vectors])
        print(f"{kind:10} norm {norm:.2e}  cosine between batches {mean:+.3f} +- {error:.3f}")


if __name__ == "__main__":
    flags.DEFINE_integer("batches", 10, "Independent batches.", lower_bound=3)
    commandline.run(main, settings=config.Config)
