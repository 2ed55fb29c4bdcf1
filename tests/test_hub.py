"""Models by their name on the hub: fetched once and no more than needed, held to one commit."""

import dataclasses
import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import fake_hub
import pytest
from huggingface_hub import constants
from servers import dead_url

from configs import evoid
from evoid_jax import config, convert, fields, generate, hub, settings, work_folder
from evoid_jax.models import pipeline
from evoid_jax.plan import programs

NAME = "Wan-AI/Wan2.1-VACE-tiny-diffusers"
TINY = Path(fields.locate(config.TINY))
SPARE = {
    "transformer/diffusion_pytorch_model.fp16.safetensors": b"a second copy",
    "transformer/diffusion_pytorch_model.bin": b"a pickle",
    "Wan2.1_VAE.pth": b"another layout",
    "assets/demo.mp4": b"a film",
}


def embedded() -> dict[str, bytes]:
    """Return the embedded model's files, and some that no one needs."""
    files = [file for file in sorted(TINY.rglob("*")) if file.is_file()]
    return {str(file.relative_to(TINY)): file.read_bytes() for file in files} | SPARE


@pytest.fixture
def served(monkeypatch, tmp_path):
    with fake_hub.running() as there:
        monkeypatch.setenv("HF_ENDPOINT", there.url)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.chdir(tmp_path)
        yield there


# --- names


@pytest.mark.parametrize(
    ("name", "one"),
    [
        (NAME, True),
        (f"{NAME}@main", True),
        (f"{NAME}@refs/pr/3", True),
        ("gpt2", False),
        ("/Org/Name", False),
        ("./Org/Name", False),
        ("~/Org", False),
        ("a/b/c", False),
        ("Org/Name@", False),
        ("Org/Na me", False),
        ("", False),
    ],
)
def test_a_name_on_the_hub_is_told_by_its_form(name, one, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert hub.is_id(name) == one


def test_a_folder_of_that_name_wins(served, tmp_path):
    served.put(NAME, embedded())
    shutil.copytree(TINY, tmp_path / NAME)
    assert not hub.is_id(NAME) and hub.pinned(NAME) == NAME
    assert hub.folder(NAME) == Path(NAME)
    assert pipeline.open_diffusers(NAME).pipeline.parts and not served.fetched


def test_two_names_are_the_same_unless_they_are_of_two_commits(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    one, two = "a" * 40, "b" * 40
    assert hub.same(NAME, f"{NAME}@{one}") and hub.same(f"{NAME}@{one}", f"{NAME}@main")
    assert hub.same(f"{NAME}@{one}", f"{NAME}@{one}")
    assert not hub.same(f"{NAME}@{one}", f"{NAME}@{two}")
    assert not hub.same(NAME, "Wan-AI/Other") and not hub.same("/a/b", "/a/b")


# --- fetching


def test_a_model_is_opened_by_its_name_and_only_what_is_needed_is_fetched(served):
    served.put(NAME, embedded())
    opened, local = pipeline.open_diffusers(NAME), pipeline.open_diffusers(TINY)
    assert opened.pipeline.files == local.pipeline.files
    assert opened.pipeline.parts.keys() == local.pipeline.parts.keys()
    fetched = set(served.fetched)
    assert {"model_index.json", "tokenizer/tokenizer.json"} <= fetched
    assert not fetched & SPARE.keys()
    assert pipeline.model_name(NAME) == pipeline.model_name(f"{NAME}@main") == NAME
    served.fetched.clear()
    pipeline.open_diffusers(NAME)
    assert not served.fetched  # all of it is in the cache


def test_a_teacher_is_its_transformer_alone(served):
    served.put(NAME, embedded())
    described, tensors = pipeline.open_transformer(NAME)
    assert tensors.keys() == pipeline.open_transformer(TINY)[1].keys()
    assert described.config == pipeline.open_transformer(TINY)[0].config
    weighty = {path.split("/")[0] for path in served.fetched if path.endswith(".safetensors")}
    assert weighty == {"transformer"}


def test_settings_alone_can_be_had_without_weights(served):
    served.put(NAME, embedded())
    folder = hub.folder(NAME, with_weights=False)
    assert (folder / "transformer" / "config.json").is_file()
    assert not list(folder.rglob("*.safetensors"))
    assert programs.models(NAME) == programs.models(str(TINY))


def test_a_model_that_will_not_do_is_refused_before_its_weights_come(served):
    index = json.loads((TINY / "model_index.json").read_text()) | {"transformer_2": ["a", "b"]}
    served.put(NAME, embedded() | {"model_index.json": json.dumps(index).encode()})
    with pytest.raises(ValueError, match="a model of two experts"):
        pipeline.open_diffusers(NAME)
    assert not [path for path in served.fetched if path.endswith(".safetensors")]


def test_a_released_model_is_planned_without_asking_the_hub(served, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", dead_url())
    plain = programs.models("Wan2.1-VACE-14B-diffusers")
    assert programs.models("Wan-AI/Wan2.1-VACE-14B-diffusers") == plain
    assert programs.models(f"Wan-AI/Wan2.1-VACE-14B-diffusers@{'a' * 40}") == plain


def test_generate_and_convert_take_a_name(served, tmp_path):
    served.put(NAME, embedded() | {"evoid.json": b'{"frames": 5}'})
    folder = hub.folder(NAME, with_weights=False)
    assert generate.settings(folder, {})["frames"] == 5
    args = SimpleNamespace(to=None, lora=None, which="evolving", dtype="keep", shard_gb=5.0)
    out = convert.convert(Path(NAME), tmp_path / "out", args)
    own, made = (file / "transformer/config.json" for file in (TINY, out))
    assert own.read_bytes() == made.read_bytes()


# --- one commit


def test_a_name_is_pinned_and_stays_at_its_commit(served):
    first = served.put(NAME, embedded())
    pinned = hub.pinned(NAME)
    assert pinned == f"{NAME}@{first}"
    second = served.put(NAME, embedded() | {"README.md": b"newer"})
    assert hub.pinned(NAME, was=pinned) == pinned == hub.pinned(pinned)
    assert hub.pinned(f"{NAME}@main", was=pinned) == pinned
    assert hub.pinned(NAME) == f"{NAME}@{second}" == hub.pinned(f"{NAME}@{second}", was=pinned)
    assert hub.pinned("Wan-AI/Other-folder/x") == "Wan-AI/Other-folder/x"
    assert hub.folder(pinned).name == first and hub.folder(NAME).name == second
    assert (hub.folder(NAME) / "README.md").read_bytes() == b"newer"


def test_a_run_keeps_the_commit_that_it_began_with(served, tmp_path):
    first = served.put(NAME, embedded())
    cfg = evoid.get_config("tiny")
    cfg.update({"model": NAME, "teacher": NAME, "data": {"source": "portraits"}})
    cfg = config.from_dict(cfg.to_dict())
    settings.check_start(cfg)
    began = work_folder.pinned(cfg, tmp_path)
    assert began.model == began.teacher == f"{NAME}@{first}"
    (tmp_path / settings.FILE).write_text(config.dumps(began))
    second = served.put(NAME, embedded())
    assert settings.resumable(settings.stored(tmp_path), cfg) == []
    assert work_folder.pinned(cfg, tmp_path) == began == settings.read(tmp_path)
    other = dataclasses.replace(cfg, model=f"{NAME}@{second}")
    assert work_folder.pinned(other, tmp_path).model == other.model
    (said,) = settings.resumable(settings.stored(tmp_path), other)
    assert said == f"config.model was '{NAME}@{first}', now '{NAME}@{second}'"


# --- what goes wrong


def test_an_unknown_name_says_that_it_is_neither_here_nor_there(served):
    words = f"Wan-AI/Nobody is no folder here, and the hub \\({served.url}\\) has no model of"
    with pytest.raises(FileNotFoundError, match=words):
        hub.folder("Wan-AI/Nobody")
    cfg = config.from_dict({"model": "Wan-AI/Nobody", "data": {"source": "portraits"}})
    with pytest.raises(FileNotFoundError, match="^config.model: Wan-AI/Nobody is no folder here"):
        work_folder.pinned(cfg, Path("run"))


def test_a_revision_a_layout_and_terms_that_are_missing_are_named(served):
    served.put(NAME, embedded())
    with pytest.raises(FileNotFoundError, match=f"has {NAME}, but no revision {'f' * 40}"):
        hub.folder(f"{NAME}@{'f' * 40}")
    served.put("Wan-AI/native", {"config.json": b"{}", "README.md": b"x", "Wan2.1_VAE.pth": b"x"})
    with pytest.raises(FileNotFoundError, match=r"native on the hub has no model_index\.json"):
        hub.folder("Wan-AI/native")
    served.gated.add(NAME)
    with pytest.raises(PermissionError, match=f"accept the terms at {served.url}/{NAME}, then"):
        hub.folder(f"{NAME}@main")


def test_without_network_the_cache_serves_and_else_the_error_says_what_to_do(served, monkeypatch):
    commit = served.put(NAME, embedded())
    whole = hub.folder(NAME)
    served.put("Wan-AI/part", embedded())
    hub.folder("Wan-AI/part", with_weights=False)
    monkeypatch.setenv("HF_ENDPOINT", dead_url())
    assert hub.folder(NAME) == whole == hub.folder(f"{NAME}@{commit}")
    assert hub.pinned(NAME) == f"{NAME}@{commit}"
    words = "Wan-AI/{} is no folder here, nor whole in .*cannot be asked: .*hf download Wan-AI/{}"
    for name in ("part", "unseen"):
        with pytest.raises(ConnectionError, match=words.format(name, name)):
            hub.folder(f"Wan-AI/{name}")


def test_a_hub_that_breaks_off_is_named(served):
    served.put(NAME, embedded())
    served.broken = True
    with pytest.raises(ConnectionError, match=f"{NAME}.*500.*hf download {NAME}"):
        hub.folder(NAME)


def test_a_disk_without_room_is_told_before_anything_comes(served, monkeypatch):
    served.put(NAME, embedded())
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=1000))
    with pytest.raises(OSError, match=f"{NAME} needs 0.0 GB, 0.0 are free") as error:
        hub.folder(NAME)
    assert error.value.errno == errno.ENOSPC


def test_the_environment_of_the_library_holds(served, tmp_path):
    """In a process of its own, as these variables are read when the library is imported."""
    served.put(NAME, embedded())
    code = f"from evoid_jax import hub; print(hub.folder({NAME!r}).name)"

    def ask(**variables):
        env = os.environ | {"HF_HUB_CACHE": str(tmp_path / "own")} | variables
        command = [sys.executable, "-c", code]
        return subprocess.run(command, env=env, capture_output=True, text=True, cwd=tmp_path)

    env_path = {"PYTHONPATH": str(Path(__file__).parents[1])}
    offline = ask(HF_HUB_OFFLINE="1", **env_path)
    assert "HF_HUB_OFFLINE is set" in offline.stderr and not served.fetched
    online = ask(**env_path)
    assert online.returncode == 0, online.stderr
    again = ask(HF_HUB_OFFLINE="1", **env_path)
    assert again.stdout == online.stdout != ""


def test_a_sketch_is_of_what_makes_a_model_in_either_layout(tmp_path):
    for place in ("", "transformer"):
        folder = tmp_path / (place or "native")
        (folder / place).mkdir(parents=True)
        if place:
            (folder / hub.INDEX).write_text("{}")
        weights = folder / place / "weights.safetensors"
        weights.write_bytes(b"one")
        first = hub.sketch(folder)
        (folder / "notes.txt").write_text("mine")
        assert hub.sketch(folder) == first
        weights.write_bytes(b"two")
        assert hub.sketch(folder) != first
    assert hub.sketch("Org/Name") is None
