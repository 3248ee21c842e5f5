"""Every sampler of the official repositories and of EDM, call by call: what the network was asked, what it answered, and
the result; and EDM's loss.

Where the official code is at fault, the test says so: the official numbers are reproduced by putting the slip in the
model, and ours, without it, is held against the exact mixture.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ctm import TrajectoryModel
from ctm.noise import edm_weight, karras_grid, match_dims
from ctm.objectives import Networks
from ctm.objectives.denoising import DenoisingDraw, DenoisingScoreMatching
from ctm.sampling import ancestral, consistency, euler, gamma, gamma_plan, heun, midpoint, two_level
from ctm.sampling.driving import drive
from ctm.sampling.jumps import follow

from . import vectors
from .closed_form import Form, closed_form_ctm, denoised_with, gaussian_mixture, jump_with, settled
from .vectors import VectorFile

KINDS = ("samplers_*_repo", "edm_sampler_*", "edm_loss")
CODE_SIGMA_MIN = 0.002  # written into the official jump samplers, whatever the grid's end
CODE_LEVELS = {"sigma_min": CODE_SIGMA_MIN, "sigma_max": 80.0, "rho": 7.0}  # and into the two-level one,
TWO_LEVEL_POINTS = {"sony/ctm": 40, "Kim-Dongjun/ctm-cifar10": 18}  # with this number of points
PASSES_ONE = (
    "euler",
    "dpm",
    "ancestral",
    "progdist",
)  # the official fault: these ask the network for s = 1, heun for s = t
EDM_SAMPLERS = {"heun": heun, "dpm": midpoint}


class Tape:
    """Stored noise in the place of random draws. With `advance` as the callback it gives one tensor a step, as in official
    loops that draw whether or not they add noise; without, one a call."""

    def __init__(self, noise: Tensor, *, by_step: bool = False) -> None:
        self.noise, self.by_step, self.position = noise, by_step, 0

    def __call__(self, like: Tensor) -> Tensor:
        drawn = self.noise[self.position].to(like)
        self.position += not self.by_step
        return drawn

    def advance(self, step: object) -> None:
        self.position += self.by_step


class Recorder:
    """The model of a case, writing down each call and answer. clip (answers to [-1, 1]) and slip are the official code's:
    with slip the network gets s = 1 whatever t is."""

    def __init__(self, ctm: TrajectoryModel, path: str, *, clip: bool = False, slip: bool = False) -> None:
        self.ctm, self.path, self.clip, self.slip = ctm, path, clip, slip
        self.calls: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []

    def _keep(self, x: Tensor, t: Tensor, s: Tensor, answer: Tensor) -> Tensor:
        self.calls.append((x, t, s, answer))
        return answer.clamp(-1, 1) if self.clip else answer

    def denoise(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        s = torch.ones_like(t) if self.slip else t
        if self.path == "ctm" and not self.slip:
            return self._keep(x, t, s, self.ctm.denoise(x, t, labels))
        return self._keep(x, t, s, denoised_with(self.ctm, self.path, x, t, s if self.slip else None))

    def jump(self, x: Tensor, t: Tensor, s: Tensor, labels: Tensor | None = None) -> Tensor:
        allowed = bool(((s <= t) & (s >= self.ctm.sigma_min)).all())
        answer = self.ctm.jump(x, t, s, labels) if allowed else jump_with(self.ctm, x, t, s)
        return self._keep(x, t, s, answer)


def slips(case: dict) -> bool:
    """Whether the official code passes s = 1 in this case."""
    return bool(case.get("s_passed")) and case["sampler"] in PASSES_ONE


def level_grid(config: dict, points: int, *, zero: bool = False) -> Tensor:
    """`points` levels of the configuration's grid, and a 0 if asked for."""
    ends = (float(config["sigma_min"]), float(config["sigma_max"]), float(config["rho"]))
    grid = karras_grid(points - 1, *ends, dtype=torch.float64) if points > 1 else torch.tensor([ends[1]]).double()
    return torch.cat([grid, torch.zeros(1, dtype=torch.float64)]) if zero else grid


def jump_grid(config: dict, case: dict) -> Tensor:
    """The levels of a jump sampler: indices `ts` into a grid of `steps` points, or `steps` jumps."""
    if "ts" in case:
        return level_grid(config, case["steps"])[case["ts"]]
    return level_grid(config, case["steps"] + 1)


def run_jumps(model, x: Tensor, grid: Tensor, case: dict, tape: Tape) -> Tensor:
    """exact, gamma_multistep, cm_multistep. The official code aims above 0.002 wherever the grid ends; on a grid that ends
    elsewhere its jumps are those of our plan for the grid with 0.002 after it."""
    kind = case["sampler"]
    if kind == "exact":
        return gamma(model, x, grid, gamma=0.0)
    value = case["gamma"] if kind == "gamma_multistep" else 1.0
    if float(grid[-1]) == CODE_SIGMA_MIN:
        if kind == "cm_multistep":
            return consistency(model, x, grid, noise=tape)
        return gamma(model, x, grid, gamma=value, form="code", noise=tape)
    jumps = list(gamma_plan([*grid.tolist(), CODE_SIGMA_MIN], value, "code"))[:-1]
    jumps[-1] = (*jumps[-1][:2], 0.0)
    return drive(model, follow(iter(jumps), x, noise=tape))


def run_consistency_models(model, x: Tensor, grid: Tensor, tape: Tape) -> Tensor:
    """multistep of consistency models: to σ_min, noise up to the next level; after the last jump too, where a grid ends
    above σ_min."""
    levels = grid.tolist()
    noises = [math.sqrt(max(level**2 - model.sigma_min**2, 0.0)) for level in levels[1:]]
    if noises[-1] < 1e-6:
        return consistency(model, x, grid, noise=tape)
    plan = [(t, model.sigma_min, fresh) for t, fresh in zip(levels, noises, strict=False)]
    return drive(model, follow(iter(plan), x, noise=tape))


def run_denoiser(model, x: Tensor, config: dict, case: dict, noise: Tensor) -> Tensor:
    """heun, dpm, euler, progdist, ancestral."""
    kind, steps = case["sampler"], case["steps"]
    if kind in ("euler", "progdist"):
        return euler(model, x, level_grid(config, steps + 1, zero=kind == "euler"))
    grid, tape = level_grid(config, steps, zero=True), Tape(noise, by_step=True)
    if kind == "ancestral":
        return ancestral(model, x, grid, noise=tape, callback=tape.advance)
    churn = {
        "churn": float(case.get("s_churn", 0)),
        "churn_min": float(case.get("s_tmin", 0)),
        "churn_max": float(case.get("s_tmax", math.inf)),
        "churn_noise": float(case.get("s_noise", 1)),
    }
    return EDM_SAMPLERS[kind](model, x, grid, **churn, noise=tape, callback=tape.advance)


class AsJump:
    """A denoiser in the place of a consistency function: the official multistep and onestep of ctm-cifar10 call a CTM
    without s, and take the denoised image for the jump."""

    def __init__(self, recorder: Recorder) -> None:
        self.recorder, self.sigma_min = recorder, recorder.ctm.sigma_min

    def jump(self, x: Tensor, t: Tensor, s: Tensor, labels: Tensor | None = None) -> Tensor:
        return self.recorder.denoise(x, t, labels)


def path_of(case: dict) -> str:
    """What the official code makes of the network's output in this case."""
    return "ctm" if case["ctm"] else "teacher" if case.get("teacher") else "cm"


def form_of(file: VectorFile) -> Form:
    """The form of the closed-form network with which the first stored call of every case is met best."""
    mixture = gaussian_mixture(file)

    def error(form: Form) -> float:
        errors = []
        for name, case in file.config["cases"].items():
            if "FAILS" in case:
                continue
            model = closed_form_ctm(mixture, file.config, form, case.get("inner", "edm"), case.get("outer", "euler"))
            x, t, s = (file.get(f"{name}/{key}") for key in ("x_in", "t", "s"))
            if s is not None and f"{name}/G" in file:
                errors.append(vectors.relative_error(jump_with(model, x[0], t[0], s[0]), file[f"{name}/G"][0]))
            elif f"{name}/denoised" in file:
                ours = denoised_with(model, path_of(case), x[0], t[0], None if s is None else s[0])
                errors.append(vectors.relative_error(ours, file[f"{name}/denoised"][0]))
        return max(errors, default=0.0)

    return settled(file, error)


def official(file: VectorFile, name: str, case: dict, form: Form, *, slip: bool) -> tuple[Tensor, Recorder]:
    """Our sampler for this case and what it asked of the model."""
    config, noise = file.config, file["in/noise"]
    ctm = closed_form_ctm(gaussian_mixture(file), config, form, case.get("inner", "edm"), case.get("outer", "euler"))
    recorder = Recorder(ctm, path_of(case), clip=case["clip_denoised"], slip=slip)
    x, kind = file["in/x_T"], case["sampler"]
    if kind == "onestep":
        return recorder.denoise(x, torch.full((len(x),), float(config["sigma_max"]), dtype=x.dtype)), recorder
    if kind == "multistep":
        return run_consistency_models(AsJump(recorder), x, jump_grid(config, case), Tape(noise)), recorder
    if kind == "gamma":
        grid = level_grid(CODE_LEVELS, TWO_LEVEL_POINTS[file.entry["provenance"]["repo"]])
        levels = grid[[0, case["ind_1"], case["ind_2"], -1]]
        return two_level(recorder, x, levels, noise=Tape(noise)), recorder
    if kind in ("exact", "gamma_multistep", "cm_multistep"):
        return run_jumps(recorder, x, jump_grid(config, case), case, Tape(noise)), recorder
    return run_denoiser(recorder, x, config, case, noise), recorder


def hold_calls(file: VectorFile, name: str, case: dict, recorder: Recorder) -> None:
    """Compare every call of the network with the stored ones."""
    calls = [torch.stack(part) for part in zip(*recorder.calls, strict=True)]
    for key, ours in zip(("x_in", "t", "s"), calls, strict=False):
        stored = file.get(f"{name}/{key}")
        if stored is None:
            continue
        file.compare(f"{name}/{key}", ours)
    answers = [key for key in ("G", "denoised") if f"{name}/{key}" in file]
    assert len(answers) == 1, f"{name}: the network's answers are stored once, found {answers}"
    file.compare(f"{name}/{answers[0]}", calls[3])


@vectors.each("which", vectors.names("samplers_*_repo"))
def test_samplers_of_the_official_repositories(which):
    with vectors.open_file(which) as file:
        form = form_of(file)
        for name, case in file.config["cases"].items():
            result, recorder = official(file, name, case, form, slip=slips(case))
            if "FAILS" in case:
                assert bool(result.isfinite().all()), f"{name} fails in the official code, ours runs"
                continue
            hold_calls(file, name, case, recorder)
            file.compare(f"{name}/out", result.clamp(-1, 1) if case.get("clip_output") else result)
            assert len(recorder.calls) == case["nfe"], f"{name}: {len(recorder.calls)} calls, official {case['nfe']}"


@vectors.each("which", vectors.names("samplers_*_repo"))
def test_without_the_official_slip_sampling_is_that_of_the_exact_denoiser(which):
    """Euler, midpoint and ancestral on the closed-form networks, whose denoiser is the mixture's: ours give what the mixture
    itself gives, the official s = 1 does not."""
    file = VectorFile(which)
    mixture, x, form = gaussian_mixture(file), file["in/x_T"], form_of(file)
    exact_inner = form.model == form.inverted == form.defined
    for name, case in file.config["cases"].items():
        if not slips(case) or not (case["ctm"] or case["teacher"]) or case["clip_denoised"]:
            continue
        if not exact_inner or (case["ctm"] and (case["inner"], case["outer"]) != ("edm", "euler")):
            continue  # another denoiser than the mixture's
        ours, _ = official(file, name, case, form, slip=False)
        exact = run_denoiser(mixture, x, file.config, case, file["in/noise"])
        assert vectors.relative_error(ours, exact) < 1e-9
        assert vectors.relative_error(file[f"{name}/out"], exact) > 1e-3


@vectors.each("which", vectors.names("samplers_*_repo"))
def test_what_fails_officially_is_a_consistency_sampler_here(which):
    """The official onestep and multistep call a CTM without s and stop. Ours jump to σ_min: one jump is G(x_T, σ_max, σ_min)."""
    file = VectorFile(which)
    failing = {name: case for name, case in file.config["cases"].items() if "FAILS" in case}
    model, x = closed_form_ctm(gaussian_mixture(file), file.config, form_of(file)), file["in/x_T"]
    top, bottom = (torch.full((len(x),), value, dtype=x.dtype) for value in (model.sigma_max, model.sigma_min))
    for case in failing.values():
        levels = jump_grid(file.config, case)[[0, -1]] if case["sampler"] == "onestep" else jump_grid(file.config, case)
        result = consistency(model, x, levels, noise=Tape(file["in/noise"]))
        assert bool(result.isfinite().all())
        if case["sampler"] == "onestep":
            torch.testing.assert_close(result, model.jump(x, top, bottom))


@vectors.each("which", vectors.names("edm_sampler_*"))
def test_the_stochastic_sampler_of_edm(which):
    with vectors.open_file(which) as file:
        config = file.config
        tape, mixture = Tape(file["in/noise"], by_step=True), gaussian_mixture(file)
        calls: list[tuple[Tensor, Tensor, Tensor]] = []

        def denoise(x, t):
            calls.append((x, t, mixture.denoise(x, t)))
            return calls[-1][-1]

        grid = level_grid(config, config["num_steps"], zero=True)
        result = heun(
            denoise,
            file["in/latents"] * float(config["sigma_max"]),
            grid,
            churn=float(config["S_churn"]),
            churn_min=float(config["S_min"]),
            churn_max=float(config["S_max"]),
            churn_noise=float(config["S_noise"]),
            noise=tape,
            callback=tape.advance,
        )
        x_in, sigma, denoised = (torch.stack(part) for part in zip(*calls, strict=True))
        file.compare("trace/x_in", x_in)
        file.compare("trace/sigma", sigma[:, 0].reshape(file["trace/sigma"].shape))
        file.compare("trace/denoised", denoised)
        file.compare("out/x", result)


@vectors.each("which", vectors.names("edm_loss"))
def test_the_denoising_loss_of_edm(which):
    """EDM's loss is elementwise, ours the mean of it over the coordinates of each sample."""
    with vectors.open_file(which) as file:
        config, y = file.config, file["in/y"]
        sigma = (config["P_mean"] + config["P_std"] * file["in/rnd_normal"].flatten()).exp()
        draw = DenoisingDraw(sigma, file["in/noise"])
        model = gaussian_mixture(file)
        model.sigma_data = float(config["sigma_data"])  # what the loss takes for its weight
        losses = DenoisingScoreMatching()(Networks(model), y, None, draw)
        error = model.denoise(y + match_dims(sigma, y) * draw.noise, sigma) - y
        weight = match_dims(edm_weight(sigma, model.sigma_data), y)
        file.compare("out/loss_elementwise", weight * error**2)
        torch.testing.assert_close(losses, file["out/loss_elementwise"].flatten(1).mean(1))
        file.compare("out/loss_mean", losses.mean().reshape(file["out/loss_mean"].shape))
