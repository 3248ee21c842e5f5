"""Samples are written as they are made: what was killed goes on, to the same bits, and memory is that of a batch."""

import json
import resource
import signal
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ctm import TrajectoryModel, generate
from ctm.cli import main
from ctm.commands.output import finished_samples, sampling_record
from ctm.networks import MLP
from ctm.sampling import stream

from ..conftest import random_weights
from ..processes import Command, Forked
from .test_cli import run, sentence

NUM = 1500


@pytest.fixture
def model(small_ctm, tmp_path) -> Path:
    small_ctm.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def killed(arguments: list[str], enough) -> None:
    """Run the real command and kill it once `enough()` holds."""
    command = Command(arguments)
    until = time.monotonic() + 120
    while not enough():
        assert command.poll() is None, "ended before it could be killed"
        assert time.monotonic() < until
        time.sleep(0.001)
    command.kill()
    assert command.wait() == -signal.SIGKILL


def options(model: Path, out: Path) -> list[str]:
    asked = ["--num", NUM, "--steps", 3, "--gamma", 0.5, "--seed", 7, "--batch_size", 40, "--out", out]
    return ["sample", str(model), *map(str, asked)]


def pictures(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.slow
def test_a_killed_directory_goes_on_to_the_same_bits(model, tmp_path):
    broken, whole = tmp_path / "broken", tmp_path / "whole"
    killed(options(model, broken), lambda: (broken / "000100.png").exists())
    finished = {path.name: path.stat().st_mtime_ns for path in broken.glob("[0-9]*.png")}
    assert 100 < len(finished) < NUM
    assert main(options(model, broken)) == 0
    assert {name: (broken / name).stat().st_mtime_ns for name in finished} == finished
    assert main(options(model, whole)) == 0
    assert len(pictures(whole)) == NUM + 1
    assert pictures(broken) == pictures(whole)


def test_a_killed_npz_goes_on_to_the_same_bits(model, tmp_path, monkeypatch):
    broken, whole = tmp_path / "broken.npz", tmp_path / "whole.npz"
    rows = tmp_path / "broken.npz.partial" / "arr_0.npy"
    killed(options(model, broken), lambda: rows.exists() and rows.stat().st_size > 100 * 64 + 128)
    finished = (rows.stat().st_size - 128) // 64
    assert 100 < finished < NUM
    begun = []
    monkeypatch.setattr("ctm.sampling.stream", lambda *a, **k: begun.append(k["start"]) or stream(*a, **k))
    assert main(options(model, broken)) == 0
    assert main(options(model, whole)) == 0
    assert begun == [finished - finished % 40, 0]
    assert broken.read_bytes() == whole.read_bytes()
    assert not rows.parent.exists()
    with np.load(whole) as stored:
        assert stored["arr_0"].shape == (NUM, 8, 8, 1)
        assert stored["arr_1"].shape == (NUM,)


def peaks(model: str, out: str) -> None:
    """Print the largest memory of the process after a few samples, and after many."""
    for num in (400, 5000):
        for name in (f"{num}", f"{num}.npz"):
            pictures = num if name.endswith("npz") else num // 4
            assert main(["sample", model, "--num", str(pictures), "--batch_size", "50", "--out", f"{out}/{name}"]) == 0
        print("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


@pytest.mark.slow
def test_memory_is_that_of_a_batch(tmp_path):
    """Twelve times the samples, whose bytes alone are 15 MB as pictures and 60 MB as floats, in the same memory."""
    network = MLP((3, 32, 32), width=4, blocks=1, embedding=4)
    random_weights(TrajectoryModel(network, shape=(3, 32, 32))).save_pretrained(tmp_path / "model")
    process = Forked(peaks, str(tmp_path / "model"), str(tmp_path))
    printed, said = process.communicate(300)
    assert process.returncode == 0, said
    few, many = (int(line.split()[1]) for line in printed.splitlines() if line.startswith("peak"))
    assert many - few < 5_000, f"{few} kB became {many} kB"


def test_a_directory_goes_on_with_more_and_mends_what_is_missing(capsys, model, tmp_path):
    out, whole = tmp_path / "out", tmp_path / "whole"
    asked = ["sample", model, "--labels", "0-2", "--batch_size", 4]
    assert run(capsys, *asked, "--num", 6, "--out", out)[0] == 0
    (out / "000001.png").unlink()
    (out / "000003.png").write_bytes(b"")  # what a power cut can leave
    assert run(capsys, *asked, "--num", 9, "--out", out)[0] == 0
    assert run(capsys, *asked, "--num", 9, "--out", whole)[0] == 0
    assert pictures(out) == pictures(whole)
    assert json.loads((out / "sample.json").read_text())["labels"] == [0, 1, 2] * 3


def test_a_finished_directory_is_left_as_it_is(capsys, model, tmp_path, monkeypatch):
    asked = ["sample", model, "--num", 5, "--out", tmp_path / "out"]
    assert run(capsys, *asked)[0] == 0
    monkeypatch.setattr("ctm.sampling.generation.draw", lambda *_, **__: pytest.fail("a sample was drawn"))
    assert run(capsys, *asked)[:2] == (0, f"5 samples in {tmp_path / 'out'}\n")


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["--steps", 2], "steps, grid"),
        (["--seed", 1, "--labels", 3], "seed"),
        (["--labels", 4], "labels"),
        (["--gamma", 0.5, "--labels", 3], "gamma"),
        (["--dtype", "float64", "--labels", 3], "dtype"),
    ],
)
def test_a_directory_of_other_settings_is_refused(capsys, model, tmp_path, arguments, what):
    out = tmp_path / "out"
    assert run(capsys, "sample", model, "--num", 3, "--labels", 3, "--out", out)[0] == 0
    before = pictures(out)
    err = sentence(capsys, "sample", model, "--num", 3, *arguments, "--out", out)
    assert f"made with another {what}" in err
    assert pictures(out) == before


@pytest.mark.parametrize(
    ("first", "again", "what"),
    [
        (["--noise_stream", "v2"], [], "noise_stream"),
        (["--sampler", "heun", "--steps", 3, "--churn", 1], ["--sampler", "heun", "--steps", 3], "churn"),
        (
            ["--sampler", "midpoint", "--steps", 3, "--churn_max", 9],
            ["--sampler", "midpoint", "--steps", 3],
            "churn_max",
        ),
        (["--sampler", "ancestral", "--steps", 3, "--eta", 0], ["--sampler", "ancestral", "--steps", 3], "eta"),
    ],
)
def test_a_setting_that_is_left_out_again_counts(capsys, model, tmp_path, first, again, what):
    """In both orders, and for an .npz that was begun."""
    for index, (one, other) in enumerate(((first, again), (again, first))):
        out = tmp_path / f"out{index}"
        assert run(capsys, "sample", model, "--num", 2, *one, "--out", out)[0] == 0
        before = pictures(out)
        err = sentence(capsys, "sample", model, "--num", 4, *other, "--out", out)
        assert f"made with another {what} (see its sample.json)" in err
        assert pictures(out) == before
        assert run(capsys, "sample", model, "--num", 4, *one, "--out", out)[0] == 0
        partial = tmp_path / f"x{index}.npz.partial"
        partial.mkdir()
        record = json.loads((out / "sample.json").read_text())
        (partial / "sample.json").write_text(json.dumps(record))
        np.save(partial / "arr_0.npy", np.zeros((4, 8, 8, 1), np.uint8))
        assert finished_samples(tmp_path / f"x{index}.npz", record) == 4
        assert sampling_record(out).get(what) == record.get(what)  # an evaluation's record has it too
        less = {name: value for name, value in record.items() if name != what}
        assert (less == record) == (one is again)
        if less != record:
            assert finished_samples(tmp_path / f"x{index}.npz", less) == 0


def test_the_fields_of_a_condition_count_when_they_are_left_out(tmp_path):
    """What `ctm sample --condition FILE` keeps of the file, and the same command without it."""
    plain = {"num": 2, "seed": 0, "cfg": None}
    with_fields = plain | {"condition": {"file": "c.npz", "sha256": "00"}}
    for kept, asked in ((with_fields, plain), (plain, with_fields)):
        (tmp_path / "sample.json").write_text(json.dumps(kept))
        with pytest.raises(ValueError, match="made with another condition"):
            finished_samples(tmp_path, asked)
    assert finished_samples(tmp_path, plain) == 0


def test_other_weights_under_the_same_name_are_refused(capsys, small_ctm, model, tmp_path):
    out = tmp_path / "out"
    assert run(capsys, "sample", model, "--num", 3, "--out", out)[0] == 0
    random_weights(small_ctm, seed=1).save_pretrained(model)
    assert "made with another weights" in sentence(capsys, "sample", model, "--num", 3, "--out", out)


def test_pictures_of_unknown_make_are_refused(capsys, model, tmp_path):
    (tmp_path / "out").mkdir()
    Image.new("L", (8, 8)).save(tmp_path / "out" / "000000.png")
    assert "holds pictures but no sample.json" in sentence(capsys, "sample", model, "--out", tmp_path / "out")
    (tmp_path / "out" / "sample.json").write_text("{")
    assert "sample.json cannot be read" in sentence(capsys, "sample", model, "--out", tmp_path / "out")


def test_an_npz_begun_with_other_settings_is_begun_anew(capsys, model, tmp_path, monkeypatch):
    out = tmp_path / "x.npz"

    def stopped(*arguments, **settings):
        yield next(stream(*arguments, **settings))
        raise KeyboardInterrupt

    monkeypatch.setattr("ctm.sampling.stream", stopped)
    asked = ["sample", model, "--num", 9, "--batch_size", 4, "--out", out]
    assert run(capsys, *asked, "--seed", 1)[0] == 130
    assert (tmp_path / "x.npz.partial").is_dir()
    monkeypatch.undo()
    assert run(capsys, *asked)[0] == 0
    assert run(capsys, *asked[:-1], tmp_path / "y.npz")[0] == 0
    assert out.read_bytes() == (tmp_path / "y.npz").read_bytes()


def test_one_picture_has_a_bound(capsys, model, tmp_path):
    err = sentence(capsys, "sample", model, "--num", 4097, "--out", tmp_path / "x.png")
    assert "one picture shows at most 4096 samples, got --num 4097" in err


def test_a_stream_starts_anywhere(small_ctm):
    whole = generate(small_ctm, 10, batch_size=4, steps=2, gamma=0.5)
    parts = list(stream(small_ctm, 10, batch_size=4, steps=2, gamma=0.5, start=4))
    assert [len(part) for part in parts] == [4, 2]
    assert all((part == rows).all() for part, rows in zip(parts, whole[4:].split(4), strict=True))
    assert list(stream(small_ctm, 10, start=10)) == []
    with pytest.raises(ValueError, match=r"start must be in 0 … num = 10, got 11"):
        stream(small_ctm, 10, start=11)


@pytest.mark.parametrize(
    ("sampler", "options"),
    [
        ("heun", ["--churn", 4, "--churn_min", 0.1, "--churn_max", 50, "--churn_noise", 1.003]),
        ("midpoint", ["--churn", 4]),
        ("ancestral", ["--eta", 0.5]),
    ],
)
def test_the_noise_of_a_sampler_can_be_set(capsys, small_ctm, tmp_path, sampler, options):
    """It changes the samples, and the record says so."""
    small_ctm.save_pretrained(tmp_path / "model")
    asked = [tmp_path / "model", "--num", 3, "--steps", 5, "--sampler", sampler]
    assert run(capsys, "sample", *asked, "--out", tmp_path / "plain.npz")[0] == 0
    assert run(capsys, "sample", *asked, *options, "--out", tmp_path / "noisy.npz")[0] == 0
    plain, noisy = (np.load(tmp_path / f"{name}.npz")["arr_0"] for name in ("plain", "noisy"))
    assert not np.array_equal(plain, noisy)
    with zipfile.ZipFile(tmp_path / "noisy.npz") as archive:
        record = json.loads(archive.read("sample.json"))
    for option, value in zip(options[::2], options[1::2], strict=True):
        assert record[option.removeprefix("--")] == value


def test_noise_for_another_sampler_is_refused(capsys, small_ctm, tmp_path):
    small_ctm.save_pretrained(tmp_path / "model")
    err = sentence(capsys, "sample", tmp_path / "model", "--churn", 4, "--out", tmp_path / "x.npz")
    assert "--churn belongs to heun and midpoint, and the sampler here is gamma" in err
    err = sentence(capsys, "sample", tmp_path / "model", "--sampler", "ancestral", "--eta", 2, "--out", tmp_path / "x")
    assert "--eta must be in [0, 1]" in err


def packed(path, record: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("sample.json", record)
    return path


def test_a_record_of_samples_is_read_within_bounds(tmp_path):
    assert sampling_record(tmp_path / "absent.npz") == {}
    assert sampling_record(packed(tmp_path / "others.npz", b'{"made": "elsewhere"}')) == {}
    for record, words in (
        (b" " * (16 * 2**20 + 1), "is longer than 16 MB"),
        (b"[" * 100_000, "nested deeper than 50"),
        (b"{", "is not readable as JSON"),
        (b"\xff", "is no text in UTF-8"),
    ):
        with pytest.raises(ValueError, match=rf"x\.npz \(sample\.json\) .*{words}"):
            sampling_record(packed(tmp_path / "x.npz", record))
        (tmp_path / "sample.json").write_bytes(record)
        with pytest.raises(ValueError, match=rf"sample\.json cannot be read .*{words}.*: give the samples without it"):
            sampling_record(tmp_path)


def test_a_damaged_record_of_samples_is_said(tmp_path):
    content = packed(tmp_path / "x.npz", b"[1, 2]" * 50).read_bytes()
    (tmp_path / "x.npz").write_bytes(content.replace(content[41:47], b"\xff" * 6))
    with pytest.raises(ValueError, match=r"x\.npz \(sample\.json\) cannot be read"):
        sampling_record(tmp_path / "x.npz")


def test_a_begun_npz_whose_record_has_no_number_is_made_anew(tmp_path):
    partial = tmp_path / "p.npz.partial"
    partial.mkdir()
    (partial / "sample.json").write_text('{"seed": 1}')
    assert finished_samples(tmp_path / "p.npz", {"seed": 1, "num": 4}) == 0
