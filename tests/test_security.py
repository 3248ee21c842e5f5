"""Files from elsewhere: each hostile input of docs/security.md's table ends in a sentence and exit code 2, at once."""

import importlib.util
import json
import re
import sys
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest

from ctm import DiffusionModel
from ctm.cli import main
from ctm.evaluation.plans import subject_of
from ctm.evaluation.reference import statistics_file
from ctm.networks import MLP
from ctm.teachers.files import read_state
from ctm.training.storage import damage

from .processes import Forked

ROOT = Path(__file__).parents[1]
spec = importlib.util.spec_from_file_location("security_table", ROOT / "tools" / "security_table.py")
table = importlib.util.module_from_spec(spec)
sys.modules["security_table"] = table
spec.loader.exec_module(table)

MANY = (
    "pickle-empty",
    "pickle-hashes",
    "pickle-copies",
    "torch-inflates",
    "picture",
    "arrays",
    "parquet-inflates",
    "parquet-repeats",
    "samples-inflates",
    "upload-pixels",
    "upload-text",
    "upload-size",
    "body-deep",
)  # seconds to make or to read, or a service to start
RECIPE = table.RECIPE + table.RADAM
QUICK = [name for name, entry in table.INPUTS.items() if name not in MANY]


def test_the_table_has_the_rows_of_its_script():
    text = (ROOT / "docs" / "security.md").read_text()
    rows = re.findall(r"^\| ([a-z0-9-]+) \| (.+?) \| (.+?) \| (.+?) \|", text.split(table.BEGIN)[1], re.MULTILINE)[1:]
    assert [row[:3] for row in rows] == [(name, entry.what, entry.bound) for name, entry in table.INPUTS.items()]
    assert {row[3] for row in rows} == {"refused"}


def refused(capsys, arguments) -> str:
    try:
        code = main(arguments)
    except SystemExit as stop:
        code = stop.code
    sentence = capsys.readouterr().err
    assert code == 2
    assert len(sentence.strip().splitlines()) == 1
    assert len(sentence) < 1000
    return sentence


@pytest.mark.parametrize("name", QUICK)
def test_a_hostile_file_is_refused(name, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = table.INPUTS[name].make(tmp_path)
    made = {path.name for path in tmp_path.rglob("*")}
    if arguments[0] == "train":  # slow to trace, and bounded by the file's own megabyte
        refused(capsys, arguments)
    else:
        tracemalloc.start()
        refused(capsys, arguments)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 60e6
    assert not {path.name for path in tmp_path.rglob("*")} & {"ran", "out", "out.png"} - made
    assert "evilmod" not in sys.modules


@pytest.mark.slow
@pytest.mark.parametrize("name", MANY)
def test_a_large_hostile_file_is_refused_within_a_minute(name):
    result = table.measure(name)
    assert result["code"] == 2, result["sentence"]
    assert result["megabytes"] < 300


def read_each(*files: str) -> None:
    """Print the sentence with which each file is refused."""
    for file in files:
        try:
            read_state(file)
        except ValueError as error:
            print(error, flush=True)


def test_case_18_shared_tuples_as_keys_end_at_once(tmp_path):
    """In a process of its own, as a hash that never ends cannot be interrupted: two minutes for what takes a moment."""
    for number, name in enumerate(("pickle-set", "pickle-key", "torch-key", "torch-old-key")):
        (tmp_path / str(number)).mkdir()
        table.INPUTS[name].make(tmp_path / str(number))
    assert (tmp_path / "0" / "net.pkl").stat().st_size <= 368
    process = Forked(read_each, *sorted(map(str, tmp_path.glob("*/net.*"))))
    try:
        printed, said = process.communicate(120)
    finally:
        if process.poll() is None:
            process.kill()
    assert process.returncode == 0, said
    assert len(printed.splitlines()) == 4
    assert all("a tuple in it is a key or a set's member" in line for line in printed.splitlines())


def test_statistics_that_inflate_are_not_read(tmp_path):
    """200 MB of zeros in 200 kB: refused by their shapes; a shape that is not there whole is damage."""
    np.savez_compressed(tmp_path / "s.npz", mu=np.zeros(5000), sigma=np.zeros((5000, 5000)))
    tracemalloc.start()
    with pytest.raises(
        ValueError, match=r"would inflate to 190 MB from .* kB, which statistics do not: it was not read"
    ):
        statistics_file(tmp_path / "s.npz", 100)
    assert tracemalloc.get_traced_memory()[1] < 20e6
    tracemalloc.stop()
    with zipfile.ZipFile(tmp_path / "t.npz", "w") as archive, archive.open("mu.npy", "w") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f8", "fortran_order": False, "shape": (10**12,)})
    with pytest.raises(ValueError, match=r"mu says float64 1000000000000, and its part of the zip 128 bytes"):
        statistics_file(tmp_path / "t.npz", 100)


def test_the_configuration_of_a_run_is_bounded(tmp_path):
    """Also where an evaluation looks into it, and a checkpoint's list of files leads out of its directory."""
    (tmp_path / "config.yaml").write_text(table.LAUGHS)
    with pytest.raises(ValueError, match=r"config\.yaml has more than 20000 values"):
        subject_of("model", str(tmp_path), DiffusionModel(MLP((2,), width=8, blocks=1, embedding=8), shape=(2,)))
    files = {"../../../dev/zero": {"bytes": 0, "sha256": ""}}
    (tmp_path / "manifest.json").write_text(json.dumps({"files": files}))
    assert damage(tmp_path) == "../../../dev/zero is missing"
