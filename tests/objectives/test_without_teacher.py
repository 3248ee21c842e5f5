"""Training without a teacher (sony/ctm: self_learn): the average of the student is the solver, score matching anchors it."""

import time

import pytest
import torch

from ctm import TrajectoryModel
from ctm.networks import MLP
from ctm.objectives import DenoisingScoreMatching, Matching, TargetJump, TargetJumps
from ctm.teachers import GaussianMixture

from ..learning import learn, one_jump_error


class Denoised:
    """A mixture's exact denoiser as a jump to the end: what score matching alone would give at best."""

    def __init__(self, data: GaussianMixture) -> None:
        self.data = data

    def jump(self, x, t, s):
        return self.data.denoise(x, t)


@pytest.mark.slow
@pytest.mark.parametrize("walk", [pytest.param(TargetJumps(), marks=pytest.mark.slow), TargetJump()])
def test_a_student_from_scratch_learns_the_jump(walk):
    """Error of the jump 80 → 0.002 against the exact flow, relative to the data's standard deviation: several times less than
    the best that a denoiser could do in one jump, its mean."""
    torch.manual_seed(0)
    data = GaussianMixture(torch.tensor([[0.6, 0.3], [-0.6, 0.3], [0.0, -0.7]]), 0.35, torch.ones(3))
    network = MLP((2,), width=64, blocks=2, embedding=32)
    model = TrajectoryModel(network, shape=(2,), sigma_data=data.sigma_data)
    started = time.monotonic()
    objectives = [Matching(grid_points=10, solver=walk), DenoisingScoreMatching()]
    student = learn(data, model, objectives, 500, target_ema=0.9)
    seconds = time.monotonic() - started
    error, alone = one_jump_error(student, data), one_jump_error(Denoised(data), data)
    print(f"{type(walk).__name__}: one jump {error:.4f}, a denoiser's {alone:.4f}, {seconds:.0f} s")
    assert alone > 0.8
    assert error < 0.35
