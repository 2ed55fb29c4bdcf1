"""Generate a video from face photos and a prompt.

    python -m evoid_jax.generate --image=face.png --prompt="A woman nods." --output=out.mp4

The same weights, inputs and noise give what WanVACEPipeline of diffusers gives; `--noise`, `--raw`
and `--latents` exchange arrays with it, in its layouts.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from tqdm import tqdm

from evoid_jax import flow, media, rollout
from evoid_jax.models import lora

TINY = Path(__file__).parent / "assets" / "tiny"
# Used where neither a flag nor `evoid.json` in the model's folder says otherwise. Sizes and rate
# are Wan2.1's own, steps and guidance those of the EvoID paper.
DEFAULTS = {"frames": 81, "height": 480, "width": 832, "fps": 16, "steps": 20, "guidance": 5.0}


def define_flags(values: flags.FlagValues):
    """Define the command line in `values`."""
    string, number, whole, choice = (
        partial(define, flag_values=values)
        for define in (
            flags.DEFINE_string,
            flags.DEFINE_float,
            flags.DEFINE_integer,
            flags.DEFINE_enum,
        )
    )
    string("model", str(TINY), "Folder of a diffusers WanVACEPipeline.")
    string("lora", None, "Adapter to use: a pytorch_lora_weights.safetensors.")
    string("image", None, "Reference photos, separated by commas.", required=True)
    string("prompt", None, "What happens in the video.", required=True)
    string("output", None, "The mp4 to write.", required=True)
    string("negative_prompt", "", "What the guidance steers away from.")
    whole("steps", None, "Denoising steps; default 20.", lower_bound=1)
    number("guidance", None, "Classifier-free guidance, off up to 1; default 5.")
    number("shift", None, "Time shift; default of the model's scheduler.")
    whole("frames", None, "4 k + 1; default of the model, else 81.")
    whole("height", None, "Pixels; default of the model, else 480.")
    whole("width", None, "Pixels; default of the model, else 832.")
    number("fps", None, "Frames per second of the mp4; default of the model, else 16.")
    whole("seed", 0, "Seed of the noise.", lower_bound=0, upper_bound=2**32 - 1)
    choice("scheduler", None, ["unipc", "euler"], "Solver; default of the model.")
    string("noise", None, "npy of the initial noise: (1, 16, references + F, H, W).")
    string("raw", None, "npy to write: frames (1, F, H, W, 3), float32 in [0, 1].")
    string("latents", None, "npy to write: latents (1, 16, references + F, H, W).")
    choice("reference_order", "diffusers", rollout.ORDERS, "Order of several references.")
    choice("dtype", None, ["float32", "bfloat16"], "Of the transformer; default float32 on CPU.")


def settings(folder: str | Path, given: dict) -> dict:
    """Settle every key of DEFAULTS: from `given` unless None, the model's evoid.json, DEFAULTS.

    Raises:
      ValueError: evoid.json holds a key that DEFAULTS has not.
    """
    own, file = {}, Path(folder) / "evoid.json"
    if file.is_file():
        own = json.loads(file.read_text())
        if unknown := sorted(own.keys() - DEFAULTS.keys()):
            raise ValueError(f"{file} has {unknown[0]!r}; expected some of {sorted(DEFAULTS)}")
    return DEFAULTS | own | {k: v for k, v in given.items() if k in DEFAULTS and v is not None}


def read_noise(file: str, shape_THWC: tuple[int, ...]) -> jax.Array:
    """Read latent noise in diffusers' layout (1, C, T, H, W) and return BTHWC float32."""
    if not Path(file).is_file():
        raise FileNotFoundError(f"noise {file} does not exist")
    try:
        noise = np.load(file)
    except ValueError as error:
        raise ValueError(f"{file} is not an npy file: {error}") from error
    T, H, W, C = shape_THWC
    if noise.shape != (1, C, T, H, W):
        raise ValueError(
            f"{file} has shape {noise.shape}; expected (1, {C}, {T}, {H}, {W}): one, channels, "
            "reference and video latent frames, height, width"
        )
    return jnp.asarray(np.moveaxis(noise, 1, -1), jnp.float32)


def generate(
    frozen: rollout.Frozen,
    adapter,
    images: list[np.ndarray],
    prompt: str,
    negative_prompt: str,
    noise_BTHWC: jax.Array,
    table: flow.Table,
    guidance: float,
    size: tuple[int, int, int],
    order: str = "diffusers",
) -> jax.Array:
    """Generate the latents of one video, showing progress; returns BTHWC with the references.

    The arguments are those of `rollout`; size is (frames, height, width) in pixels.
    """
    control = rollout.control(frozen, [images], *size, order)
    text = rollout.encode_text(frozen, [prompt])
    null = rollout.encode_text(frozen, [negative_prompt]) if guidance > 1 else None
    state = flow.start(noise_BTHWC)
    for i in tqdm(range(len(table.sigmas_N)), desc="denoising", unit="step"):
        row = jax.tree.map(lambda x, i=i: x[i : i + 1], table)
        inputs = frozen.wan, frozen.wan_params, adapter, text, null, control, state, row, guidance
        state = jax.block_until_ready(rollout.denoise(*inputs))
    return state.x


def load(folder: str, dtype: str | None) -> rollout.Frozen:
    """Read the model, with bfloat16 weights by default wherever that is not a CPU."""
    dtype = dtype or ("float32" if jax.default_backend() == "cpu" else "bfloat16")
    return rollout.load(folder, jnp.dtype(dtype), remat="none")


def run(args) -> np.ndarray:
    """Do what the flags say; returns the frames, uint8 FHWC.

    Raises:
      FileNotFoundError, ValueError, KeyError: a flag or a file is wrong; the message names it.
    """
    if not args.prompt.strip():
        raise ValueError("--prompt is empty")
    if not args.output.endswith(".mp4"):
        raise ValueError(f"--output must end in .mp4, got {args.output}")
    images = [media.read_image(file) for file in args.image.split(",")]
    chosen = settings(args.model, args.flag_values_dict())
    frozen = load(args.model, args.dtype)
    kind, shift = rollout.solver_of(frozen.scheduler)
    shift = shift if args.shift is None else args.shift
    table = flow.schedule(args.scheduler or kind, chosen["steps"], shift)
    size = chosen["frames"], chosen["height"], chosen["width"]
    rollout.check_size(frozen, *size)
    shape = rollout.latent_shape(frozen, *size, len(images))
    if args.noise:
        noise = read_noise(args.noise, shape)
    else:
        noise = rollout.noise(np.uint32([args.seed]), shape)
    adapter = lora.load(args.lora, frozen.wan.config) if args.lora else None
    text = args.prompt, args.negative_prompt
    solving = noise, table, chosen["guidance"], size, args.reference_order
    latents = generate(frozen, adapter, images, *text, *solving)
    frames = rollout.decode_float(frozen, latents[:, len(images) :])
    save(args, latents, frames, video := np.asarray(rollout.to_uint8(frames))[0], chosen["fps"])
    return video


def save(args, latents_BTHWC, frames_BFHWC, video_FHWC: np.ndarray, fps: float):
    """Write the mp4 and, where asked for, the arrays in diffusers' layouts."""
    latents_BCTHW = jnp.moveaxis(latents_BTHWC, -1, 1)
    for file, array in ((args.latents, latents_BCTHW), (args.raw, frames_BFHWC)):
        if file:
            Path(file).parent.mkdir(parents=True, exist_ok=True)
            with open(file, "wb") as f:  # np.save would append .npy to other names
                np.save(f, np.asarray(array, np.float32))
    media.write(args.output, video_FHWC, fps)


def main(argv: list[str]):
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}; quote the prompt")
    try:
        video = run(flags.FLAGS)
    except KeyError as error:  # its str() is the repr of the message
        raise SystemExit(f"error: {error.args[0]}") from error
    except (OSError, ValueError) as error:
        raise SystemExit(f"error: {error}") from error
    print(f"wrote {flags.FLAGS.output}: {len(video)} frames of {video.shape[2]}x{video.shape[1]}")


if __name__ == "__main__":
    define_flags(flags.FLAGS)
    app.run(main)
