"""What a sidecar loads from disk can hold numbers and never a program: pickles are refused."""

import ast
import pickle
from pathlib import Path

import pytest
import torch

from evoid_jax.sidecars.open import catalogue, efficientnet, minilm, sface, transnet
from evoid_jax.sidecars.paper import checkpoints
from evoid_jax.sidecars.tiny import rewards as tiny

SIDECARS = Path(tiny.__file__).parents[1]
SOURCES = [*SIDECARS.rglob("*.py"), *(SIDECARS.parents[1] / "launch").glob("*.py")]
# Modules that run what they read, and functions that can.
RUNNING = {"pickle", "dill", "cloudpickle", "marshal", "shelve", "joblib", "runpy", "code"}


class Program:
    """Unpickled, it leaves a file behind."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


def calls(file: Path) -> list[ast.Call]:
    return [node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Call)]


def keywords(call: ast.Call) -> dict[str, object]:
    return {word.arg: getattr(word.value, "value", word.value) for word in call.keywords}


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: "-".join(file.parts[-2:]))
def test_every_loader_reads_numbers_alone(file):
    for node in ast.walk(ast.parse(file.read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        assert not {name.split(".")[0] for name in names} & RUNNING
    for call in calls(file):
        name, given = ast.unparse(call.func), keywords(call)
        if name == "torch.load":
            assert given.get("weights_only") is True
        if name in ("np.load", "numpy.load"):
            assert given.get("allow_pickle", False) is False
        if name.endswith(".from_pretrained"):
            assert given["local_files_only"] is True
            assert not given.get("trust_remote_code")
        assert name not in ("eval", "exec", "torch.jit.load", "torch.hub.load", "yaml.load")


LOADERS = {
    "paper": checkpoints.read_pickle,
    "transnet": lambda file: transnet.Cuts(),
    "efficientnet": lambda file: efficientnet.Backbone(),
    "sface": lambda file: sface.SFace(),
    "minilm": lambda file: minilm.Sentences(),
    "tiny": lambda file: tiny.load(file.parent),
}


@pytest.mark.parametrize("name", LOADERS)
@pytest.mark.parametrize("own", [False, True])
def test_a_program_in_place_of_weights_is_refused_and_not_run(name, own, tmp_path, monkeypatch):
    """In PyTorch's own format and as a plain pickle."""
    mark, file = tmp_path / "it ran", tmp_path / "weights"
    if own:
        torch.save({"weight": Program(mark)}, file)
        torch.load(file, weights_only=False)
    else:
        file.write_bytes(pickle.dumps({"weight": Program(mark)}))
        pickle.loads(file.read_bytes())
    assert mark.exists()  # what the file does where it is trusted
    mark.unlink()
    monkeypatch.setattr(catalogue, "find", lambda *_: file)
    for net in tiny.NETS:
        (tmp_path / f"{net}.safetensors").write_bytes(file.read_bytes())
    with pytest.raises(Exception, match=r"\w"):
        LOADERS[name](file)
    assert not mark.exists()
