"""files.py: bad JSON is named with its cause; outputs are tried and nothing is touched."""

import json
import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from evoid_jax import files

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"x\.json is an empty file"),
        (POINTER, r"x\.json is a Git LFS pointer.*git lfs pull"),
        (b"\xef\xbb\xbf{}", r"x\.json is text with a byte order mark; save it as UTF-8 without"),
        ('{"a": 1}'.encode("utf-16"), r"x\.json is text in UTF-16; save it as UTF-8"),
        (b"<!DOCTYPE html><html>", r"x\.json is a web page; .* download it again"),
        (b'{"a": 1,\n "b" 2}', r"x\.json is not JSON: Expecting ':' delimiter at line 2, column 6"),
        (b'{"a": "\xff"}', r"x\.json is not UTF-8 text, at byte 7"),
        (b"[1, 2]", r"x\.json holds a list \[\.\.\.\]; expected an object"),
        (b"null", r"x\.json holds null; expected an object"),
        (b'{"a": {"b": 1, "b": 2}}', r"x\.json has the key 'b' twice"),
        (b"[" * 100_000, r"x\.json is not JSON that can be read: it nests too deep"),
    ],
)
def test_bad_json_is_named_with_its_cause(tmp_path, content, message):
    file = tmp_path / "x.json"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        files.read_json(file)


def test_what_is_not_there_is_told_from_folders_and_dead_links(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"x\.json is missing; expected a run folder"):
        files.read_json(tmp_path / "x.json", hint="expected a run folder")
    (tmp_path / "x.json").mkdir()
    with pytest.raises(IsADirectoryError, match=r"x\.json is a folder; expected a file"):
        files.read_json(tmp_path / "x.json")
    (tmp_path / "y.json").symlink_to("../../blobs/00")
    with pytest.raises(FileNotFoundError, match=r"y\.json is a link to \.\./\.\./blobs/00, which"):
        files.read_json(tmp_path / "y.json")


def test_a_pipe_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="pipe is not a regular file; expected a file; a hint"):
        files.require_file(tmp_path / "pipe", "a hint")


def test_good_json_is_read(tmp_path):
    for value in ({"ä": [1.5, None]}, [{"a": 1}, {"a": 2}]):
        (tmp_path / "x.json").write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")
        assert files.read_json(tmp_path / "x.json", kind=type(value)) == value


def test_a_home_folder_is_found_or_named(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert files.user_path("~/a/b") == tmp_path / "a/b"
    assert files.user_path("a/~b") == files.Path("a/~b")
    with pytest.raises(ValueError, match="~nobody-here/x: there is no such home folder"):
        files.user_path("~nobody-here/x")


def test_an_output_is_tried_and_nothing_is_left(tmp_path):
    (tmp_path / "old.mp4").write_bytes(b"old")
    for name in ("new.mp4", "a/b/new.mp4", "old.mp4"):
        assert files.check_writable(tmp_path / name) == tmp_path / name
    assert [f.name for f in tmp_path.rglob("*")] == ["old.mp4"]
    assert (tmp_path / "old.mp4").read_bytes() == b"old"


def test_a_folder_that_is_absent_is_tried_by_many_at_once(tmp_path):
    """None of them meets what another one makes and removes."""
    together = threading.Barrier(8)

    def tried(number):
        together.wait()
        return files.check_writable(tmp_path / f"out{number}" / "a" / "table.md").name

    with ThreadPoolExecutor(8) as pool:
        names = [name for k in range(20) for name in pool.map(tried, [k] * 8)]
    assert names == ["table.md"] * 160
    assert not list(tmp_path.iterdir())


def test_a_folder_that_another_makes_meanwhile_stays(tmp_path, monkeypatch):
    real = files._try

    def tried(target):
        (tmp_path / "out").mkdir()
        real(target)

    monkeypatch.setattr(files, "_try", tried)
    files.check_writable(tmp_path / "out" / "table.md")
    assert [file.name for file in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("folder", "folder is a folder; expected the name of a file"),
        ("file/x.mp4", "x.mp4 cannot be written: .*file is a file, not a folder"),
        ("file/a/b/x.mp4", "x.mp4 cannot be written: .*file is a file, not a folder"),
        ("x" * 254, "xx cannot be written: File name too long"),
        ("pipe", "pipe is not a regular file"),
    ],
)
def test_an_output_in_the_way_is_named(tmp_path, name, message):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_bytes(b"")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises((OSError, ValueError), match=message):
        files.check_writable(tmp_path / name)


def test_a_folder_without_permission_is_named(tmp_path, monkeypatch):
    def refuse(self, *args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(files.Path, "touch", refuse)  # root may write anywhere
    with pytest.raises(PermissionError, match=r"a/x\.mp4 cannot be written: Permission denied"):
        files.check_writable(tmp_path / "a" / "x.mp4")
    assert not list(tmp_path.iterdir())


def test_a_file_is_replaced_at_the_end_or_not_at_all(tmp_path):
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to("real")
    with pytest.raises(OSError, match="full"), files.replacing(tmp_path / "link") as part:
        part.write_text("half")
        raise OSError("full")
    assert (tmp_path / "real").read_text() == "old"
    with files.replacing(tmp_path / "link") as part:
        part.write_text("new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real").read_text() == "new"
    assert sorted(f.name for f in tmp_path.iterdir()) == ["link", "real"]


def test_two_writers_of_one_file_do_not_write_over_each_other(tmp_path, monkeypatch):
    """Nor where they have the same number, as processes of two containers may."""
    monkeypatch.setattr(os, "getpid", lambda: 7)
    file = tmp_path / "x.mp4"
    with files.replacing(file) as one, files.replacing(file) as two:
        one.write_text("one")
        two.write_text("two, and longer")
        assert one.read_text() == "one"
    assert file.read_text() == "one"
    assert list(tmp_path.iterdir()) == [file]


def test_a_sketch_tells_of_length_and_ends_and_of_every_byte_of_a_small_file(tmp_path):
    file = tmp_path / "weights"

    def sketched(data):
        file.write_bytes(data)
        return files.sketch(file, pieces=4, size=8)

    small, large = bytes(32), bytes(1000)
    assert sketched(small) == sketched(small) != sketched(bytes(33))
    assert len({sketched(small[:k] + b"x" + small[k + 1 :]) for k in range(32)}) == 32
    ends = (0, 7, 992, 999)  # of the first and of the last piece
    assert len({sketched(large), *(sketched(large[:k] + b"x" + large[k + 1 :]) for k in ends)}) == 5
    assert sketched(large) == sketched(large[:500] + b"x" + large[501:])  # between two pieces
