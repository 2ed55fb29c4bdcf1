"""Save one forward pass of a VACE folder, with diffusers or with ours, for test_full_size.py.

python full_size_forward.py WHO FOLDER DTYPE OUT

WHO is theirs or ours; OUT is a .npy of the velocity, BTHWC float32. A process of its own: the two
models do not fit beside each other.
"""

import sys

import numpy as np


def inputs() -> dict[str, np.ndarray]:
    """Return noisy latents, 20 words of text, control and time."""
    rng = np.random.default_rng(0)
    x_BTHWC = rng.standard_normal((1, 4, 8, 12, 16), np.float32)
    text_BSE = np.zeros((1, 512, 4096), np.float32)
    text_BSE[:, :20] = rng.standard_normal((1, 20, 4096), np.float32)
    control_BTHWC = rng.standard_normal((1, 4, 8, 12, 96), np.float32)
    t_B = np.array([712.5], np.float32)
    return {"x_BTHWC": x_BTHWC, "text_BSE": text_BSE, "control_BTHWC": control_BTHWC, "t_B": t_B}


def theirs(folder: str, dtype: str, x_BTHWC, text_BSE, control_BTHWC, t_B) -> np.ndarray:
    import torch
    from diffusers import WanVACETransformer3DModel

    kind = getattr(torch, dtype)
    path = folder + "/transformer"
    model = WanVACETransformer3DModel.from_pretrained(path, torch_dtype=kind).eval()
    first = lambda x: torch.from_numpy(np.moveaxis(x, -1, 1).copy()).to(kind)
    with torch.no_grad():
        v = model(
            first(x_BTHWC),
            torch.from_numpy(t_B),
            torch.from_numpy(text_BSE).to(kind),
            control_hidden_states=first(control_BTHWC),
        ).sample
    return np.moveaxis(v.float().numpy(), 1, -1)


def ours(folder: str, dtype: str, x_BTHWC, text_BSE, control_BTHWC, t_B) -> np.ndarray:
    import jax
    import jax.numpy as jnp

    from evoid_jax import rollout
    from evoid_jax.models import wan

    jax.config.update("jax_default_matmul_precision", "highest")
    frozen = rollout.load(folder, jnp.dtype(dtype))
    model, params = frozen.wan, frozen.wan_params
    hints = jax.jit(lambda p, x, t, text, control: wan.hints(model, p, None, x, t, text, control))
    velocity = jax.jit(lambda p, x, t, text, h: wan.velocity(model, p, None, x, t, text, h))
    text = jnp.asarray(text_BSE)
    hints_VBLD = hints(params, x_BTHWC, t_B, text, jnp.asarray(control_BTHWC))
    return np.asarray(velocity(params, x_BTHWC, t_B, text, hints_VBLD))


if __name__ == "__main__":
    who, folder, dtype, out = sys.argv[1:]
    see = {"theirs": theirs, "ours": ours}[who]
    np.save(out, see(folder, dtype, **inputs()))
