"""`ctm bench gpu` on the CPU in its small form: the same parts run, and a check that fails is said."""

import json

import pytest
import torch
from jsonargparse import Namespace

from ctm.bench import gpu, gpu_parts


def _settings(out, **changed):
    return Namespace(
        **{"device": "cpu", "small": True, "parts": "noise,parity", "out": str(out), "continue": False, **changed}
    )


@pytest.mark.slow
def test_the_small_form_runs_its_parts_and_goes_on(tmp_path, capsys):
    out = tmp_path / "gpu.json"
    gpu.run(_settings(out, parts="noise"))
    gpu.run(_settings(out, **{"continue": True}))
    entries = json.loads(out.read_text())
    assert set(entries) == {"noise", "parity"}
    rows = {row["what"]: row["value"] for row in entries["parity"]["rows"]}
    assert rows["cifar10-ctm, float32: error of D and G"] < 1e-5
    assert 1e-4 < rows["cifar10-ctm, bf16: error of D and G"] < 0.1
    assert "ctm bench gpu on cpu" in capsys.readouterr().out


def test_a_check_that_fails_is_an_error_after_the_table(tmp_path, monkeypatch, capsys):
    of_device_and_cpu = iter([0.0, 1.0])
    monkeypatch.setattr(gpu_parts, "normals", lambda integers: torch.full((2,), next(of_device_and_cpu)))
    with pytest.raises(ValueError, match="checks failed on cpu: noise: normals, largest difference 1, at most 1e-06"):
        gpu.run(_settings(tmp_path / "gpu.json", parts="noise"))
    assert "failed" in capsys.readouterr().out


def test_a_number_that_is_none_fails():
    entries = {"part": {"rows": [{"what": "error", "value": float("nan"), "unit": "", "limit": 1.0}]}}
    assert gpu.failures(entries) == ["part: error nan, at most 1"]


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"small": False}, "measures a GPU: give --device cuda, or --small"),
        ({"parts": "speed"}, "--parts knows noise, parity, .*; not speed"),
    ],
)
def test_bench_gpu_refuses(tmp_path, changed, words):
    with pytest.raises(ValueError, match=words):
        gpu.run(_settings(tmp_path / "gpu.json", **changed))


@pytest.mark.slow
def test_every_part_runs_in_the_small_form(tmp_path):
    out = tmp_path / "gpu.json"
    gpu.run(_settings(out, parts="synchronisation,overhead,sampling,training,reference"))
    entries = json.loads(out.read_text())
    assert all(entry["rows"] for entry in entries.values())
    ratios = [row["value"] for row in entries["reference"]["rows"] if row["unit"] == "×"]
    assert len(ratios) == 2
    assert all(0.2 < ratio < 20 for ratio in ratios)
