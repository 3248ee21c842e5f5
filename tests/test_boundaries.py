"""What strangers do at the public boundary: each ends in a sentence, or in what they meant."""

import json

import pytest
import torch

import ctm
from ctm import DiffusionModel, TrajectoryModel
from ctm.cli import main
from ctm.networks import MLP
from ctm.teachers import GaussianMixture

from .conftest import mixture


class Stranger:
    """A conditional model with nothing but what the contract asks for."""

    shape = (2,)

    def denoise(self, x, t, labels=None):
        return x * 0 + (0 if labels is None else labels[:, None])

    def jump(self, x, t, s, labels=None):
        return self.denoise(x, t, labels)


def run(capsys, *arguments):
    try:
        code = main([str(a) for a in arguments])
    except SystemExit as stop:
        code = stop.code
    return code, capsys.readouterr().err


@pytest.fixture
def saved(small_ctm, tmp_path):
    small_ctm.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_a_model_that_does_not_say_its_classes_takes_labels():
    assert ctm.generate(Stranger(), 2, condition=torch.tensor([3, 4]))[:, 0].tolist() == [3, 4]


def test_a_directory_may_have_a_dot_in_its_name(capsys, saved, tmp_path):
    assert run(capsys, "sample", saved, "--num", 2, "--out", tmp_path / "out.v1")[0] == 0
    assert (tmp_path / "out.v1" / "000001.png").is_file()
    code, err = run(capsys, "sample", saved, "--num", 1, "--out", tmp_path / "out.v1")
    assert code == 2
    assert "holds more samples than --num 1" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out", "x.jpg"], "samples are written to a directory, FILE.png, FILE.npz or FILE.npy"),
        (["--device", "nope"], "--device nope cannot be used here"),
        (["--steps", "0"], "steps must be a whole number of at least 1"),
        (["--seed=-5"], "seed must be at least 0, got -5"),
        (["--sampler", "heun", "--gamma", "0.5"], "--gamma belongs to γ-sampling"),
    ],
)
def test_mistakes_of_sample(capsys, saved, arguments, message):
    code, err = run(capsys, "sample", saved, "--num", 2, *arguments)
    assert code == 2
    assert message in err
    assert len(err.strip().splitlines()) == 1


def test_sampling_without_a_class(capsys, saved, tmp_path):
    assert run(capsys, "sample", saved, "--labels=-1", "--num", 2, "--out", tmp_path / "none")[0] == 0
    assert json.loads((tmp_path / "none" / "sample.json").read_text())["labels"] == [-1, -1]


def test_a_truncated_weights_file_is_a_sentence(capsys, saved):
    weights = saved / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    code, err = run(capsys, "sample", saved)
    assert code == 2
    assert "model.safetensors is cut short or damaged" in err


def test_an_absent_teacher_is_not_asked_for_at_the_hub(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, err = run(capsys, "train", "--config", "digits-ctm.yaml", "--out", "run")
    assert code == 2
    assert "the teacher (--teacher MODEL): there is no directory runs/digits-teacher" in err
    assert len(err.strip().splitlines()) == 1


def test_each_class_loads_its_own_kind(tmp_path, saved):
    DiffusionModel(MLP((2,), width=8, blocks=1, embedding=8), shape=(2,)).save_pretrained(tmp_path / "diffusion")
    with pytest.raises(ValueError, match="holds a DiffusionModel, not a TrajectoryModel"):
        TrajectoryModel.from_pretrained(tmp_path / "diffusion")
    with pytest.raises(ValueError, match="holds a TrajectoryModel, not a DiffusionModel"):
        DiffusionModel.from_pretrained(saved)


def test_what_cannot_be_saved_leaves_nothing(tmp_path):
    with pytest.raises(ValueError, match="cannot save this model"):
        TrajectoryModel(torch.nn.Identity(), shape=(2,)).save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_labels_out_of_range_are_refused_everywhere(small_ctm):
    x, one = torch.zeros(1, 1, 8, 8), torch.ones(1)
    for label in (10, -2):
        with pytest.raises(ValueError, match="is not known to this model"):
            small_ctm.denoise(x, one, torch.tensor([label]))
    unconditional = TrajectoryModel(MLP((2,), width=8, blocks=1, embedding=8), shape=(2,))
    with pytest.raises(ValueError, match="the model is unconditional"):
        unconditional.denoise(torch.zeros(1, 2), one, torch.tensor([0]))
    teacher = mixture(2)
    for method in (teacher.denoise, teacher.score):
        with pytest.raises(ValueError, match="labels must be components 0 … 3"):
            method(torch.zeros(1, 2).double(), one, torch.tensor([4]))
    with pytest.raises(ValueError, match="labels must be components"):
        teacher.jump(torch.zeros(1, 2).double(), one, one / 2, torch.tensor([4]))


@pytest.mark.parametrize("level", [float("nan"), float("inf")])
def test_grids_must_be_finite(level):
    grid = torch.tensor([80.0, level, 1.0]) if level != level else torch.tensor([level, 1.0])
    with pytest.raises(ValueError, match="finite levels"):
        ctm.sampling.euler(lambda x, t: x, torch.zeros(1, 2), grid)


def test_jump_samplers_say_what_a_model_lacks():
    with pytest.raises(ValueError, match=r"has no jump\(x, t, s, condition\): use a sampler of denoisers"):
        ctm.sampling.gamma(lambda x, t: x, torch.zeros(1, 2), ctm.karras_grid(2))


def test_a_batch_of_none():
    teacher = GaussianMixture(torch.zeros(1, 2), 0.5, torch.ones(1))
    assert teacher.sample(0).shape == (0, 2)
    assert ctm.likelihood.log_density(teacher, torch.zeros(0, 2)).shape == (0,)


def test_an_unconditional_teacher_teaches_a_conditional_student():
    from ctm.objectives import Matching, Networks

    teacher = DiffusionModel(MLP((2,), width=8, blocks=1, embedding=8, s_embedding=False), shape=(2,))
    student = TrajectoryModel(MLP((2,), 3, width=8, blocks=1, embedding=8), shape=(2,), num_classes=3)
    x0, labels = torch.randn(4, 2), torch.tensor([0, 1, 2, -1])
    draw = Matching().draw(student, x0, torch.Generator().manual_seed(0))
    assert Matching()(Networks(student, student, teacher), x0, labels, draw).shape == (4,)
