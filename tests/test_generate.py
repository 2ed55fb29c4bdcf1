"""generate.py from the command line, against WanVACEPipeline with the same noise."""

import json
import subprocess
import sys

import jax
import numpy as np
import pytest
import tiny_pipeline
import torch
from absl import flags
from PIL import Image
from safetensors.numpy import save_file
from tiny_pipeline import FRAMES, HEIGHT, PROMPTS, WIDTH, photo

from evoid_jax import commandline, generate, media, rollout
from evoid_jax.models import lora, umt5

SHAPE = 1, 16, 3, HEIGHT // 8, WIDTH // 8  # of the video's latents
SIZE = [f"--frames={FRAMES}", f"--height={HEIGHT}", f"--width={WIDTH}"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_pipeline.build(tmp_path_factory.mktemp("pipeline"))


def arguments(folder, tmp_path, *more: str) -> list[str]:
    for i in range(2):
        media.write_image(tmp_path / f"{i}.png", photo(40 + 9 * i, 52, i))
    paths = [f"--image={tmp_path}/0.png", f"--output={tmp_path}/out/video.mp4"]
    return [f"--model={folder}", f"--prompt={PROMPTS[0]}", *paths, *SIZE, *more]


def run(args: list[str]) -> np.ndarray:
    values = flags.FlagValues()
    generate.define_flags(values)
    values(["generate", *args])
    return generate.run(values)


def test_the_command_equals_diffusers(folder, tmp_path):
    """One process, two references, every array in diffusers' layout."""
    noise = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)
    noise = np.concatenate([noise, noise[:, :, :2]], axis=2)
    np.save(tmp_path / "noise.npy", noise)
    out = {name: f"--{name}={tmp_path}/{name}.npy" for name in ("noise", "raw", "latents")}
    args = arguments(folder, tmp_path, *out.values(), "--steps=6", "--negative_prompt=x")
    args.append(f"--image={tmp_path}/0.png,{tmp_path}/1.png")
    command = [sys.executable, "-m", "evoid_jax.generate", *args]
    done = subprocess.run(command, capture_output=True, text=True, timeout=800)
    assert done.returncode == 0, done.stderr
    assert f"video.mp4: {FRAMES} frames of {WIDTH}x{HEIGHT}" in done.stdout
    assert "6/6" in done.stderr  # the progress bar
    words = [done.stderr.index(w) for w in ("loading", "encoding", "denoising;", "decoding\n")]
    assert words == sorted(words)

    pipe = tiny_pipeline.load(folder)
    call = dict(prompt=PROMPTS[0], negative_prompt="x", height=HEIGHT, width=WIDTH)
    call |= dict(num_frames=FRAMES, num_inference_steps=6, latents=torch.tensor(noise))
    call |= dict(reference_images=[Image.open(tmp_path / f"{i}.png") for i in range(2)])
    theirs = pipe(**call, output_type="latent").frames.numpy()
    ours = np.load(tmp_path / "latents.npy")
    assert ours.shape == theirs.shape
    assert np.linalg.norm(ours - theirs) <= 1e-4 * np.linalg.norm(theirs)
    theirs = pipe(**call).frames
    ours = np.load(tmp_path / "raw.npy")
    assert ours.shape == theirs.shape
    assert ours.dtype == theirs.dtype
    assert np.abs(ours - theirs).max() <= 2 / 255
    video, fps = media.read(tmp_path / "out" / "video.mp4")
    assert (video.shape, fps) == ((FRAMES, HEIGHT, WIDTH, 3), 16)


def test_seed_reference_order_scheduler_and_shift_matter(folder, tmp_path):
    pair = f"--image={tmp_path}/0.png,{tmp_path}/1.png"
    base = arguments(folder, tmp_path, pair, "--steps=2")
    video = run(base)
    np.testing.assert_array_equal(video, run([*base, "--seed=0", "--reference_order=diffusers"]))
    for flag in ("--seed=1", "--reference_order=vace", "--scheduler=euler", "--shift=9"):
        assert (video != run([*base, flag])).any(), flag


def test_an_adapter_acts_as_in_diffusers(folder, tmp_path):
    frozen = rollout.load(folder)
    adapter = lora.init(jax.random.key(0), frozen.wan_params, frozen.wan.config, rank=4)
    file = tmp_path / "pytorch_lora_weights.safetensors"
    names = [f"--latents={tmp_path}/latents.npy", f"--noise={tmp_path}/noise.npy", "--steps=2"]
    args = arguments(folder, tmp_path, *names, "--negative_prompt=")
    noise = np.random.default_rng(1).standard_normal((1, 16, 4, *SHAPE[3:])).astype(np.float32)
    np.save(tmp_path / "noise.npy", noise)

    def latents(*more):
        run([*args, *more])
        return np.load(tmp_path / "latents.npy")

    plain = latents()
    lora.save(file, adapter, scale=1.0)
    np.testing.assert_allclose(latents(f"--lora={file}"), plain, atol=1e-5)  # fresh: no change
    shake = lambda x: x + 0.05 * jax.random.normal(jax.random.key(1), x.shape)
    adapter = jax.tree.map(shake, adapter)
    lora.save(file, adapter, scale=2.0)
    ours = latents(f"--lora={file}")
    assert np.abs(ours - plain).max() > 1e-2

    pipe = tiny_pipeline.load(folder)
    pipe.load_lora_weights(tmp_path)
    call = dict(prompt=PROMPTS[0], height=HEIGHT, width=WIDTH, num_frames=FRAMES)
    call |= dict(num_inference_steps=2, latents=torch.tensor(noise), output_type="latent")
    theirs = pipe(**call, reference_images=[Image.open(tmp_path / "0.png")]).frames.numpy()
    assert np.linalg.norm(ours - theirs) <= 1e-4 * np.linalg.norm(theirs)


def test_the_models_own_defaults_come_before_ours(tmp_path):
    nothing = dict.fromkeys(generate.DEFAULTS)
    assert generate.settings(tmp_path, nothing) == generate.DEFAULTS
    (tmp_path / "evoid.json").write_text(json.dumps({"frames": 9, "height": 64, "fps": 8}))
    chosen = generate.settings(tmp_path, nothing | {"height": 32, "prompt": "x"})
    assert chosen == generate.DEFAULTS | {"frames": 9, "height": 32, "fps": 8}
    (tmp_path / "evoid.json").write_text('{"frame": 9}')
    with pytest.raises(ValueError, match="has 'frame'; expected some of"):
        generate.settings(tmp_path, nothing)


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--image={}/none.png", r"none\.png does not exist"),
        ("--image={}/text.png", r"text\.png is not a picture"),
        ("--height=40", "height must be a positive multiple of 16, got 40"),
        ("--frames=8", "frames must be 1 plus a multiple of 4, got 8"),
        ("--noise={}/noise.npy", r"shape \(1, 16, 3, 4, 6\); expected \(1, 16, 4, 4, 6\)"),
        ("--noise={}/text.png", "is not an npy file"),
        ("--noise={}/whole.npy", "holds int64, not all finite floats"),
        ("--noise={}/nan.npy", "holds float32, not all finite floats"),
        ("--noise={}/several.npz", r"holds several arrays \(npz\)"),
        ("--model={}", r"model_index\.json is missing"),
        ("--prompt= ", "--prompt is empty"),
        ("--output=video.avi", r"must end in \.mp4"),
    ],
)
def test_wrong_inputs_are_named(folder, tmp_path, flag, message):
    (tmp_path / "text.png").write_text("not an image")
    np.save(tmp_path / "noise.npy", np.zeros(SHAPE, np.float32))
    one_more = (1, 16, 4, *SHAPE[3:])
    np.save(tmp_path / "whole.npy", np.zeros(one_more, int))
    np.save(tmp_path / "nan.npy", np.full(one_more, np.nan, np.float32))
    np.savez(tmp_path / "several.npz", a=np.zeros(2))
    args = arguments(folder, tmp_path, flag.format(tmp_path))
    with pytest.raises((FileNotFoundError, ValueError), match=message):
        run(args)


def checked(tmp_path, *more: str) -> generate.Inputs:
    """Read flags as far as no model is needed."""
    values = flags.FlagValues()
    generate.define_flags(values)
    values(["generate", *arguments(generate.TINY, tmp_path, *more)])
    return generate.check(values)


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--fps=0", "--fps must be a number from 0.1 to 1000, got 0.0"),
        ("--fps=nan", "--fps must be a number from 0.1 to 1000, got nan"),
        ("--guidance=nan", "--guidance must be a number from 0 to 1000, got nan"),
        ("--guidance=-1", "--guidance must be a number from 0 to 1000, got -1.0"),
        ("--guidance=inf", "--guidance must be a number from 0 to 1000, got inf"),
        ("--steps=1001", "--steps must be a whole number from 1 to 1000, got 1001"),
        ("--frames=-3", "--frames must be a whole number from 1 to 100000, got -3"),
        ("--width=0", "--width must be a whole number from 1 to 16384, got 0"),
        ("--shift=0", "--shift must be a number above 0, at most 1000, got 0.0"),
        ("--shift=nan", "--shift must be a number above 0, at most 1000, got nan"),
        ("--image={}/0.png,", "--image is '.*0.png,', which has an empty name"),
        ("--image=,", "--image is ',', which has an empty name"),
        ("--image=", "--image is '', which has an empty name"),
        ("--lora={}/none.safetensors", "none.safetensors is missing; expected an adapter file"),
        ("--lora={}", "holds no adapter_model.safetensors and no pytorch_lora"),
        ("--noise={}/none.npy", "none.npy is missing; expected an npy file of noise"),
        ("--prompt=\ud83d A person", r"prompt '\\ud83d A person' holds half a character at pos"),
        ("--negative_prompt=\ud83d", "holds half a character"),
        ("--raw={}", "--raw: .* is a folder; expected the name of a file to write"),
        ("--latents={}/0.png/x.npy", "--latents: .* cannot be written: .*0.png is a file, not a"),
        ("--output={}/0.png/x.mp4", "--output: .* cannot be written: .*0.png is a file, not a"),
        ("--raw={}/0.png", "--raw=.*0.png would replace the input .*0.png"),
        ("--raw={}/out/video.mp4", "--raw=.*video.mp4 would replace the file of --output"),
        ("--model=~nobody-here/x", "there is no such home folder"),
    ],
)
def test_what_needs_no_model_is_checked_without_one(tmp_path, monkeypatch, flag, message):
    monkeypatch.setattr(generate.pipeline, "open_diffusers", None)
    with pytest.raises((OSError, ValueError), match=message):
        checked(tmp_path, flag.format(tmp_path))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("flag", ["--seed=-1", "--seed=4294967296", "--steps=0", "--fps=x"])
def test_flags_that_are_no_such_numbers_are_refused(tmp_path, flag):
    with pytest.raises(flags.IllegalFlagValueError, match=flag.split("=")[0][2:]):
        checked(tmp_path, flag)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"fps": 0}', r"evoid\.json: fps must be a number from 0\.1 to 1000, got 0"),
        ('{"frames": 9.5}', r"evoid\.json: frames must be a whole number from 1"),
        ('{"height": "64"}', r"evoid\.json: height must be a whole number .* got '64'"),
        ('{"steps": true}', r"evoid\.json: steps must be a whole number .* got True"),
        ("[9]", r"evoid\.json holds a list"),
        ("{9}", r"evoid\.json is not JSON: .* line 1"),
    ],
)
def test_a_model_s_own_defaults_are_checked(tmp_path, text, message):
    (tmp_path / "evoid.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        generate.settings(tmp_path, {})


def test_home_folders_and_names_with_commas_are_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    photo_file = tmp_path / "Anna, 2024.png"
    media.write_image(photo_file, photo(20, 30, 5))
    inputs = checked(tmp_path, "--image=~/Anna, 2024.png", "--output=~/new/x.mp4", "--model=~/m")
    assert [image.shape for image in inputs.images] == [(20, 30, 3)]
    assert inputs.targets == {"output": tmp_path / "new" / "x.mp4"}
    assert inputs.model == tmp_path / "m"
    assert len(checked(tmp_path, "--image=~/0.png, ~/1.png").images) == 2


def test_files_that_are_there_stay_until_the_new_ones_are_complete(tmp_path, monkeypatch):
    old = {name: tmp_path / "out" / name for name in ("video.mp4", "raw.npy")}
    old["video.mp4"].parent.mkdir()
    for file in old.values():
        file.write_bytes(b"old")

    def full(array, fps):
        raise OSError("No space left on device")

    monkeypatch.setattr(media, "encode", full)
    targets = {"output": old["video.mp4"], "raw": old["raw.npy"]}
    video = np.zeros((1, 16, 16, 3), np.uint8)
    latents, frames = np.zeros((1, 1, 2, 2, 16)), np.full((1, 1, 16, 16, 3), 0.5)
    with pytest.raises(OSError, match="No space"):
        generate.save(targets, latents, frames, video, 8)
    assert old["video.mp4"].read_bytes() == b"old"
    assert np.load(old["raw.npy"]).shape == frames.shape
    assert sorted(f.name for f in (tmp_path / "out").iterdir()) == ["raw.npy", "video.mp4"]


def test_a_prompt_that_is_cut_is_told(capsys):
    tokenizer = umt5.load_tokenizer(generate.TINY / "tokenizer")
    generate.note_cuts(tokenizer, 512, {"prompt": "waves " * 600, "negative_prompt": "short"})
    said = capsys.readouterr().err
    assert "--prompt has 601 tokens; the model reads the first 512" in said
    assert "negative" not in said


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (KeyboardInterrupt(), 130, "stopped; no video was written"),
        (OSError("the disk is full"), "error: the disk is full", ""),
        (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: 9 GB"), "error: the device has too", ""),
    ],
)
def test_every_end_is_one_line(monkeypatch, capsys, error, code, line):
    def fail(_):
        raise error

    monkeypatch.setattr(generate, "run", fail)
    monkeypatch.setattr(commandline.app, "run", lambda main, **_: main(["generate"]))
    monkeypatch.setattr("sys.argv", ["generate"])
    with pytest.raises(SystemExit) as ended:
        commandline.run(generate.main)
    told = ended.value.code
    assert told == code if isinstance(code, int) else told.startswith(code)
    assert capsys.readouterr().err.strip() == line


def test_the_command_ends_with_a_message_not_a_traceback(tmp_path):
    args = arguments(tmp_path, tmp_path)
    command = [sys.executable, "-m", "evoid_jax.generate", *args]
    done = subprocess.run(command, capture_output=True, text=True, timeout=800)
    assert done.returncode == 1
    assert "error:" in done.stderr and "model_index.json is missing" in done.stderr
    assert "Traceback" not in done.stderr


def save_thin_adapter(file, **header):
    layer = "transformer.blocks.0.attn1.to_q"
    thin = {f"{layer}.lora_A.weight": np.ones((2, 8), np.float32)}
    thin[f"{layer}.lora_B.weight"] = np.ones((8, 2), np.float32)
    save_file(thin, file, metadata=header)


def test_an_adapter_says_how_it_is_deployed(tmp_path):
    """Flags go first, then the adapter's header, then the model's own file."""
    file = tmp_path / "a.safetensors"
    save_thin_adapter(file, guidance="1", negative_prompt="blurry")
    media.write_image(tmp_path / "0.png", photo(40, 52, 0))

    def chosen(*more):
        values = flags.FlagValues()
        generate.define_flags(values)
        paths = f"--image={tmp_path}/0.png", f"--output={tmp_path}/out.mp4", f"--lora={file}"
        values(["generate", *paths, "--prompt=nods", *more])
        settled = generate.check(values).chosen
        return settled["guidance"], settled["negative_prompt"]

    assert chosen() == (1.0, "blurry")
    assert chosen("--guidance=3", "--negative_prompt=") == (3.0, "")
    save_thin_adapter(file)
    assert chosen() == (5.0, "")  # the embedded model's own negative prompt
    for wrong, words in (("much", "is 'much', no number"), ("-1", "must be a number from 0")):
        save_thin_adapter(file, guidance=wrong)
        with pytest.raises(ValueError, match=f"the adapter's guidance {words}"):
            chosen()


def test_a_folder_with_an_adapter_will_do(tmp_path):
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    save_thin_adapter(adapter / "pytorch_lora_weights.safetensors")
    media.write_image(tmp_path / "0.png", photo(40, 52, 0))

    def checked(*more: str) -> generate.Inputs:
        values = flags.FlagValues()
        generate.define_flags(values)
        paths = f"--image={tmp_path}/0.png", f"--output={tmp_path}/out.mp4"
        values(["generate", *paths, "--prompt=nods", *more])
        return generate.check(values)

    assert checked(f"--lora={adapter}").lora == adapter / "pytorch_lora_weights.safetensors"
    with pytest.raises(FileNotFoundError, match="give the path of one of adapter/"):
        checked(f"--lora={tmp_path}")
    for nothing in ("\u200b", "&nbsp;", " "):  # as in the prompts of a run
        with pytest.raises(ValueError, match="no visible character"):
            checked(f"--prompt={nothing}")
