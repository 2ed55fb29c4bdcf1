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
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags
from flax import traverse_util
from ml_collections import config_flags
from tqdm import tqdm

from evoid_jax import flow
from evoid_jax.data import portraits, prompts
from evoid_jax.models import umt5, vae, weights
from evoid_jax.models import wan as wan_model

CONFIG = config_flags.DEFINE_config_file("config", "configs/pretrain_tiny.py", "What to train.")
OUT = flags.DEFINE_string("out", None, "Folder of the finished model (diffusers layout).")
WORKDIR = flags.DEFINE_string("workdir", "/tmp/evoid_pretrain", "Renderings and finished stages.")
UNTIL = flags.DEFINE_enum(
    "until", "vace", ["world", "vae", "text", "latents", "t2v", "vace"], "Last stage to run."
)


class World(NamedTuple):
    """The rendered pretraining world."""

    video_BFHWC: np.ndarray  # uint8
    reference_BHWC: np.ndarray  # uint8
    prompts: list[str]  # two per video: prompts[2 i] and prompts[2 i + 1]
    labels_BK: np.ndarray  # action, background, camera
    targets_BK: np.ndarray  # amplitude and identity attributes, in [0, 1]


class Latents(NamedTuple):
    """The world as the transformer sees it: normalised latents and text embeddings."""

    video_BTHWC: np.ndarray
    reference_BTHWC: np.ndarray  # T = 1
    blank_THWC: np.ndarray  # the encoding of the mid-grey video, VACE's "nothing here"
    text_BSE: np.ndarray  # two per video
    null_SE: np.ndarray  # the empty prompt


def unit(pixels: np.ndarray) -> np.ndarray:
    """Map uint8 pixels to float32 in [-1, 1]."""
    return pixels.astype(np.float32) / 127.5 - 1


def fit(name: str, loss_fn, params, batch_fn, train, seed: int):
    """Minimise `loss_fn(params, key, *batch)` with AdamW; return the averaged parameters.

    Args:
      batch_fn: step -> tuple of arrays.
      train: has steps, lr, warmup.
    """
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, train.lr, train.warmup, train.steps, train.lr * 0.02
    )
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, weight_decay=1e-4))

    @jax.jit
    def update(params, ema, opt, step, batch):
        key = jax.random.fold_in(jax.random.key(seed), step)
        loss, grads = jax.value_and_grad(loss_fn)(params, key, *batch)
        updates, opt = tx.update(grads, opt, params)
        params = optax.apply_updates(params, updates)
        decay = jnp.minimum((1.0 + step) / (10.0 + step), 0.99)
        ema = optax.incremental_update(params, ema, 1 - decay)
        return params, ema, opt, loss

    ema, opt, smooth = params, tx.init(params), None
    bar = tqdm(range(train.steps), desc=name, mininterval=5, dynamic_ncols=True)
    for step in bar:
        params, ema, opt, loss = update(params, ema, opt, step, batch_fn(step))
        smooth = float(loss) if smooth is None else 0.95 * smooth + 0.05 * float(loss)
        bar.set_postfix(loss=f"{smooth:.4f}", refresh=False)
    return jax.device_get(ema)


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


def render_world(cfg) -> World:
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
    return World(
        np.stack(video), np.stack(reference), texts, np.array(labels), np.array(targets, np.float32)
    )


# --- text


def train_text(cfg, world: World, folder: Path):
    """Train the text encoder to tell from a prompt what the scene holds.

    The heads (action, background, camera, amplitude, attributes) are thrown away afterwards.
    """
    tokenizer = umt5.load_tokenizer(folder)
    config = text_config(cfg, len(tokenizer))
    ids_BS, mask_BS = umt5.tokenize(tokenizer, world.prompts)
    labels_BK, targets_BK = (np.repeat(x, 2, axis=0) for x in (world.labels_BK, world.targets_BK))
    counts = [len(portraits.ACTIONS), len(portraits.BACKGROUNDS), len(portraits.CAMERAS)]
    keys = jax.random.split(jax.random.key(cfg.seed + 1), 5)
    widths = [*counts, targets_BK.shape[1]]
    heads = {
        f"head_{i}": jax.random.normal(keys[i], (config.d_model, width)) * config.d_model**-0.5
        for i, width in enumerate(widths)
    }

    def loss_fn(params, key, ids_BS, mask_BS, labels_BK, targets_BK):
        x_BSE = umt5.encode(params["umt5"], config, ids_BS, mask_BS)
        x_BE = x_BSE.sum(1) / mask_BS.sum(1, keepdims=True)
        out = [x_BE @ params["heads"][f"head_{i}"] for i in range(4)]
        loss = jnp.mean((out[3] - targets_BK) ** 2)
        for i in range(3):
            picked = optax.softmax_cross_entropy_with_integer_labels(out[i], labels_BK[:, i])
            loss += picked.mean()
        return loss

    def batch_fn(step):
        rng = np.random.default_rng((cfg.seed, step))
        i = rng.integers(0, len(ids_BS), cfg.text_train.batch)
        return ids_BS[i], mask_BS[i], labels_BK[i], targets_BK[i]

    params = {"umt5": umt5.init(keys[4], config), "heads": heads}
    return fit("text", loss_fn, params, batch_fn, cfg.text_train, cfg.seed)["umt5"]


def text_config(cfg, vocab_size: int) -> umt5.UMT5Config:
    """Return the text encoder's config for a tokenizer of `vocab_size` entries."""
    return umt5.UMT5Config(**(dict(cfg.text) | {"vocab_size": vocab_size}))


# --- VAE


def train_vae(cfg, world: World, config: vae.VAEConfig):
    """Train the VAE: absolute and squared error of the pixels, and a small KL."""
    train = cfg.vae_train

    def loss_fn(params, key, video_BFHWC):
        mean, logvar = vae.moments(params, config, video_BFHWC)
        noise = jax.random.normal(key, mean.shape)
        shift, scale = (jnp.asarray(x).reshape(1, 1, 1, 1, -1) for x in latent_scale(config))
        z = (mean + jnp.exp(0.5 * logvar) * noise - shift) / scale
        error = vae.raw_decode(params, config, z) - video_BFHWC  # a clip would stop the gradient
        kl = 0.5 * (mean**2 + jnp.exp(logvar) - 1 - logvar)
        return jnp.abs(error).mean() + 2 * (error**2).mean() + train.kl * kl.mean()

    def batch_fn(step):
        rng = np.random.default_rng((cfg.seed, step))
        whole = step >= train.steps - train.whole_steps
        size, count = (cfg.size, train.batch // 2) if whole else (train.crop, train.batch)
        top, left = rng.integers(0, cfg.size - size + 1, 2)
        window = np.s_[..., top : top + size, left : left + size, :]
        i = rng.integers(0, len(world.video_BFHWC), count)
        if step % 4 == 0 and not whole:  # reference faces are encoded as videos of one frame
            return (unit(world.reference_BHWC[i][:, None][window]),)
        return (unit(world.video_BFHWC[i][window]),)

    params = vae.init(jax.random.key(cfg.seed + 2), config)
    bias = params["quant_conv"]["bias"]  # latents start nearly without noise, or the decoder learns
    params["quant_conv"]["bias"] = bias.at[config.z_dim :].set(-6.0)  # to do without them
    return fit("vae", loss_fn, params, batch_fn, train, cfg.seed)


def latent_scale(config: vae.VAEConfig) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean and standard deviation that normalise the latents, each (C,)."""
    return np.array(config.latents_mean, np.float32), np.array(config.latents_std, np.float32)


def vae_config(cfg, mean=None, std=None) -> vae.VAEConfig:
    """Return the VAE's config; latent statistics are zero and one until they are measured."""
    z = cfg.vae.z_dim
    return vae.VAEConfig(
        **dict(cfg.vae),
        latents_mean=tuple(mean if mean is not None else [0.0] * z),
        latents_std=tuple(std if std is not None else [1.0] * z),
    )


def measure_latents(params, config, world: World) -> dict[str, np.ndarray]:
    """Return the mean and standard deviation of each latent channel over part of the world."""
    encode = jax.jit(lambda x: vae.encode(params, config, x))
    z = np.concatenate(
        [np.asarray(encode(unit(world.video_BFHWC[i : i + 32]))) for i in range(0, 512, 32)]
    )
    return {"mean": z.mean((0, 1, 2, 3)), "std": z.std((0, 1, 2, 3))}


# --- latents


def encode_world(cfg, world: World, umt5_params, umt5_config, tokenizer, params, config):
    """Encode every video, reference and prompt once; a dict of the fields of `Latents`."""
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
    stills = world.reference_BHWC[:, None]
    grey = np.zeros((1, cfg.frames, cfg.size, cfg.size, 3), np.float32)
    pairs = zip(batches(ids_BS, 500, "text"), batches(mask_BS, 500, "mask"), strict=True)
    return {
        "video_BTHWC": np.concatenate([encode(unit(x)) for x in batches(world.video_BFHWC)]),
        "reference_BTHWC": np.concatenate([encode(unit(x)) for x in batches(stills)]),
        "blank_THWC": np.asarray(encode(grey))[0],
        "text_BSE": np.concatenate([np.asarray(embed(i, m)) for i, m in pairs]),
        "null_SE": null_SE,
    }


# --- transformer


def noisy(key, x0, shift: float):
    """Noise `x0` at shifted uniform times; return (x_t, velocity, t in [0, 1])."""
    k_t, k_noise = jax.random.split(key)
    u_B = jax.random.uniform(k_t, x0.shape[:1])
    t_B = shift * u_B / (1 + (shift - 1) * u_B)
    noise = jax.random.normal(k_noise, x0.shape)
    t = t_B.reshape(-1, 1, 1, 1, 1)
    return flow.add_noise(x0, noise, t), flow.velocity(x0, noise), t_B


def wan_config(cfg) -> wan_model.WanConfig:
    """Return the transformer's config: Wan2.1-VACE with the sizes of `cfg.wan`."""
    return wan_model.WanConfig(
        **dict(cfg.wan),
        in_channels=cfg.vae.z_dim,
        out_channels=cfg.vae.z_dim,
        text_dim=cfg.text.d_model,
        freq_dim=256,
        vace_in_channels=2 * cfg.vae.z_dim + 64,
    )


def is_vace(path: tuple[str, ...]) -> bool:
    """Tell whether a leaf belongs to the VACE adapter."""
    return path[0].startswith("vace_")


def split(params) -> tuple[dict, dict]:
    """Return (main, vace) halves of the transformer's parameters."""
    flat = traverse_util.flatten_dict(params)
    main = {k: v for k, v in flat.items() if not is_vace(k)}
    vace = {k: v for k, v in flat.items() if is_vace(k)}
    return traverse_util.unflatten_dict(main), traverse_util.unflatten_dict(vace)


def latent_batches(cfg, data: Latents, train):
    """Return step -> (video, reference, text): random videos, some with the empty prompt."""

    def batch_fn(step):
        rng = np.random.default_rng((cfg.seed, step))
        i = rng.integers(0, len(data.video_BTHWC), train.batch)
        text_BSE = data.text_BSE[2 * i + rng.integers(0, 2, train.batch)]
        dropped = rng.random(train.batch) < train.text_dropout
        text_BSE[dropped] = data.null_SE
        return data.video_BTHWC[i], data.reference_BTHWC[i], text_BSE

    return batch_fn


def train_t2v(cfg, data: Latents, wan):
    """Train the main blocks by flow matching, half of the time with the portrait as first frame.

    VACE puts reference frames before the video; sequences of that kind must not be new to the main
    blocks when they are frozen.
    """

    def loss_fn(params, key, video, reference, text):
        k_plain, k_led = jax.random.split(key)
        half = video.shape[0] // 2
        led = jnp.concatenate([reference[half:], video[half:]], axis=1)
        loss = 0.0
        for k, x0, t in ((k_plain, video[:half], text[:half]), (k_led, led, text[half:])):
            x_t, v, t_B = noisy(k, x0, cfg.t2v_train.shift)
            pred = wan_model.velocity(wan, params, None, x_t, 1000 * t_B, t)
            loss += 0.5 * jnp.mean((pred - v) ** 2)
        return loss

    params, vace = split(wan_model.init(jax.random.key(cfg.seed + 3), wan))
    batch_fn = latent_batches(cfg, data, cfg.t2v_train)
    return fit("t2v", loss_fn, params, batch_fn, cfg.t2v_train, cfg.seed) | vace


def control_of(data: Latents, reference_BTHWC):
    """Return VACE's control for one reference: [z_ref, 0, 0 x 64], then [Z0, Z0, 1 x 64]."""
    b, _, h, w, _ = reference_BTHWC.shape
    blank = jnp.broadcast_to(data.blank_THWC[None], (b, *data.blank_THWC.shape))
    zeros, ones = jnp.zeros_like(reference_BTHWC), jnp.ones((b, blank.shape[1], h, w, 64))
    head = jnp.concatenate([reference_BTHWC, zeros, jnp.zeros((b, 1, h, w, 64))], axis=-1)
    return jnp.concatenate([head, jnp.concatenate([blank, blank, ones], axis=-1)], axis=1)


def train_vace(cfg, data: Latents, wan, params):
    """Train the VACE blocks by flow matching from copies of main blocks, all else frozen."""
    layers = np.array(wan.config.vace_layers)
    params["vace_blocks"] |= jax.tree.map(lambda x: x[layers], params["blocks"])
    main, vace = split(params)

    def loss_fn(vace, key, video, reference, text):
        x0 = jnp.concatenate([reference, video], axis=1)
        x_t, v, t_B = noisy(key, x0, cfg.vace_train.shift)
        whole, control = main | vace, control_of(data, reference)
        hints = wan_model.hints(wan, whole, None, x_t, 1000 * t_B, text, control)
        pred = wan_model.velocity(wan, whole, None, x_t, 1000 * t_B, text, hints)
        return jnp.mean((pred - v) ** 2)

    batch_fn = latent_batches(cfg, data, cfg.vace_train)
    return main | fit("vace", loss_fn, vace, batch_fn, cfg.vace_train, cfg.seed)


# --- the finished folder


def psnr(params, config, count: int = 64) -> float:
    """Return the VAE's mean PSNR in dB on portraits of identities it never saw."""
    scenes = [portraits.scene(i, 1) for i in portraits.SPLITS["heldout"][:count]]
    video = unit(np.stack([portraits.render(s, 9, 64) for s in scenes]))
    back = jax.jit(lambda x: vae.decode(params, config, vae.encode(params, config, x)))(video)
    mse_B = ((np.asarray(back) - video) ** 2).mean((1, 2, 3, 4))
    return float(np.mean(10 * np.log10(4 / mse_B)))


def write_model(folder: Path, config, params, rules, name: str, dtype) -> None:
    """Write one model as diffusers or transformers would: config.json and one safetensors file."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config.to_json(), indent=2) + "\n")
    tensors = weights.to_tensors(params, rules)
    weights.write_tensors(folder / name, {k: v.astype(dtype) for k, v in tensors.items()})


def write_pipeline(cfg, out: Path) -> None:
    """Write what makes the folder a WanVACEPipeline, and the sizes that `generate` starts from."""
    index = {
        "_class_name": "WanVACEPipeline",
        "scheduler": ["diffusers", "UniPCMultistepScheduler"],
        "text_encoder": ["transformers", "UMT5EncoderModel"],
        "tokenizer": ["transformers", "PreTrainedTokenizerFast"],
        "transformer": ["diffusers", "WanVACETransformer3DModel"],
        "vae": ["diffusers", "AutoencoderKLWan"],
    }
    scheduler = {
        "_class_name": "UniPCMultistepScheduler",
        "num_train_timesteps": 1000,
        "prediction_type": "flow_prediction",
        "use_flow_sigmas": True,
        "flow_shift": 3.0,
        "solver_order": 2,
        "solver_type": "bh2",
        "predict_x0": True,
        "lower_order_final": True,
        "final_sigmas_type": "zero",
    }
    (out / "scheduler").mkdir(parents=True, exist_ok=True)
    (out / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
    path = out / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(scheduler, indent=2) + "\n")
    sizes = {"frames": cfg.frames, "height": cfg.size, "width": cfg.size, "fps": cfg.fps}
    (out / "evoid.json").write_text(json.dumps(sizes, indent=2) + "\n")


def run(cfg, out: Path, workdir: Path, until: str) -> None:
    """Run the stages in order, up to `until`, and write the folder at the end."""
    workdir.mkdir(parents=True, exist_ok=True)
    world = render_world(cfg)
    if until == "world":
        return
    plain = vae_config(cfg)
    coder = stage(workdir, "vae", lambda: train_vae(cfg, world, plain))
    scale = stage(workdir, "scale", lambda: measure_latents(coder, plain, world))
    coder_cfg = vae_config(cfg, scale["mean"].tolist(), scale["std"].tolist())
    quality = psnr(coder, coder_cfg)
    print(f"VAE PSNR on held-out portraits: {quality:.2f} dB")
    if until == "vae":
        return
    if not (out / "tokenizer" / "tokenizer.json").is_file():  # the text stage depends on it
        umt5.train_tokenizer(world.prompts, out / "tokenizer", cfg.text.vocab_size)
    tokenizer = umt5.load_tokenizer(out / "tokenizer")
    text_cfg = text_config(cfg, len(tokenizer))
    text = stage(workdir, "text", lambda: train_text(cfg, world, out / "tokenizer"))
    if until == "text":
        return
    made = lambda: encode_world(cfg, world, text, text_cfg, tokenizer, coder, coder_cfg)
    data = Latents(**stage(workdir, "latents", made))
    if until == "latents":
        return
    wan = wan_model.Wan(wan_config(cfg))  # remat is faster on a CPU too
    params = stage(workdir, "t2v", lambda: train_t2v(cfg, data, wan))
    if until == "t2v":
        return
    params = stage(workdir, "vace", lambda: train_vace(cfg, data, wan, params))
    weights_name = "diffusion_pytorch_model.safetensors"
    rules = wan_model.rules(wan.config)
    write_model(out / "transformer", wan.config, params, rules, weights_name, np.float16)
    write_model(out / "vae", coder_cfg, coder, vae.rules(coder_cfg), weights_name, np.float16)
    rules = umt5.rules(text_cfg)
    write_model(out / "text_encoder", text_cfg, text, rules, "model.safetensors", np.float32)
    write_pipeline(cfg, out)


def main(argv) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    if OUT.value is None:
        raise app.UsageError("--out=FOLDER is needed: where the finished model goes")
    run(CONFIG.value, Path(OUT.value), Path(WORKDIR.value), UNTIL.value)


if __name__ == "__main__":
    app.run(main)
