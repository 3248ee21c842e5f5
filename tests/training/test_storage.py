import errno
import json
import os

import pytest

from ctm.files import write_whole
from ctm.training import storage
from ctm.training.storage import clear_leftovers, damage, write_directory

FILES = [("a.bin", b"first" * 100), ("b.bin", b"second")]


@pytest.fixture
def written(tmp_path):
    write_directory(tmp_path / "7", FILES)
    return tmp_path / "7"


def test_what_is_written_is_whole(written):
    assert {p.name: p.read_bytes() for p in written.iterdir() if p.suffix == ".bin"} == dict(FILES)
    assert damage(written) is None
    assert [p.name for p in written.parent.iterdir()] == ["7"]


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda d: (d / "a.bin").unlink(), "a.bin is missing"),
        (lambda d: (d / "a.bin").write_bytes(b"first" * 99), "a.bin has 495 bytes instead of 500"),
        (lambda d: (d / "b.bin").write_bytes(b"secund"), "b.bin does not have the checksum it was written with"),
        (lambda d: (d / "manifest.json").unlink(), "manifest.json is missing"),
        (lambda d: (d / "manifest.json").write_text("{"), "manifest.json is not readable"),
        (lambda d: (d / "manifest.json").write_text("[]"), "manifest.json is not readable"),
        (lambda d: (d / "manifest.json").write_text("[" * 100_000), "manifest.json is not readable"),
    ],
)
def test_each_damage_is_named(written, harm, words):
    harm(written)
    assert damage(written) == words


def test_nothing_gets_its_name_before_it_is_on_the_disk(tmp_path, monkeypatch):
    """The order that a power cut needs: every file, their directory, the rename, the parent."""
    happened = []

    def named(descriptor):
        happened.append(("sync", os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}"))))

    monkeypatch.setattr(os, "fsync", named)
    monkeypatch.setattr(
        os, "replace", lambda a, b, replace=os.rename: (happened.append(("rename", b.name)), replace(a, b))
    )
    write_directory(tmp_path / "7", FILES)
    files = [("sync", name) for name in ("a.bin", "b.bin", "manifest.json", ".writing-7")]
    assert happened == [*files, ("rename", "7"), ("sync", tmp_path.name)]
    happened.clear()
    write_whole(tmp_path / "c", b"x")
    assert happened == [("sync", ".c.writing"), ("rename", "c"), ("sync", tmp_path.name)]


def test_an_error_half_way_leaves_what_was_there(written, monkeypatch):
    """No space left after the first file: the directory before stays whole and nothing else is left."""
    original, count = storage.write_file, []

    def full(path, content):
        count.append(path)
        if len(count) == 2:
            original(path, content[: len(content) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        original(path, content)

    monkeypatch.setattr(storage, "write_file", full)
    with pytest.raises(OSError, match="No space left on device"):
        write_directory(written, [("a.bin", b"new"), ("b.bin", b"newer")])
    assert damage(written) is None
    assert (written / "a.bin").read_bytes() == FILES[0][1]
    assert [p.name for p in written.parent.iterdir()] == ["7"]


def test_a_directory_is_replaced_as_a_whole(written):
    write_directory(written, [("c.bin", b"third")])
    assert sorted(p.name for p in written.iterdir()) == ["c.bin", "manifest.json"]
    assert list(json.loads((written / "manifest.json").read_text())["files"]) == ["c.bin"]
    assert [p.name for p in written.parent.iterdir()] == ["7"]


def test_leftovers_of_a_killed_writer_go_and_what_it_was_to_replace_comes_back(tmp_path):
    for name in (".writing-8", ".old-7", ".old-6", "6"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "inside").write_text(name)
    (tmp_path / ".config.yaml.writing").write_text("half")
    (tmp_path / ".gitignore").write_text("kept")
    (tmp_path / ".writing-link").symlink_to(tmp_path / "6")
    clear_leftovers(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [".gitignore", "6", "7"]
    assert (tmp_path / "7" / "inside").read_text() == ".old-7"
    assert (tmp_path / "6" / "inside").read_text() == "6"
