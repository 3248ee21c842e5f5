"""One process at a time writes a place of results, and results of an edit are all there or none."""

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from ctm import lock
from ctm.cli import main
from ctm.lock import DirectoryInUse, place_locked

from .test_cli import run, sentence

HOLD = """
import importlib.util, pathlib, sys, time
spec = importlib.util.spec_from_file_location("lock", sys.argv[1])  # the file alone: the package brings torch
lock = importlib.util.module_from_spec(spec)
spec.loader.exec_module(lock)
with lock.place_locked(pathlib.Path(sys.argv[2])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def model(small_ctm, tmp_path):
    small_ctm.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def picture(tmp_path):
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8) * 4).save(tmp_path / "picture.png")
    return tmp_path / "picture.png"


def holding(out) -> subprocess.Popen:
    process = subprocess.Popen([sys.executable, "-c", HOLD, lock.__file__, str(out)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    return process


@pytest.mark.parametrize("name", ["out.png", "out", "out.npz", "edited", "edited.png"])
def test_the_second_writer_is_refused_and_told_who_the_first_is(model, picture, tmp_path, capsys, name):
    out = tmp_path / "results" / name
    arguments = ["sample", model, "--num", 2, "--out", out]
    if name.startswith("edited"):
        arguments = ["edit", "stroke", model, picture, "--sigma", 1, "--out", out]
    holder = holding(out)
    try:
        said = sentence(capsys, *arguments)
        assert f"{out} is being written by process {holder.pid} on " in said
        assert "use another --out" in said
        assert not out.exists()
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.communicate()
    assert run(capsys, *arguments)[0] == 0  # a killed process holds nothing
    assert [path.name for path in out.parent.iterdir()] == [name]  # and no lock is left


def test_one_place_under_two_names_is_one_place(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    holder = holding(tmp_path / "link")
    try:
        with pytest.raises(DirectoryInUse), place_locked(tmp_path / "real"):
            raise AssertionError
        with place_locked(tmp_path / "other"):
            pass
    finally:
        holder.kill()
        holder.communicate()


def test_many_writers_come_one_after_another(tmp_path):
    """Each that gets the place reads and raises a number there; with two at once one count would be lost."""
    counts = (
        "import time\nwon = 0\nend = time.monotonic() + 0.5\nwhile time.monotonic() < end:\n"
        "    try:\n        with lock.place_locked(pathlib.Path(sys.argv[2])):\n"
        "            file = pathlib.Path(sys.argv[3])\n            file.write_text(str(int(file.read_text()) + 1))\n"
        "            won += 1\n    except lock.DirectoryInUse:\n        pass\nprint(won)\n"
    )
    (tmp_path / "count").write_text("0")
    script = HOLD.partition("with lock")[0] + counts
    command = [sys.executable, "-c", script, lock.__file__, str(tmp_path / "out"), str(tmp_path / "count")]
    writers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    won = [int(writer.communicate()[0]) for writer in writers]
    assert sum(won) == int((tmp_path / "count").read_text()) > 0
    assert [path.name for path in tmp_path.iterdir()] == ["count"]


@pytest.mark.parametrize("there", [False, True])
def test_an_edit_on_a_full_disk_leaves_nothing_partial(model, picture, tmp_path, capsys, monkeypatch, there):
    out = tmp_path / "edited"
    arguments = ["edit", "stroke", str(model), str(picture), "--sigma", "1", "--num", "3", "--out", str(out)]
    if there:
        assert main([*arguments, "--seed", "1"]) == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()} if there else {}
    done = []

    save = Image.Image.save

    def full(image, *where, **options):
        done.append(where)
        if len(done) > 2:
            raise OSError(28, os.strerror(28))
        save(image, *where, **options)

    monkeypatch.setattr(Image.Image, "save", full)
    assert main(arguments) == 2
    assert "No space left" in capsys.readouterr().err
    assert len(done) == 3
    monkeypatch.undo()
    assert ({path.name: path.read_bytes() for path in out.iterdir()} if there else {}) == before
    assert out.exists() == there
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.startswith(".")) == []
    assert main(arguments) == 0
    assert json.loads((out / "edit.json").read_text())["seed"] == 0
