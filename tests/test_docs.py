"""What the documents name exists, and the commands that they show can be typed."""

import importlib.util
import json
import re
from pathlib import Path

import documents
import pytest
import yaml
from absl import flags
from documents import EXAMPLES, PAGES, ROOT, SCRIPTS

from evoid_jax import commandline, config, convert, generate
from evoid_jax.data import folder
from evoid_jax.evaluate import __main__ as evaluate
from evoid_jax.prepare import __main__ as prepare

COMMANDS = [command for file in (*PAGES, *EXAMPLES) for command in documents.commands(file)]
# What a run writes, what a user has, what another model's folder holds.
NOT_OURS = {
    "config.json",
    "eval/Human-Domain_Eval.json",
    "evoscore.json",
    "metrics.jsonl",
    "model_index.json",
    "prepared.json",
    "prompts.json",
    "run.json",
    "samples/made_by.json",
    "scores.json",
    "summary.json",
    "system.json",
    "table.json",
    "table.md",
    "total.json",
    "transformer/config.json",
}
NAMES = {*config.names(), "config.part.key"}
ROW = re.compile(r"config\.reward\.table\.\w+(\.(group|prior|floor))?")


def ours(path: str) -> bool:
    """Tell whether a path is of the repository, of the package or of one of its folders."""
    places = (ROOT, ROOT / "configs", ROOT / "evoid_jax", ROOT / "evoid_jax" / "assets")
    return any((place / path).is_file() for place in places)


@pytest.mark.parametrize("page", PAGES, ids=lambda file: file.name)
def test_files_that_a_page_names_exist(page):
    named = {path for path in documents.files(page) if "NAME" not in path}
    written = {path for path in named if path in NOT_OURS or path.startswith(("runs/", "../"))}
    assert not [path for path in sorted(named - written) if not ours(path)]


def test_the_tree_of_the_readme_is_the_tree():
    (tree,) = [b for b in documents.blocks((ROOT / "README.md").read_text()) if "evoid_jax/\n" in b]
    shown, package = set(re.findall(r"(\w+)/", tree)), ROOT / "evoid_jax"
    places = (ROOT, package, package / "sidecars")
    assert not [name for name in shown if not any((place / name).is_dir() for place in places)]
    rooms = {file.parent.name for file in package.glob("*/__init__.py")}
    assert rooms <= shown


@pytest.mark.parametrize("file", [*PAGES, *SCRIPTS, *EXAMPLES], ids=lambda file: file.name)
def test_settings_that_are_named_exist(file):
    named = documents.settings(file)
    assert not [name for name in sorted(named) if name not in NAMES and not ROW.fullmatch(name)]


@pytest.mark.parametrize("page", PAGES, ids=lambda file: file.name)
def test_links_inside_the_repository_lead_somewhere(page):
    assert not [link for link in documents.links(page) if not (page.parent / link).exists()]


@pytest.mark.parametrize("module", sorted({command.module for command in COMMANDS}))
def test_a_module_that_is_run_can_be_run(module):
    spec = importlib.util.find_spec(f"evoid_jax.{module}")
    assert spec, module
    file = Path(spec.origin)
    file = file.with_name("__main__.py") if file.name == "__init__.py" else file
    assert 'if __name__ == "__main__"' in file.read_text()


def test_commands_are_seen():
    assert {"train", "generate", "convert", "plan", "report"} <= {c.module for c in COMMANDS}
    assert len(COMMANDS) > 10


@pytest.mark.parametrize(
    "command", [c for c in COMMANDS if c.module in ("train", "plan")], ids=lambda c: c.page
)
def test_settings_of_a_command_are_accepted(command, monkeypatch):
    monkeypatch.chdir(ROOT)
    values, rest = commandline.configure(command.arguments)
    config.from_dict(values.to_dict())
    assert {word.partition("=")[0] for word in rest} <= {"--workdir", "--target"}


@pytest.mark.parametrize(
    "command",
    [c for c in COMMANDS if c.module in ("generate", "convert", "prepare", "evaluate")],
    ids=lambda c: c.page,
)
def test_flags_of_a_command_are_accepted(command):
    values = flags.FlagValues()
    programs = {"generate": generate, "convert": convert, "prepare": prepare}
    programs["evaluate"] = evaluate
    programs[command.module].define_flags(values)
    left = values(["program", *command.arguments])
    assert not [word for word in left if word.startswith("--")]


def test_the_line_of_a_pair_is_one():
    lines = [b for b in documents.blocks((ROOT / "README.md").read_text()) if '"image"' in b]
    assert set(json.loads(lines[0])) == set(folder.KEYS)


def test_the_readme_is_short_and_its_picture_small():
    assert len((ROOT / "README.md").read_text().splitlines()) < 200
    assert (ROOT / "docs" / "base_and_evolved.webp").stat().st_size < 200_000


def test_ci_runs_what_the_repository_says():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    steps = workflow["jobs"]["test"]["steps"]
    assert any(".ci/run" in step.get("run", "") for step in steps)
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    ids = {hook["id"] for repo in hooks for hook in repo["hooks"]}
    assert {"ruff-check", "ruff-format", "check-added-large-files"} <= ids
