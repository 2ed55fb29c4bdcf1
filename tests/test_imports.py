"""Who may import whom: the shape of the house."""

import ast
import subprocess
import sys
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "evoid_jax"
ENTRY_POINTS = {"train", "pretrain", "generate", "convert", "plan"}


def imports(file: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def files(inside: bool) -> list[Path]:
    return [f for f in PACKAGE.rglob("*.py") if ("sidecars" in f.parts) == inside]


def roots(file: Path) -> set[str]:
    return {name.split(".")[0] for name in imports(file)}


def test_torch_is_imported_in_sidecars_and_for_pth_files_only():
    found = {f.name for f in files(inside=False) if roots(f) & {"torch", "diffusers", "peft"}}
    assert found == {"pth.py"}  # inside of functions, see the last test
    assert any("torch" in roots(f) for f in files(inside=True))


def test_sidecars_import_no_jax():
    assert not [f for f in files(inside=True) if roots(f) & {"jax", "flax", "optax", "orbax"}]


def test_nothing_imports_an_entry_point():
    wanted = {f"evoid_jax.{name}" for name in ENTRY_POINTS}
    assert not [(f, imports(f) & wanted) for f in PACKAGE.rglob("*.py") if imports(f) & wanted]


def test_the_training_process_loads_no_torch():
    code = "import sys, evoid_jax.train; print(sorted({'torch', 'tensorflow'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
