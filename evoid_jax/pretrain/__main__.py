"""Make the tiny base by imitation: tokenizer and text encoder, VAE, T2V transformer, VACE blocks.

    python -m evoid_jax.pretrain --config=configs/pretrain_tiny.py --out=evoid_jax/assets/tiny

The order is that of the real models: the VAE and the text encoder are frozen before the transformer
is trained, and the main blocks are frozen before the VACE blocks are, so that VACE is the T2V model
plus an adapter. Each stage leaves its weights in `--workdir` and is skipped when they are there.

Letters: B videos, F pixel frames, T H W C latents, S text tokens, E text width, R references (1).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import ml_collections
import numpy as np
from absl import app, flags
from flax import traverse_util
from tqdm import tqdm

from evoid_jax import commandline
from evoid_jax.models import native, umt5, vae, weights
from evoid_jax.models import wan as wan_model
from evoid_jax.pretrain import stages
from evoid_jax.pretrain import tokenizer as tokenizers
from evoid_jax.world import faults, portraits, prompts

STAGES = ("world", "vae", "text", "latents", "t2v", "vace")


def stage(workdir: Path, name: str, make):
    """Return the parameters that `make()` gives, kept in `workdir/name.npz` for the next run."""
    path = workdir / f"{name}.npz"
    if not path.is_file():
        flat = traverse_util.flatten_dict(jax.device_get(make()), sep="/")
        # Moved into place when it is whole: a stage that was stopped is made again.
        part = path.with_suffix(".part.npz")
        np.savez(part, **flat)
        part.replace(path)
    with np.load(path) as stored:
        return traverse_util.unflatten_dict({k: stored[k] for k in stored.files}, sep="/")


# --- the world


def render_world(cfg) -> stages.World:
    """Render `cfg.videos` scenes of the pretraining identities, one scene per identity."""
    chosen = portraits.SPLITS["pretrain"][: cfg.videos]
    video, reference, texts, labels, targets = [], [], [], [], []
    # A scene depends on its identity and the seed alone: a small world is the start of a big one.
    for i in tqdm(chosen, desc="world", mininterval=5):
        scene = portraits.scene(i, cfg.seed)
        video.append(portraits.render(scene, cfg.frames, cfg.size))
        reference.append(portraits.reference(scene.identity, cfg.size))
        texts += [prompts.prompt(scene, 2 * i), prompts.prompt(scene, 2 * i + 1)]
        labels.append(
            (
                portraits.ACTIONS.index(scene.action),
                portraits.BACKGROUNDS.index(scene.background),
                portraits.CAMERAS.index(scene.camera),
            )
        )
        targets.append((scene.amplitude, *scene.identity))
    return stages.World(
        video_BFHWC=np.stack(video),
        reference_BHWC=np.stack(reference),
        prompts=texts,
        labels_BK=np.array(labels),
        targets_BK=np.array(targets, np.float32),
    )


# --- latents


class TextEncoder(NamedTuple):
    """A frozen text encoder."""

    params: dict
    config: umt5.UMT5Config
    tokenizer: object


class Coder(NamedTuple):
    """A frozen VAE."""

    params: dict
    config: vae.VAEConfig


def encode_world(cfg, world: stages.World, text: TextEncoder, coder: Coder) -> stages.Latents:
    """Encode every video, reference and prompt once.

    A share `cfg.faulty` of the videos gets a fault first, as footage that is found has: the base
    that imitates them leaves something to evolve.

    Returns:
      float32 on the host. B as in the world; T = 1 + (F - 1) / 4, H and W an eighth of the pixels'.
    """
    videos = [
        faults.as_found(video, cfg.faulty, np.random.default_rng((cfg.seed, i)))
        for i, video in enumerate(world.video_BFHWC)
    ]
    stills = world.reference_BHWC[:, None]  # videos of one frame
    grey = np.zeros((1, cfg.frames, cfg.size, cfg.size, 3), np.float32)
    encode = jax.jit(lambda x: vae.encode(coder.params, coder.config, x))
    text_BSE, null_SE = encode_prompts(world.prompts, text)
    return stages.Latents(
        video_BTHWC=np.concatenate([encode(stages.unit(x)) for x in batches(np.stack(videos))]),
        reference_BTHWC=np.concatenate([encode(stages.unit(x)) for x in batches(stills)]),
        blank_THWC=np.asarray(encode(grey))[0],
        text_BSE=text_BSE,
        null_SE=null_SE,
    )


def encode_prompts(prompts: list[str], text: TextEncoder) -> tuple[np.ndarray, np.ndarray]:
    """Return (text_BSE, null_SE) of the prompts and of the empty one, all padded to one S."""
    embed = jax.jit(lambda ids, mask: umt5.encode(text.params, text.config, ids, mask))
    ids_BS, mask_BS = umt5.tokenize(text.tokenizer, prompts)
    null_ids_1S, null_mask_1S = umt5.tokenize(text.tokenizer, [""])
    rows = ids_BS.shape[1]
    null_SE = np.zeros((rows, text.config.d_model), np.float32)
    null_SE[: null_ids_1S.shape[1]] = np.asarray(embed(null_ids_1S, null_mask_1S))[0][:rows]
    pairs = zip(batches(ids_BS, 500, "text"), batches(mask_BS, 500, "mask"), strict=True)
    return np.concatenate([np.asarray(embed(ids, mask)) for ids, mask in pairs]), null_SE


def batches(rows: np.ndarray, size: int = 50, name: str = "latents") -> Iterator[np.ndarray]:
    """Yield an array's rows, `size` at a time, with a progress bar."""
    for i in tqdm(range(0, len(rows), size), desc=name, mininterval=5):
        yield rows[i : i + size]


def measure_latents(params, config, world: stages.World) -> dict[str, np.ndarray]:
    """Return the mean and standard deviation of each latent channel over part of the world."""
    encode = jax.jit(lambda x: vae.encode(params, config, x))
    clips = (stages.unit(world.video_BFHWC[i : i + 32]) for i in range(0, 512, 32))
    z = np.concatenate([np.asarray(encode(x)) for x in clips])
    return {"mean": z.mean((0, 1, 2, 3)), "std": z.std((0, 1, 2, 3))}


# --- the finished folder


def psnr(params, config, count: int = 64) -> float:
    """Return the VAE's mean PSNR in dB on portraits of identities it never saw."""
    scenes = [portraits.scene(i, 1) for i in portraits.SPLITS["heldout"][:count]]
    video = stages.unit(np.stack([portraits.render(s, 9, 64) for s in scenes]))
    back = jax.jit(lambda x: vae.decode(params, config, vae.encode(params, config, x)))(video)
    mse_B = ((np.asarray(back) - video) ** 2).mean((1, 2, 3, 4))
    # PSNR = 10 log10(peak^2 / mse); the peak is 2 on [-1, 1]
    return float(np.mean(10 * np.log10(4 / mse_B)))


def write_model(folder: Path, config, params, rules, name: str, dtype) -> None:
    """Write one model as diffusers or transformers would: config.json and one safetensors file."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config.to_json(), indent=2) + "\n")
    tensors = weights.to_tensors(params, rules)
    weights.write_tensors(folder / name, {k: v.astype(dtype) for k, v in tensors.items()})


def write_pipeline(cfg, wan_config: wan_model.WanConfig, out: Path) -> None:
    """Write what makes the folder a WanVACEPipeline, and the sizes that `generate` starts from."""
    released = native.released_files(wan_config, "float32")
    released["model_index.json"]["tokenizer"] = ["transformers", "PreTrainedTokenizerFast"]
    for name in ("model_index.json", "scheduler/scheduler_config.json"):
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text(json.dumps(released[name], indent=2) + "\n")
    sizes = {"frames": cfg.frames, "height": cfg.size, "width": cfg.size, "fps": cfg.fps}
    (out / "evoid.json").write_text(json.dumps(sizes, indent=2) + "\n")


def write_folder(cfg, out: Path, wan, params, coder: Coder, text: TextEncoder) -> None:
    """Write the finished model: transformer and VAE in float16, the text encoder in float32."""
    name = "diffusion_pytorch_model.safetensors"
    rules = wan_model.rules(wan.config)
    write_model(out / "transformer", wan.config, params, rules, name, np.float16)
    rules = vae.rules(coder.config)
    write_model(out / "vae", coder.config, coder.params, rules, name, np.float16)
    rules, name = umt5.rules(text.config), "model.safetensors"
    write_model(out / "text_encoder", text.config, text.params, rules, name, np.float32)
    write_pipeline(cfg, wan.config, out)


# --- the stages in order


def make_coder(cfg, workdir: Path, world: stages.World) -> Coder:
    """Train the VAE, then measure the latents that its config is to normalise."""
    plain = stages.vae_config(cfg)
    params = stage(workdir, "vae", lambda: stages.train_vae(cfg, world, plain))
    scale = stage(workdir, "scale", lambda: measure_latents(params, plain, world))
    return Coder(params, stages.vae_config(cfg, scale["mean"].tolist(), scale["std"].tolist()))


def make_text_encoder(cfg, workdir: Path, world: stages.World, folder: Path) -> TextEncoder:
    """Train the tokenizer into its folder, and the text encoder on its ids."""
    if not (folder / "tokenizer.json").is_file():  # the text stage depends on it
        tokenizers.train(world.prompts, folder, cfg.text.vocab_size)
    tokenizer = umt5.load_tokenizer(folder)
    params = stage(workdir, "text", lambda: stages.train_text(cfg, world, folder))
    return TextEncoder(params, stages.text_config(cfg, len(tokenizer)), tokenizer)


def run(cfg, out: Path, workdir: Path, until: str) -> None:
    """Run the stages in order, up to `until`, and write the folder at the end."""
    workdir.mkdir(parents=True, exist_ok=True)
    world = render_world(cfg)
    if until == "world":
        return
    coder = make_coder(cfg, workdir, world)
    print(f"VAE PSNR on held-out portraits: {psnr(coder.params, coder.config):.2f} dB")
    if until == "vae":
        return
    text = make_text_encoder(cfg, workdir, world, out / "tokenizer")
    if until == "text":
        return
    latents = stage(workdir, "latents", lambda: encode_world(cfg, world, text, coder)._asdict())
    data = stages.Latents(**latents)
    if until == "latents":
        return
    wan = wan_model.Wan(stages.wan_config(cfg))
    main_blocks = stage(workdir, "t2v", lambda: stages.train_t2v(cfg, data, wan))
    if until == "t2v":
        return
    params = stage(workdir, "vace", lambda: stages.train_vace(cfg, data, wan, main_blocks))
    write_folder(cfg, out, wan, params, coder, text)


def main(argv) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    values = flags.FLAGS
    run(values.config, Path(values.out), Path(values.workdir), values.until)


if __name__ == "__main__":
    flags.DEFINE_string("out", None, "Folder of the finished model, diffusers.", required=True)
    flags.DEFINE_string("workdir", "/tmp/evoid_pretrain", "Finished stages.")
    flags.DEFINE_enum("until", "vace", STAGES, "Last stage to run.")
    # Its settings are named and typed by their file alone.
    commandline.run(main, settings=ml_collections.ConfigDict, default="configs/pretrain_tiny.py")
