import math

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from ctm.teachers import GaussianMixture
from ctm.training.diagnosis import first_bad_value


class Poison(nn.Module):
    """Lets values through, and makes one of them bad."""

    def forward(self, x):
        return x.clone().index_fill_(0, torch.tensor([0]), math.inf)


class RootOfNothing(nn.Module):
    """Finite values whose gradient is not: √|0·x|."""

    def forward(self, x):
        return (0 * x).abs().sqrt()


def student(middle: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Sequential(nn.Linear(2, 2), middle), nn.Linear(2, 2))


def found(model, target=None, teacher=None, forward=None) -> str:
    models = {"student": model, "target": target, "teacher": teacher}
    return first_bad_value(
        forward or (lambda target, teacher: model(torch.ones(4, 2))), models, Accelerator(cpu=True), 3
    )


def test_the_innermost_module_is_named_first():
    assert found(student(Poison())) == "the first output that is not finite is that of student.2.1"


def test_a_weight_is_named_before_what_it_does():
    model = student(nn.Identity())
    model[2][0].weight.data[0, 0] = math.nan
    assert found(model) == "the weight student.2.0.weight itself is not finite, from an earlier step"


def test_a_gradient_is_named_nearest_to_the_loss():
    model = student(RootOfNothing())
    model(torch.randn(4, 2)).sum().backward()
    assert all(bool(p.grad.isfinite().all()) for p in model[3].parameters())
    words = (
        "every output is finite, but the gradient of student.2.0.bias is not, as are those of 5 parameters before it"
    )
    assert found(model) == words


@pytest.mark.parametrize("method", ["denoise", "jump"])
def test_a_teacher_that_is_no_network_is_seen_too(method):
    teacher = GaussianMixture(torch.zeros(1, 2), 0.5, torch.ones(1))
    levels = torch.ones(4), *([torch.full((4,), 0.5)] if method == "jump" else [])

    def forward(target, teacher):
        return getattr(teacher, method)(torch.full((4, 2), math.nan), *levels)

    assert found(student(nn.Identity()), None, teacher, forward).endswith(f"is that of teacher.{method}")


def test_nothing_is_changed_by_looking():
    model = student(nn.Dropout())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    assert found(model) == ""
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())
