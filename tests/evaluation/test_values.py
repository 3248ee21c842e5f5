"""The Fréchet distance of numbers that are no pictures: held to the closed form of Gaussians, and by the command."""

import json

import numpy as np
import pytest
import torch

from ctm import DiffusionModel
from ctm.cli import main
from ctm.data import scaled_values
from ctm.evaluation.values import ValueJudge, few_values
from ctm.networks import MLP
from ctm.scaling import Scaling

RANDOM = np.random.default_rng(0)


@pytest.mark.parametrize("shape", [(3,), (2, 4), (2, 2, 3)], ids=str)
def test_the_distance_is_the_closed_form_of_gaussians(shape):
    """Independent numbers of deviation 5 about 100 against ones moved by 1 deviation and twice as wide: in units of the data's
    deviation (1² + (2 − 1)²)·F for F numbers, but for the draw: the relative error of 20,000 rows is 3 % at three deviations."""
    data = (RANDOM.normal(size=(20_000, *shape)) * 5 + 100).astype(np.float32)
    samples = torch.from_numpy((RANDOM.normal(size=(20_000, *shape)) * 10 + 105).astype(np.float32))
    judge = ValueJudge(scaled_values(data, "range"))
    found = judge.distance(samples)
    assert found.value == pytest.approx(2 * np.prod(shape), rel=0.05)
    assert judge.distance(torch.from_numpy(data)).value == pytest.approx(0, abs=1e-6)
    assert 0 < judge.halves < 0.02


def test_few_items_are_said_and_too_many_numbers_are_refused():
    judge = ValueJudge(scaled_values(RANDOM.normal(size=(9, 12)).astype(np.float32), None))
    assert "their covariance is singular" in few_values(judge, 100)[0]
    assert judge.halves is None
    with pytest.raises(ValueError, match="measured over at most 4096"):
        ValueJudge(scaled_values(RANDOM.normal(size=(2, 5000)).astype(np.float32), None))
    with pytest.raises(ValueError, match=r"samples must be \(N, 12\)"):
        judge.distance(torch.zeros(5, 3))


def test_the_command_measures_a_model_and_given_samples(tmp_path, capsys):
    data = (RANDOM.normal(size=(500, 2)) * [3, 0.1] + 7).astype(np.float32)
    np.savez(tmp_path / "d.npz", data=data)
    np.savez(tmp_path / "s.npz", data=data[::-1] + np.float32([3, 0]))
    model = DiffusionModel(MLP((2,), width=8, blocks=1, s_embedding=False), shape=(2,))
    model.scaling = Scaling("standard", (7.0, 7.0), (6.0, 0.2))
    model.save_pretrained(tmp_path / "m")
    given = ["evaluate", str(tmp_path / "m"), "--data", str(tmp_path / "d.npz"), "--num", "50", "--steps", "3"]
    assert main([*given, "--samples", str(tmp_path / "s.npz"), "--out", str(tmp_path / "out")]) == 0
    rows = json.loads((tmp_path / "out" / "result.json").read_text())["rows"]
    assert [row["role"] for row in rows] == ["model", "samples"]
    assert rows[1]["frechet"]["value"] == pytest.approx(9 / data[:, 0].var(), rel=1e-4)
    assert "samples: Fréchet 1." in capsys.readouterr().out
    assert main([*given, "--likelihood", "3"]) == 2
    assert "bits per dimension of pictures" in capsys.readouterr().err
