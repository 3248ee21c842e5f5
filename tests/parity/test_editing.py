"""Super-resolution and colourisation of ctm-cifar10 against our `restore`.

The official loops call the CTM without s, so that a jump is its denoiser, start from the images themselves without noise,
and do not use γ. The test's model has that jump; ours with a real jump is tested in tests/sampling/test_editing.py.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ctm.noise import karras_grid
from ctm.sampling import luma, patch_means, restore

from . import vectors
from .closed_form import closed_form_ctm, denoised_with, gaussian_mixture

KINDS = ("editing_cifar_repo",)
PROJECTIONS = {"superres": patch_means(8), "colorization": luma}


class WithoutS:
    """The CTM whose jump is the official call without s: the denoiser."""

    def __init__(self, ctm) -> None:
        self.ctm = ctm

    def jump(self, x: Tensor, t: Tensor, s: Tensor, labels: Tensor | None = None) -> Tensor:
        return denoised_with(self.ctm, "ctm", x, t, None)


@pytest.mark.parametrize("which", vectors.names("editing_cifar_repo"))
def test_restoration_of_ctm_cifar10(which):
    with vectors.open_file(which) as file:
        config = file.config
        ends = (float(config["sigma_min"]), float(config["sigma_max"]), float(config["rho"]))
        grid = karras_grid(config["steps"] - 1, *ends, dtype=torch.float64)
        model, images = WithoutS(closed_form_ctm(gaussian_mixture(file), config)), file["in/images"].double()
        hint = file.tolerances["atol"]
        for name, case in config["cases"].items():
            projection = PROJECTIONS[case["sampler"]]
            file.compare(f"{name}/degraded_input", projection(images))
            tape = iter(file["in/noise"].double())
            result = restore(model, images, grid[case["ts"]], images, projection, noise=lambda _, tape=tape: next(tape))
            file.compare(f"{name}/out", result, hint=hint)
