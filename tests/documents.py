"""What people read, taken apart: commands, paths, settings and links in it."""

import re
import shlex
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
SCRIPTS = sorted(file for file in (ROOT / "launch").iterdir() if file.is_file())
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))

FENCE = re.compile(r"^ *```.*?\n(.*?)^ *```", re.DOTALL | re.MULTILINE)
COMMAND = re.compile(r"python3? -m evoid_jax\.([\w.]+)(.*)")
FILE = re.compile(r"[\w./-]+\.(?:py|md|sh|yaml|yml|json|txt|toml|webp)\b")
SETTING = re.compile(r"\bconfig((?:\.[a-z]\w*)+)")
LINK = re.compile(r"!?\[[^\]]*\]\(([^)#]+)")


class Command(NamedTuple):
    """A call of one of our modules, as a reader would type it."""

    page: str
    module: str  # below evoid_jax
    arguments: list[str]


def blocks(text: str) -> list[str]:
    """Return what stands between fences."""
    return FENCE.findall(text)


def commands(file: Path) -> list[Command]:
    """Return the commands in a page's fences, or in a Python file's docstring."""
    text = file.read_text()
    parts = blocks(text) if file.suffix == ".md" else [text]
    made = []
    for line in "\n".join(parts).replace("\\\n", " ").split("\n"):
        if match := COMMAND.search(line):
            words = shlex.split(match[2], comments=True)
            words = [word for word in words if not re.fullmatch(r"&|2?>.*", word)]
            made.append(Command(file.name, match[1], words))
    return made


def files(file: Path) -> set[str]:
    """Return the paths of files that a page names in backticks or fences."""
    text = file.read_text()
    quoted = re.findall(r"`([^`\n]+)`", FENCE.sub("", text))
    return {path for part in (*quoted, *blocks(text)) for path in FILE.findall(part)}


def settings(file: Path) -> set[str]:
    """Return the settings that a file names, such as config.train.lr."""
    names = {"config" + match for match in SETTING.findall(file.read_text())}
    return {name for name in names if name not in ("config.py", "config.json")}


def links(file: Path) -> set[str]:
    """Return the links of a page that stay inside the repository."""
    return {link for link in LINK.findall(file.read_text()) if "://" not in link}
