"""Make the tiny base by imitation: tokenizer and text encoder, VAE, T2V transformer, VACE blocks.

    python -m evoid_jax.pretrain --config=configs/pretrain_tiny.py --out=evoid_jax/assets/tiny

The order is that of the real models: the VAE and the text encoder are frozen before the transformer
is trained, and the main blocks are frozen before the VACE blocks are, so that VACE is the T2V model
plus an adapter. Each stage leaves its weights in `--workdir` and is skipped when they are there.

Letters: B videos, F pixel frames, T H W C latents, S text tokens, E text width, R references (1).
"""

from __future__ import annotations

import json
from pathlib import Path

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
        np.savez(path.with_suffix(".part.npz"), **flat)
        path.with_suffix(".part.npz").replace(path)
    with np.load(path) as stored:
        return traverse_util.unflatten_dict({k: stored[k] for k in stored.files}, sep="/")


# --- the world


def render_world(cfg) -> stages.World:
    """Render `cfg.videos` scenes of the pretraining identities, one scene per identity."""
    chosen = portraits.SPLITS["pretrain"][: cfg.videos]
    video, reference, texts, labels, targets = [], [], [], [], []
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
        np.stack(video), np.stack(reference), texts, np.array(labels), np.array(targets, np.float32)
    )


# --- latents


def encode_world(cfg, world: stages.World, umt5_params, umt5_config, tokenizer, params, config):
    """Encode every video as found, reference and prompt once; a dict of the fields of `Latents`."""
    encode = jax.jit(lambda x: vae.encode(params, config, x))
    embed = jax.jit(lambda i, m: umt5.encode(umt5_params, umt5_config, i, m))

    def batches(x, size=50, name="latents"):
        for i in tqdm(range(0, len(x), size), desc=name, mininterval=5):
            yield x[i : i + size]

    ids_BS, mask_BS = umt5.tokenize(tokenizer, world.prompts)
    null_S, null_mask = umt5.tokenize(tokenizer, [""])
    pad = ids_BS.shape[1]
    null_SE = np.zeros((pad, umt5_config.d_model), np.float32)
    null_SE[: null_S.shape[1]] = np.asarray(embed(null_S, null_mask))[0][:pad]
    videos = [
        faults.as_found(video, cfg.faulty, np.random.default_rng((cfg.seed, i)))
        for i, video in enumerate(world.video_BFHWC)
    ]
    stills = world.reference_BHWC[:, None]
    grey = np.zeros((1, cfg.frames, cfg.size, cfg.size, 3), np.float32)
    pairs = zip(batches(ids_BS, 500, "text"), batches(mask_BS, 500, "mask"), strict=True)
    return {
        "video_BTHWC": np.concatenate([encode(stages.unit(x)) for x in batches(np.stack(videos))]),
        "reference_BTHWC": np.concatenate([encode(stages.unit(x)) for x in batches(stills)]),
        "blank_THWC": np.asarray(encode(grey))[0],
        "text_BSE": np.concatenate([np.asarray(embed(i, m)) for i, m in pairs]),
        "null_SE": null_SE,
    }


def measure_latents(params, config, world: stages.World) -> dict[str, np.ndarray]:
    """Return the mean and standard deviation of each latent channel over part of the world."""
    encode = jax.jit(lambda x: vae.encode(params, config, x))
    z = np.concatenate(
        [np.asarray(encode(stages.unit(world.video_BFHWC[i : i + 32]))) for i in range(0, 512, 32)]
    )
    return {"mean": z.mean((0, 1, 2, 3)), "std": z.std((0, 1, 2, 3))}


# --- the finished folder


def psnr(params, config, count: int = 64) -> float:
    """Return the VAE's mean PSNR in dB on portraits of identities it never saw."""
    scenes = [portraits.scene(i, 1) for i in portraits.SPLITS["heldout"][:count]]
    video = stages.unit(np.stack([portraits.render(s, 9, 64) for s in scenes]))
    back = jax.jit(lambda x: vae.decode(params, config, vae.encode(params, config, x)))(video)
    mse_B = ((np.asarray(back) - video) ** 2).mean((1, 2, 3, 4))
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


def run(cfg, out: Path, workdir: Path, until: str) -> None:
    """Run the stages in order, up to `until`, and write the folder at the end."""
    workdir.mkdir(parents=True, exist_ok=True)
    world = render_world(cfg)
    if until == "world":
        return
    plain = stages.vae_config(cfg)
    coder = stage(workdir, "vae", lambda: stages.train_vae(cfg, world, plain))
    scale = stage(workdir, "scale", lambda: measure_latents(coder, plain, world))
    coder_cfg = stages.vae_config(cfg, scale["mean"].tolist(), scale["std"].tolist())
    quality = psnr(coder, coder_cfg)
    print(f"VAE PSNR on held-out portraits: {quality:.2f} dB")
    if until == "vae":
        return
    if not (out / "tokenizer" / "tokenizer.json").is_file():  # the text stage depends on it
        tokenizers.train(world.prompts, out / "tokenizer", cfg.text.vocab_size)
    tokenizer = umt5.load_tokenizer(out / "tokenizer")
    text_cfg = stages.text_config(cfg, len(tokenizer))
    text = stage(workdir, "text", lambda: stages.train_text(cfg, world, out / "tokenizer"))
    if until == "text":
        return
    made = lambda: encode_world(cfg, world, text, text_cfg, tokenizer, coder, coder_cfg)
    data = stages.Latents(**stage(workdir, "latents", made))
    if until == "latents":
        return
    wan = wan_model.Wan(stages.wan_config(cfg))
    params = stage(workdir, "t2v", lambda: stages.train_t2v(cfg, data, wan))
    if until == "t2v":
        return
    params = stage(workdir, "vace", lambda: stages.train_vace(cfg, data, wan, params))
    weights_name = "diffusion_pytorch_model.safetensors"
    rules = wan_model.rules(wan.config)
    write_model(out / "transformer", wan.config, params, rules, weights_name, np.float16)
    write_model(out / "vae", coder_cfg, coder, vae.rules(coder_cfg), weights_name, np.float16)
    rules = umt5.rules(text_cfg)
    write_model(out / "text_encoder", text_cfg, text, rules, "model.safetensors", np.float32)
    write_pipeline(cfg, wan.config, out)


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
