"""The tiny preset cut down to seconds, and what a run of it has written."""

import json

import jax

from configs import evoid
from evoid_jax import checkpoint, config, evolve
from evoid_jax.models import wan as wan_model
from evoid_jax.models import weights

SMALL = {
    "save_every": 2,
    "data": {"pairs": 2, "seeds": 2, "heldout_identities": 2, "heldout_seeds": 1},
    "rollout": {"steps": 2},
    "train": {"timesteps": 1},
    "watch": {"every": 2, "identities": 2, "seeds": 1},
}


def settings(cache, steps, **changes):
    cfg = evoid.get_config("tiny")
    for values in (SMALL, {"steps": steps, "data": {"cache": cache}}, changes):
        cfg.update(values)
    return config.from_dict(cfg.to_dict())


def lines(workdir):
    """Return a run's record without what a clock says."""
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        row.pop("seconds", None)
        row.get("judge", {}).pop("seconds", None)
    return rows


def state_of(workdir, cfg):
    """Return the state and the host's part of a run's newest checkpoint."""
    model = wan_model.WanConfig.from_json(weights.read_config(f"{cfg.model}/transformer"))
    base = jax.eval_shape(lambda key: wan_model.init(key, wan_model.Wan(model)), jax.random.key(0))
    checkpoints = checkpoint.open_folder(workdir / "checkpoints", 2)
    like = evolve.init(cfg, base, model)
    state, host, _ = checkpoint.restore(checkpoints, like)
    checkpoint.close(checkpoints)
    return state, host
