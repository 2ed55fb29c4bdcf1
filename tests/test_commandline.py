"""The command line: overrides, one line for a mistake, and --help, which shows every setting."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from evoid_jax import commandline, config, fields

ROOT = Path(__file__).parents[1]
TINY = "--config=configs/evoid.py:tiny"


def cfg(*args: str) -> config.Config:
    """Return what these arguments make of the tiny preset."""
    values, rest = commandline.configure([TINY, *args])
    assert rest == []
    return config.from_dict(values.to_dict())


def program(*args: str, folder: Path = ROOT) -> subprocess.CompletedProcess:
    """Run a program that takes settings."""
    command = [sys.executable, str(ROOT / "tests" / "settings_program.py"), *args]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    env = os.environ | {"PYTHONPATH": path}
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, env=env)


def test_overrides_of_every_type():
    assert cfg("--config.steps=7").steps == cfg("--config.steps", "7").steps == 7
    assert cfg("-config.mesh.data", "-1", "--config.train.lr=1").train.lr == 1.0
    assert cfg("--config.steps=7", "--config.steps=8").steps == 8
    assert cfg("--config.guidance.negative_prompt=a=b, c").guidance.negative_prompt == "a=b, c"
    for on in ("--config.tensorboard", "--config.tensorboard=True", "--config.tensorboard=1"):
        assert cfg(on).tensorboard
    assert not cfg("--noconfig.reward.dynamic").reward.dynamic
    assert not cfg("--config.reward.dynamic=false").reward.dynamic
    assert cfg("--config.reward.table.arcface.prior=0.2").reward.table[0].prior == 0.2
    assert cfg("--config.data.dir=").data.dir == ""


@pytest.mark.parametrize(
    "args",
    [
        ["--config.reward.sidecars=http://a:1,http://b:2"],
        ["--config.reward.sidecars=http://a:1", "--config.reward.sidecars=http://b:2"],
        ["--config.reward.sidecars=('http://a:1', 'http://b:2')"],
        ["--config.reward.sidecars=['http://a:1', 'http://b:2',]"],
        ["--config.reward.sidecars", "http://a:1, http://b:2"],
    ],
)
def test_a_list_may_be_written_as_people_write_lists(args):
    assert cfg(*args).reward.sidecars == ("http://a:1", "http://b:2")


def test_other_arguments_and_their_order_are_left_alone():
    args = ["src", "--steps=3", TINY, "--config.steps=4", "--", "--config.steps=5"]
    values, rest = commandline.configure(args)
    assert rest == ["src", "--steps=3", "--", "--config.steps=5"] and values.steps == 4
    values, rest = commandline.configure(["--config.steps=9", "--config", TINY[9:], "x"])
    assert values.steps == 9 and rest == ["x"]


@pytest.mark.parametrize(
    ("arg", "message"),
    [
        ("--config.train.lrr=1", r"^config.train.lrr does not exist; .* mean config.train.lr\?$"),
        ("--config.trian.lr=1", r"config.trian.lr does not exist; did you mean config.train.lr\?"),
        ("--config.lr=1", r"config.lr does not exist; did you mean config.train.lr\?"),
        ("--config.steps.x=1", r"config.steps.x does not exist; did you mean config.*steps\?"),
        ("--config.reward.table.arcfac.prior=1", r"did you mean config.reward.table.arcface.prior"),
        ("--config.=1", r"config. does not exist"),
        ("--config.steps=many", "config.steps must be a whole number, got 'many'"),
        ("--config.steps=1.5", "config.steps must be a whole number, got '1.5'"),
        ("--config.train.lr=fast", "config.train.lr must be a number, got 'fast'"),
        ("--config.tensorboard=maybe", "config.tensorboard must be True or False, got 'maybe'"),
        ("--config.train=3", "config.train is a group of settings: b1, .*; set one of these"),
        ("--config.lora.modules=('to_q',", "must be a list, got .*; write it as first,second"),
        ("--config.lora.modules=(to_q, to_k)", "must be a list, got .*; write it as first,second"),
    ],
)
def test_a_faulty_override_is_one_line(arg, message):
    with pytest.raises(ValueError, match=message) as error:
        cfg(arg)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def get_config(): return {}", r"get_config\(\) must return a ConfigDict, got {}"),
        ("x = 1", r"must define get_config\(\)"),
        ("import nothing_of_this_name", "line 1: ModuleNotFoundError: No module named"),
        ("def get_config():\n    return 1 / 0", "line 2: ZeroDivisionError"),
        ("def get_config(:", "line 1: SyntaxError"),
        ("def get_config(): raise ValueError('no such preset')", "mine.py: no such preset$"),
    ],
)
def test_a_file_that_fails_is_named_with_its_line(text, message, tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        commandline.configure([f"--config={file}"])
    assert str(file) in str(error.value) and "\n" not in str(error.value)


def test_a_file_of_ones_own_may_start_from_a_preset(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from evoid_jax import commandline\n"
        "def get_config():\n"
        "    cfg = commandline.load('configs/evoid.py:tiny')\n"
        "    cfg.reward.table.sharpness = {'group': 'quality', 'prior': 0.1}\n"
        "    return cfg\n"
    )
    args = [f"--config={tmp_path}/mine.py", "--config.reward.table.sharpness.prior=0.3"]
    values, _ = commandline.configure(args)
    assert config.from_dict(values.to_dict()).reward.table[-1].prior == 0.3


def test_no_config_and_no_such_file_say_what_there_is():
    with pytest.raises(ValueError, match="--config is missing; .* --config=configs/evoid.py:tiny"):
        commandline.configure(["--config.steps=4"])
    with pytest.raises(FileNotFoundError, match="configs/evoid.py, configs/pretrain_tiny.py"):
        commandline.configure(["--config=configs/evoi.py:tiny"])
    values, _ = commandline.configure(["--config.seed=3"], default="configs/pretrain_tiny.py")
    assert values.seed == 3
    many = commandline.configure(["--config.vae.dim_mult=1,2"], "configs/pretrain_tiny.py")
    assert many[0].vae.dim_mult == (1, 2)


def test_presets_and_the_embedded_model_are_found_from_any_folder(tmp_path):
    done = program(TINY, "--count=1", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    values = json.loads(done.stdout)
    assert values["model"] == "evoid_jax/assets/tiny"
    assert Path(fields.locate(values["model"]), "transformer", "config.json").is_file()


def test_mistakes_are_one_line_and_status_2():
    for args, line in {
        (TINY, "--config.train.lrr=1"): "error: config.train.lrr does not exist; did you mean "
        "config.train.lr?",
        (TINY,): "error: --count is missing: How often to print.",
        (TINY, "--count=1", "--cuont=2"): "error: Unknown command line flag 'cuont'. Did you mean: "
        "count ?",
        (TINY, "--count=1", "extra"): "error: unexpected arguments: ['extra']",
    }.items():
        done = program(*args)
        assert (done.returncode, done.stdout, done.stderr) == (2, "", f"{line}\n")


def test_an_error_that_its_user_can_mend_is_one_line_and_status_1():
    done = program(TINY, "--count=1", "--config.train.lr=nan")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "error: config.train.lr must be finite, also in float32, got nan\n"


def test_ctrl_c_is_one_line_that_says_how_to_go_on():
    done = program(TINY, "--count=1", "--interrupt")
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr == "\nstopped after step 3; the same command goes on\n"


def test_help_shows_flags_and_every_setting_with_its_words():
    done = program("--help")
    assert (done.returncode, done.stderr) == (0, "")
    shown = " ".join(done.stdout.split())
    assert "A program that takes settings" in shown and "--count How often to print." in shown
    for name, leaf in fields.leaves(config.Config, "config").items():
        assert f"--{name}" in shown and leaf.entry.metadata["words"] in shown, name
    assert "--config.reward.clip (default 2.0) in standard deviations" in shown
    assert re.search(
        r"--config.reward.table.ROW.prior weight; .* \[a number, from 0 to 1000000\]", shown
    )
    assert "--alsologtostderr" not in shown


def test_an_installed_package_holds_its_presets_and_assets(tmp_path):
    """What setup.py builds is what a wheel holds."""
    command = [sys.executable, "setup.py", "-q", "build", "--build-base", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    built = {str(f.relative_to(tmp_path / "lib")) for f in (tmp_path / "lib").rglob("*.*")}
    ours = [f for f in (ROOT / "evoid_jax").rglob("*.*") if "__pycache__" not in f.parts]
    presets = {f"evoid_jax/configs/{f.name}" for f in (ROOT / "configs").glob("*.py")}
    assert {"evoid_jax/configs/evoid.py"} <= presets
    assert built >= {str(f.relative_to(ROOT)) for f in ours if f.is_file()} | presets
    shipped = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "settings_program.py"), TINY, "--count=1"],
        env=os.environ | {"PYTHONPATH": str(tmp_path / "lib")},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert json.loads(shipped.stdout)["steps"] == 30, shipped.stderr


@pytest.mark.parametrize("name", ["wandb", "model", "steps", "lora.modules"])
def test_a_flag_alone_is_for_true_or_false(name):
    """Else --config.wandb would log to a project called true, and --noconfig.wandb to false."""
    for flag in (f"--config.{name}", f"--noconfig.{name}"):
        with pytest.raises(ValueError, match=f"^{flag} needs a value, as --config.{name}=VALUE"):
            cfg(flag)


def test_what_begins_with_no_takes_no_value():
    with pytest.raises(ValueError, match="--noconfig.tensorboard=true: .* takes no value"):
        cfg("--noconfig.tensorboard=true")


def test_a_stop_while_libraries_are_imported_is_one_line(tmp_path):
    """A library that is stopped, for the first one that the program imports."""
    (tmp_path / "jax.py").write_text("raise KeyboardInterrupt")
    paths = os.pathsep.join([str(tmp_path), str(ROOT)])
    command = [sys.executable, "-m", "evoid_jax.train", TINY]
    env = os.environ | {"PYTHONPATH": paths}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=env)
    assert done.returncode != 0
    assert done.stderr == "\nstopped; nothing had been started\n"
