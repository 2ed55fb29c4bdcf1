"""Distill guidance into an adapter: then one prompt does what two did. Writes what lora.init takes.

    python bench/distill.py --config=configs/evoid.py:tiny --guidance=5 --out=distilled.safetensors

The base generates guided videos of the pairs to evolve on; noised again, the adapter's velocity is
regressed onto the guided one of the base (--onto=velocity), or onto the truth of those videos
(--onto=videos), which makes their distribution its own. A run with --config.lora.init=FILE then
starts from it, and is held by it. docs/guidance.md says what came of that.
"""

import tempfile
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import optax
from absl import flags
from tqdm import tqdm

from evoid_jax import commandline, config, evolve, export, flow, losses, roles, session, train
from evoid_jax.data import pairs

CHUNK = 16  # videos in one update


def noised(batch: session.Prepared, clean, rows, key, cfg: config.Config):
    """Return some videos at times of their own, and their true velocities."""
    noise_key, time_key = jax.random.split(key)
    noise = jax.random.normal(noise_key, clean[rows].shape)
    times = jnp.asarray(flow.train_timesteps(cfg.train.grid, cfg.train.shift))
    t_B = jax.random.choice(time_key, times, (len(rows),))
    pair_B = batch.pair_B[rows]
    seen = roles.Noised(
        x_BTHWC=flow.add_noise(clean[rows], noise, t_B[:, None, None, None, None]),
        t_B=flow.TIMESTEPS * t_B,
        text_BSE=batch.text_PSE[pair_B],
        null_BSE=roles.repeat(batch.null_1SE, len(rows)),
        control_BTHWC=batch.control_PTHWC[pair_B],
        references=batch.references,
    )
    return seen, flow.velocity(clean[rows], noise)[:, batch.references :]


@partial(jax.jit, static_argnames=("cfg", "wan", "references", "scale", "optimizer"))
def update(adapter, opt, base, seen, v, *, cfg, wan, references, scale, optimizer):
    """Make one optimizer step; returns (adapter, opt, loss). scale: of the guidance; 0: onto v."""
    seen = seen._replace(references=references)
    see = roles.predict(wan, base, seen, cfg)
    if scale > 0:
        v = roles.guide(see(None), roles.predict_null(wan, base, seen, cfg)(None), scale)
    loss, grads = jax.value_and_grad(lambda tree: losses.anchor(see(tree), v).mean())(adapter)
    updates, opt = optimizer.update(grads, opt, adapter)
    return optax.apply_updates(adapter, updates), opt, loss


def main(argv: list[str]) -> None:
    f = flags.FLAGS
    train.quiet()
    cfg = config.from_dict(f.config.to_dict())
    rate = optax.linear_schedule(f.lr, 0.1 * f.lr, f.updates)
    optimizer = optax.adamw(rate, weight_decay=1e-4)
    scale = f.guidance if f.onto == "velocity" else 0.0
    with tempfile.TemporaryDirectory() as folder, session.open_run(cfg, Path(folder)) as run:
        base, wan = run.frozen.wan_params, run.frozen.wan
        adapter = evolve.init(cfg, base, wan.config).evolving
        bare, opt = jax.tree.map(jnp.zeros_like, adapter), optimizer.init(adapter)
        videos = []
        for step in tqdm(range(f.batches), desc="guided videos"):
            drawn = pairs.batch(run.data, step, cfg.data.pairs)
            batch = session.prepare(run, drawn, session.seeds(cfg, step))
            made = session.generate(run, bare, batch, session.Clock(), f.guidance)
            videos.append((batch, jnp.concatenate([part.clean_BTHWC for part in made])))
        seen_losses = []
        bar = tqdm(range(f.updates), desc="distilling")
        for i in bar:
            key = jax.random.fold_in(jax.random.key(cfg.seed), i)
            batch, clean = videos[i % len(videos)]
            rows = jax.random.permutation(jax.random.fold_in(key, 0), len(clean))[:CHUNK]
            seen, v = noised(batch, clean, jax.device_get(rows), key, cfg)
            adapter, opt, loss = update(
                adapter,
                opt,
                base,
                seen._replace(references=None),
                v,
                cfg=cfg,
                wan=wan,
                references=batch.references,
                scale=scale,
                optimizer=optimizer,
            )
            seen_losses.append(float(loss))
            bar.set_postfix(loss=f"{seen_losses[-1]:.3g}")
        export.write(Path(f.out), adapter, cfg, step=0)
    first, last = seen_losses[:20], seen_losses[-20:]
    print(f"loss {sum(first) / len(first):.3g} -> {sum(last) / len(last):.3g}; wrote {f.out}")


if __name__ == "__main__":
    flags.DEFINE_float("guidance", 5.0, "What is distilled.", lower_bound=1.0)
    flags.DEFINE_enum("onto", "velocity", ["velocity", "videos"], "What the adapter learns.")
    flags.DEFINE_integer("batches", 16, "Steps' worth of guided videos.", lower_bound=1)
    flags.DEFINE_integer("updates", 300, f"Optimizer steps of {CHUNK} videos.", lower_bound=1)
    flags.DEFINE_float("lr", 2e-3, "Learning rate, falling to a tenth.")
    flags.DEFINE_string("out", None, "The adapter's file.", required=True)
    commandline.run(main, settings=config.Config)
