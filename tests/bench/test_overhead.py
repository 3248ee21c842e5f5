import json
import time

import pytest
import torch

from ctm.bench.cells import cells
from ctm.bench.overhead import measure, network_calls
from ctm.cli import main
from ctm.sampling import draw

CPU = torch.device("cpu")


def test_the_calls_of_the_network_are_those_of_the_sampler(small_ctm):
    """Seven for Heun on four levels, each with the level and the labels it had, and run again to the same output."""
    (cell,) = cells(small_ctm, ["heun"], [7], [0.5])
    labels, outputs = torch.arange(5), []
    hook = small_ctm.network.register_forward_hook(lambda module, given, output: outputs.append(output))
    options = {"levels": cell.levels, "sampler": cell.method, "labels": labels, "seed": 0, "device": CPU}
    calls = network_calls(small_ctm, lambda: draw(small_ctm, range(5), **options))
    hook.remove()
    assert len(calls) == len(outputs) == 7
    assert float(calls[0][0][1][0]) == 80
    with torch.no_grad():
        again = [small_ctm.network(*positional, **named) for positional, named in calls]
    assert all(torch.equal(one, other) for one, other in zip(again, outputs, strict=True))


def test_work_outside_the_network_is_seen(small_ctm):
    """A sampler that calls the network once and then works for 30 ms adds 30 ms to it."""
    (cell,) = cells(small_ctm, ["gamma"], [1], [0.0])

    def slow(model, x, grid, **options):
        x = cell.method(model, x, grid, **options)
        until = time.process_time() + 0.03
        while time.process_time() < until:
            pass
        return x

    found = measure(small_ctm, type(cell)("gamma", 0.0, 1, cell.levels, slow), 16, 3, CPU)
    assert found["evaluations"] == 1
    assert 30_000 < found["own_microseconds"] < 90_000
    inside = found["bare_seconds"]
    assert found["ratio_to_bare"] > 1 + 0.01 / inside
    assert found["ratio_to_inside"] > 1 + 0.01 / inside


def test_each_sampler_is_measured_once_and_kept(small_ctm, tmp_path, capsys):
    small_ctm.save_pretrained(tmp_path / "model")
    out = tmp_path / "overhead.json"
    asked = ["bench", "overhead", "--models", str(tmp_path / "model"), "--steps", "4", "--batch_size", "3"]
    assert main([*asked, "--pairs", "2", "--out", str(out)]) == 0
    entries = json.loads(out.read_text())
    fans = [entries.pop(f"{tmp_path / 'model'}/fan/{size}") for size in (1, 3)]
    assert all(fan["levels"] == 8 and fan["ratio"] > 0 for fan in fans)
    entries = list(entries.values())
    made = {(entry["sampler"], entry["evaluations"]) for entry in entries}
    denoisers = {(name, 4) for name in ("euler", "midpoint", "dpmpp_2m", "ancestral", "dpmpp_2m_sde")}
    assert made == denoisers | {("gamma", 4), ("gamma_code", 4), ("two_level", 2), ("heun", 3), ("heun_churn", 3)}
    assert all(entry["ratio_to_inside"] > 1 and entry["own_microseconds"] > 0 for entry in entries)
    printed = capsys.readouterr().out
    assert "own µs an evaluation" in printed
    assert "8 jumps from one state, batch 1: together they take" in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--pairs", "0"], "--batch_size and --pairs must be at least 1"), (["--samplers", "leap"], "not leap")],
)
def test_mistakes_are_sentences(small_ctm, tmp_path, capsys, arguments, message):
    small_ctm.save_pretrained(tmp_path / "model")
    asked = ["bench", "overhead", "--models", str(tmp_path / "model"), "--out", str(tmp_path / "x.json")]
    assert main([*asked, *arguments]) == 2
    assert message in capsys.readouterr().err
