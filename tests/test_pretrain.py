"""Pretraining in miniature: stages resume to the bit, stills start clips, VACE spares the rest."""

from pathlib import Path

import jax
import ml_collections
import numpy as np
import pytest
from flax import traverse_util
from safetensors.numpy import save_file

from configs import pretrain_tiny
from evoid_jax import flow, rollout
from evoid_jax.config import TINY
from evoid_jax.models import vae, weights
from evoid_jax.pretrain import __main__ as pretrain
from evoid_jax.pretrain import coder, kept, stages
from evoid_jax.pretrain.fit import by_jax, fit

SMALL = vae.VAEConfig(
    base_dim=4, z_dim=2, dim_mult=(1, 2, 2), num_res_blocks=1, temperal_downsample=(True, True),
    latents_mean=(0.0,) * 2, latents_std=(1.0,) * 2,
)  # fmt: skip
SETTINGS = {"seed": 0, "wan": {"num_layers": 6}}


class Killed(Exception):
    """Stands for the end of the process."""


def place(folder, **changes):
    return kept.Place(folder, "line", SETTINGS | changes, every=2)


def fitted(at, killed_at=None, calls=None):
    """Fit a line of 9 inputs and 8 outputs in 6 steps; the kernel is Muon's, the bias AdamW's."""
    target = np.random.default_rng(0).normal(size=(9, 8)).astype(np.float32)
    train = {"steps": 6, "warmup": 1, "lr": 0.1, "muon_lr": 0.1, "ema": 0.9}

    def loss_fn(params, key, x_BC):
        noise = 0.1 * jax.random.normal(key, (1, 8))  # a key that came back wrong would show
        guess = x_BC @ params["kernel"] + params["bias"][None] + noise
        return ((guess - x_BC @ target) ** 2).mean()

    def batch_fn(step):
        if step == killed_at:
            raise Killed
        if calls is not None:
            calls.append(step)
        return np.random.default_rng(step).normal(size=(4, 9)).astype(np.float32)

    params = {"kernel": np.zeros((9, 8), np.float32), "bias": np.zeros(8, np.float32)}
    train = ml_collections.ConfigDict(train)
    return fit("line", by_jax(loss_fn, seed=0), params, batch_fn, train, at)


def test_a_training_that_is_killed_goes_on_to_the_same_bits(tmp_path):
    straight = fitted(place(tmp_path / "straight"))
    at, calls = place(tmp_path / "killed"), []
    for killed_at in (5, 4):  # the save is of 4 steps; the second time not one is done
        with pytest.raises(Killed):
            kept.stage(at, lambda k=killed_at: fitted(at, k))
        assert at.begun.is_file() and not at.done.exists()
    done = kept.stage(at, lambda: fitted(at, calls=calls))
    assert calls == [4, 5]
    jax.tree.map(np.testing.assert_array_equal, done, straight)
    assert np.abs(done["kernel"]).max() > 0.01
    assert not at.begun.exists()  # nothing is left to go on from
    again = kept.stage(at, lambda: pytest.fail("a finished stage is not made again"))
    jax.tree.map(np.testing.assert_array_equal, again, straight)


def test_what_is_kept_is_never_used_under_other_settings(tmp_path):
    kept.stage(place(tmp_path), lambda: {"a": np.ones(2)})
    with pytest.raises(ValueError, match=r"line.npz was made with wan.num_layers 6 and not 8;"):
        kept.stage(place(tmp_path, wan={"num_layers": 8}), lambda: pytest.fail("not asked"))
    kept.save(place(tmp_path), 3, {"a": np.ones(2)})
    with pytest.raises(ValueError, match=r"line.begun.npz was made with seed 0 and not 1;"):
        kept.restore(place(tmp_path, seed=1), {"a": np.zeros(2)})


def test_a_stage_that_is_cut_off_while_it_is_written_is_none(tmp_path, monkeypatch):
    def cut_off(file, **arrays):
        file.write_bytes(b"PK")
        raise Killed

    monkeypatch.setattr(np, "savez", cut_off)
    with pytest.raises(Killed):
        kept.stage(place(tmp_path), lambda: {"a": np.ones(2)})
    monkeypatch.undo()
    np.testing.assert_array_equal(kept.stage(place(tmp_path), lambda: {"a": np.ones(2)})["a"], 1)


def test_a_stage_knows_all_that_it_depends_on():
    """Each setting of the file is some stage's; the last has all but the decoder's.

    Latents are the encoder's: what is made of them stands when the decoder learns on.
    """
    cfg = pretrain_tiny.get_config()
    free = {"save_every", "fps"}  # they change no weight
    assert set(pretrain.NEEDS["vace"]) == set(cfg) - free - {"decoder_train"}
    assert set().union(*pretrain.NEEDS.values()) == set(cfg) - free


def test_a_fresh_vae_takes_a_clip_for_stills():
    """Every frame that comes back is, to the bit, the still of the last of its four."""
    params = coder.start(jax.random.key(0), SMALL)
    clip = np.random.default_rng(0).uniform(-1, 1, (1, 5, 8, 8, 3)).astype(np.float32)
    code = jax.jit(lambda x: vae.raw_decode(params, SMALL, vae.encode(params, SMALL, x)))
    back, first, last = code(clip), code(clip[:, :1]), code(clip[:, -1:])
    expected = np.concatenate([first, *[last] * 4], axis=1)
    np.testing.assert_allclose(back, expected, atol=1e-5)
    assert np.abs(first - last).max() > 1e-3


def test_noisy_is_the_flows_path():
    """x_t - t v is the clean sample, at every time and shift."""
    x0 = jax.random.normal(jax.random.key(1), (64, 2, 2, 2, 3))
    x_t, v, t_B = stages.noisy(jax.random.key(0), x0, 3.0)
    t = t_B[:, None, None, None, None]
    np.testing.assert_allclose(x_t - t * v, x0, atol=1e-5)
    assert t_B.min() > 0 and t_B.max() < 1
    assert abs(float((t_B > flow.shifted(0.5, 3.0)).mean()) - 0.5) < 0.2  # the median is shifted


def test_split_is_a_partition():
    tree = {"blocks": {"a": 1}, "vace_blocks": {"a": 2}, "vace_proj_in": {"b": 3}, "proj_out": 4}
    main, vace = stages.split(tree)
    assert main == {"blocks": {"a": 1}, "proj_out": 4}
    assert main | vace == tree


def test_a_latent_channel_that_carries_nothing_is_not_blown_up():
    params = vae.init(jax.random.key(0), SMALL)
    last = params["quant_conv"]
    last["kernel"] = 5 * last["kernel"].at[..., 1].set(0.0)
    video = np.random.default_rng(0).integers(0, 256, (4, 5, 8, 8, 3), np.uint8)
    std = coder.measure_latents(params, SMALL, coder.Footage(video, video[:, 0]))["std"]
    assert std[0] > coder.LEAST_STD == std[1] == 0.1


@pytest.fixture
def finished(tmp_path):
    """A folder with a VAE in it, and the recipe that takes it."""
    params = vae.init(jax.random.key(0), SMALL)
    file = "diffusion_pytorch_model.safetensors"
    pretrain.write_model(tmp_path / "vae", SMALL, params, vae.rules(SMALL), file, np.float32)
    cfg = pretrain_tiny.get_config()
    cfg.coder, cfg.vae.z_dim = str(tmp_path), 2
    return cfg, tmp_path / "vae" / file


def test_a_finished_vae_is_taken_as_it_is(finished, tmp_path):
    cfg, _ = finished
    taken = pretrain.make_coder(cfg, tmp_path, "vace")
    assert taken.config == SMALL
    jax.tree.map(np.testing.assert_array_equal, taken.params, vae.init(jax.random.key(0), SMALL))
    before = pretrain.place(cfg, tmp_path, "latents").settings
    config = tmp_path / "vae" / "config.json"
    config.write_text(config.read_text().replace("1.0", "2.0"))  # the latents' scale is of it too
    assert pretrain.place(cfg, tmp_path, "latents").settings != before


def test_a_finished_vae_that_does_not_fit_is_named(finished, tmp_path):
    cfg, file = finished
    with pytest.raises(ValueError, match="nothing to do until vae"):
        pretrain.make_coder(cfg, tmp_path, "vae")
    cfg.vae.z_dim = 16
    with pytest.raises(ValueError, match=r"config.json: z_dim is 2; config.vae.z_dim is 16"):
        pretrain.make_coder(cfg, tmp_path, "vace")
    cfg.vae.z_dim, params = 2, vae.init(jax.random.key(0), SMALL)
    params["quant_conv"]["bias"] = params["quant_conv"]["bias"].at[0].set(np.nan)
    save_file(weights.to_tensors(params, vae.rules(SMALL)), file)
    with pytest.raises(ValueError, match=r"quant_conv.bias of .* holds NaN"):
        pretrain.make_coder(cfg, tmp_path, "vace")
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(ValueError, match=file.name):
        pretrain.make_coder(cfg, tmp_path, "vace")
    file.unlink()
    with pytest.raises(FileNotFoundError, match=file.name):
        pretrain.make_coder(cfg, tmp_path, "vace")


def _differ(a, b) -> bool:
    return any(jax.tree.leaves(jax.tree.map(lambda x, y: bool((x != y).any()), a, b)))


def test_a_finished_folder_says_what_the_embedded_one_says(tmp_path):
    cfg = pretrain_tiny.get_config()
    pretrain.write_pipeline(cfg, stages.wan_config(cfg), tmp_path)
    written = [file.relative_to(tmp_path) for file in tmp_path.rglob("*.json")]
    assert len(written) == 3
    for name in written:
        assert (tmp_path / name).read_text() == (Path(TINY) / name).read_text(), name
    # The embedded networks have the recipe's sizes.
    assert weights.read_config(Path(TINY) / "transformer") == stages.wan_config(cfg).to_json()
    embedded = coder.read(TINY, cfg.vae.z_dim).config
    assert embedded == coder.vae_config(cfg, embedded.latents_mean, embedded.latents_std)


@pytest.mark.slow
def test_the_whole_of_it(tmp_path):
    cfg = pretrain_tiny.get_config()
    cfg.videos, cfg.pairs, cfg.vae_videos, cfg.save_every = 96, 80, 64, 2
    coder_parts = ("stills_train", "vae_train", "decoder_train")
    trained = (*coder_parts, "text_train", "t2v_train", "vace_train")
    for part in trained:
        cfg[part].update({"steps": 4, "warmup": 1, "batch": 4})
    for until in ("vae", "decoder", "vace"):
        pretrain.run(cfg, tmp_path / "out", tmp_path / "work", until)
    places = [pretrain.place(cfg, tmp_path / "work", name) for name in ("t2v", "vace")]
    t2v, done = (kept.stage(at, None) for at in places)
    jax.tree.map(np.testing.assert_array_equal, stages.split(t2v)[0], stages.split(done)[0])
    moved = traverse_util.flatten_dict(stages.split(done)[1])
    assert np.abs(moved["vace_blocks", "proj_out", "kernel"]).max() > 0
    places = [pretrain.place(cfg, tmp_path / "work", name) for name in ("vae", "decoder")]
    before, after = (kept.stage(at, None) for at in places)
    learned = {part for part in before if _differ(before[part], after[part])}
    assert learned == set(coder.DECODES)  # latents stay as they are
    frozen = rollout.load(tmp_path / "out")
    rollout.check_size(frozen, cfg.frames, cfg.size, cfg.size)

    seen = kept.stage(pretrain.place(cfg, tmp_path / "work", "pairs_0_80"), None)
    assert seen["video"].shape[0] == 80 and seen["reference"].shape[1] == 1  # frame
    # The VAE of a finished folder is taken as it is: the same latents as far as float16 holds it.
    latents_of = lambda folder: pretrain.place(cfg, tmp_path / folder, "latents_0_96")
    made = kept.stage(latents_of("work"), None)["video"]
    cfg.coder = str(tmp_path / "out")
    pretrain.run(cfg, tmp_path / "again", tmp_path / "other", "latents")
    np.testing.assert_allclose(kept.stage(latents_of("other"), None)["video"], made, atol=0.05)
