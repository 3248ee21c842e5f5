import pytest
import torch

from ctm import ConsistencyModel, DiffusionModel, TrajectoryModel, load_model
from ctm.cli import main
from ctm.networks import MLP
from ctm.training.student import start_from_student, start_from_teacher

from ..conftest import random_weights
from .runs import student_arguments, teacher_arguments, trained, weights


def student(width=16):
    network = random_weights(MLP((2,), width=width, blocks=1, embedding=8))
    settings = {"width": width, "blocks": 1, "embedding": 8, "shape": [2], "num_classes": 0}
    network_described = {"class_path": "ctm.networks.MLP", "init_args": settings}
    model = TrajectoryModel(network_described, shape=(2,))
    model.network.load_state_dict(network.state_dict())
    return model


def test_a_further_stage_starts_where_the_earlier_ended(tmp_path):
    first, second = student(), student()
    first.save_pretrained(tmp_path)
    for parameter in second.network.parameters():
        torch.nn.init.zeros_(parameter)
    start_from_student(second, load_model(tmp_path), str(tmp_path))
    for name, value in first.network.state_dict().items():
        assert torch.equal(value, second.network.state_dict()[name])


def test_another_network_is_named(tmp_path):
    student(width=24).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="tensors differ in name or shape, first blocks"):
        start_from_student(student(), load_model(tmp_path), str(tmp_path))


def model(kind, shape=(2,), **network):
    settings = {"width": 16, "blocks": 1, "embedding": 8, "shape": list(shape), "num_classes": 0, **network}
    return kind({"class_path": "ctm.networks.MLP", "init_args": settings}, shape=shape)


@pytest.mark.parametrize("kind", [DiffusionModel, ConsistencyModel])
def test_a_starting_student_of_another_kind_is_refused(kind):
    ours = model(ConsistencyModel if kind is DiffusionModel else DiffusionModel, s_embedding=False)
    with pytest.raises(
        ValueError, match=rf"m is a {kind.__name__} and this recipe trains a .*: set model.kind, or name it as"
    ):
        start_from_student(ours, model(kind, s_embedding=False), "m")


def test_a_starting_student_with_other_scalings_is_refused():
    network = {"class_path": "ctm.networks.MLP", "init_args": {"shape": [2], "width": 16, "blocks": 1, "embedding": 8}}
    other = TrajectoryModel(network, shape=(2,), inner="cm")
    with pytest.raises(
        ValueError, match=r"m has the inner scaling 'cm' and this recipe's model 'edm'.*set model.inner to cm"
    ):
        start_from_student(student(), other, "m")


def test_case_07_a_students_own_layers_are_new_and_the_line_says_that_this_is_right():
    ours, teacher = model(TrajectoryModel), random_weights(model(DiffusionModel, s_embedding=False))
    start = start_from_teacher(ours, teacher)
    assert (start.unfit, start.left) == ([], [])
    assert all(".s_affine." in f".{name}." or name.startswith("s_embedding.") for name in start.new)
    total = len(ours.network.state_dict())
    assert start.line() == (
        f"the student starts from its teacher's weights: {len(start.copied)} of its {total} tensors are copied; "
        f"{len(start.new)} are a student's own layers and new, as they should be (s_embedding.first.weight, "
        "s_embedding.first.bias, s_embedding.second.weight, …)"
    )
    for name, value in teacher.network.state_dict().items():
        assert torch.equal(ours.network.state_dict()[name], value)


def test_case_07_what_fits_is_copied_and_the_rest_is_named():
    ours = random_weights(model(TrajectoryModel, width=17), seed=1)
    teacher = random_weights(model(DiffusionModel, s_embedding=False))
    before = {name: value.clone() for name, value in ours.network.state_dict().items()}
    start = start_from_teacher(ours, teacher)
    line = start.line()
    assert (
        f"{len(start.unfit)} have other shapes than the teacher's and start at random (first.weight (17, 2) for (16, 2)"
        in line
    )
    assert "give the network the teacher's sizes to copy them" in line
    after = ours.network.state_dict()
    for name, value in teacher.network.state_dict().items():
        kept = value if name in start.copied else before[name]
        assert torch.equal(after[name], kept), name
    assert "t_embedding.first.weight" in start.copied
    assert {name.split(" ")[0] for name in start.unfit} & set(start.copied) == set()


def test_case_07_what_only_the_teacher_has_is_named():
    start = start_from_teacher(
        model(DiffusionModel, s_embedding=False), random_weights(model(DiffusionModel, blocks=2))
    )
    assert "of the teacher's have no place in the student (" in start.line()
    assert "blocks.1.t_affine.weight" in start.left


def test_case_07_nothing_fits():
    unet = {"shape": [1, 8, 8], "channels": 8, "channel_mult": [1], "blocks": 1, "attention": [], "s_embedding": False}
    teacher = DiffusionModel({"class_path": "ctm.networks.DDPMpp", "init_args": unet}, shape=(1, 8, 8))
    words = (
        r"nothing of the teacher's network \(DDPMpp, \d+ tensors\) fits the student's \(MLP, \d+ .*--start_from random"
    )
    with pytest.raises(ValueError, match=words):
        start_from_teacher(model(TrajectoryModel, (1, 8, 8)), teacher)


def test_case_07_the_command(tmp_path, capsys):
    """Width 33 under a teacher of width 32; another network with and without its option."""
    teacher = trained(tmp_path / "teacher", teacher_arguments("--steps", "1"))
    capsys.readouterr()
    arguments = student_arguments(teacher, "--steps", "1", "--optimizer.init_args.lr", "0")
    wider = ["--network.init_args.width", "25", "--out", str(tmp_path / "wider")]
    assert main(["train", *arguments, *wider]) == 0
    assert (
        "have other shapes than the teacher's and start at random (first.weight (25, 64) for (24, 64)"
        in capsys.readouterr().out
    )
    copied, own = weights(teacher), weights(tmp_path / "wider")
    assert torch.equal(copied["network.t_embedding.first.weight"], own["network.t_embedding.first.weight"])
    other = [f"--network={OTHER}", "--out", str(tmp_path / "other")]
    assert main(["train", *arguments, *other]) == 2
    assert "nothing of the teacher's network (MLP, " in capsys.readouterr().err
    assert main(["train", *arguments, *other, "--start_from", "random"]) == 0
    assert "the student starts from random weights (start_from)" in capsys.readouterr().out


OTHER = '{"class_path": "ctm.networks.DDPMpp", "init_args": {"channels": 8, "channel_mult": [1], "blocks": 1, "attention": []}}'
