"""The scheduler of a diffusers folder: which of our solvers it is, and that nothing is left out."""

from __future__ import annotations

from evoid_jax.models import keys

FILE = "scheduler/scheduler_config.json"
# What our solvers implement, with diffusers' defaults for keys that a config leaves out.
UNIPC = {
    "prediction_type": ("flow_prediction", "epsilon"),
    "use_flow_sigmas": (True, False),
    "solver_order": (2, 2),
    "solver_type": ("bh2", "bh2"),
    "predict_x0": (True, True),
    "lower_order_final": (True, True),
    "final_sigmas_type": ("zero", "zero"),
    "thresholding": (False, False),
    "disable_corrector": ([], []),
    "solver_p": (None, None),
}
EULER = {"invert_sigmas": (False, False), "stochastic_sampling": (False, False)}
SHARED = {
    "num_train_timesteps": (1000, 1000),
    "use_dynamic_shifting": (False, False),
    "shift_terminal": (None, None),
    "use_karras_sigmas": (False, False),
    "use_exponential_sigmas": (False, False),
    "use_beta_sigmas": (False, False),
}
# Of what is off above, or of the noise schedule that flow sigmas replace.
IDLE = ("beta_start", "beta_end", "beta_schedule", "trained_betas", "rescale_betas_zero_snr")
IDLE += ("timestep_spacing", "steps_offset", "dynamic_thresholding_ratio", "sample_max_value")
IDLE += ("time_shift_type", "sigma_min", "sigma_max")
IDLE += ("base_shift", "max_shift", "base_image_seq_len", "max_image_seq_len")
# The scheduler's class: our solver, its key of the time shift, what must hold.
KINDS = {
    "UniPCMultistepScheduler": ("unipc", "flow_shift", UNIPC | SHARED),
    "FlowMatchEulerDiscreteScheduler": ("euler", "shift", EULER | SHARED),
}


def solver_of(scheduler: dict, file: str = FILE) -> tuple[str, float]:
    """Return (kind, shift) of a scheduler_config.json, as `flow.schedule` takes them.

    Args:
      scheduler: content of the file.
      file: its name, for messages.

    Raises:
      ValueError: the config names another scheduler, or an option of it that is not implemented.
    """
    name = scheduler.get("_class_name")
    if not isinstance(name, str) or name not in KINDS:
        raise ValueError(
            f"{file}: scheduler {name} is not implemented; expected {' or '.join(KINDS)}"
        )
    kind, shift, needs = KINDS[name]
    for key, (needed, default) in needs.items():
        if (value := scheduler.get(key, default)) != needed:
            raise ValueError(f"{file}: {name} has {key} {value!r}; only {needed!r} is implemented")
    fixed = {key: (needed,) for key, (needed, _) in needs.items()}
    known = keys.Keys(whole=(), real=(shift,), lists={}, fixed=fixed, ignored=IDLE)
    keys.check(scheduler, known, file)
    return kind, float(scheduler.get(shift, 1.0))
