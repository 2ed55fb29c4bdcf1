"""EvoID runs: `--config=configs/evoid.py:PRESET[,ABLATION...]`.

Presets: `tiny` (the embedded model, minutes on a CPU), `vace_1_3b`, `vace_14b` (the paper's run).
What a preset leaves out is a default of evoid_jax/config.py. Presets of Wan have no data: give
config.data.dir. A file of your own may start from one of these and change what it likes:

    from evoid_jax import commandline

    def get_config():
        cfg = commandline.load("configs/evoid.py:vace_1_3b")
        cfg.reward.table.sharpness = {"group": "quality", "prior": 0.1}
        return cfg

Ablations: `uniform` (uniform reward weights), `no_teacher` (no T2V teacher), `no_preference` (no
VQScore), `no_dynamic` (priors only), `evoscore` (the proof measures EvoScore, which is no reward)
and `evoscore_reward` (it is one). The rows of the paper's ablation tables are put together from
these: `uwr`, `uwr_tp`, `pwr`, `pwr_tp`, `pr`, `mdw` (the whole method) and `esr` (EvoScore too);
docs/ablation.md says what each has. `guided_rollouts` reads the paper to the letter: videos are
generated with its guidance of 5, and the update is without.

Other algorithms on the same rollouts and rewards: `imitation`, `clips`, `rwr`, `nft`, `grpo`; see
docs/algorithms.md.
"""

import ml_collections

from evoid_jax import config

TINY = {
    "model": config.TINY,
    "dtype": "float32",
    "steps": 30,
    "save_every": 5,
    "watch": {"every": 15},
    "video": {"frames": 9, "height": 64, "width": 64, "fps": 8},
    "rollout": {"shift": 3.0, "videos_per_device": 32},
    "guidance": {"negative_prompt": ""},  # the tiny text encoder knows no Chinese
    # 30 steps instead of 200, of a model 32 times narrower: larger steps that end small, a stable
    # transformer that follows at once, steep rewards, twice the policy's force against the start's.
    "loss": {"beta": 2.0},
    # Motion's prior is 17 times the table's: with that one likeness is bought with stillness.
    "reward": {"clip": 0.5, "table": {"flow": {"prior": 0.5}}},
    "train": {
        "lr": 3e-3,
        "lr_end": 0.1,
        "lr_steps": 30,
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


def evoscore(prior: float) -> dict:
    """Return the row of EvoScore among the rewards; with prior 0 only the proof measures it."""
    row = {"group": "quality", "prior": prior, "floor": 0.0}
    return {"reward": {"table": {"evoscore": row}}}


ABLATIONS = {
    "uniform": {"reward": {"uniform": True}},
    "no_teacher": {"loss": {"lambda_t2v": 0.0}},
    "no_preference": {"reward": {"preference": False}},
    "no_dynamic": {"reward": {"dynamic": False}},
    "guided_rollouts": {"guidance": {"rollout": 5.0, "proof": 5.0, "deploy": 5.0}},
    "evoscore": evoscore(prior=0.0),
    # The prior is ours: that of the judge's other grade, VQScore.
    "evoscore_reward": evoscore(prior=0.3),
}

# The paper's rows, each by what sets it apart from the whole method. TP is the teacher.
OBJECTIVE = ("no_preference", "no_dynamic")  # its seven objective rewards alone
ROWS = {
    "uwr": ("uniform", "no_teacher", *OBJECTIVE),
    "uwr_tp": ("uniform", *OBJECTIVE),
    "pwr": ("no_teacher", *OBJECTIVE),
    "pwr_tp": OBJECTIVE,
    "pr": ("no_dynamic",),
    "mdw": (),
    "esr": ("evoscore_reward",),
}

# Rates and times stay the preset's; the published ones are in docs/algorithms.md.
ALGORITHMS = {
    "imitation": {"algorithm": "imitation"},
    "clips": {"algorithm": "imitation", "imitation": {"target": "clips"}},
    # The start generates all videos; a policy that learns from its own drifts off.
    "rwr": {"algorithm": "rwr", "train": {"ema_decay": 1.0}},
    "nft": {"algorithm": "nft"},
    # The policy that generates is the one that is updated.
    "grpo": {"algorithm": "grpo", "train": {"ema_decay": 0.0}},
}


def changes(word: str) -> list[dict]:
    """Return what an ablation, a row of the paper's or an algorithm changes in a preset."""
    if word in ROWS:
        return [ABLATIONS[part] for part in ROWS[word]]
    known = ABLATIONS | ALGORITHMS
    if word not in known:
        raise ValueError(f"{word!r} is none of {', '.join([*known, *ROWS])}")
    return [known[word]]


def get_config(name: str = "tiny") -> ml_collections.ConfigDict:
    preset, *words = name.split(",")
    if preset not in PRESETS:
        raise ValueError(f"{preset!r} is none of {', '.join(PRESETS)}")
    algorithms = [word for word in words if word in ALGORITHMS]
    if len(algorithms) > 1:
        raise ValueError(f"one algorithm at a time, got {', '.join(algorithms)}")
    cfg = ml_collections.ConfigDict(config.to_dict(config.Config()))
    for values in [PRESETS[preset], *(values for word in words for values in changes(word))]:
        cfg.update(values)
    return cfg
