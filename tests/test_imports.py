"""Who may import whom: the shape of the house."""

import ast
import subprocess
import sys
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "evoid_jax"
# From the cellar to the roof. A module imports from its own floor and from those below. A name
# stands for a module or for a package with all that is in it; the longest one that fits counts.
FLOORS = (
    (
        "files",
        "fields",
        "mirrors",
        "groups",
        "algorithm_groups",
        "reward_groups",
        "config",
        "kinds",
        "decoding",
        "media",
        "canvas",
        "world",
    ),
    (
        "settings",
        "commandline",
        "sharding",
        "distributed",
        "interruption",
        "metrics",
        "provenance",
        "sidecars.wire",
        "sidecars.mp4",
        "sidecars.limits",
        "sidecars.photos",
        "hub",
    ),
    ("models", "flow", "losses", "clipping"),
    ("export", "roles", "algorithms", "deployment"),
    (
        "data",
        "rewards",
        "rollout",
        "teacher",
        "evolve",
        "checkpoint",
        "proof",
        "triples",
        "sidecars",
    ),
    ("session", "work_folder", "run_lock", "progress"),
    ("arms", "stopping", "sources"),
    ("proof_parts",),
    ("heldout", "watch", "report"),
    ("train", "generate", "convert", "evaluate", "plan", "pretrain", "prepare", "report.__main__"),
    ("notebook",),
)
ENTRY_POINTS = FLOORS[-2]
ROOMS = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}


def imports(file: Path) -> set[str]:
    """Return the dotted names that a file imports, those inside functions too."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def files(inside: bool) -> list[Path]:
    return [f for f in PACKAGE.rglob("*.py") if ("sidecars" in f.parts) == inside]


def roots(file: Path) -> set[str]:
    return {name.split(".")[0] for name in imports(file)}


def module(file: Path) -> str:
    """Return a file's dotted name below the package, such as models.wan."""
    parts = file.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part not in ("__init__", "__main__"))


def room(name: str) -> str:
    """Return the entry of FLOORS that a module stands in."""
    fitting = [room for room in ROOMS if name == room or name.startswith(f"{room}.")]
    return max(fitting, key=len)


def inner(file: Path) -> set[str]:
    """Return the modules of ours that a file imports."""
    ours = {module(f) for f in PACKAGE.rglob("*.py")} - {""}
    return {name.removeprefix("evoid_jax.") for name in imports(file)} & ours


def test_every_module_has_a_room():
    for file in PACKAGE.rglob("*.py"):
        name = module(file)
        assert not name or any(name == r or name.startswith(f"{r}.") for r in ROOMS), name


def test_nobody_imports_upward():
    upward = [
        (module(file), name)
        for file in PACKAGE.rglob("*.py")
        for name in inner(file)
        if ROOMS[room(name)] > ROOMS[room(module(file))]
    ]
    assert not upward


def test_nothing_imports_an_entry_point():
    """A package that is one may use its own modules; else only the notebook's face of them may."""
    wrong = [
        (module(file), name)
        for file in PACKAGE.rglob("*.py")
        for name in inner(file)
        if room(name) in ENTRY_POINTS and room(module(file)) not in (room(name), "notebook")
    ]
    assert not wrong


def test_no_test_imports_a_test():
    tests = list(Path(__file__).parent.glob("*.py"))
    assert not [f for f in tests if any(name.startswith("test_") for name in imports(f))]


def test_torch_is_imported_by_sidecars_pth_files_and_the_pretraining_only():
    users = {f.name for f in files(inside=False) if roots(f) & {"torch", "diffusers", "peft"}}
    # The first inside of functions, see the last test.
    assert users == {"pth.py", "coder_torch.py"}
    assert any("torch" in roots(f) for f in files(inside=True))


def test_sidecars_import_no_jax():
    assert not [f for f in files(inside=True) if roots(f) & {"jax", "flax", "optax", "orbax"}]


def test_the_training_process_loads_no_torch():
    code = "import sys, evoid_jax.train; print(sorted({'torch', 'tensorflow'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
