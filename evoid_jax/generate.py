"""Generate a video from face photos and a prompt.

    python -m evoid_jax.generate --image=face.png --prompt="A woman nods." --output=out.mp4

The same weights, inputs and noise give what WanVACEPipeline of diffusers gives; `--noise`, `--raw`
and `--latents` exchange arrays with it, in its layouts.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags, logging
from tqdm import tqdm

from evoid_jax import commandline, deployment, files, flow, hub, media, rollout
from evoid_jax.data.folder import visible
from evoid_jax.deployment import DEFAULTS as DEFAULTS
from evoid_jax.deployment import settings as settings
from evoid_jax.models import adapters, lora, pipeline, umt5
from evoid_jax.models.folder import VACE
from evoid_jax.models.scheduler import solver_of

TINY = Path(__file__).parent / "assets" / "tiny"


def define_flags(values: flags.FlagValues):
    """Define the command line in `values`."""
    string, choice = (
        partial(define, flag_values=values) for define in (flags.DEFINE_string, flags.DEFINE_enum)
    )
    string("model", str(TINY), "Diffusers WanVACEPipeline: its folder, or its name on the hub.")
    string("lora", None, "Adapter to use: a file or folder of diffusers, PEFT, ComfyUI and others.")
    string("image", None, "Reference photos, separated by commas.", required=True)
    string("prompt", None, "What happens in the video.", required=True)
    string("output", None, "The mp4 to write.", required=True)
    deployment.define_flags(values)
    string("noise", None, "npy of the initial noise: (1, 16, references + F, H, W).")
    string("raw", None, "npy to write: frames (1, F, H, W, 3), float32 in [0, 1].")
    string("latents", None, "npy to write: latents (1, 16, references + F, H, W).")
    words = "Order of several references; default of the adapter, else diffusers."
    choice("reference_order", None, rollout.ORDERS, words)


def image_files(value: str) -> list[Path]:
    """Return the files that --image names: one whose name has commas, or several between commas.

    Raises:
      ValueError: a name is empty.
    """
    whole = files.user_path(value)
    if value and whole.is_file():
        return [whole]
    names = value.split(",")
    if not all(name.strip() for name in names):
        raise ValueError(f"--image is {value!r}, which has an empty name between its commas")
    return [files.user_path(name.strip()) for name in names]


def outputs(args, inputs: list[Path]) -> dict[str, Path]:
    """Return the files to write by flag, each tried now: a whole generation is not lost at its end.

    Args:
      inputs: files that are read, which no output may replace.

    Raises:
      OSError, ValueError: one cannot be written, or is named twice; says which.
    """
    wanted = {"output": args.output, "raw": args.raw, "latents": args.latents}
    taken = {file.resolve(): f"the input {file}" for file in inputs}
    tried = {}
    for flag, name in wanted.items():
        if name is None:
            continue
        path = files.user_path(name)
        if path.resolve() in taken:
            raise ValueError(f"--{flag}={name} would replace {taken[path.resolve()]}")
        try:
            tried[flag] = files.check_writable(path)
        except (OSError, ValueError) as error:
            raise type(error)(f"--{flag}: {error}") from None
        taken[path.resolve()] = f"the file of --{flag}"
    return tried


def read_noise(file: str | Path, shape_THWC: tuple[int, ...]) -> jax.Array:
    """Read latent noise in diffusers' layout (1, C, T, H, W) and return BTHWC float32."""
    file = files.require_file(file, "expected an npy file of noise")
    try:
        noise = np.load(file, mmap_mode="r")  # what its header claims is not yet in memory
    except Exception as error:  # a header is Python's text, an npz a zip archive
        raise ValueError(f"{file} is not an npy file: {error}") from error
    if not isinstance(noise, np.ndarray):
        raise ValueError(f"{file} holds several arrays (npz); expected one, as np.save writes")
    T, H, W, C = shape_THWC
    if noise.shape != (1, C, T, H, W):
        raise ValueError(
            f"{file} has shape {noise.shape}; expected (1, {C}, {T}, {H}, {W}): one, channels, "
            "reference and video latent frames, height, width"
        )
    if noise.dtype.kind != "f" or not np.isfinite(noise).all():
        raise ValueError(f"{file} holds {noise.dtype}, not all finite floats")
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
    """Generate the latents of one video, showing progress.

    Args:
      frozen: the model, loaded.
      adapter: as `lora.load` returns it, or None.
      images: reference photos, uint8 (height, width, 3) of any sizes; may be none.
      noise_BTHWC: float32 standard normal, of one video, with the reference frames.
      table: of `flow.schedule`.
      guidance: up to 1 is off, and the negative prompt unused.
      size: (frames, height, width) of the video in pixels.
      order: of the references, one of `rollout.ORDERS`.

    Returns:
      BTHWC float32, with the reference frames in front.
    """
    frames, height, width = size
    say(f"encoding {len(images)} image{'s' * (len(images) != 1)} and the prompt")
    control = rollout.control(frozen, [images], frames, height, width, order)
    text = rollout.encode_text(frozen, [prompt])
    null = rollout.encode_text(frozen, [negative_prompt]) if guidance > 1 else None
    state = flow.start(noise_BTHWC)
    say("denoising; the first step also compiles the model")
    for i in tqdm(range(len(table.sigmas_N)), desc="denoising", unit="step"):
        row = jax.tree.map(lambda x, i=i: x[i : i + 1], table)
        state = rollout.denoise(
            frozen.wan,
            frozen.wan_params,
            adapter,
            text,
            null,
            control,
            state,
            row,
            guidance=guidance,
        )
        jax.block_until_ready(state)
    return state.x


def say(text: str) -> None:
    """Tell the user what the next seconds or minutes are spent on."""
    print(text, file=sys.stderr, flush=True)


def note_cuts(tokenizer, limit: int, prompts: dict[str, str]) -> None:
    """Say which of the prompts, by flag, is longer than the `limit` tokens that the model reads."""
    for flag, prompt in prompts.items():
        count = len(tokenizer(umt5.clean(prompt), verbose=False)["input_ids"])
        if count > limit:
            say(f"note: --{flag} has {count} tokens; the model reads the first {limit}")


class Inputs(NamedTuple):
    """What the flags say, as far as it can be checked without a model."""

    model: Path
    images: list[np.ndarray]  # uint8 HWC, of any sizes
    lora: Path | None
    noise: Path | None
    targets: dict[str, Path]  # files to write, by flag
    chosen: dict  # a value for each key of DEFAULTS
    sampler: dict  # and of SAMPLER
    told: str  # what of these the adapter's file says


def check(args) -> Inputs:
    """Read the flags and try every file that they name. Raises: as `run`."""
    if not visible(args.prompt):
        raise ValueError("--prompt is empty, or has no visible character")
    if not args.output.endswith(".mp4"):
        raise ValueError(f"--output must end in .mp4, got {args.output}")
    asked = args.flag_values_dict()
    deployment.sampler(asked)  # before any file is read
    umt5.check_text(args.prompt)
    model, photos = Path(hub.pinned(files.user_path(args.model))), image_files(args.image)
    read = {}
    if args.lora is not None:
        read["lora"] = files.require_file(adapters.locate(args.lora), "expected an adapter file")
    if args.noise is not None:
        noise = files.user_path(args.noise)
        read["noise"] = files.require_file(noise, "expected an npy file of noise")
    header = adapters.read(read["lora"]).header if "lora" in read else {}
    return Inputs(
        model=model,
        images=[media.read_image(file) for file in photos],
        lora=read.get("lora"),
        noise=read.get("noise"),
        targets=outputs(args, [*photos, *read.values()]),
        chosen=settings(hub.folder(model, with_weights=False), asked, header),
        sampler=deployment.sampler(asked, header),
        told=deployment.told(asked, header),
    )


def run(args) -> np.ndarray:
    """Do what the flags say; returns the frames, uint8 FHWC.

    Raises:
      OSError, ValueError: a flag or a file is wrong; the message names it.
    """
    inputs = check(args)
    chosen, sampler, references = inputs.chosen, inputs.sampler, len(inputs.images)
    if inputs.told:
        say(inputs.told)
    frames, height, width = (chosen[key] for key in ("frames", "height", "width"))
    say(f"loading {inputs.model}")
    # Of the model, too, all is checked before its weights are read, which may take minutes.
    opened = pipeline.open_diffusers(inputs.model, (VACE,))
    transformer, vae = (opened.pipeline.parts[name].config for name in ("transformer", "vae"))
    rollout.check_size_of(transformer, vae, frames, height, width)
    adapter = lora.load(inputs.lora, transformer) if inputs.lora else None
    table = schedule(opened.scheduler, chosen["steps"], sampler)
    dtype = args.dtype or rollout.usual_dtype()
    frozen = rollout.put(opened, jnp.dtype(dtype), remat="none")
    frozen = frozen._replace(wan=frozen.wan.clone(residual=sampler["residual"]))
    prompts = {"prompt": args.prompt}
    if chosen["guidance"] > 1:
        prompts["negative_prompt"] = chosen["negative_prompt"]
    note_cuts(opened.tokenizer, transformer.text_len, prompts)
    shape = rollout.latent_shape(frozen, frames, height, width, references)
    if inputs.noise:
        noise = read_noise(inputs.noise, shape)
    else:
        noise = rollout.noise(np.uint32([args.seed]), shape)
    latents = generate(
        frozen,
        adapter,
        inputs.images,
        args.prompt,
        chosen["negative_prompt"],
        noise,
        table,
        guidance=float(chosen["guidance"]),
        size=(frames, height, width),
        order=sampler["reference_order"],
    )
    say("decoding")
    video_BFHWC = rollout.decode_float(frozen, latents[:, references:])
    video = np.asarray(rollout.to_uint8(video_BFHWC))[0]
    save(inputs.targets, latents, video_BFHWC, video, chosen["fps"])
    return video


def schedule(scheduler: dict, steps: int, sampler: dict) -> flow.Table:
    """Return the solver's table.

    Args:
      scheduler: the model's own, which has a say where the sampler has none.
      sampler: of `deployment.sampler`.
    """
    kind, shift = solver_of(scheduler)
    shift = shift if sampler["shift"] is None else sampler["shift"]
    return flow.schedule(sampler["scheduler"] or kind, steps, shift)


def save(
    targets: dict[str, Path], latents_BTHWC, frames_BFHWC, video_FHWC: np.ndarray, fps: float
) -> None:
    """Write the mp4 and, where asked for, the arrays in diffusers' layouts.

    Args:
      targets: file by flag, as `outputs` returns; each is replaced when its content is complete.
      latents_BTHWC: with the reference frames.
      frames_BFHWC: float32 in [0, 1].
      video_FHWC: uint8.
      fps: frames per second.
    """
    arrays = {"latents": jnp.moveaxis(latents_BTHWC, -1, 1), "raw": frames_BFHWC}
    for flag, array in arrays.items():
        if flag in targets:
            # opened here, for np.save appends .npy to a name without it
            with files.replacing(targets[flag]) as part, open(part, "wb") as f:
                np.save(f, np.asarray(array, np.float32))
    with files.replacing(targets["output"]) as part:
        part.write_bytes(media.encode(video_FHWC, fps))


def main(argv: list[str]):
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}; quote the prompt")
    logging.set_verbosity(logging.WARNING)  # or JAX tells of each kind of device that is absent
    try:
        video = run(flags.FLAGS)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("stopped; no video was written") from None
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise OSError(
            "the device has too little memory; make --frames, --height or --width smaller, or use "
            "--dtype=bfloat16"
        ) from error
    print(f"wrote {flags.FLAGS.output}: {len(video)} frames of {video.shape[2]}x{video.shape[1]}")


if __name__ == "__main__":
    define_flags(flags.FLAGS)
    commandline.run(main)
