"""EvoID runs: `--config=configs/evoid.py:PRESET[,ABLATION...]`.

Presets: `tiny` (the embedded model, minutes on a CPU), `vace_1_3b`, `vace_14b` (the paper's run).
What a preset leaves out is a default of evoid_jax/config.py. Presets of Wan have no data: give
config.data.dir. A file of your own may start from one of these and change what it likes:

    from evoid_jax import commandline

    def get_config():
        cfg = commandline.load("configs/evoid.py:vace_1_3b")
        cfg.reward.table.sharpness = {"group": "quality", "prior": 0.1}
        return cfg

Ablations (paper, table 3): `uniform` (UWR: uniform reward weights), `no_teacher` (no T2V teacher),
`no_preference` (no VQScore), `no_dynamic` (priors only). `guided_rollouts` reads the paper to the
letter: videos are generated with its guidance of 5, and the update is without.
"""

import ml_collections

from evoid_jax import config

TINY = {
    "model": config.TINY,
    "dtype": "float32",
    "steps": 50,
    "save_every": 5,
    "watch": {"every": 25},
    "video": {"frames": 9, "height": 64, "width": 64, "fps": 8},
    "rollout": {"shift": 3.0, "videos_per_device": 32},
    "guidance": {"negative_prompt": ""},  # the tiny text encoder knows no Chinese
    # 50 steps instead of 200, of a model 40 times narrower: larger steps that end small, a stable
    # transformer that follows at once, steep rewards, twice the policy's force against the start's.
    "loss": {"beta": 2.0},
    "reward": {"clip": 0.5},
    "train": {
        "lr": 3e-3,
        "lr_end": 0.1,
        "lr_steps": 50,
        "ema_decay": 0.2,
        "videos_per_device": 32,
        "shift": 3.0,
    },
}

# The model in pieces over all devices that context leaves.
PIECES = {"data": 1, "fsdp": -1}

# A step takes minutes, a checkpoint's own share of it seconds: none is worth losing.
EVERY_STEP = 1

# Learned from without guidance, as DiffusionNFT does, and used with it, as the paper does. Guided
# videos are no samples of the velocity that is trained: docs/guidance.md has what became of that.
DEPLOYED = {"proof": 5.0, "deploy": 5.0}

VACE_1_3B = {
    "model": "Wan-AI/Wan2.1-VACE-1.3B-diffusers",
    "save_every": EVERY_STEP,
    "guidance": DEPLOYED,
    "mesh": PIECES,
    "reward": {"preset": "open", "judge_model": "Qwen/Qwen3-VL-30B-A3B-Instruct"},
}

VACE_14B = {
    "model": "Wan-AI/Wan2.1-VACE-14B-diffusers",
    "save_every": EVERY_STEP,
    "guidance": DEPLOYED,
    "mesh": PIECES,
    "reward": {"preset": "paper", "judge_model": "Qwen/Qwen3-VL-30B-A3B-Instruct"},
}

PRESETS = {"tiny": TINY, "vace_1_3b": VACE_1_3B, "vace_14b": VACE_14B}

ABLATIONS = {
    "uniform": {"reward": {"uniform": True}},
    "no_teacher": {"loss": {"lambda_t2v": 0.0}},
    "no_preference": {"reward": {"preference": False}},
    "no_dynamic": {"reward": {"dynamic": False}},
    "guided_rollouts": {"guidance": {"rollout": 5.0, "proof": 5.0, "deploy": 5.0}},
}


def get_config(name: str = "tiny") -> ml_collections.ConfigDict:
    preset, *ablations = name.split(",")
    for word, known in [(preset, PRESETS), *((a, ABLATIONS) for a in ablations)]:
        if word not in known:
            raise ValueError(f"{word!r} is none of {', '.join(known)}")
    cfg = ml_collections.ConfigDict(config.to_dict(config.Config()))
    for changes in [PRESETS[preset], *(ABLATIONS[a] for a in ablations)]:
        cfg.update(changes)
    return cfg
