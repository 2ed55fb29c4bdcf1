"""What continuous integration installs is written down with hashes, and fits the requirements."""

import re
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
LOCKED = re.compile(
    r"^([\w.-]+)==([^ ;\\]+)((?: \\\n    --hash=sha256:[0-9a-f]{64})+)$", re.MULTILINE
)


def locked() -> dict[str, str]:
    """Return the locked versions by name."""
    text = "".join((ROOT / ".ci" / name).read_text() for name in ("lock.txt", "torch.txt"))
    pins = {name: version for name, version, _ in LOCKED.findall(text)}
    # Every line that pins a version is followed by hashes, or the pattern above would miss it.
    assert len(pins) == len(re.findall(r"^[\w.-]+==", text, re.MULTILINE))
    return pins


def required() -> list[Requirement]:
    """Return what the package, its sidecars and its tests need."""
    lines = []
    for name in ("requirements.txt", "requirements-sidecars.txt", "requirements-test.txt"):
        lines += (ROOT / name).read_text().splitlines()
    return [Requirement(line) for line in lines if line.strip() and not line.startswith("#")]


def test_every_requirement_is_locked_in_a_version_that_it_allows():
    pins = locked()
    for one in required():
        name = re.sub(r"[-_.]+", "-", one.name).lower()
        assert name in pins, f"{one}: run make lock"
        assert one.specifier.contains(pins[name], prereleases=True), f"{one}: run make lock"


def test_the_cpu_build_of_pytorch_and_the_others_are_locked():
    (torch,) = LOCKED.findall((ROOT / ".ci" / "torch.txt").read_text())
    assert torch[2].count("--hash") > 1
