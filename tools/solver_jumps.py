"""γ-sampling where jumps follow the teacher's flow by many Heun steps: what γ does when the jumps themselves make no errors of
distillation. Prints Fréchet distances as `ctm bench samplers` measures them, and those of the student's own jumps.

    python tools/solver_jumps.py --teacher models/fashion-mnist-teacher --student models/fashion-mnist-ctm --data fashion-mnist"""

from __future__ import annotations

import argparse
from functools import partial

import torch
from torch import Tensor

from ctm import load_model
from ctm.bench.cells import Cell
from ctm.bench.samplers import measure
from ctm.conditions import Condition
from ctm.evaluation.run import make_judge
from ctm.noise import karras_grid
from ctm.sampling import gamma as gamma_sampler
from ctm.sampling import heun


class SolverJumps(torch.nn.Module):
    """A diffusion model that jumps: Heun's method on `points` levels between t and s, by the Karras rule."""

    def __init__(self, model: torch.nn.Module, points: int) -> None:
        super().__init__()
        self.model, self.points = model, points
        self.shape, self.num_classes = model.shape, model.num_classes
        self.sigma_min, self.sigma_max = model.sigma_min, model.sigma_max

    def denoise(self, x: Tensor, t: Tensor, condition: Condition = None) -> Tensor:
        """The teacher's."""
        return self.model.denoise(x, t, condition)

    def jump(self, x: Tensor, t: Tensor, s: Tensor, condition: Condition = None) -> Tensor:
        """All samples of a batch from t[0] to s[0]."""
        levels = karras_grid(self.points - 1, float(s[0]), float(t[0]), dtype=x.dtype)
        return heun(self.model, x, levels, condition=condition)


def main() -> None:
    """Measure and print, row by row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--student", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--points", type=int, default=9, help="levels of each of the teacher's jumps")
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    settings = parser.parse_args()
    teacher, student = load_model(settings.teacher), load_model(settings.student)
    channels, size, _ = teacher.shape
    judge = make_judge(settings.data, size=size, channels=channels, images=settings.count)
    print(f"jumps  gamma  {'teacher':>14}  {'student':>14}")
    for steps in settings.steps:
        for gamma in (0.0, 1.0) if steps > 1 else (0.0,):
            levels = karras_grid(steps, teacher.sigma_min, teacher.sigma_max, dtype=torch.float32)
            cell = Cell("gamma", gamma, steps, levels, partial(gamma_sampler, gamma=gamma))
            rows = [measure(judge, model, cell, 0) for model in (SolverJumps(teacher, settings.points), student)]
            shown = [f"{row['frechet']:7.1f} ± {row['error']:4.1f}" for row in rows]
            print(f"{steps:5}  {gamma:5}  {shown[0]:>14}  {shown[1]:>14}", flush=True)


if __name__ == "__main__":
    main()
