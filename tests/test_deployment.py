"""An adapter's file says how its run made videos; generate and the notebook do it so."""

import evaluations
import numpy as np
import pytest
from absl import flags
from safetensors.numpy import save_file

from configs import evoid
from evoid_jax import (
    config,
    convert,
    deployment,
    export,
    fields,
    generate,
    media,
    notebook,
    rollout,
)
from evoid_jax.models import adapters
from evoid_jax.report import folder
from evoid_jax.world import portraits

LAYER = "transformer.blocks.0.attn1.to_q"


def settings(**changes) -> config.Config:
    cfg = evoid.get_config("tiny")
    for name, values in changes.items():
        cfg.update({name: values})
    return config.from_dict(cfg.to_dict())


EULER = {"scheduler": "euler", "steps": 2, "shift": 7.5, "reference_order": "vace"}


def written(tmp_path, **header):
    """Write an adapter that changes nothing."""
    thin = {f"{LAYER}.lora_A.weight": np.ones((2, 160), np.float32)}
    thin[f"{LAYER}.lora_B.weight"] = np.zeros((160, 2), np.float32)
    save_file(thin, tmp_path / "a.safetensors", metadata=header)
    return tmp_path / "a.safetensors"


def parsed(tmp_path, *more) -> flags.FlagValues:
    if not (tmp_path / "face.png").exists():
        media.write_image(tmp_path / "face.png", portraits.reference(portraits.identity(3), 80))
    values = flags.FlagValues()
    generate.define_flags(values)
    paths = f"--image={tmp_path}/face.png", f"--output={tmp_path}/out.mp4"
    values(["generate", *paths, "--prompt=A person nods.", *more])
    return values


def test_the_header_of_an_export_has_all_that_its_run_made_videos_with():
    cfg = settings(rollout=EULER, residual="float32", guidance={"deploy": 3.0})
    meant = deployment.deployment(export.header(cfg, step=4, role="evolving"))
    assert meant == {
        "guidance": 3.0,
        "negative_prompt": "",
        **EULER,
        "residual": "float32",
        **{"frames": 9, "height": 64, "width": 64, "fps": 8},
    }
    assert deployment.CHOICES["reference_order"] == rollout.ORDERS
    assert {*meant} == {*deployment.DEFAULTS, *deployment.SAMPLER}
    assert deployment.deployment({"steps": "1500", "width": "a"}) == {}  # of another maker


def test_flags_go_before_the_adapters_file_and_that_before_the_model(tmp_path):
    file = written(tmp_path, **export.header(settings(rollout=EULER), step=4, role="evolving"))
    inputs = generate.check(parsed(tmp_path, f"--lora={file}"))
    assert inputs.chosen["steps"] == 2
    assert inputs.sampler == {key: EULER.get(key, "model") for key in deployment.SAMPLER}
    for words in ("scheduler euler", "steps 2", "shift 7.5", "frames 9", "guidance 1"):
        assert words in inputs.told
    more = ["--scheduler=unipc", "--shift=3", "--steps=5", "--residual=float32"]
    inputs = generate.check(parsed(tmp_path, f"--lora={file}", *more))
    assert inputs.sampler["scheduler"] == "unipc" and inputs.sampler["shift"] == 3
    assert inputs.chosen["steps"] == 5 and inputs.sampler["residual"] == "float32"
    assert "steps" not in inputs.told and "shift" not in inputs.told and "frames 9" in inputs.told
    inputs = generate.check(parsed(tmp_path, f"--lora={written(tmp_path)}"))  # an older one
    assert inputs.sampler == deployment.SAMPLER and inputs.told == ""
    assert inputs.chosen["steps"] == 20


def test_an_evaluation_samples_as_the_adapter_was_proved(tmp_path, capsys):
    header = {f"rollout.{name}": str(value) for name, value in EULER.items()}
    file = written(tmp_path, **header, residual="float32", guidance="1.0")
    flag = lambda *more: (f"--model={fields.locate(config.TINY)}", f"--lora={file}", *more)
    data = evaluations.benchmark(tmp_path / "list")
    (kind,) = evaluations.asked(data, tmp_path / "out", *flag("--noscore")).kinds
    assert kind.how.sampler | {"steps": 2} == EULER | {"residual": "float32"}
    assert kind.how.chosen["steps"] == 2 and "shift 7.5" in capsys.readouterr().out
    (kind,) = evaluations.asked(data, tmp_path / "out", *flag("--noscore", "--shift=3")).kinds
    assert kind.how.sampler["shift"] == 3


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("rollout.steps", "many", "is 'many', no whole number"),
        ("rollout.steps", "0", "must be a whole number from 1 to 1000"),
        ("rollout.shift", "0", "must be a number above 0, at most 1000, got 0"),
        ("rollout.shift", "nan", "must be a number above 0"),
        ("rollout.scheduler", "ddim", "must be unipc or euler, got 'ddim'"),
        ("rollout.reference_order", "x", "must be diffusers or vace"),
        ("residual", "x", "must be model or float32"),
        ("video.width", "1e9", "is '1e9', no whole number"),
        ("negative_prompt", "half \ud83d", "half"),
    ],
)
def test_a_header_that_cannot_be_obeyed_is_named(name, value, words):
    with pytest.raises(ValueError, match=f"^the adapter's {name}:? .*{words}"):
        deployment.deployment({name: value})


def test_the_command_and_the_notebook_sample_as_the_header_says(tmp_path, capsys):
    file = written(tmp_path, **export.header(settings(rollout=EULER), step=4, role="evolving"))
    with_file = generate.run(parsed(tmp_path, f"--lora={file}"))
    assert "as the adapter's file says" in capsys.readouterr().err
    same = ["--scheduler=euler", "--steps=2", "--shift=7.5", "--guidance=1"]
    model, photo = notebook.load(adapter=file), tmp_path / "face.png"
    older = f"--lora={written(tmp_path)}"
    np.testing.assert_array_equal(with_file, generate.run(parsed(tmp_path, older, *same)))
    capsys.readouterr()
    video = notebook.generate(model, photo, "A person nods.")
    assert "scheduler euler" in capsys.readouterr().err
    np.testing.assert_array_equal(video, with_file)
    others = {"scheduler": "unipc", "shift": 3.0}
    other = notebook.generate(model, photo, "A person nods.", **others)
    assert (other != video).any()
    with pytest.raises(ValueError, match="shift must be a number above 0"):
        notebook.generate(model, photo, "A person nods.", shift=0.0)


def test_a_converted_adapter_keeps_what_its_header_says(tmp_path):
    header = export.header(settings(rollout=EULER), step=4, role="evolving")
    adapter = convert.adapter_of_file(written(tmp_path, **header))
    for to in ("lora", "comfyui"):
        file = convert.write_adapter(adapter, to, tmp_path / to, dtype="keep")
        assert header.items() <= adapters.read(file).header.items()


def test_an_export_has_the_header(tmp_path):
    cfg = settings(rollout=EULER)
    tree = {"to_q": {"a": np.ones((1, 8, 2), np.float32), "b": np.ones((1, 2, 8), np.float32)}}
    tree = {"blocks": {"attn1": tree}}
    file = export.write(tmp_path / "a.safetensors", tree, cfg, step=4)
    assert adapters.read(file).header["rollout.shift"] == "7.5"


def test_the_next_command_has_what_samples_otherwise():
    cfg = config.to_dict(settings(rollout=EULER, residual="float32"))
    command = folder.next_command("runs/a", cfg, export.FILE)
    assert "--steps=2 --scheduler=euler --shift=7.5 \\\n" in command
    assert "    --reference_order=vace --residual=float32 \\\n" in command
    cfg = evoid.get_config("vace_14b").to_dict()
    lines = folder.next_command("runs/a", cfg, export.FILE).split("\n")
    assert len(lines) == 4 and max(map(len, lines)) <= 100 and "--shift=16.0" in lines[2]
