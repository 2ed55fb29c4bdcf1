"""A run's settings with a reward of one's own, which examples/sidecar.py serves.

python examples/sidecar.py 8101 &
python -m evoid_jax.train --config=examples/sharpness.py:tiny --workdir=runs/sharp
"""

from evoid_jax import commandline


def get_config(preset: str = "tiny"):
    cfg = commandline.load(f"configs/evoid.py:{preset}")
    cfg.reward.table.sharpness = {"group": "quality", "prior": 0.1}
    cfg.reward.sidecars = ("local", "http://127.0.0.1:8101")
    return cfg
