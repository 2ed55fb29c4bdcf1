"""Settings for photographs with the judge and a reward of your own, without the set `open`.

    python -m evoid_jax.train --config=examples/faces.py --config.data.dir=FOLDER --workdir=DIR \
        --config.reward.judge=http://HOST:8200/v1 --config.reward.sidecars=http://HOST:8100

Only what somebody serves stands in the table: a reward that nobody has would be missing in every
video. Add a row for each reward of your own sidecars, a face similarity (group identity) first.
"""

from evoid_jax import commandline


def get_config(preset: str = "vace_14b"):
    cfg = commandline.load(f"configs/evoid.py:{preset}")
    cfg.reward.table = {
        "vqscore": {"group": "quality", "prior": 0.3},  # the judge
        "sharpness": {"group": "quality", "prior": 0.1},  # examples/sidecar.py
    }
    return cfg
