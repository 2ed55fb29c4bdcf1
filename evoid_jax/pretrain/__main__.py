"""Make the tiny base by imitation: tokenizer and text encoder, VAE, T2V transformer, VACE blocks.

    python -m evoid_jax.pretrain --config=configs/pretrain_tiny.py --out=evoid_jax/assets/tiny

The order is that of the real models: the VAE and the text encoder are frozen before the transformer
is trained, and the main blocks are frozen before the VACE blocks are, so that VACE is the T2V model
plus an adapter. Each stage leaves its weights in `--workdir` and is skipped when they are there.

Letters: B videos, F pixel frames, T H W C latents, S text tokens, E text width, R references (1).
"""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import ml_collections
import numpy as np
from absl import app, flags

from evoid_jax import commandline, fields, files
from evoid_jax.models import native, umt5, vae, weights
from evoid_jax.models import wan as wan_model
from evoid_jax.pretrain import coder, footage, kept, latents, stages
from evoid_jax.pretrain import tokenizer as tokenizers
from evoid_jax.pretrain.coder import Coder
from evoid_jax.pretrain.latents import TextEncoder

# Of what is no count: shares, rates and their like.
BOUNDS = dict.fromkeys(("faulty", "posed", "drift", "text_dropout"), fields.SHARE)
BOUNDS |= {"lr": fields.Bounds(above=0, most=1), "muon_lr": fields.Bounds(above=0, most=1)}
BOUNDS |= {"ema": fields.DECAY, "kl": fields.NOT_NEGATIVE, "shift": fields.POSITIVE}
BOUNDS |= {"seed": fields.NOT_NEGATIVE, "warmup": fields.NOT_NEGATIVE}
CODER_STAGES = ("stills", "vae", "decoder")
STAGES = (*CODER_STAGES, "text", "latents", "t2v", "pairs", "vace")
FILMED = ("seed", "frames", "size")
STILLS = (*FILMED, "vae_videos", "vae", "kl", "stills_train")
CODER = (*STILLS, "vae_train")
DECODER = (*CODER, "decoder_train")
SPOKEN = ("seed", "videos", "text", "text_train")
IMITATED = (*CODER, "coder", *SPOKEN, "faulty")
FOUND = (*IMITATED, "pairs", "posed", "drift")
# What each stage is kept under: the settings that it depends on, those before it included.
NEEDS = {
    "footage": FILMED,
    "stills": STILLS,
    "vae": CODER,
    "scale": CODER,
    "decoder": DECODER,
    "psnr": DECODER,
    "text": SPOKEN,
    "latents": IMITATED,
    "t2v": (*IMITATED, "wan", "t2v_train"),
    "pairs": FOUND,
    "vace": (*FOUND, "wan", "t2v_train", "vace_train"),
}


def place(cfg, workdir: Path, name: str) -> kept.Place:
    """Return where a stage is kept; a part of one is named by the stage and its clips."""
    needs = {key: cfg[key] for key in NEEDS[name.split("_")[0]]}
    if needs.get("coder"):
        needs["coder"] = [files.sha256(file) for file in coder.stored(cfg.coder)]
    settings = json.loads(ml_collections.ConfigDict(needs).to_json())
    return kept.Place(workdir, name, settings, cfg.save_every)


# --- the finished folder


def write_model(folder: Path, config, params, rules, name: str, dtype) -> None:
    """Write one model as diffusers or transformers would: config.json and one safetensors file."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config.to_json(), indent=2) + "\n")
    tensors = weights.to_tensors(params, rules)
    weights.write_tensors(folder / name, {k: v.astype(dtype) for k, v in tensors.items()})


def write_pipeline(cfg, wan_config: wan_model.WanConfig, out: Path) -> None:
    """Write what makes the folder a WanVACEPipeline, and what `generate` starts from."""
    released = native.released_files(wan_config, "float32")
    released["model_index.json"]["tokenizer"] = ["transformers", "PreTrainedTokenizerFast"]
    for name in ("model_index.json", "scheduler/scheduler_config.json"):
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text(json.dumps(released[name], indent=2) + "\n")
    start = {"frames": cfg.frames, "height": cfg.size, "width": cfg.size, "fps": cfg.fps}
    start["negative_prompt"] = ""  # what this model learned as the null; Wan's own is Chinese
    (out / "evoid.json").write_text(json.dumps(start, indent=2) + "\n")


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


def make_coder(cfg, workdir: Path, until: str) -> Coder | None:
    """Train the VAE, then measure the latents; None where the run ends with it.

    A VAE that is finished in another folder, `cfg.coder`, is taken from there.

    Raises:
      OSError, ValueError: as `coder.read`; or the run is to end with a VAE that is finished.
    """
    if cfg.coder and until in CODER_STAGES:
        raise ValueError(
            f"config.coder is {cfg.coder}, so that no VAE is trained: nothing to do until {until}"
        )
    if cfg.coder:
        return coder.read(cfg.coder, cfg.vae.z_dim)
    at = functools.partial(place, cfg, workdir)
    seen = footage.of_vae(cfg, at)
    stills = kept.stage(at("stills"), lambda: coder.train_stills(cfg, seen, at("stills")))
    if until == "stills":
        return None
    first = kept.stage(at("vae"), lambda: coder.train_vae(cfg, seen, stills, at("vae")))
    if until == "vae":
        return None
    plain = coder.vae_config(cfg)
    scale = kept.stage(at("scale"), lambda: coder.measure_latents(first, plain, seen))
    train = lambda: coder.train_decoder(cfg, seen, first, at("decoder"))
    params = kept.stage(at("decoder"), train)
    whole = Coder(params, coder.vae_config(cfg, scale["mean"].tolist(), scale["std"].tolist()))
    measured = kept.stage(at("psnr"), lambda: {"psnr": coder.psnr(params, whole.config)})
    print(f"VAE PSNR on unseen portraits: {measured['psnr']:.2f} dB")
    return None if until == "decoder" else whole


def make_text_encoder(cfg, workdir: Path) -> TextEncoder:
    """Train the tokenizer, and the text encoder on its ids."""
    said = stages.script(footage.scenes(cfg, cfg.videos))
    folder, at = workdir / "tokenizer", place(cfg, workdir, "text")
    if not at.done.is_file():  # the same prompts give the same tokenizer, in seconds
        tokenizers.train(said.prompts, folder, cfg.text.vocab_size)
    tokenizer = umt5.load_tokenizer(folder)
    params = kept.stage(at, lambda: stages.train_text(cfg, said, folder, at))
    return TextEncoder(params, stages.text_config(cfg, len(tokenizer)), tokenizer)


def run(cfg, out: Path, workdir: Path, until: str) -> None:
    """Run the stages in order, up to `until`, and write the folder at the end."""
    at = functools.partial(place, cfg, workdir)
    trained = make_coder(cfg, workdir, until)
    if trained is None:
        return
    text = make_text_encoder(cfg, workdir)
    if until == "text":
        return
    videos = latents.of_videos(cfg, at, text, trained)
    if until == "latents":
        return
    wan = wan_model.Wan(stages.wan_config(cfg))
    blocks = kept.stage(at("t2v"), lambda: stages.train_t2v(cfg, videos, wan, at("t2v")))
    if until == "t2v":
        return
    pairs = latents.of_pairs(cfg, at, text, trained)
    if until == "pairs":
        return
    params = kept.stage(at("vace"), lambda: stages.train_vace(cfg, pairs, wan, blocks, at("vace")))
    write_folder(cfg, out, wan, params, trained, text)
    shutil.copytree(workdir / "tokenizer", out / "tokenizer", dirs_exist_ok=True)


def check(values: Mapping, name: str = "config") -> None:
    """Raise a ValueError, which names it, for a number that no pretraining can have.

    values: the settings, groups in groups.
    """
    for key, value in values.items():
        at, held = f"{name}.{key}", value if isinstance(value, tuple | list) else (value,)
        if isinstance(value, Mapping):
            check(value, at)
        elif key not in ("vace_layers", "coder"):
            bounds = BOUNDS.get(key, fields.COUNT)
            for one in held:
                fields.checked(type(held[0]), fields.setting(one, at, bounds), one, at)


def main(argv) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    values = flags.FLAGS
    check(values.config.to_dict())
    run(values.config, Path(values.out), Path(values.workdir), values.until)


if __name__ == "__main__":
    flags.DEFINE_string("out", None, "Folder of the finished model, diffusers.", required=True)
    flags.DEFINE_string("workdir", "/tmp/evoid_pretrain", "Finished stages and begun ones.")
    flags.DEFINE_enum("until", "vace", STAGES, "Last stage to run.")
    # Its settings are named and typed by their file alone.
    commandline.run(main, settings=ml_collections.ConfigDict, default="configs/pretrain_tiny.py")
