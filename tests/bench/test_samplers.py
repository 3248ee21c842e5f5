import json

import numpy as np
import pytest
import torch

from ctm import DiffusionModel, generate
from ctm.bench.cells import NAMES, cells
from ctm.bench.curves import curves
from ctm.bench.overhead import network_calls
from ctm.cli import main
from ctm.data import load_images
from ctm.networks import MLP
from ctm.sampling import consistency, draw

GAMMAS = [0, 0.25, 0.5, 0.75, 1]


@pytest.mark.parametrize("name", NAMES)
def test_a_cell_makes_the_evaluations_it_is_named_for(small_ctm, name):
    """Counted at the network, never more than asked for and not less than half."""
    found = cells(small_ctm, [name], [1, 2, 4, 9], [0.5])
    assert found
    for cell in found:
        options = {"levels": cell.levels, "sampler": cell.method, "labels": torch.arange(3), "seed": 0}
        calls = network_calls(small_ctm, lambda: draw(small_ctm, range(3), device=torch.device("cpu"), **options))  # noqa: B023
        assert len(calls) == cell.evaluations <= 9
    assert max(cell.evaluations for cell in found) == {"two_level": 2, "midpoint": 8}.get(name, 9)


def test_one_jump_stands_once_and_gamma_one_is_consistency_multistep(small_ctm):
    found = cells(small_ctm, ["gamma", "gamma_code"], [1, 4], GAMMAS)
    names = [cell.name for cell in found]
    assert names == [
        "gamma 0/1",
        *(f"gamma {gamma:g}/4" for gamma in GAMMAS),
        *(f"gamma_code {gamma:g}/4" for gamma in GAMMAS[1:4]),
    ]
    options = {"labels": 3, "grid": found[-4].levels}
    assert found[-4].name == "gamma 1/4"
    same = generate(small_ctm, 4, sampler=consistency, **options)
    assert torch.equal(generate(small_ctm, 4, sampler=found[-4].method, **options), same)


@pytest.fixture
def asked(small_ctm, tmp_path, session_cache, monkeypatch) -> list[str]:
    monkeypatch.setenv("CTM_CACHE", str(session_cache))
    small_ctm.save_pretrained(tmp_path / "model")
    images = load_images("digits")
    np.savez(tmp_path / "digits.npz", images=images.pixels[:120], labels=images.labels[:120])
    options = ["--data", str(tmp_path / "digits.npz"), "--features", "classifier", "--count", "40", "--gammas", "0,1"]
    given = ["--model", str(tmp_path / "model"), "--samplers", "gamma,heun", "--steps", "1,4", *options]
    return ["bench", "samplers", *given, "--out", str(tmp_path / "samplers.json")]


@pytest.mark.slow
def test_a_table_that_was_cut_short_goes_on(asked, tmp_path, capsys):
    """Only what is missing is measured again, to the same number; that number is `ctm evaluate`'s. Another number
    of samples is refused."""
    assert main(asked) == 0
    path = tmp_path / "samplers.json"
    whole = json.loads(path.read_text())
    assert set(whole) == {"about", "gamma 0/1/0", "gamma 0/4/0", "gamma 1/4/0", "heun/3/0"}
    assert (tmp_path / "samplers.png").read_bytes().startswith(b"\x89PNG")
    assert main(asked) == 2
    assert "add --continue" in capsys.readouterr().err
    left = {name: entry for name, entry in whole.items() if name != "gamma 1/4/0"}
    left["heun/3/0"]["frechet"] = -1.0  # not measured again
    path.write_text(json.dumps(left))
    assert main([*asked, "--continue"]) == 0
    again = json.loads(path.read_text())
    assert again["gamma 1/4/0"]["frechet"] == whole["gamma 1/4/0"]["frechet"]
    assert again["heun/3/0"]["frechet"] == -1.0
    evaluated = ["evaluate", asked[3], *asked[8:12], "--num", "40", "--steps", "4", "--gamma", "1"]
    assert main([*evaluated, "--out", str(tmp_path / "evaluated")]) == 0
    (found,) = json.loads((tmp_path / "evaluated" / "result.json").read_text())["rows"]
    assert found["numbers"]["frechet"]["value"] == pytest.approx(again["gamma 1/4/0"]["frechet"], rel=1e-6)
    other = [*asked, "--continue"]
    other[other.index("40")] = "50"
    assert main(other) == 2
    err = capsys.readouterr().err
    assert "was measured otherwise" in err
    assert "protocol.images: 40 and 50" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--samplers", "gamma,leap"], "--samplers knows gamma, gamma_code, two_level"),
        (["--steps", "0"], "--steps must be at least 1, got 0"),
        (["--gammas", "0,1.5"], "gamma must be in [0, 1], got 1.5"),
        (["--seeds", "0"], "--seeds must be at least 1, got 0"),
    ],
)
def test_mistakes_are_sentences(asked, capsys, tmp_path, arguments, message):
    assert main([*asked, *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "samplers.json").exists()


def test_a_diffusion_model_is_refused(tmp_path, capsys):
    network = MLP((1, 8, 8), width=8, blocks=1, embedding=8, s_embedding=False)
    DiffusionModel(network, shape=(1, 8, 8)).save_pretrained(tmp_path / "plain")
    assert main(["bench", "samplers", "--model", str(tmp_path / "plain"), "--out", str(tmp_path / "x.json")]) == 2
    assert "is a diffusion model and cannot jump" in capsys.readouterr().err


def row(sampler, gamma, evaluations, seed, frechet):
    return {
        "sampler": sampler,
        "gamma": gamma,
        "evaluations": evaluations,
        "seed": seed,
        "frechet": frechet,
        "error": 0.5,
    }


def test_curves_share_the_single_jump_and_average_seeds():
    rows = [row("gamma", 0.0, 1, seed, 8.0 + seed) for seed in (0, 1)]
    rows += [row("gamma", gamma, 4, 0, 5 + gamma) for gamma in (1.0, 0.0)]
    rows += [row("heun", None, 3, 0, 20.0)]
    found = {curve.title: curve for curve in curves(rows)}
    assert list(found) == ["γ = 0", "γ = 1", "heun"]
    assert str(found["γ = 1"].number(1)) == "8.50 ± 0.50"  # |9 − 8|/2, the standard error of two
    assert str(found["γ = 1"].number(4)) == "6.00 ± 0.50"
    assert set(found["heun"].values) == {3}
