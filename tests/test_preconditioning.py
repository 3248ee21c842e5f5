"""D from what a network predicts, held against data N(0, c²), for which every prediction is known."""

import json
import math

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, EulerDiscreteScheduler, HeunDiscreteScheduler

from ctm import DiffusionModel, TrajectoryModel, load_model
from ctm.betas import SCHEDULES, BetaSchedule
from ctm.networks import MLP
from ctm.preconditioning import EDM, Flow, NoiseAndSample, Own, VariancePreserving, preconditioning_from

C = 0.6
BETAS = {
    "linear": BetaSchedule(),
    "scaled_linear": BetaSchedule(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012),
    "sigmoid": BetaSchedule(beta_schedule="sigmoid"),
    "squaredcos_cap_v2": BetaSchedule(beta_schedule="squaredcos_cap_v2"),
    "exp": BetaSchedule(beta_schedule="exp", num_train_timesteps=300),
    "laplace": BetaSchedule(beta_schedule="laplace"),
    "trained": BetaSchedule(num_train_timesteps=3, trained_betas=(0.1, 0.3, 0.5)),
    "zero-snr": BetaSchedule(beta_schedule="scaled_linear", rescale_betas_zero_snr=True),
    "zero-snr-trained": BetaSchedule(num_train_timesteps=3, trained_betas=(0.1, 0.3, 1.0)),
}
DIFFUSERS = {
    "linear": DDPMScheduler(),
    "scaled_linear": DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012),
    "sigmoid": DDPMScheduler(beta_schedule="sigmoid"),
    "squaredcos_cap_v2": DDPMScheduler(beta_schedule="squaredcos_cap_v2"),
    "exp": HeunDiscreteScheduler(beta_schedule="exp", num_train_timesteps=300),
    "laplace": DDPMScheduler(beta_schedule="laplace"),
    "trained": DDPMScheduler(num_train_timesteps=3, trained_betas=[0.1, 0.3, 0.5]),
    "zero-snr": DDIMScheduler(beta_schedule="scaled_linear", rescale_betas_zero_snr=True),
    "zero-snr-trained": DDPMScheduler(num_train_timesteps=3, trained_betas=[0.1, 0.3, 1.0]),
}


class Exact(torch.nn.Module):
    """What a perfect network predicts for data N(0, c²), told by the state that it gets: a·x_0 + b·ε with its own a and b.

    E[x_0 | z] = a·c²·z/(a²c² + b²), E[ε | z] = b·z/(a²c² + b²)."""

    def __init__(self, prediction, coefficients):
        super().__init__()
        self.prediction, self.coefficients = prediction, coefficients
        self.weight = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))

    def forward(self, z, level, s=None, condition=None):
        a, b = (value[:, None] for value in self.coefficients(level))
        total = a**2 * C**2 + b**2
        x0, noise = a * C**2 * z / total, b * z / total
        return {"sample": x0, "epsilon": noise, "v": a * noise - b * x0, "flow": noise - x0}[self.prediction]


def table_coefficients(schedule):
    """(√ᾱ, √(1−ᾱ)) by the whole number of a level, from ᾱ itself."""

    def coefficients(level):
        assert torch.equal(level, level.round())
        alphas = schedule.alphas.double().clone()
        if schedule.ends_without_signal:
            alphas[-1] = 1 / (1 + schedule.sigma_cut**2)
        chosen = alphas[level.long()]
        return chosen.sqrt(), (1 - chosen).sqrt()

    return coefficients


def exact_d(x, sigma):
    return C**2 / (C**2 + sigma[:, None] ** 2) * x


def models(network, inner, sigmas):
    ends = {"sigma_min": float(sigmas[0]), "sigma_max": float(sigmas[-1])}
    return [kind(network, shape=(2,), inner=inner, **ends) for kind in (DiffusionModel, TrajectoryModel)]


@pytest.mark.parametrize("prediction", ["epsilon", "v", "sample"])
@pytest.mark.parametrize("name", BETAS)
def test_d_is_exact_at_every_level_of_a_table(name, prediction):
    """Relative to the state: D is a difference of numbers as large as x = σ·(…), of which float64 keeps 16 digits."""
    schedule = BETAS[name]
    sigma = torch.tensor(schedule.sigmas, dtype=torch.float64)
    x = (sigma[:, None] ** 2 + C**2).sqrt() * torch.randn(len(sigma), 2, dtype=torch.float64)
    inner = VariancePreserving(prediction, schedule)
    for model in models(Exact(prediction, table_coefficients(schedule)), inner, sigma):
        error = (model.denoise(x, sigma) - exact_d(x, sigma)).abs()
        assert float(error.max()) < 1e-9


@pytest.mark.parametrize("scale", [1.0, 1000.0])
def test_d_of_a_flow_is_exact(scale):
    sigma = torch.logspace(-3, 3, 50, dtype=torch.float64)
    x = (sigma[:, None] ** 2 + C**2).sqrt() * torch.randn(50, 2, dtype=torch.float64)
    network = Exact("flow", lambda level: (1 - level / scale, level / scale))
    for model in models(network, Flow(scale), sigma):
        assert float((model.denoise(x, sigma) - exact_d(x, sigma)).abs().max()) < 1e-9


class ExactPair(torch.nn.Module):
    """E[ε | z] and E[x_0 | z]/σ_d for data N(0, c²), side by side."""

    def __init__(self, schedule, sigma_data):
        super().__init__()
        self.parts = [Exact(prediction, table_coefficients(schedule)) for prediction in ("epsilon", "sample")]
        self.sigma_data, self.weight = sigma_data, torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))

    def forward(self, z, level, s=None, condition=None):
        noise, sample = (part(z, level) for part in self.parts)
        return torch.cat([noise, sample / self.sigma_data], dim=1)


@pytest.mark.parametrize("name", BETAS)
def test_d_of_noise_and_sample_is_exact_at_every_level_of_a_table(name):
    schedule, sigma_data = BETAS[name], 0.4
    sigma = torch.tensor(schedule.sigmas, dtype=torch.float64)
    x = (sigma[:, None] ** 2 + C**2).sqrt() * torch.randn(len(sigma), 2, dtype=torch.float64)
    for model in models(ExactPair(schedule, sigma_data), NoiseAndSample(schedule, sigma_data), sigma):
        assert float((model.denoise(x, sigma) - exact_d(x, sigma)).abs().max()) < 1e-9


def test_errors_of_noise_and_sample_do_not_grow_with_the_noise():
    """An error of 1 in ε counts σ·w ≤ σ_d/2 in D, with the most at σ = σ_d; one in F_0 counts σ_d·(1 − w) < σ_d. Where ε alone is
    predicted it counts σ."""
    own, sigma = NoiseAndSample(BetaSchedule(), 0.4), torch.tensor([0.01, 0.4, 20.0, 157.0], dtype=torch.float64)
    c_skip, c_out, _ = own.scalings(sigma)
    for place, expected in ((0, sigma * c_skip), (1, 0.4 * (1 - c_skip))):
        outputs = torch.zeros(4, 2, dtype=torch.float64)
        outputs[:, place] = 1
        torch.testing.assert_close((c_out[:, None] * own.mixed(outputs, sigma))[:, 0].abs(), expected)
    assert float((sigma * c_skip).max()) == pytest.approx(0.2)
    assert float((sigma * c_skip)[-1]) == pytest.approx(0.4**2 / 157, rel=1e-4)
    assert VariancePreserving("epsilon", BetaSchedule()).scalings(sigma)[1][-1] == -157


def test_a_network_with_one_output_is_refused_where_two_are_needed():
    model = TrajectoryModel(MLP((2,), width=8, blocks=1), shape=(2,), inner=NoiseAndSample(BetaSchedule(), 0.5))
    with pytest.raises(ValueError, match=r"MLP must return two outputs for each channel, \(1, 4\): got \(1, 2\)"):
        model.denoise(torch.zeros(1, 2), 1.0)


@pytest.mark.parametrize("sign", [1, -1])
def test_edm_embeds_a_quarter_of_ln_sigma(sign):
    """F of eq. 8 of EDM: (x_0 − c_skip·x)/c_out of the exact x_0, by σ = e^(4·level)."""
    sigma_data, sigma = 0.5, torch.logspace(-2, 2, 20, dtype=torch.float64)

    class F(Exact):
        def forward(self, z, level, s=None, condition=None):
            t = (4 * level).exp()
            root = (t**2 + sigma_data**2).sqrt()
            x = root[:, None] * z
            out = exact_d(x, t) - (sigma_data**2 / root**2)[:, None] * x
            return sign * out / (t * sigma_data / root)[:, None]

    x = sigma[:, None] * torch.randn(20, 2, dtype=torch.float64)
    for model in models(F("edm", None), EDM(sigma_data, sign), sigma):
        assert float((model.denoise(x, sigma) - exact_d(x, sigma)).abs().max()) < 1e-9


@pytest.mark.parametrize("name", DIFFUSERS)
def test_the_table_is_that_of_diffusers(name):
    """The same operations in float32, so the same numbers; diffusers' own solvers put 4096 for the level without signal."""
    ours, theirs = BETAS[name], DIFFUSERS[name].alphas_cumprod
    assert torch.allclose(ours.alphas, theirs, rtol=1e-6, atol=0)
    assert ours.ends_without_signal == (float(theirs[-1]) == 0) == name.startswith("zero-snr")
    if name == "zero-snr":
        euler = EulerDiscreteScheduler(beta_schedule="scaled_linear", rescale_betas_zero_snr=True)
        assert ours.sigmas[-1] == pytest.approx(float(euler.sigmas[0]), rel=1e-6) == pytest.approx(4096, rel=1e-6)
        assert ours.sigmas[-2] == pytest.approx(float(euler.sigmas[1]), rel=1e-6)


def test_every_schedule_of_diffusers_is_looked_at():
    assert {schedule.beta_schedule for schedule in BETAS.values()} == set(SCHEDULES)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", BETAS)
def test_the_number_of_a_level_is_whole_at_the_table_and_linear_in_ln_sigma_between(name, dtype):
    schedule = BETAS[name]
    table = torch.tensor(schedule.sigmas, dtype=dtype)
    numbers = torch.arange(len(table), dtype=dtype)
    assert torch.equal(schedule.index(table), numbers)
    between = (
        torch.tensor(schedule.sigmas, dtype=torch.float64).log().unfold(0, 2, 1) @ torch.tensor([0.75, 0.25]).double()
    )
    found = schedule.index(between.exp().to(dtype)).double()
    # one rounding of σ moves the number by ε/ln(σ_{i+1}/σ_i)
    spacing = torch.tensor(schedule.sigmas, dtype=torch.float64).log().diff()
    room = 8 * torch.finfo(dtype).eps * (1 / spacing + len(table))
    assert bool(((found - numbers[:-1].double() - 0.25).abs() <= room).all())
    outside = torch.tensor([schedule.sigmas[0] / 10, schedule.sigmas[-1] * 10], dtype=dtype)
    assert schedule.index(outside).tolist() == [0, len(table) - 1]


def test_levels_have_derivatives():
    """d level/dσ = 1/(σ·ln(σ_{i+1}/σ_i)) between two levels; ways to teach by derivatives go through it."""
    schedule = BETAS["linear"]
    low, high = schedule.sigmas[500:502]
    sigma = torch.tensor([(low * high) ** 0.5], dtype=torch.float64)
    _, slope = torch.func.jvp(schedule.index, (sigma,), (torch.ones_like(sigma),))
    assert slope.item() == pytest.approx(1 / (sigma.item() * math.log(high / low)), rel=1e-9)


ALL = [
    *(Own(name, 0.5, 0.002) for name in ("edm", "cm", "no")),
    EDM(1.0, -1),
    Flow(1000.0),
    *(
        VariancePreserving(p, BETAS[name])
        for p in ("epsilon", "v", "sample")
        for name in ("linear", "zero-snr", "trained")
    ),
]


@pytest.mark.parametrize("inner", ALL, ids=[str(number) for number in range(len(ALL))])
def test_json_keeps_a_preconditioning(inner):
    assert preconditioning_from(json.loads(json.dumps(inner.as_json())), 0.5, 0.002) == inner


@pytest.mark.parametrize("kind", [DiffusionModel, TrajectoryModel])
@pytest.mark.parametrize(
    "inner", [EDM(0.7), Flow(), VariancePreserving("v", BETAS["trained"])], ids=["edm", "flow", "v"]
)
def test_a_model_keeps_its_preconditioning(kind, inner, tmp_path):
    made = kind(MLP((2,), width=8, blocks=1, embedding=8), shape=(2,), inner=inner, sigma_min=0.4, sigma_max=1.4)
    torch.nn.init.normal_(made.network.last.weight)
    made.save_pretrained(tmp_path)
    found = load_model(tmp_path)
    x, t = torch.randn(3, 2), torch.tensor([1.05, 1.2, 1.3])  # our MLP embeds the logarithm of the level
    assert found.inner == inner
    assert torch.equal(found.denoise(x, t), made.eval().denoise(x, t))


def test_a_preconditioning_given_by_name_is_the_name():
    """config.json of our own models stays as it was."""
    model = TrajectoryModel(MLP((2,)), shape=(2,), inner="cm")
    assert (model.inner, model._settings()["inner"]) == ("cm", "cm")
    assert "inner" not in DiffusionModel(MLP((2,)), shape=(2,))._settings()


@pytest.mark.parametrize(
    ("inner", "sentence"),
    [
        ("other", "inner must be one of edm, cm, no, got 'other'"),
        (3, 'inner is "edm", "cm" or "no", or a mapping'),
        ({"prediction": "noise"}, "got 'noise'"),
        ({"prediction": "flow"}, "has time_scale beside it"),
        ({"prediction": "flow", "time_scale": 0}, "time_scale is a number above 0"),
        ({"prediction": "flow", "time_scale": True}, "time_scale is a number above 0"),
        ({"prediction": "edm", "sigma_data": 0.5, "sign": 2}, "is 1 or -1"),
        ({"prediction": "edm", "sigma_data": "0.5", "sign": 1}, "sigma_data is a number above 0"),
        ({"prediction": "v", "sigmas": 4}, "the table of noise levels is a mapping"),
        ({"prediction": "v", "sigmas": {"steps": 4}}, "the table of noise levels is a mapping"),
        ({"prediction": "v", "sigmas": {"num_train_timesteps": 10**9}}, "a whole number from 2 to 20000"),
        ({"prediction": "v", "sigmas": {"beta_schedule": "os.system"}}, "beta_schedule is one of linear"),
        ({"prediction": "v", "sigmas": {"beta_start": -1}}, "above 0 and below 1"),
        ({"prediction": "v", "sigmas": {"beta_start": 1e-12, "beta_end": 1e-12}}, "do not rise"),
        ({"prediction": "v", "sigmas": {"num_train_timesteps": 2, "trained_betas": [0.1]}}, "2 numbers above 0"),
        ({"prediction": "v", "sigmas": {"num_train_timesteps": 3, "trained_betas": [0.1, 1, 1]}}, "do not rise"),
    ],
    ids=[str(number) for number in range(16)],
)
def test_anything_else_is_refused_in_a_sentence(inner, sentence):
    with pytest.raises(ValueError, match=sentence):
        preconditioning_from(inner, 0.5, 0.002)
