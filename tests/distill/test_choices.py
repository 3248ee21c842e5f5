"""What ctm distill chooses, against flows that are known, and the rules that the choices state."""

import math
from dataclasses import replace

import pytest
import torch
import yaml

from ctm import DiffusionModel
from ctm.betas import BetaSchedule
from ctm.distill.choices import Wishes, choose
from ctm.distill.measures import FINE, LEVELS, TeacherWalks, growth, hiding_level, noises_within, teacher_walks
from ctm.distill.network import student_network
from ctm.distill.recipe_text import recipe_text
from ctm.networks import MLP, DDPMpp, DiffusersNetwork
from ctm.networks.description import build
from ctm.preconditioning import NoiseAndSample, VariancePreserving, preconditioning_from
from ctm.sampling import starting_noise
from ctm.teachers import GaussianMixture
from ctm.terminal.recipe_parser import parse_recipe

from ..conftest import mixture
from ..diffusers_models import UNET


def one_point() -> GaussianMixture:
    """All data at one point, nearly: D is a constant, and every path is a straight line to it."""
    return GaussianMixture(torch.full((1, 3), 0.3), 1e-6, torch.ones(1))


def small_teacher(**options) -> DiffusionModel:
    return DiffusionModel(MLP((1, 8, 8), 10, width=16, blocks=1, s_embedding=False), shape=(1, 8, 8), num_classes=10)


def test_a_straight_flow_takes_the_fewest_levels():
    walks = teacher_walks(one_point())
    assert list(walks.errors) == [LEVELS[0]]  # the first is good enough, and no other is tried
    assert walks.levels(0.1) == LEVELS[0]


def test_a_slow_teacher_is_measured_on_fewer_noises(monkeypatch):
    """376 evaluations at most, of so many noises at the time that one was measured to take; four of 64 are the least."""
    conditions = torch.arange(64) % 10
    for seconds, noises in ((2407, 64), (2400, 32), (1200, 16), (160, 4), (0, 4)):
        clock = iter((10.0, 10.4))
        monkeypatch.setattr("ctm.distill.measures.time.perf_counter", lambda clock=clock: next(clock))
        found = noises_within(small_teacher(), conditions, seconds)
        assert found == (noises, pytest.approx(0.1))


def test_measuring_shows_how_far_it_is_and_ends_early_when_time_is_over(monkeypatch, capsys):
    monkeypatch.setattr("ctm.progress._LINE_SECONDS", -1.0)  # a line for each evaluation
    teacher = GaussianMixture(torch.tensor([[0.8, -0.2], [-0.4, 0.6]]), 0.1, torch.tensor([0.5, 0.5]))
    whole, late = teacher_walks(teacher, noises=8), teacher_walks(teacher, noises=8, seconds=0.0)
    said = capsys.readouterr().err
    assert "the teacher's flow: 1/376 evaluations" in said
    assert "s left" in said
    assert late.errors.items() < whole.errors.items()
    *before, last = late.errors.values()
    assert last < 0.025 <= min(before)
    assert late.levels(0.025) == whole.levels(0.025)
    assert late.levels(0.1) == whole.levels(0.1)
    assert late.ends.shape == (8, 2)


def test_a_curved_flow_takes_more_and_its_error_is_heuns():
    """Of one Gaussian the flow is known: x_min = x·√((m² + c²)/(M² + c²)). The errors are those of Heun's walk against that."""
    c, teacher = 0.5, GaussianMixture(torch.zeros(1, 2), 0.5, torch.ones(1))
    walks = teacher_walks(teacher)
    start = 80 * starting_noise(teacher.shape, range(64), 0)
    truth = start * math.sqrt((0.002**2 + c**2) / (80**2 + c**2))
    assert float((walks.ends - truth).square().mean().sqrt() / truth.std()) < 0.005
    assert walks.levels(0.1) > walks.levels(0.3) > LEVELS[0]
    slope = math.log(walks.errors[14] / walks.errors[28]) / math.log(27 / 13)
    assert slope == pytest.approx(2, abs=0.4)  # Heun's order
    assert max(LEVELS) < FINE


def walks(errors: dict[int, float]) -> TeacherWalks:
    return TeacherWalks(errors, 1e-3, torch.zeros(64, 1, 8, 8))


CURVE = walks({6: 0.3, 10: 0.08, 18: 0.02, 28: 0.004})


def chosen(wishes: Wishes, *, seconds: float = 0.1, left: float = 450.0, curve: TeacherWalks = CURVE):
    """seconds: of a step of 128 images."""
    data = {"name": "digits", "size": 8, "channels": 1}

    def step(settings):
        return seconds * settings["data"]["batch_size"] / 128

    return choose(small_teacher(), data, "t", wishes, curve, seconds_left=left, step_seconds=step)


@pytest.mark.parametrize(
    ("seconds", "batch", "steps"),
    [(0.1, 128, 4500), (0.4, 64, 2250), (2.0, 16, 1800), (8.0, 16, 450), (1e-4, 128, 50_000)],
)
def test_the_batch_is_the_largest_with_enough_steps_in_the_time(seconds, batch, steps):
    found = chosen(Wishes(), seconds=seconds).settings
    assert (found["data"]["batch_size"], found["steps"]) == (batch, steps)


def test_a_long_run_has_a_finer_grid_a_lower_rate_and_longer_averages():
    short, long = (chosen(Wishes(steps=steps)).settings for steps in (1500, 50_000))
    grids = [found["objectives"][0]["init_args"] for found in (short, long)]
    assert [(grid["grid_points"], grid["max_solver_steps"]) for grid in grids] == [(10, 9), (18, 9)]
    assert short["optimizer"]["init_args"]["lr"] == pytest.approx(4e-4 * math.sqrt(50_000 / 1500), rel=0.05)
    assert long["optimizer"]["init_args"]["lr"] == 4e-4
    assert 1 / (1 - short["ema"]) == pytest.approx(150, rel=0.01)
    assert 1 / (1 - long["target_ema"]) == pytest.approx(50_000 / 75, rel=0.05)


GIVEN = {
    "steps": (77, lambda s: s["steps"]),
    "sigma_min": (0.01, lambda s: s["model"]["sigma_min"]),
    "sigma_max": (20.0, lambda s: s["model"]["sigma_max"]),
    "grid_points": (7, lambda s: s["objectives"][0]["init_args"]["grid_points"]),
    "solver_steps": (2, lambda s: s["objectives"][0]["init_args"]["max_solver_steps"]),
    "batch_size": (24, lambda s: s["data"]["batch_size"]),
    "learning_rate": (1e-4, lambda s: s["optimizer"]["init_args"]["lr"]),
    "ema": (0.9, lambda s: s["ema"]),
    "target_ema": (0.8, lambda s: s["target_ema"]),
    "guidance": ((1.0, 5.0), lambda s: tuple(s["objectives"][0]["init_args"]["guidance"])),
    "precision": ("bf16", lambda s: s["engine"]["precision"]),
    "seed": (3, lambda s: s["seed"]),
    "way": ("lagrangian", lambda s: {"Lagrangian": "lagrangian"}[s["objectives"][0]["class_path"].split(".")[-1]]),
    "network": (
        {"class_path": "ctm.networks.MLP", "init_args": {"width": 24}},
        lambda s: s["network"],
    ),
}


@pytest.mark.parametrize("name", GIVEN)
def test_what_the_user_gives_is_used_and_said_to_be_given(name):
    value, read = GIVEN[name]
    found = chosen(Wishes(**{name: value}))
    assert read(found.settings) == value
    text = recipe_text(found.settings, found.choices, "A test.")
    recipe, _ = parse_recipe(["--config", text])  # it is a recipe
    assert recipe.steps == found.settings["steps"]
    assert yaml.safe_load(text) == yaml.safe_load(yaml.safe_dump(found.settings))
    if name != "seed":
        assert any("as given" in choice.why for choice in found.choices)


def test_wishes_that_exclude_each_other_are_refused():
    with pytest.raises(ValueError, match="--steps and --minutes both say how long"):
        chosen(Wishes(steps=5, minutes=1.0))
    with pytest.raises(ValueError, match=r"--way must be one of matching, .*, got 'guess'"):
        chosen(Wishes(way="guess"))


def test_the_student_has_the_teachers_network_with_a_branch():
    teacher = small_teacher()
    found, why = student_network(teacher)
    assert found["init_args"]["s_embedding"] is True
    assert "the student starts as the teacher" in why
    own = build({**found, "init_args": {**found["init_args"], "shape": [1, 8, 8], "num_classes": 10}})
    missing = own.load_state_dict(teacher.network.state_dict(), strict=False)
    assert missing.unexpected_keys == []
    assert all("s_" in name for name in missing.missing_keys)
    guided, _ = student_network(teacher, guided=True)
    assert guided["init_args"]["guidance_embedding"] is True


def test_a_teacher_whose_network_nobody_describes_needs_a_network_by_name():
    teacher = DiffusionModel(torch.nn.Identity(), shape=(2,))
    with pytest.raises(ValueError, match=r"Identity\) is not described .* by --network"):
        student_network(teacher)


def test_the_chosen_engine_is_that_of_convolutions():
    network = DDPMpp((1, 8, 8), channels=8, channel_mult=[1], blocks=1, attention=[], s_embedding=False)
    teacher = DiffusionModel(network, shape=(1, 8, 8))
    found = choose(
        teacher, {"name": "x"}, "t", Wishes(steps=9), CURVE, seconds_left=1.0, step_seconds=lambda settings: 1.0
    )
    assert found.settings["engine"] == {"channels_last": True}
    assert "engine" not in chosen(Wishes(steps=9)).settings


def test_a_flow_that_no_measured_grid_follows_gets_the_finest():
    assert replace(CURVE, errors={4: 2.0, 40: 0.5}).levels(0.1) == 40
    assert mixture(2).num_classes == 4


class NoisePredictor:
    """The exact denoiser of N(0, c²) as a model whose network predicts ε: D = x − σ·F."""

    def __init__(self, shape, c=0.5):
        self.exact = GaussianMixture(torch.zeros(1, *shape), c, torch.ones(1))
        self.shape, self.sigma_min, self.sigma_max, self.sigma_data, self.num_classes = shape, 0.01, 157.0, c, 0
        self.preconditioning = self

    def scalings(self, sigma):
        return torch.ones_like(sigma), -sigma, (1 + sigma**2).rsqrt()

    def denoise(self, x, t, condition=None):
        return self.exact.denoise(x, t)


def test_the_highest_level_is_lower_where_errors_grow_with_the_noise():
    """Of N(0, c²) in d dimensions E|x₀|² = d·c², so that 0.05 nats are left at √(d·c²/0.1). EDM's scalings let no error grow."""
    teacher = NoisePredictor((1, 8, 8))
    found = teacher_walks(teacher)
    assert found.grows
    assert growth(teacher) == pytest.approx(314)
    assert found.sigma_max == pytest.approx(math.sqrt(64 * 0.25 / 0.1), rel=0.03)  # 64 samples of 64 numbers: 2.2 %
    assert teacher_walks(teacher, sigma_max=100.0).sigma_max == 100.0
    assert growth(small_teacher()) == pytest.approx(1, rel=1e-3)
    assert hiding_level(torch.ones(2, 10)) == 10


def test_a_teacher_whose_errors_grow_has_a_lower_rate_and_clipped_gradients():
    plain, grown = (chosen(Wishes(steps=900), curve=replace(CURVE, grows=grows)).settings for grows in (False, True))
    assert grown["optimizer"]["init_args"]["lr"] == plain["optimizer"]["init_args"]["lr"] / 2
    assert grown["engine"]["clip_gradient_norm"] == 1.0
    assert "engine" not in plain
    cut = chosen(Wishes(steps=900), curve=replace(CURVE, grows=True, sigma_max=20.0))
    assert cut.settings["model"]["sigma_max"] == 20.0
    assert any("0.05 nats" in choice.why for choice in cut.choices)


def test_a_student_of_a_network_that_predicts_noise_has_a_second_output():
    """And nothing of what a growing error asks for. Teachers whose networks give one output only keep the ε-prediction."""
    predicts_noise = VariancePreserving("epsilon", BetaSchedule())
    config = {**UNET, "out_channels": 2}  # with a variance
    network = DiffusersNetwork((1, 8, 8), kind="UNet2DModel", config=config)
    ends = {"shape": (1, 8, 8), "sigma_min": 0.01, "sigma_max": 157.0, "sigma_data": 0.75, "inner": predicts_noise}
    curve = replace(CURVE, grows=True, sigma_max=20.0)

    def of(teacher):
        return choose(teacher, {"name": "x"}, "t", Wishes(steps=800), curve, seconds_left=1.0, step_seconds=len)

    found = of(DiffusionModel(network, **ends))
    settings = found.settings
    assert settings["network"]["init_args"]["outputs"] == 2
    assert preconditioning_from(settings["model"]["inner"], 0.5, 0.002) == NoiseAndSample(BetaSchedule(), 0.75)
    assert settings["objectives"][0]["init_args"]["start"] == 100
    assert settings["engine"] == {"channels_last": True}
    assert any(choice.name == "start" for choice in found.choices)
    plain = of(DiffusionModel(MLP((1, 8, 8), width=16, blocks=1, s_embedding=False), **ends)).settings
    assert "outputs" not in plain["network"]["init_args"]
    assert plain["model"]["inner"] == predicts_noise.as_json()
    assert plain["engine"] == {"clip_gradient_norm": 1.0}
    assert plain["optimizer"]["init_args"]["lr"] == settings["optimizer"]["init_args"]["lr"] / 2
