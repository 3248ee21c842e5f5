import pytest
import torch

from ctm import TrajectoryModel, load_model
from ctm.networks import MLP
from ctm.training.student import start_from_student

from ..conftest import random_weights


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
