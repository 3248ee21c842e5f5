"""`ctm bench serve`: stages add up to requests, load is bounded, and the scheduler keeps up with `ctm.generate`."""

import json

import pytest

from ctm.bench.scheduling import measure_scheduler
from ctm.cli import main
from ctm.models import load_model

STAGES = ("network", "filter", "signing", "database")


@pytest.mark.slow
def test_a_service_is_timed_by_stage(tmp_path, capsys):
    out = tmp_path / "serve.json"
    asked = [
        "bench",
        "serve",
        "models/digits-ctm",
        "--clients",
        "2",
        "--seconds",
        "1",
        "--rounds",
        "1",
        "--batch_size",
        "8",
    ]
    assert main([*asked, "--out", str(out)]) == 0
    entry = json.loads(out.read_text())["models/digits-ctm/1/http/1/2"]
    assert entry["clients"] == 2
    assert entry["others"] == {}
    assert entry["requests"] > 2
    stages = sum(entry[stage]["mean_ms"] for stage in STAGES)
    assert 0 < stages < entry["request"]["mean_ms"]
    assert entry["rest_mean_ms"] == pytest.approx(entry["request"]["mean_ms"] - stages)
    assert all(entry[name]["p50_ms"] <= entry[name]["p99_ms"] for name in (*STAGES, "request"))
    assert "over HTTP on this machine" in capsys.readouterr().out


def test_no_load_that_is_no_load(tmp_path, capsys):
    assert main(["bench", "serve", "models/digits-ctm", "--seconds", "0", "--out", str(tmp_path / "x.json")]) == 2
    assert "--seconds more than 0" in capsys.readouterr().err


@pytest.mark.slow
def test_the_scheduler_keeps_up_with_generate_on_a_network_of_some_size():
    """Of images of four steps: at least 80 % of the rate of batches of 64, and three times one image at a time. In processor
    time, so that other processes disturb little."""
    found = measure_scheduler(load_model("models/fashion-mnist-ctm"), steps=4, batch_size=64, rounds=5)
    assert found["scheduler_8_to_batch"] > 0.8
    assert found["scheduler_1_to_single"] > 3
