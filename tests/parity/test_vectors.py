"""The door to the vectors does fail: on disagreement, on tensors that nothing reads, on a file that is not the manifest's."""

import hashlib
import json

import pytest
import torch
from safetensors.torch import save_file

from . import vectors

X = torch.tensor([1.0, -4.0, 2.0], dtype=torch.float64)


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes a directory with one file `some` and makes it the one that is read."""

    def write(tensors, **entry):
        path = tmp_path / "some.safetensors"
        save_file(tensors, path)
        sha = hashlib.sha256(path.read_bytes()).hexdigest()
        entry = {
            "description": "",
            "notes": "",
            "tensor_notes": {},
            "tolerance": {},
            "config": {},
            "sha256": sha,
            **entry,
        }
        (tmp_path / "manifest.json").write_text(json.dumps({"files": {"some.safetensors": entry}}))
        monkeypatch.setenv("CTM_VECTORS", str(tmp_path))
        vectors._entries.cache_clear()

    yield write
    vectors._entries.cache_clear()


def test_agreement_passes_and_everything_must_be_read(write):
    write({"out/a": X, "in/b": X.float()})
    assert vectors.names("so*", "other") == ["some"]
    with vectors.open_file("some") as file:
        file.compare("out/a", X * (1 + 1e-10))
        assert torch.equal(file["in/b"].double(), X)
    with pytest.raises(AssertionError, match="in/b: no test reads it"), vectors.open_file("some") as file:
        file.compare("out/a", X)
    with vectors.open_file("some", ignore=("in/*",)) as file:
        file.compare("out/a", X)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (X + 4e-8, r"out/a in float64: relative error 1\.00e-08, allowed 1\.00e-09"),
        (X[:2], r"ours has shape \(2,\), the reference \(3,\)"),
        (X * float("nan"), r"relative error inf"),
        (torch.zeros(3), r"out/a in float32: relative error 1\.00e\+00"),
    ],
)
def test_disagreement_fails(write, wrong, said):
    write({"out/a": X})
    with pytest.raises(AssertionError, match=said), vectors.open_file("some") as file:
        file.compare("out/a", wrong)


def test_whole_numbers_are_equal_or_wrong(write):
    write({"out/i": torch.tensor([10**9])})
    with pytest.raises(AssertionError, match="out/i in int64"), vectors.open_file("some") as file:
        file.compare("out/i", torch.tensor([10**9 + 1]))


def test_the_rules_of_tolerance(write):
    tensors = {"out/a": X, "out/F": X.float(), "out/one": X[:1].clone(), "f32/grad/w": X.float(), "out/noted": X + 0}
    hints = {"fp32_vs_f64_max_rel": {"grad/w": 3e-5, "loss": 1e-6}, "F_fp32_vs_f64_max_rel": 2e-6, "rtol": 1e-8}
    write(tensors, tolerance=hints, tensor_notes={"out/noted": "fp32 inside"})
    file = vectors.VectorFile("some")
    double, single = torch.float64, torch.float32
    assert file.tolerance("out/a", double) == 1e-8
    assert file.tolerance("out/F", double) == 2e-6
    assert file.tolerance("out/F", single) == 8e-6
    assert file.tolerance("out/F", double, float32_code=True) == 8e-6
    assert file.tolerance("f32/grad/w", single) == 1.2e-4
    assert file.tolerance("out/noted", double) == 3e-5  # no hint of its own: the largest
    assert file.tolerance("out/a", single, hint=0.0) == 2e-6
    assert file.tolerance("out/one", single, hint=0.0) == 5e-6
    assert file.tolerance("out/a", double, hint=1e-4) == 1e-4


def test_another_file_than_the_manifests_is_refused(write):
    write({"out/a": X}, sha256="0" * 64)
    with pytest.raises(AssertionError, match="is not the manifest's file"):
        vectors.VectorFile("some")


def test_a_named_directory_without_a_manifest_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setenv("CTM_VECTORS", str(tmp_path))
    with pytest.raises(FileNotFoundError):
        vectors.names("*")
