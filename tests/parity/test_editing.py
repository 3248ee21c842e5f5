"""Super-resolution and colourisation of ctm-cifar10 against our `restore`.

The official loops call the CTM without s, so that a jump is its denoiser, start from the images themselves without noise,
and do not use γ. The test's model has that jump; ours with a real jump is tested in tests/sampling/test_replacement.py.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ctm.editing import averaging, greying
from ctm.noise import karras_grid
from ctm.sampling import Projection, restore

from . import vectors
from .closed_form import Form, closed_form_ctm, denoised_with, gaussian_mixture, settled
from .vectors import VectorFile

KINDS = ("editing_cifar_repo",)
LEVELS = ("sigma_min", "sigma_max", "rho")
CODE_LEVELS = {"steps": 40, "sigma_min": 0.002, "sigma_max": 80.0, "rho": 7.0}  # defaults of the official loops
PATCH = 8


class WithoutS:
    """The CTM whose jump is the official call without s: the denoiser."""

    def __init__(self, ctm) -> None:
        self.ctm = ctm

    def jump(self, x: Tensor, t: Tensor, s: Tensor, labels: Tensor | None = None) -> Tensor:
        return denoised_with(self.ctm, "ctm", x, t, None)


def projection_of(sampler: str, images: Tensor) -> Projection:
    """What each official loop keeps of the images: means of patches, or the luma."""
    height, width = images.shape[-2:]
    known = {"superres": averaging((height, width), (height // PATCH, width // PATCH)), "colorization": greying()}
    return known[sampler].projection


def restored(file: VectorFile, case: dict, form: Form, levels: dict) -> Tensor:
    """The official loop adds noise up to the level of the last index too: seen only where that is not the grid's last."""
    grid = karras_grid(levels["steps"] - 1, *(float(levels[name]) for name in LEVELS), dtype=torch.float64)
    visited, images = grid[case["ts"]], file["in/images"].double()
    path = visited if case["ts"][-1] == levels["steps"] - 1 else torch.cat([visited, grid[-1:]])
    tape, states = iter(file["in/noise"].double()), []
    model = WithoutS(closed_form_ctm(gaussian_mixture(file), file.config, form))
    projection = projection_of(case["sampler"], images)
    restore(
        model,
        images,
        path,
        images,
        projection,
        noise=lambda _: next(tape),
        callback=lambda step: states.append(step.x),
    )
    return states[len(visited) - 2]


@vectors.each("which", vectors.names("editing_cifar_repo"))
def test_restoration_of_ctm_cifar10(which):
    """The levels are the configuration's, or those that the official loops have for defaults."""
    with vectors.open_file(which) as file:
        cases, hint = file.config["cases"], file.tolerances["atol"]

        def error(form: Form, levels: dict) -> float:
            pairs = ((restored(file, case, form, levels), file[f"{name}/out"]) for name, case in cases.items())
            return max(vectors.relative_error(*pair) for pair in pairs)

        told = {name: file.config[name] for name in CODE_LEVELS}
        levels = min((told, CODE_LEVELS), key=lambda levels: error(settled(file, lambda f: error(f, levels)), levels))
        form = settled(file, lambda form: error(form, levels))
        for name, case in cases.items():
            images = file["in/images"].double()
            file.compare(f"{name}/degraded_input", projection_of(case["sampler"], images)(images))
            file.compare(f"{name}/out", restored(file, case, form, levels), hint=hint)
