"""Optimisers that a training step cannot drive are refused before the first step."""

import pytest
import torch
from torch import nn

from ctm.training.engine import fitting_optimizer


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (torch.optim.LBFGS, "the optimizer LBFGS evaluates the loss anew within a step, which training does not"),
        (torch.optim.SparseAdam, "the optimizer SparseAdam takes sparse gradients alone, and a network's are dense"),
    ],
)
def test_what_cannot_be_driven_is_refused(kind, words):
    with pytest.raises(ValueError, match=words):
        fitting_optimizer(kind(nn.Linear(2, 2).parameters()))


@pytest.mark.parametrize("kind", [torch.optim.RAdam, torch.optim.AdamW, torch.optim.SGD, torch.optim.Adafactor])
def test_others_stay_as_they_are(kind):
    optimizer = kind(nn.Linear(2, 2).parameters(), lr=1e-3)
    assert fitting_optimizer(optimizer) is optimizer
