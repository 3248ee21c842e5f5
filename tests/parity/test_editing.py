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
from .closed_form import Form, closed_form_ctm, denoised_with, gaussian_mixture, settled
from .vectors import VectorFile

KINDS = ("editing_cifar_repo",)
PROJECTIONS = {"superres": patch_means(8), "colorization": luma}


class WithoutS:
    """The CTM whose jump is the official call without s: the denoiser."""

    def __init__(self, ctm) -> None:
        self.ctm = ctm

    def jump(self, x: Tensor, t: Tensor, s: Tensor, labels: Tensor | None = None) -> Tensor:
        return denoised_with(self.ctm, "ctm", x, t, None)


def restored(file: VectorFile, case: dict, form: Form) -> Tensor:
    config, images = file.config, file["in/images"].double()
    ends = (float(config["sigma_min"]), float(config["sigma_max"]), float(config["rho"]))
    grid = karras_grid(config["steps"] - 1, *ends, dtype=torch.float64)
    tape = iter(file["in/noise"].double())
    model = WithoutS(closed_form_ctm(gaussian_mixture(file), config, form))
    projection = PROJECTIONS[case["sampler"]]
    return restore(model, images, grid[case["ts"]], images, projection, noise=lambda _: next(tape))


@pytest.mark.parametrize("which", vectors.names("editing_cifar_repo"))
def test_restoration_of_ctm_cifar10(which):
    with vectors.open_file(which) as file:
        images, cases = file["in/images"].double(), file.config["cases"]

        def error(form: Form) -> float:
            return max(vectors.relative_error(restored(file, case, form), file[f"{name}/out"]) for name, case in cases.items())

        form, hint = settled(file, error), file.tolerances["atol"]
        for name, case in cases.items():
            file.compare(f"{name}/degraded_input", PROJECTIONS[case["sampler"]](images))
            file.compare(f"{name}/out", restored(file, case, form), hint=hint)
