"""The path of jumps against the sampler's own callback, and against a Gaussian whose states are known."""

import pytest
import torch

from ctm.noise import karras_grid
from ctm.requests import run
from ctm.sampling import euler, gamma
from ctm.sampling.driving import answer
from ctm.sampling.image_noise import ImageNoise
from ctm.serve.path import followed, visible


def _path(model, grid, value):
    noise = ImageNoise(7, [0])
    x = float(grid[0]) * noise(torch.empty(1, *model.shape))
    legs = []
    plan = gamma.steps(x, grid, gamma=value, condition=torch.tensor([3]), noise=noise)
    image = run(followed(plan, legs), lambda request: answer(model, request))
    return image, legs


@torch.no_grad()
def test_the_states_are_those_that_the_sampler_tells_of(small_ctm):
    grid = karras_grid(4)
    image, legs = _path(small_ctm, grid, 0.0)
    told = []
    noise = ImageNoise(7, [0])
    x = float(grid[0]) * noise(torch.empty(1, 1, 8, 8))
    alone = gamma(small_ctm, x, grid, condition=torch.tensor([3]), noise=noise, callback=told.append)
    assert torch.equal(image, alone)
    assert [torch.equal(leg.state, step.x) for leg, step in zip(legs, told, strict=True)] == [True] * 4
    assert [(leg.t, leg.s) for leg in legs] == [(float(step.t), float(step.s)) for step in told]


@torch.no_grad()
def test_a_jump_goes_back_to_its_guess(small_ctm):
    """G = (s/t)·x + (1 − s/t)·g, with γ = 1 each jump ends at σ_min, where the state is nearly the guess."""
    image, legs = _path(small_ctm, karras_grid(3), 1.0)
    for leg in legs:
        assert leg.s < 0.0021
        torch.testing.assert_close(leg.state, leg.guess, atol=0.02, rtol=1e-3)  # apart by s/t·(x − g), s/t < 0.003
    assert torch.equal(legs[-1].state, image)


def test_a_sampler_of_the_denoiser_has_no_path(small_ctm):
    plan = followed(euler.steps(torch.zeros(1, 1, 8, 8), torch.tensor([1.0, 0.5, 0.0])), [])
    with pytest.raises(ValueError, match="a path is made of jumps"):
        next(plan)


def test_a_visible_state_has_the_deviation_of_the_data():
    generator = torch.Generator().manual_seed(0)
    for level in (80.0, 1.0, 0.002):
        image = 0.2 * torch.randn(1, 1, 64, 64, generator=generator)
        state = image + level * torch.randn(1, 1, 64, 64, generator=generator)
        shown = visible(state, level, 0.2)
        assert (
            abs(float(shown.std()) - 0.2) < 0.01
        )  # 4,096 pixels: the deviation is known to 1/√8192 = 1.1 %, three times that
    torch.testing.assert_close(visible(image, 0.0, 0.2), image.clamp(-1, 1))
