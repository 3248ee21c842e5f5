"""The ways to teach a jump with a guided velocity, against a guided flow in closed form, and with a discriminator beside them."""

import pytest
import torch
from torch import nn

from ctm.conditions import rows
from ctm.models import DiffusionModel, TrajectoryModel
from ctm.networks import MLP
from ctm.noise import match_dims
from ctm.objectives import (
    Adversarial,
    DenoisingScoreMatching,
    DistributionMatching,
    Eulerian,
    KarrasPairs,
    Lagrangian,
    Matching,
    Networks,
    Semigroup,
    StoredWalks,
)
from ctm.objectives.discriminator_player import fake_maker
from ctm.objectives.player import players_of
from ctm.objectives.stored_walks import WalkSource
from ctm.teachers import ConditionalGaussian

from ..conftest import random_weights
from .flows import F64

MATRIX = torch.randn(3, 2, dtype=F64, generator=torch.Generator().manual_seed(3)) / 2
TRUTH = ConditionalGaussian(MATRIX, torch.zeros(3, dtype=F64), 0.4)
WIDE = (1.0, 3.0)
WAYS = {
    "Lagrangian": Lagrangian(guidance=WIDE),
    "Lagrangian, own velocity": Lagrangian(guidance=WIDE, velocity="student", through_velocity=True),
    "Eulerian": Eulerian(guidance=WIDE),
    "Eulerian, own velocity": Eulerian(guidance=WIDE, velocity="target"),
    "Semigroup": Semigroup(guidance=WIDE),
    "score matching": DenoisingScoreMatching(guidance=WIDE),
}


class GuidedFlow(nn.Module):
    """The flow of D_∅ + w·(D_y − D_∅) for y = 0, times 1 + error·(ln t/s)²/20. With λ the variance along an eigenvector of the
    whole distribution, c of that under y, x along it is multiplied from t to s by

        ((λ + s²)/(λ + t²))^((1 − w)/2)·((c + s²)/(c + t²))^(w/2)

    as D_∅ = λ/(λ + t²)·x there and D_0 = c/(c + t²)·x. Its denoiser is the guided one times 1 + error, at w = 1 where no scale is
    given."""

    sigma_min, sigma_max, sigma_data = TRUTH.sigma_min, TRUTH.sigma_max, TRUTH.sigma_data
    shape, conditioner = TRUTH.shape, TRUTH.conditioner

    def __init__(self, error: float = 0.0, in_denoiser: bool = False) -> None:
        super().__init__()
        self.error, self.in_denoiser = nn.Parameter(torch.tensor(error, dtype=F64)), in_denoiser

    def jump(self, x, t, s, condition=None):
        variance, basis = torch.linalg.eigh(MATRIX @ MATRIX.T)
        w, c = condition["guidance"][:, None], 0.4**2
        t, s, whole = t[:, None], s[:, None], variance + c
        factor = ((whole + s**2) / (whole + t**2)) ** ((1 - w) / 2) * ((c + s**2) / (c + t**2)) ** (w / 2)
        end = ((x @ basis) * factor) @ basis.T
        return end if self.in_denoiser else end * (1 + self.error * (t / s).log() ** 2 / 20)

    def denoise(self, x, t, condition=None):
        own = {name: value for name, value in condition.items() if name != "guidance"}
        w = condition.get("guidance", torch.ones(len(x), dtype=F64))
        present = condition.get("y_present", torch.ones(len(x), dtype=torch.bool))
        free, known = TRUTH.denoise(x, t, None), TRUTH.denoise(x, t, own)
        found = torch.where(match_dims(present, x).bool(), free + match_dims(w, x) * (known - free), free)
        return found * (1 + self.error) if self.in_denoiser else found


def losses(way, error: float, n: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    """The losses (n,) of a map with that error, and their mean's gradient for it."""
    condition, denoises = {"y": torch.zeros(n, 2, dtype=F64)}, isinstance(way, DenoisingScoreMatching)
    x0, _ = TRUTH.sample(n, 0)
    student, exact = GuidedFlow(error, denoises), GuidedFlow().requires_grad_(False)
    draw = way.draw(student, x0, torch.Generator().manual_seed(0))
    assert draw.guidance.min() >= 1
    assert draw.guidance.max() <= 3
    assert draw.guidance.std() > 0.3
    found = way(Networks(student, exact, TRUTH), x0, condition, draw)
    halves = [
        way(Networks(student, exact, TRUTH), x0[part], rows(condition, part), draw.rows(part))
        for part in (slice(0, n // 2), slice(n // 2, n))
    ]
    torch.testing.assert_close(torch.cat(halves), found)
    return found.detach(), torch.autograd.grad(found.mean(), student.error)[0]


@pytest.mark.parametrize("name", WAYS)
def test_the_exact_guided_flow_has_no_loss_and_a_wrong_one_is_led_back(name):
    found, _ = losses(WAYS[name], 0.0)
    assert found.max().item() < 1e-10
    for error in (0.1, -0.1):
        found, gradient = losses(WAYS[name], error)
        assert found.mean().item() > 1e-6
        assert gradient.item() * error > 0


def test_stored_walks_follow_the_guided_flow_of_their_scale(tmp_path):
    """On 100 levels the exact guided flow is within the solver's error, and a wrong one is led back."""
    data, condition = TRUTH.sample(200, 0)[0], {"y": torch.zeros(200, 2, dtype=F64)}
    source = WalkSource(TRUTH, torch.device("cpu"), lambda at: (data[at], rows(condition, at)), 200, "truth")
    way = StoredWalks(str(tmp_path), walks=200, levels=100, guidance=WIDE, left_out=0.0)
    assert "39,600 evaluations" in way.open(source, GuidedFlow())
    assert way.store.condition["guidance"].std() > 0.3
    draw = way.draw(GuidedFlow(), data, torch.Generator().manual_seed(0))

    def found(error: float) -> tuple[float, float]:
        flow = GuidedFlow(error)
        losses = way(Networks(flow, None, TRUTH), data, None, draw)
        return losses.median().item(), torch.autograd.grad(losses.mean(), flow.error)[0].item()

    assert found(0.0)[0] < 1e-4
    for error in (0.1, -0.1):
        assert found(error)[1] * error > 0
    plain = StoredWalks(str(tmp_path), walks=200, levels=100, left_out=0.0)
    plain.open(source, GuidedFlow())
    assert (plain.store.states[:, -1] - way.store.states[:, -1]).std() > 0.05


def trained(guided: bool = True) -> tuple[Networks, torch.Tensor, torch.Tensor]:
    """A student with random weights, its target and teacher, images of two numbers and labels."""
    torch.manual_seed(0)
    sizes = {"width": 16, "blocks": 1, "embedding": 16}
    student, target = (
        random_weights(
            TrajectoryModel(MLP((2,), 4, **sizes, guidance_embedding=guided), shape=(2,), num_classes=4), seed=seed
        )
        for seed in (0, 1)
    )
    teacher = random_weights(DiffusionModel(MLP((2,), 4, **sizes, s_embedding=False), shape=(2,), num_classes=4))
    x0, labels = torch.randn(8, 2), torch.tensor([0, 1, 2, 3, -1, -1, 0, 1])
    return Networks(student, target.requires_grad_(False), teacher), x0, labels


@pytest.mark.parametrize("way", [Lagrangian, Eulerian, Semigroup])
@pytest.mark.parametrize("guidance", [None, WIDE])
def test_every_way_leaves_its_jump_at_the_end_for_a_discriminator(way, guidance):
    """G_target(G_student(x_t, t, s), s, sigma_min), with gradient; `make` leaves the same. Half of the jumps are at the end."""
    objective = way(estimate=True, guidance=guidance, pairs=KarrasPairs(to_end=0.5))
    networks, x0, labels = trained(guidance is not None)
    draw = objective.draw(networks.student, x0, torch.Generator().manual_seed(0))
    known = labels if guidance is None else {"labels": labels, "guidance": draw.guidance}
    x_t, low = x0 + draw.t[:, None] * draw.noise, torch.full((8,), 0.002)
    expected = networks.target.jump(networks.student.jump(x_t, draw.t, draw.s, known), draw.s, low, known)
    assert 0 < int(draw.moves.mask.sum()) < 8
    objective(networks, x0, labels, draw)
    estimate = networks.made["estimate"]
    torch.testing.assert_close(estimate, expected, rtol=1e-4, atol=1e-5)
    (gradient,) = torch.autograd.grad(estimate.sum(), networks.student.network.last.weight)
    assert gradient.abs().sum() > 0
    objective.make(networks, x0, labels, draw)
    torch.testing.assert_close(networks.made["estimate"], expected, rtol=1e-4, atol=1e-5)
    assert objective.needs_target
    assert fake_maker([objective, Adversarial()], 1) == 0
    assert players_of([objective, DenoisingScoreMatching(), Adversarial()])[2].learns_from == ("estimate",)


def test_what_a_discriminator_judges_is_the_last_that_makes_it():
    first, way, samples = Matching(), Semigroup(estimate=True), DistributionMatching()
    assert fake_maker([first, way, samples, Adversarial()], 3) == 1
    assert fake_maker([first, samples, Adversarial(judges="sample")], 2) == 1
    with pytest.raises(ValueError, match="or let Semigroup leave one: estimate: true"):
        fake_maker([Semigroup(), Adversarial()], 1)
    with pytest.raises(ValueError, match="give a DistributionMatching before it"):
        fake_maker([first, Adversarial(judges="sample")], 1)
    with pytest.raises(ValueError, match="starts at step 5, Semigroup, whose estimate it judges, at 6"):
        fake_maker([Semigroup(estimate=True, start=6), Adversarial(start=5)], 1)
    with pytest.raises(ValueError, match="judges must be estimate or sample, got 'data'"):
        Adversarial(judges="data")


def test_what_cannot_be_guided_is_refused(small_ctm):
    with pytest.raises(ValueError, match="velocity: data follows the samples: use velocity teacher"):
        Eulerian(velocity="data", guidance=WIDE)
    for way in (Lagrangian, Eulerian, Semigroup, DenoisingScoreMatching):
        with pytest.raises(ValueError, match=r"guidance must be \[low, high\] with 0 ≤ low ≤ high"):
            way(guidance=(3.0, 1.0))
        with pytest.raises(ValueError, match="does not take a guidance scale"):
            way(guidance=WIDE).check(small_ctm, None)
