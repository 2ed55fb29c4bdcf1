"""A run whose sidecar and judge hang, for test_exit.py, which interrupts it.

python tests/hanging_run.py SIDECAR JUDGE FOLDER
"""

import signal
import sys

import jax
import numpy as np

from evoid_jax import config, sharding
from evoid_jax.rewards.panel import Panel
from evoid_jax.rewards.request import Request


def main(sidecar: str, judge: str, folder: str) -> None:
    # A shell starts background jobs deaf to Ctrl-C, and what they start in turn.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    cfg = config.Reward(sidecars=(sidecar,), judge=judge, judge_model="fake", timeout=900.0)
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    with Panel(cfg, mesh, 8, folder) as panel:
        asked = Request([[np.zeros((8, 8, 3), np.uint8)]] * 2, ["a", "b"])
        video_BFHWC = np.zeros((2, 3, 16, 16, 3), np.uint8)
        ticket_B = panel.submit(video_BFHWC, asked, np.arange(2, dtype=np.int32))
        print("collecting", flush=True)
        panel.collect([ticket_B], asked)


if __name__ == "__main__":
    main(*sys.argv[1:])
