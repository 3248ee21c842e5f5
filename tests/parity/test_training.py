"""Training steps of the official code: estimate, target, losses, adaptive weights, gradients, and eight steps in a row."""

from functools import partial

import torch

from ctm import DiffusionModel, TrajectoryModel, weighting
from ctm.backbones import IMAGENET, FunctionBackbone
from ctm.networks.description import build
from ctm.noise import Times, karras_grid
from ctm.objectives import (
    DenoisingScoreMatching,
    Matching,
    Networks,
    TargetJump,
    TargetJumps,
    TeacherWalk,
)
from ctm.objectives.adversarial import Adversarial
from ctm.objectives.adversarial_losses import hinge_discriminator, hinge_generator
from ctm.objectives.balance import adaptive_weight
from ctm.objectives.denoising import DenoisingDraw
from ctm.objectives.features import PerceptualDistance
from ctm.objectives.matching import MatchingDraw, moves_of
from ctm.teachers.official import from_official, recognise, to_official
from ctm.training.ema import frozen_copy, move_average
from ctm.training.step import Batch, LossModule, backward

from . import vectors

KINDS = ("train_ctm_*", "train_gan_*", "train_nets", "train_run*")
DTYPES = {"f32": torch.float32, "f64": torch.float64}
WEIGHTS = {
    "uniform": weighting.uniform,
    "snr": weighting.snr,
    "snr+1": weighting.snr_plus_one,
    "karras": weighting.karras,
    "karras_weight": weighting.karras,
    "truncated-snr": weighting.truncated_snr,
    "sq-t-inverse": weighting.sq_t_inverse,
}
ROLES = {"model": "student", "model_sg": "student", "target_model_sg": "target", "no": "none"}
KNOWN_OVERRIDES = {
    "apply_adaptive_weight",
    "consistency_weight",
    "ctm_estimate_outer_type",
    "ctm_target_inner_type",
    "ctm_target_matching",
    "ctm_target_outer_type",
    "data_augment",
    "denoising_weight",
    "diffusion_weight_schedule",
    "g_learning_period",
    "gan_fake_inner_type",
    "gan_fake_outer_type",
    "gan_training",
    "inner_parametrization",
    "outer_parametrization",
    "self_learn",
    "self_learn_iterative",
    "weight_schedule",
    "weight_schedule_multiplier",
}


class Official:
    """The networks and the batch of `train_nets` in one precision, under our names."""

    def __init__(self, dtype: torch.dtype, *, inner: str = "edm", outer: str = "euler", levels: dict) -> None:
        with vectors.open_file("train_nets", ignore=("*",)) as file:
            channels, size = file.config["img_channels"], file.config["img_resolution"]
            self.order = file.notes.split("param_order:")[1].strip().split(",")
            states = {who: file.params(dtype, f"{who}/param/") for who in ("model", "target", "teacher")}
            self.x0, self.noise, self.dsm_noise, self.dsm_sigma = (
                file[f"in/{name}"].to(dtype) for name in ("x_start", "noise", "dsm_noise", "dsm_sigmas")
            )
            self.labels = file.get("in/y")
        shape = (channels, size, size)
        built = {}
        for who, state in states.items():
            found = recognise(state)
            assert not found.missing
            network = build({"class_path": found.class_path, "init_args": found.init_args}).to(dtype)
            network.load_state_dict(from_official(state, network))
            jumps = {} if who == "teacher" else {"inner": inner, "outer": outer}
            kind = DiffusionModel if who == "teacher" else TrajectoryModel
            classes = found.init_args["num_classes"]
            built[who] = kind(network, shape=shape, num_classes=classes, **jumps, **levels).eval()
        self.student, self.teacher = built["model"], built["teacher"].requires_grad_(False)
        self.target = built["target"].requires_grad_(False)

    def official(self, network: torch.nn.Module, values: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Tensors under our names as a dict under the official ones."""
        return to_official(network, values)

    def norms(self, values: dict[str, torch.Tensor]) -> torch.Tensor:
        """The norms of the network's tensors in the order of the notes."""
        named = self.official(self.student.network, values)
        return torch.stack([named[name].norm() for name in self.order])


def settings_of(config: dict) -> dict[str, float]:
    """Noise levels, where a file states none those that other files state (they are one set)."""
    names = ("sigma_min", "sigma_max", "sigma_data")
    return {name: config[name] if name in config else _stated(name) for name in names}


def _stated(name: str) -> float:
    stated = {
        entry["config"][name]
        for key, entry in vectors.manifest().items()
        if key.startswith("train_") and name in entry["config"]
    }
    assert len(stated) == 1, f"the train files state {stated} for {name}"
    return stated.pop()


def grid_of(config: dict, dtype: torch.dtype, levels: dict) -> torch.Tensor:
    rho = config["rho"] if "rho" in config else _stated("rho")
    return karras_grid(config["N"] - 1, levels["sigma_min"], levels["sigma_max"], rho, dtype=dtype)


def times_of(grid: torch.Tensor, index: torch.Tensor, s_index: torch.Tensor, solver_steps: int) -> Times:
    return Times(grid[index + torch.arange(solver_steps + 1)[:, None]], grid[s_index])


def draw_of(times: Times, noise: torch.Tensor, levels: dict) -> MatchingDraw:
    """As a run draws it: what stays at its level is known, and not computed."""
    return MatchingDraw(times, noise, moves=moves_of(times, levels.get("sigma_min", 0.002)))


def stand_in_distance(kernel: torch.Tensor) -> PerceptualDistance:
    """The reference's stand-in for LPIPS: one strided convolution on images in [0, 1], mean square."""

    def distance(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        one, two = (torch.nn.functional.conv2d(x, kernel.to(x.dtype), stride=kernel.shape[-1]) for x in (a, b))
        return (one - two).square().flatten(1).mean(1)

    return PerceptualDistance(distance)


def objective_of(file: vectors.VectorFile) -> tuple[Matching, DenoisingScoreMatching]:
    """Our objectives for the official switches of a file."""
    overrides = file.config["overrides"]
    assert overrides.keys() <= KNOWN_OVERRIDES, overrides.keys() - KNOWN_OVERRIDES
    assert overrides.get("ctm_estimate_outer_type", "model") in ("model", "target_model_sg"), (
        "the official code has no other"
    )
    solver = TeacherWalk()
    if overrides.get("self_learn"):
        solver = TargetJumps() if overrides.get("self_learn_iterative") else TargetJump()
    schedule = overrides.get("weight_schedule", "uniform")
    weight = WEIGHTS.get(schedule)
    if schedule == "uniform_g":
        weight = partial(weighting.uniform_g, power=overrides.get("weight_schedule_multiplier", 1.0))
    matching = Matching(
        grid_points=file.config["N"],
        solver=solver,
        weight=weight,
        estimate_outer=ROLES[overrides.get("ctm_estimate_outer_type", "target_model_sg")],
        target_outer=ROLES[overrides.get("ctm_target_outer_type", "target_model_sg")],
        target_inner=ROLES[overrides.get("ctm_target_inner_type", "model_sg")],
        estimate_at="u" if overrides.get("ctm_target_matching") else "s",
    )
    if file.config.get("lpips"):
        matching = Matching(**{**vars(matching), "distance": stand_in_distance(file["in/feat_W"])})
    denoising = DenoisingScoreMatching(weight=WEIGHTS[overrides.get("diffusion_weight_schedule", "karras_weight")])
    return matching, denoising


@vectors.each_precision(
    vectors.names("train_ctm_*"),
    double=("train_ctm_default", "train_ctm_self_learn"),
    single=(
        "train_ctm_lpips_branch",
        "train_ctm_self_learn_iterative",
        "train_ctm_target_inner_no",
        "train_ctm_target_matching",
        "train_ctm_u1",
        "train_ctm_weight_uniform_g",
    ),
)
def test_one_step_of_training(name, precision):
    other = "f64" if precision == "f32" else "f32"
    with vectors.open_file(name, ignore=(f"{other}/*", "in/*")) as file:
        overrides, dtype, levels = file.config["overrides"], DTYPES[precision], settings_of(file.config)
        inner, outer = (overrides.get(f"{side}_parametrization") for side in ("inner", "outer"))
        nets = Official(dtype, inner=inner or "edm", outer=outer or "euler", levels=levels)
        matching, denoising = objective_of(file)
        grid = grid_of(file.config, dtype, levels)
        times = times_of(grid, file["in/idx"], file["in/s_idx"], file.config["u"])
        draws = [draw_of(times, nets.noise, levels), DenoisingDraw(nets.dsm_sigma, nets.dsm_noise)]
        module = LossModule(nets.student, [matching, denoising])
        factors = [overrides.get("consistency_weight", 1.0), overrides.get("denoising_weight", 1.0)]

        def compare(key, value):
            if f"{precision}/{key}" in file:
                file.compare(f"{precision}/{key}", value, hint=None)

        losses = module(Batch(nets.x0, nets.labels, draws), nets.target, nets.teacher)
        adaptive = overrides.get("apply_adaptive_weight", True)
        weights = backward(module, losses, factors=factors, adaptive=adaptive)
        if adaptive:
            compare("adaptive_weights", weights[1].reshape(1))
        for key, value in (("t", times.t), ("t_dt", times.u), ("s", times.s)):
            compare(key, value)
        compare("loss", (factors[0] * losses[0] + factors[1] * weights[1] * losses[1]).detach())
        _compare_parts(compare, nets, matching, denoising, draws, weights[1])
        gradients = {key: p.grad for key, p in nets.student.network.named_parameters()}
        compare("grad_norms", nets.norms(gradients))
        named = nets.official(nets.student.network, gradients)
        for key in file.keys(f"{precision}/grad/"):
            compare(key.removeprefix(f"{precision}/"), named[key.removeprefix(f"{precision}/grad/")])


def _compare_parts(compare, nets, matching, denoising, draws, denoising_weight):
    """Where the solver arrives, the two sides of matching, and both losses for each sample."""
    networks, times = Networks(nets.student, nets.target, nets.teacher), draws[0].times
    with torch.no_grad():
        x_t = nets.x0 + times.t[:, None, None, None] * draws[0].noise
        x_u = matching.solver(networks, x_t, times.path, nets.labels)
        compare("x_t_dt", x_u)
        compare("estimate", matching.estimate(networks, x_t, times, nets.labels, draws[0].moves))
        compare("target", matching.target(networks, x_u, times, nets.labels, draws[0].moves))
        compare("consistency_loss", matching(networks, nets.x0, nets.labels, draws[0]))
        compare("denoising_loss", denoising_weight * denoising(networks, nets.x0, nets.labels, draws[1]))


@vectors.each_precision(vectors.names("train_run*"), single=("train_run",))
def test_a_run_of_training(name, precision):
    """Optimiser, averages and target over all steps of the file."""
    other = "f64" if precision == "f32" else "f32"
    with vectors.open_file(name, ignore=(f"{other}/*",)) as file:
        config, dtype, levels = file.config, DTYPES[precision], settings_of(file.config)
        nets = Official(dtype, levels=levels)
        matching, denoising = objective_of(file)
        module, grid = LossModule(nets.student, [matching, denoising]), grid_of(config, dtype, levels)
        optimizer = torch.optim.RAdam(nets.student.parameters(), lr=config["lr"])
        averages = {rate: frozen_copy(nets.student) for rate in config["ema_rates"]}
        history: dict[str, list[torch.Tensor]] = {
            "loss": [],
            "adaptive": [],
            "consistency": [],
            "denoising_weighted": [],
        }
        for step in range(config["steps"]):
            x, noise, dsm_noise, sigma = (file[f"in/{key}"][step].to(dtype) for key in ("x", "nz", "dn", "ds"))
            times = times_of(grid, file["in/idx"][step], file["in/sidx"][step], int(file["in/u"][step]))
            labels = file["in/y"][step] if "in/y" in file else None
            batch = Batch(x, labels, [draw_of(times, noise, levels), DenoisingDraw(sigma, dsm_noise)])
            with torch.no_grad():
                networks = _networks(nets)
                parts = [o(networks, x, labels, d) for o, d in zip((matching, denoising), batch.draws, strict=True)]
            losses = module(batch, nets.target, nets.teacher)
            optimizer.zero_grad()
            weights = backward(module, losses)
            optimizer.step()
            for rate, average in averages.items():
                move_average(average, nets.student, rate)
            move_average(nets.target, nets.student, config["target_ema"])
            history["loss"].append((losses[0] + weights[1] * losses[1]).detach())
            history["adaptive"].append(weights[1].reshape(1))
            history["consistency"].append(parts[0])
            history["denoising_weighted"].append(weights[1] * parts[1])
        for key, values in history.items():
            file.compare(f"{precision}/{key}", torch.stack(values))
        models = {"model": nets.student, "target": nets.target, **{f"ema{rate}": m for rate, m in averages.items()}}
        for who, model in models.items():
            values = dict(model.network.named_parameters())
            file.compare(f"{precision}/{who}_param_norms", nets.norms(values).detach())
            named = nets.official(model.network, values)
            for key in file.keys(f"{precision}/{who}/"):
                file.compare(key, named[key.removeprefix(f"{precision}/{who}/")].detach())


def _networks(nets: Official) -> Networks:
    return Networks(nets.student, nets.target, nets.teacher)


def test_every_tensor_of_the_networks_is_read():
    """`train_nets` holds only inputs: each belongs to one of the three networks or to the batch."""
    for name in vectors.names("train_nets"):
        file = vectors.VectorFile(name)
        known = ("model/param/", "target/param/", "teacher/param/")
        rest = [key for key in file.tensors if not key.startswith(known)]
        assert set(rest) <= {"in/x_start", "in/noise", "in/dsm_noise", "in/dsm_sigmas", "in/y"}


class StandInDiscriminators:
    """The reference's discriminators: bias-free convolutions with stride = kernel on the normalised image at 224 pixels."""

    def __init__(self, file: vectors.VectorFile, dtype: torch.dtype) -> None:
        keys = file.keys("in/disc_W_")
        self.kernels = {key.removeprefix("in/disc_W_"): file[key].to(dtype).requires_grad_() for key in keys}
        self.input = FunctionBackbone(lambda x: [x], *IMAGENET)

    def __call__(self, images: torch.Tensor) -> list[torch.Tensor]:
        prepared = self.input.prepare(images)
        return [torch.nn.functional.conv2d(prepared, k, stride=k.shape[-1]) for k in self.kernels.values()]


def adversarial_case(file: vectors.VectorFile, precision: str):
    """What both phases share: networks, discriminators, objectives, draws."""
    dtype, levels = DTYPES[precision], settings_of(file.config)
    overrides = file.config["overrides"]
    assert (overrides["gan_fake_inner_type"], overrides["gan_fake_outer_type"]) == ("model", "target_model_sg")
    assert not overrides["data_augment"]
    nets, critics = Official(dtype, levels=levels), StandInDiscriminators(file, dtype)
    grid = grid_of(file.config, dtype, levels)
    times = times_of(grid, file["in/idx"], file["in/s_idx"], file.config["u"])
    return nets, critics, *objective_of(file), draw_of(times, nets.noise, levels)


def gan_files(*, generator: bool) -> list[str]:
    """The adversarial files of one phase: the generator's where the step is a multiple of the learning period."""
    configs = {name: vectors.manifest()[f"{name}.safetensors"]["config"] for name in vectors.names("train_gan_*")}
    return [
        name
        for name, config in configs.items()
        if (config["step"] % config["overrides"]["g_learning_period"] == 0) == generator
    ]


@vectors.each_precision(gan_files(generator=True), single=("train_gan_generator",))
def test_the_generators_phase(name, precision):
    """All losses, the adversarial one weighted by the clipped ratio, once its start step is reached."""
    other = "f64" if precision == "f32" else "f32"
    with vectors.open_file(name, ignore=(f"{other}/*",)) as file:
        nets, critics, matching, denoising, draw = adversarial_case(file, precision)
        networks, times = _networks(nets), draw.times
        consistency = matching(networks, nets.x0, nets.labels, draw)
        score = denoising(networks, nets.x0, nets.labels, DenoisingDraw(nets.dsm_sigma, nets.dsm_noise))
        x_t = nets.x0 + times.t[:, None, None, None] * draw.noise
        fake = matching.estimate(networks, x_t, times, nets.labels, draw.moves)
        adversarial = hinge_generator(critics(fake))
        last = nets.student.network.last.weight
        gradients = [
            torch.autograd.grad(loss, last, retain_graph=True)[0]
            for loss in (consistency.mean(), score.mean(), adversarial)
        ]
        ratios = [adaptive_weight(gradients[0], gradient) for gradient in gradients[1:]]
        rule = Adversarial(start=file.config["init_step"])
        clipped = ratios[1].clamp(*rule.weight_range) * rule.active(file.config["step"])
        loss = consistency.mean() + ratios[0] * score.mean() + clipped * adversarial
        loss.backward()

        def compare(key, value):
            if f"{precision}/{key}" in file:
                file.compare(f"{precision}/{key}", value.detach())

        compare("adaptive_weights", torch.stack(ratios))
        compare("consistency_loss", consistency)
        compare("denoising_loss", ratios[0] * score)
        compare("d_loss", clipped * adversarial)
        compare("loss", loss)
        with torch.no_grad():
            x_u = matching.solver(networks, x_t, times.path, nets.labels)
        compare("x_t_dt", x_u)
        compare("estimate", fake)
        compare("target", matching.target(networks, x_u, times, nets.labels))
        for key, value in (("t", times.t), ("t_dt", times.u), ("s", times.s)):
            compare(key, value)
        found = {key: p.grad for key, p in nets.student.network.named_parameters()}
        compare("grad_norms", nets.norms(found))
        named = nets.official(nets.student.network, found)
        for key in file.keys(f"{precision}/grad/"):
            compare(key.removeprefix(f"{precision}/"), named[key.removeprefix(f"{precision}/grad/")])


@vectors.each_precision(gan_files(generator=False), double=("train_gan_discriminator",))
def test_the_discriminators_phase(name, precision):
    """Only the discriminators learn: hinge on the detached estimate and the data."""
    other = "f64" if precision == "f32" else "f32"
    with vectors.open_file(name, ignore=(f"{other}/*",)) as file:
        nets, critics, matching, _, draw = adversarial_case(file, precision)
        times = draw.times
        with torch.no_grad():
            x_t = nets.x0 + times.t[:, None, None, None] * draw.noise
            fake = matching.estimate(_networks(nets), x_t, times, nets.labels, draw.moves)
        loss = hinge_discriminator(critics(nets.x0), critics(fake))
        loss.backward()
        values = {"d_loss": loss, "loss": loss, "estimate": fake, "t": times.t, "t_dt": times.u, "s": times.s}
        values |= {f"disc_grad/{key}": kernel.grad for key, kernel in critics.kernels.items()}
        for key, value in values.items():
            if f"{precision}/{key}" in file:
                file.compare(f"{precision}/{key}", value.detach())
