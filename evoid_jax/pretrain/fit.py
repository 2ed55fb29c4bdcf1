"""Minimise a loss with Muon and AdamW: what every stage of pretraining does."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax
import optax.contrib
from tqdm import tqdm

from evoid_jax.pretrain import kept


def optimizer(train) -> optax.GradientTransformation:
    """Muon for the kernels of a transformer or VAE, AdamW for the rest, one cosine for both.

    On these small convolutional nets Muon (https://kellerjordan.github.io/posts/muon) is what makes
    training feasible on a CPU: AdamW's VAE had not begun to learn after 500 steps.

    Args:
      train: has steps, warmup, lr (of AdamW) and muon_lr.
    """

    def cosine(lr: float):
        return optax.warmup_cosine_decay_schedule(
            init_value=0.0,
            peak_value=lr,
            warmup_steps=train.warmup,
            decay_steps=train.steps,
            end_value=lr * 0.02,
        )

    tx = optax.contrib.muon(
        cosine(train.muon_lr),
        weight_decay=1e-4,
        adam_weight_decay=1e-4,
        adam_learning_rate=cosine(train.lr),
        muon_weight_dimension_numbers=_matrices,
    )
    return optax.chain(optax.clip_by_global_norm(1.0), tx)


def _matrices(params):
    """Return for each leaf which axes make a matrix for Muon, None where AdamW has it."""
    return jax.tree_util.tree_map_with_path(_matrix, params)


def _matrix(path, x) -> optax.contrib.MuonDimensionNumbers | None:
    """Tell which axes of a leaf make a matrix: the last is the output, a stack's first is none."""
    names = [entry.key for entry in path]
    # Muon is for hidden layers; the VAE's last one, of 3 colours, is AdamW's as biases are.
    if names[-1] != "kernel" or x.shape[-1] < 8:
        return None
    first = 1 if names[0].endswith("blocks") else 0  # scanned layers lead
    inputs = tuple(range(first, x.ndim - 1))
    return optax.contrib.MuonDimensionNumbers(reduction_axis=inputs, output_axis=x.ndim - 1)


def by_jax(loss_fn, seed: int):
    """Return the gradient of a loss as `fit` wants it.

    Args:
      loss_fn: (params, key, batch) -> scalar; the key differs at every step.
    """

    @jax.jit
    def gradient(params, step, batch):
        key = jax.random.fold_in(jax.random.key(seed), step)
        return jax.value_and_grad(loss_fn)(params, key, batch)

    return gradient


def fit(name: str, gradient, params, batch_fn, train, place: kept.Place):
    """Minimise a loss. Killed and called again it goes on from its last save, to the same bits.

    Args:
      name: of the progress bar.
      gradient: (params, step, batch) -> (loss, gradient); see `by_jax`.
      batch_fn: step -> batch, any tree of arrays.
      train: has steps, ema (the average's decay) and what `optimizer` needs.
      place: where the training is kept; see `kept.save`.

    Returns:
      The exponential moving average of the parameters, on the host.

    Raises:
      ValueError: what is kept was trained with other settings.
    """
    tx = optimizer(train)

    @jax.jit
    def update(params, ema, opt, step, grads):
        updates, opt = tx.update(grads, opt, params)
        params = optax.apply_updates(params, updates)
        # A short memory at first, or the random start would stay in the average.
        decay = jnp.minimum((1.0 + step) / (10.0 + step), train.ema)
        ema = optax.incremental_update(params, ema, 1 - decay)
        return params, ema, opt

    first, state = kept.restore(place, (params, params, tx.init(params)))
    # As on the device later: a first step that met NumPy's types would be compiled for itself.
    state, smooth = jax.tree.map(jnp.asarray, state), None
    steps = range(first, train.steps)
    bar = tqdm(steps, name, train.steps, initial=first, mininterval=5, dynamic_ncols=True)
    for step in bar:
        loss, grads = gradient(state[0], step, batch_fn(step))
        state = update(*state, step, grads)
        smooth = float(loss) if smooth is None else 0.95 * smooth + 0.05 * float(loss)
        bar.set_postfix(loss=f"{smooth:.4f}", refresh=False)
        if (step + 1) % place.every == 0:
            kept.save(place, step + 1, state)
    return jax.device_get(state[1])
