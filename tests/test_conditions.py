"""Conditions that are arrays: what they are, what a model takes, and the whole method on them against closed forms."""

import itertools
import math
from dataclasses import dataclass, replace

import pytest
import torch

import ctm
from ctm import Arrays, Labels, TrajectoryModel, karras_grid, sampling
from ctm.arguments import inside
from ctm.conditioner import Conditioner, conditioner_from
from ctm.conditions import absent, as_condition, cat, dropped, labels_of, presence, repeat, rows, to
from ctm.guidance import ClassifierFree
from ctm.likelihood import estimate_log_density, log_density
from ctm.likelihood.flow import log_prior
from ctm.models import DiffusionModel
from ctm.networks import ADM, MLP, DDPMpp, DhariwalUNet, NCSNpp
from ctm.objectives import DenoisingScoreMatching, Matching
from ctm.objectives.base import Networks
from ctm.objectives.walks import TeacherWalk, Walk
from ctm.sampling.driving import drive_together
from ctm.teachers import ConditionalGaussian

from .learning import learn

F64 = torch.float64
SHAPES = {"observation": (3,), "map": (2, 8, 8)}


def gaussian(size: int = 3, k: int = 2, std: float = 0.4, dtype: torch.dtype = F64) -> ConditionalGaussian:
    generator = torch.Generator().manual_seed(size)
    matrix = torch.randn(size, k, dtype=dtype, generator=generator) / 2
    return ConditionalGaussian(matrix, torch.randn(size, dtype=dtype, generator=generator) / 2, std)


def condition_of(n: int, k: int = 2, seed: int = 0) -> dict[str, torch.Tensor]:
    """y of n samples, every third of which is absent."""
    y = torch.randn(n, k, dtype=F64, generator=torch.Generator().manual_seed(seed))
    return {"y": y, "y_present": torch.arange(n) % 3 != 2}


# What a condition is


def test_absence_is_a_flag_and_no_value():
    given = {"labels": torch.tensor([3, -1]), "y": torch.zeros(2, 4)}
    assert presence(given, "y", 2).tolist() == [True, True]  # zeros are a value
    gone = absent(given)
    assert gone["labels"].tolist() == [-1, -1]
    assert gone["y_present"].tolist() == [False, False]
    assert torch.equal(gone["y"], given["y"])
    only = absent(given, ["labels"])
    assert "y_present" not in only
    assert only["labels"].tolist() == [-1, -1]


def test_dropout_leaves_out_all_fields_of_a_row_but_the_guidance_scale():
    given = {"labels": torch.tensor([3, 1]), "y": torch.ones(2, 4), "guidance": torch.tensor([2.0, 3.0])}
    left = dropped(given, torch.tensor([True, False]))
    assert left["labels"].tolist() == [-1, 1]
    assert left["y_present"].tolist() == [False, True]
    assert torch.equal(left["guidance"], given["guidance"])
    assert "guidance_present" not in left
    assert dropped(torch.tensor([3, 1]), torch.tensor([True, False])).tolist() == [-1, 1]


def test_conditions_of_other_rows_join_and_part():
    first = {"y": torch.ones(2, 3), "text": torch.ones(2, 5, 4), "text_mask": torch.ones(2, 5, dtype=torch.bool)}
    joined = cat([first, None, torch.tensor([4])], [2, 3, 1])
    assert joined["labels"].tolist() == [-1] * 5 + [4]
    assert joined["y_present"].tolist() == [True] * 2 + [False] * 4
    assert joined["text_mask"].tolist() == [[True] * 5] * 2 + [[False] * 5] * 4
    assert joined["text"].shape == (6, 5, 4)
    back = rows(joined, slice(0, 2))
    assert torch.equal(back["y"], first["y"])
    assert cat([None, None], [1, 2]) is None
    assert cat([torch.tensor([1]), None], [1, 2]).tolist() == [1, -1, -1]
    twice = repeat({"y": torch.arange(2)[:, None]}, 2)
    assert twice["y"].flatten().tolist() == [0, 1, 0, 1]
    assert to({"y": torch.ones(1)}, "meta")["y"].device.type == "meta"


def test_a_strangers_condition_is_taken_or_refused_in_a_sentence():
    x = torch.zeros(2, 3)
    assert as_condition({"labels": [1, 2]}, x).tolist() == [1, 2]  # labels alone are labels
    taken = as_condition({"y": [[1.0], [2.0]], "labels": 4, "z": None}, x)
    assert taken["labels"].tolist() == [4, 4]
    assert taken["y"].dtype == torch.float32
    for wrong, match in (
        ({"y": torch.zeros(3, 2)}, "'y' needs a first dimension of 2"),
        ({"y": object()}, "'y' must be a tensor or an array"),
        ({"labels": [0.5, 1.0]}, "labels must be whole numbers"),
    ):
        with pytest.raises(ValueError, match=match):
            as_condition(wrong, x)


# What a model takes


def test_a_conditioner_is_kept_and_read_again():
    both = Labels(10) | Arrays({"observation": (20,), "scale": ()}, always={"scale": 1.0})
    assert both.may_be_absent == ("labels", "observation")
    assert conditioner_from(both.as_json()) == both
    assert both.as_json() == {
        "num_classes": 10,
        "fields": {"observation": [20], "scale": []},
        "always": {"scale": 1.0},
    }
    assert Labels(3) == Conditioner(3)
    assert not Conditioner()
    for wrong, match in (
        (lambda: Arrays({"labels": (2,)}), "a field's name"),
        (lambda: Arrays({"y_present": (2,)}), "not ending in _present"),
        (lambda: Arrays({"y": (0,)}), "whole numbers above 0"),
        (lambda: Arrays({"y": 3}), "whole numbers above 0"),
        (lambda: Arrays({"y": (2,)}, always={"z": 1.0}), "none of the fields"),
        (lambda: Labels(-1), "num_classes"),
        (lambda: Labels(2) | Labels(3), "both conditioners have labels"),
        (lambda: conditioner_from({"fields": [1]}), "mapping"),
        (lambda: conditioner_from({"labels": 3}), "mapping with"),
        (lambda: conditioner_from(Labels(3), 4), "num_classes is 4"),
    ):
        with pytest.raises(ValueError, match=match):
            wrong()


def test_a_model_takes_what_it_says_and_no_more():
    takes, x = Labels(4) | Arrays({"y": (2,), "text": (5, 3)}), torch.zeros(2, 3)
    once = takes.check({"y": [1.0, 2.0], "labels": 3}, x)  # without B: the same for all
    assert once["y"].tolist() == [[1.0, 2.0]] * 2
    assert takes.check(torch.tensor([1, 2]), x)["labels"].tolist() == [1, 2]
    bad = torch.tensor([[1.0, math.nan], [0.0, 0.0]])
    allowed = takes.check({"y": bad, "y_present": torch.tensor([False, True])}, x)
    assert torch.equal(allowed["y"][1], bad[1])
    for wrong, match in (
        ({"z": torch.zeros(2, 2)}, "'z' is none that this model takes: it takes labels, y, text"),
        ({"y": torch.zeros(2, 3)}, r"'y' must have shape \(2, 2\), got \(2, 3\)"),
        ({"y": bad}, "values that are not finite"),
        ({"y_present": torch.ones(2, dtype=torch.bool)}, "but has no 'y'"),
        ({"y": torch.zeros(2, 2), "y_present": torch.ones(2)}, "'y_present' must be bool"),
        ({"labels": torch.tensor([4, 0])}, "label 4 is not known"),
        ({"y": torch.zeros(2, 2, dtype=torch.complex64)}, "real numbers"),
    ):
        with pytest.raises(ValueError, match=match):
            takes.check(wrong, x)
    with pytest.raises(ValueError, match="mapping with y as its condition"):
        Arrays({"y": (2,)}).check(torch.zeros(2, dtype=torch.int64), x)
    with pytest.raises(ValueError, match="unconditional"):
        Conditioner().check({"y": torch.zeros(2, 2)}, x)


# Networks


def build(name: str, **options):
    small = {"channels": 16, "channel_mult": (1, 2), "blocks": 1, "attention": (4,)}
    kinds = {"ddpmpp": DDPMpp, "ncsnpp": NCSNpp, "dhariwal": DhariwalUNet, "adm": ADM}
    if name == "mlp":
        return MLP((1, 8, 8), 3, width=32, blocks=2, embedding=16, arrays=SHAPES, **options)
    heads = {"head_channels": 16} if name in ("dhariwal", "adm") else {}
    channels = {"channels": 32} if name == "adm" else {}
    return kinds[name]((1, 8, 8), 3, **{**small, **heads, **channels}, arrays=SHAPES, **options)


def given(n: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    fields = {name: torch.randn(n, *shape, generator=generator) for name, shape in SHAPES.items()}
    return {"labels": torch.arange(n) % 3, **fields}


NETWORKS = ["mlp", "ddpmpp", "ncsnpp", "dhariwal", "adm"]


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_see_each_field_and_its_absence(name):
    torch.manual_seed(0)
    network = build(name)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.2)
    x, t, s = torch.randn(4, 1, 8, 8), torch.full((4,), 1.0), torch.full((4,), 0.5)
    condition = given(4)
    full = network(x, t, s, condition)
    assert full.shape == x.shape
    assert network.fields == SHAPES
    none = network(x, t, s, None)
    assert torch.equal(none, network(x, t, s, {}))
    for field in SHAPES:
        other = network(x, t, s, {**condition, field: condition[field] + 1})
        left_out = network(x, t, s, {k: v for k, v in condition.items() if k != field})
        flag = {**condition, f"{field}_present": torch.tensor([True, False, True, True])}
        one = network(x, t, s, flag)
        assert (other - full).abs().max() > 1e-4
        torch.testing.assert_close(one[1], left_out[1], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(one[0], full[0], rtol=1e-4, atol=1e-5)
        assert (left_out - full).abs().max() > 1e-4
        hidden = {
            **flag,
            field: condition[field].masked_fill(
                torch.tensor([False, True, False, False]).reshape(-1, *(1,) * len(SHAPES[field])), math.nan
            ),
        }
        torch.testing.assert_close(network(x, t, s, hidden), one)  # what is absent may be no number
    alone = network(x[2:3], t[2:3], s[2:3], rows(condition, slice(2, 3)))
    torch.testing.assert_close(alone[0], full[2], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_fresh_student_of_a_conditional_teacher_is_its_teacher(name):
    from ctm.training.student import start_from_teacher

    torch.manual_seed(0)
    teacher = DiffusionModel(build(name, s_embedding=False), shape=(1, 8, 8), num_classes=3)
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.1)
    student = TrajectoryModel(build(name), shape=(1, 8, 8), num_classes=3)
    start_from_teacher(student, teacher)
    x, t, s, condition = torch.randn(4, 1, 8, 8), torch.full((4,), 1.0), torch.full((4,), 0.5), given(4)
    torch.testing.assert_close(student.g(x, t, s, condition), teacher.denoise(x, t, condition))


@pytest.mark.parametrize("shape", [(4, 4), (1, 8, 9), (77, 768)])
def test_fields_that_a_network_cannot_take_are_refused(shape):
    for kind, options in ((MLP, {}), (DDPMpp, {"channels": 16, "channel_mult": (1, 2)})):
        with pytest.raises(ValueError, match="the field 'text' has shape"):
            kind((1, 8, 8), arrays={"text": shape}, **options)


def test_a_model_keeps_its_conditioner_in_its_files(tmp_path):
    torch.manual_seed(0)
    model = TrajectoryModel(build("mlp"), shape=(1, 8, 8), num_classes=3).eval()
    assert model.conditioner == Labels(3) | Arrays(SHAPES)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(tmp_path)
    loaded = ctm.load_model(tmp_path)
    assert loaded.conditioner == model.conditioner
    x, condition = torch.randn(3, 1, 8, 8), given(3)
    assert torch.equal(loaded.jump(x, 2.0, 1.0, condition), model.jump(x, 2.0, 1.0, condition))
    with pytest.raises(ValueError, match="give the network the same fields"):
        TrajectoryModel(build("mlp"), shape=(1, 8, 8), conditioner=Labels(3) | Arrays({"observation": (4,)}))
    with pytest.raises(ValueError, match="arrays must be a mapping"):
        ctm.networks.description.build(
            {"class_path": "ctm.networks.MLP", "init_args": {"shape": [2], "arrays": {"y": [0]}}}
        )


# Closed forms: x0 = A·y + b + c·ε


def test_the_conditional_gaussian_is_its_own_truth():
    """Tweedie, the score, autograd of the density, and the flow's differential equation, with and without y."""
    model, condition = gaussian(), condition_of(6)
    x = torch.randn(6, 3, dtype=F64)
    t = torch.tensor([0.002, 0.1, 0.5, 1.0, 5.0, 80.0], dtype=F64)
    at = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model.log_prob(at, t, condition).sum(), at)
    torch.testing.assert_close(model.score(x, t, condition), gradient, rtol=1e-9, atol=1e-9)
    tweedie = x + t[:, None] ** 2 * gradient
    torch.testing.assert_close(model.denoise(x, t, condition), tweedie, rtol=1e-9, atol=1e-9)
    h = 1e-6
    slope = (model.jump(x, t, t * (1 + h), condition) - model.jump(x, t, t * (1 - h), condition)) / (2 * h * t[:, None])
    velocity = (x - model.denoise(x, t, condition)) / t[:, None]
    torch.testing.assert_close(slope, velocity, rtol=1e-5, atol=1e-5)
    there = model.jump(x, t, torch.full_like(t, 0.01), condition)
    torch.testing.assert_close(model.jump(there, torch.full_like(t, 0.01), t, condition), x, rtol=1e-9, atol=1e-9)


def test_the_conditional_gaussians_density_is_torchs():
    """Against torch.distributions: N(A·y + b, c²I) with y, N(b, c²I + AAᵀ) without."""
    model, condition = gaussian(), condition_of(6)
    x, sigma = torch.randn(6, 3, dtype=F64), 0.3
    eye = torch.eye(3, dtype=F64)
    known = torch.distributions.MultivariateNormal(
        condition["y"] @ model.matrix.T + model.offset, (0.4**2 + sigma**2) * eye
    ).log_prob(x)
    free = torch.distributions.MultivariateNormal(
        model.offset, (0.4**2 + sigma**2) * eye + model.matrix @ model.matrix.T
    ).log_prob(x)
    truth = torch.where(condition["y_present"], known, free)
    torch.testing.assert_close(model.log_prob(x, sigma, condition), truth, rtol=1e-10, atol=1e-10)
    data, drawn = model.sample(20000, seed=1)
    torch.testing.assert_close(data.T.cov(), 0.4**2 * eye + model.matrix @ model.matrix.T, rtol=0.1, atol=0.02)
    residual = data - drawn["y"] @ model.matrix.T - model.offset
    torch.testing.assert_close(residual.T.cov(), 0.4**2 * eye, rtol=0.1, atol=0.01)


@pytest.mark.parametrize(("name", "order"), [("euler", 1), ("heun", 2), ("midpoint", 2), ("dpmpp_2m", 2)])
def test_samplers_tend_to_the_conditional_flow(name, order):
    model, condition = gaussian(), condition_of(6)
    x = 80 * torch.randn(6, 3, dtype=F64)
    truth = model.jump(x, torch.full((6,), 80.0), torch.full((6,), 0.002), condition)
    solver = getattr(sampling, name)
    errors = [(solver(model, x, karras_grid(n, dtype=F64), condition=condition) - truth).abs().max() for n in (64, 128)]
    assert errors[1] < 0.05
    assert math.log2(errors[0] / errors[1]) > order - 0.15


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_gamma_sampling_has_the_conditional_moments(share):
    """The exact jump keeps x at the level's own law, for every γ: mean A·y + b and variance c², or those without y."""
    model, n = gaussian(), 20000
    y = torch.tensor([0.8, -0.3], dtype=F64)
    for condition, mean, covariance in (
        ({"y": y.expand(n, 2)}, model.matrix @ y + model.offset, 0.4**2 * torch.eye(3, dtype=F64)),
        (None, model.offset, 0.4**2 * torch.eye(3, dtype=F64) + model.matrix @ model.matrix.T),
    ):
        torch.manual_seed(0)
        start = mean + torch.randn(n, 3, dtype=F64) @ torch.linalg.cholesky(covariance).T
        x = start + 80 * torch.randn(n, 3, dtype=F64)
        made = sampling.gamma(model, x, karras_grid(3, dtype=F64), gamma=share, condition=condition)
        torch.testing.assert_close(made.mean(0), mean, rtol=0, atol=0.03)
        torch.testing.assert_close(made.T.cov(), covariance, rtol=0.05, atol=0.02)


def test_the_likelihood_of_the_conditional_gaussian_is_its_density():
    model, condition = gaussian(), condition_of(6)
    x = model.sample(6)[0]
    found = log_density(model, x, condition, trace="exact", rtol=1e-8, atol=1e-8)
    end = model.jump(x, torch.full((6,), 0.002), torch.full((6,), 80.0), condition)
    prior = log_prior(end, 80.0) - model.log_prob(
        end, 80.0, condition
    )  # the method takes N(0, σ_max²·I) for the end's law
    torch.testing.assert_close(found, model.log_prob(x, 0.002, condition) + prior, rtol=1e-6, atol=1e-6)
    probes = estimate_log_density(model, x, condition, probes=16, rtol=1e-5, atol=1e-5)
    assert bool(((probes.value - found).abs() <= 5 * probes.standard_error + 1e-3).all())


@pytest.mark.parametrize("scale", [0.0, 1.0, 2.5])
def test_guidance_is_between_the_condition_and_its_absence(scale):
    """D_w = D_∅ + w·(D_y − D_∅), and in a jump the same of g; a row without y has D_∅."""
    model, condition = gaussian(), condition_of(6)
    x, t, s = torch.randn(6, 3, dtype=F64), torch.full((6,), 2.0, dtype=F64), torch.full((6,), 0.5, dtype=F64)
    guided = ClassifierFree(model, scale)
    free, conditional = model.denoise(x, t), model.denoise(x, t, condition)
    expected = free + scale * (conditional - free)
    torch.testing.assert_close(guided.denoise(x, t, condition), expected, rtol=1e-10, atol=1e-10)
    jumps = model.jump(x, t, s), model.jump(x, t, s, condition)
    torch.testing.assert_close(guided.jump(x, t, s, condition), jumps[0] + scale * (jumps[1] - jumps[0]))
    with pytest.raises(ValueError, match=r"got \['z'\]: it can go without y"):
        ClassifierFree(model, scale, fields=["z"])
    with pytest.raises(ValueError, match=r"needs labels, .* or the model's other fields"):
        guided.denoise(x, t)


def test_guidance_of_one_field_leaves_the_others():
    torch.manual_seed(0)
    model = DiffusionModel(build("mlp", s_embedding=False), shape=(1, 8, 8), num_classes=3).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.1)
    x, t, condition = torch.randn(3, 1, 8, 8), torch.ones(3), given(3)
    guided = ClassifierFree(model, 3.0, fields=("observation",)).denoise(x, t, condition)
    without = model.denoise(x, t, absent(condition, ["observation"]))
    torch.testing.assert_close(guided, without + 3 * (model.denoise(x, t, condition) - without), rtol=1e-4, atol=1e-4)


def test_plans_with_and_without_conditions_share_their_calls():
    model, x = gaussian(), torch.randn(2, 3, dtype=F64)
    grid = karras_grid(5, dtype=F64)
    conditions = [None, condition_of(2), condition_of(2, seed=3), {"y": torch.zeros(2, 2, dtype=F64)}]
    together = drive_together(model, [sampling.heun.steps(x, grid, condition=c) for c in conditions])
    for made, condition in zip(together, conditions, strict=True):
        torch.testing.assert_close(made, sampling.heun(model, x, grid, condition=condition), rtol=1e-10, atol=1e-10)


def test_generate_takes_a_mapping_and_each_image_its_own_row():
    model = gaussian(dtype=torch.float32).float()
    y = torch.randn(7, 2)
    grid = karras_grid(3)
    made = ctm.generate(model, 7, condition={"y": y}, grid=grid)
    again = ctm.generate(model, 7, condition={"y": y}, grid=grid, batch_size=2)
    torch.testing.assert_close(made, again, rtol=1e-4, atol=1e-4)
    alone = ctm.generate(model, 1, condition={"y": y[:1]}, grid=grid)
    torch.testing.assert_close(alone[0], made[0], rtol=1e-4, atol=1e-4)
    same = ctm.generate(model, 2, condition={"y": y[0]}, grid=grid)  # one y for all
    torch.testing.assert_close(same[0], made[0], rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="'z' is none that this model takes"):
        ctm.generate(model, 2, condition={"z": y[:2]})


@dataclass(frozen=True)
class ExactWalk(Walk):
    """The teacher's own flow."""

    needs_teacher = True

    def __call__(self, networks, x, path, condition, x0=None):
        return networks.teacher.jump(x, path[0], path[-1], condition)


@pytest.mark.parametrize("kind", ["soft", "local", "global"])
def test_matching_has_no_loss_on_the_conditional_flow(kind):
    """The exact flow as student and target: no loss with a walk along the flow itself, the solver's error with Heun's."""
    model = gaussian()
    data, y = model.sample(32, seed=2)
    y["y_present"] = torch.arange(32) % 3 != 0
    matching = Matching(kind=kind, grid_points=80, solver=ExactWalk())
    draw = matching.draw(model, data, torch.Generator().manual_seed(0))
    networks = Networks(model, model, model)
    assert matching(networks, data, y, draw).max() < 1e-20
    wrong = ConditionalGaussian(model.matrix * 1.2, model.offset, 0.4)
    assert matching(Networks(wrong, wrong, model), data, y, draw).mean() > 1e-9
    assert replace(matching, solver=TeacherWalk())(networks, data, y, draw).max() < 1e-4


@pytest.mark.slow
def test_a_student_of_the_conditional_gaussian_learns_its_flow_in_under_a_minute():
    """Jumps of one student with and without y against the closed form, relative to the data's standard deviation."""
    teacher = gaussian(size=2, k=1, dtype=torch.float32).float()
    torch.manual_seed(0)
    network = MLP((2,), width=64, blocks=2, embedding=32, arrays={"y": (1,)})
    student = TrajectoryModel(network, shape=(2,), sigma_data=teacher.sigma_data)
    matching = Matching(grid_points=16, max_solver_steps=4)
    student = learn(
        teacher, student, [matching, DenoisingScoreMatching()], 500, teacher=teacher, learning_rate=5e-3, dropout=0.2
    )
    n = 2000
    data, condition = teacher.sample(n, seed=10**6)
    x = data + 80 * torch.randn(n, 2)
    for given_ in (condition, None):
        truth = teacher.jump(x, torch.full((n,), 80.0), torch.full((n,), 0.002), given_)
        with torch.no_grad():
            found = student.jump(x, 80.0, 0.002, given_)
        error = (found - truth).square().mean().sqrt().item() / teacher.sigma_data
        print(f"with{'' if given_ else 'out'} y: {error:.4f}")
        assert error < 0.2


# The older name


def test_labels_is_accepted_as_the_older_name_of_condition(small_ctm):
    x, labels = torch.randn(2, *small_ctm.shape), torch.tensor([0, 1])
    for call in (
        lambda **c: small_ctm.jump(x, 2.0, 1.0, **c),
        lambda **c: small_ctm.denoise(x, 2.0, **c),
        lambda **c: small_ctm.score(x, 2.0, **c),
        lambda **c: sampling.gamma(small_ctm, x, karras_grid(2), **c),
        lambda **c: sampling.heun(small_ctm, x, karras_grid(2), **c),
        lambda **c: ctm.generate(small_ctm, 2, **c),
        lambda **c: log_density(small_ctm, 0.1 * x, rtol=0.1, atol=0.1, **c),
    ):
        with pytest.warns(DeprecationWarning, match="is called condition"):
            older = call(labels=labels)
        assert torch.equal(older, call(condition=labels))
        with pytest.raises(ValueError, match="one argument under two names"):
            call(labels=labels, condition=labels)


def test_a_users_own_sampler_may_still_call_its_argument_labels(small_ctm):
    def own(model, x, grid, labels=None, noise=None):
        return model.jump(x, float(grid[0]), float(grid[-1]), labels)

    labels = torch.tensor([0, 1])
    assert torch.equal(
        ctm.generate(small_ctm, 2, condition=labels, sampler=own), ctm.generate(small_ctm, 2, condition=labels)
    )


def test_inside_the_boundary_conditions_are_taken_as_they_are():
    model, x = gaussian(), torch.zeros(2, 3, dtype=F64)
    given_ = {"y": torch.zeros(2, 2, dtype=F64)}
    with inside():
        assert model.conditioner.check(given_, x) is given_
        assert as_condition(given_, x) is given_
    assert labels_of(given_) is None
    assert list(itertools.islice(given_, 2)) == ["y"]
