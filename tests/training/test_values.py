"""Training on vectors, sequences and fields by recipe and options alone, and samples in the numbers of the data."""

import json

import numpy as np
import pytest
import torch

from ctm import generate, load_model
from ctm.cli import main
from ctm.sampling import heun
from ctm.scaling import Scaling

from ..conftest import mostly_slow
from .runs import RECIPES, trained

TINY = {
    "MLP": {"width": 24, "blocks": 1, "embedding": 16},
    "UNet1d": {"channels": 8, "channel_mult": [1, 2], "blocks": 1, "embedding": 16},
    "DiT": {"patch": 4, "width": 24, "blocks": 1, "heads": 2},
    "DDPMpp": {"channels": 8, "channel_mult": [1, 2], "blocks": 1, "attention": []},
}
CASES = {
    "MLP": (3,),
    "UNet1d": (2, 8),
    "DiT": (2, 8, 12),
    "DDPMpp": (5, 8, 12),
}
RANDOM = np.random.default_rng(0)


def data_of(folder, shape, **fields):
    """A file of 50 items whose channels have means 10, 20 … and deviations 3, 6 …"""
    steps = np.arange(1, shape[0] + 1).reshape(-1, *[1] * (len(shape) - 1))
    values = (RANDOM.normal(size=(50, *shape)) * 3 + 10) * steps
    np.savez(folder / "a.npz", data=values.astype(np.float32), **fields)
    return folder / "a.npz", values


def arguments(recipe, path, network, *extra, **init):
    return [
        *("--config", str(RECIPES / recipe), "--data.name", str(path), "--data.batch_size", "8", "--steps", "2"),
        *("--network.class_path", f"ctm.networks.{network}", "--network.init_args", json.dumps(TINY[network] | init)),
        *("--model.sigma_data", "null", "--sample_every", "100", *extra),
    ]


@pytest.mark.parametrize("network", mostly_slow(CASES, "MLP", "UNet1d", "DiT"))
def test_every_network_is_trained_and_samples_are_in_the_datas_numbers(tmp_path, network):
    """After two steps the samples are still noise about the data's mean: which mean and deviation is the scaling's doing."""
    path, values = data_of(tmp_path, CASES[network])
    run = trained(tmp_path / "run", arguments("digits-teacher.yaml", path, network, s_embedding=False))
    model = load_model(run)
    kept = json.loads((run / "model" / "config.json").read_text())["scaling"]
    axes = (0, *range(2, values.ndim))
    np.testing.assert_allclose(kept["offset"], values.mean(axes), rtol=1e-6)
    np.testing.assert_allclose(kept["scale"], values.std(axes) / 0.5, rtol=1e-5)
    assert model.sigma_data == pytest.approx(0.5, abs=1e-3)
    grid = torch.tensor([80.0, 8.0, 0.5, 0.002])
    own = generate(model, 4, grid=grid, sampler=heun)
    model.scaling = None
    torch.testing.assert_close(
        own,
        Scaling(**kept | {"offset": tuple(kept["offset"]), "scale": tuple(kept["scale"])}).undo(
            generate(model, 4, grid=grid, sampler=heun)
        ),
    )
    assert (run / "samples" / "000002.png").is_file()


def test_a_student_takes_its_teachers_scaling_and_the_command_samples(tmp_path, capsys):
    path, _ = data_of(tmp_path, (3,), observation=RANDOM.normal(size=(50, 2)))
    given = ("--data.condition", "[observation]")
    teacher = trained(tmp_path / "teacher", arguments("digits-teacher.yaml", path, "MLP", *given, s_embedding=False))
    other = tmp_path / "other"
    other.mkdir()
    moved, _ = data_of(other, (3,), observation=RANDOM.normal(size=(50, 2)))
    student = trained(
        tmp_path / "run", arguments("digits-ctm.yaml", moved, "MLP", *given, "--teacher", str(teacher)), title="ctm"
    )
    assert "by the numbers of the model to learn from" in capsys.readouterr().out
    model = load_model(student)
    assert model.scaling == load_model(teacher).scaling
    for name in ("s.npz", "s.npy"):
        main(
            [
                "sample",
                str(student),
                "--num",
                "5",
                "--steps",
                "2",
                "--condition",
                str(path),
                "--out",
                str(tmp_path / name),
            ]
        )
    with np.load(tmp_path / "s.npz") as made:
        assert made.files == ["data", "sample.json"]
        np.testing.assert_array_equal(made["data"], np.load(tmp_path / "s.npy"))
        assert made["data"].shape == (5, 3)
    record = json.loads((tmp_path / "s.npy.json").read_text())
    assert (record["shape"], record["scaling"]) == ([3], model.scaling.as_json())
    assert main(["sample", str(student), "--num", "2", "--condition", str(path), "--out", str(tmp_path / "s.png")]) == 2
    assert "are no pictures: give --out FILE.npz or FILE.npy" in capsys.readouterr().err
    refused = arguments("digits-ctm.yaml", moved, "MLP", *given, "--teacher", str(teacher), "--data.scaling", "range")
    with pytest.raises(ValueError, match=r"data\.scaling is range, and the model to learn from was made by standard"):
        trained(tmp_path / "no", refused)


@pytest.mark.slow
def test_a_run_goes_on_and_refuses_another_scaling(tmp_path):
    path, _ = data_of(tmp_path, (3,))
    given = arguments("digits-teacher.yaml", path, "MLP", s_embedding=False)
    trained(tmp_path / "run", given)
    trained(tmp_path / "run", [*given, "--steps", "2"])
    with pytest.raises(ValueError, match=r"data\.scaling: None there, range here"):
        trained(tmp_path / "run", [*given, "--data.scaling", "range"])
    with pytest.raises(ValueError, match=r"data\.flip mirrors pictures"):
        trained(tmp_path / "new", [*given, "--data.flip", "true"])


def test_a_run_evaluates_itself_on_the_numbers(tmp_path):
    path, _ = data_of(tmp_path, (3,))
    evaluation = ("--evaluation.every", "1", "--evaluation.num", "40", "--evaluation.steps", "3")
    run = trained(tmp_path / "run", arguments("digits-teacher.yaml", path, "MLP", *evaluation, s_embedding=False))
    rows = [json.loads(line) for line in (run / "evaluations.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2]
    assert all(0 < row["frechet"] < 1e6 and row["how"]["features"] == "values" for row in rows)
