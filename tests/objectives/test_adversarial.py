import pytest
import torch

from ctm import TrajectoryModel
from ctm.backbones import EfficientNetLite0
from ctm.discriminators import MLPDiscriminator, ProjectedDiscriminator
from ctm.networks import MLP
from ctm.objectives import Adversarial, DenoisingScoreMatching, Matching, Networks, balance
from ctm.objectives.adversarial import gradient_penalty
from ctm.objectives.adversarial_losses import hinge_generator, log_generator
from ctm.objectives.discriminator_player import fake_maker
from ctm.training.ema import frozen_copy
from ctm.training.step import Batch, LossModule, backward, draw_batch, step_generator
from tests.conftest import mixture, random_weights

PLAIN = Adversarial(discriminator=MLPDiscriminator(width=16, layers=1), augmentation=())


def vector_networks(num_classes: int = 0) -> Networks:
    student = random_weights(TrajectoryModel(MLP((2,), num_classes, width=16, blocks=1, embedding=8), shape=(2,)))
    discriminator = PLAIN.discriminator.build((2,), num_classes)
    return Networks(student, frozen_copy(student), mixture(2).float(), {"discriminator": discriminator})


class Linear(torch.nn.Module):
    """D(x) = w·x, as two heads whose maps differ in size."""

    def __init__(self, w):
        super().__init__()
        self.w = torch.nn.Parameter(w)

    def forward(self, x, labels=None, networks=None):
        logit = x.flatten(1) @ self.w
        return [logit[:, None], logit[:, None, None, None].expand(-1, 1, 3, 3)]


def test_the_penalty_of_a_linear_discriminator_is_its_squared_weight():
    w = torch.randn(5, dtype=torch.float64)
    network = Linear(w)
    penalty = gradient_penalty(network, torch.randn(7, 5, dtype=torch.float64))
    torch.testing.assert_close(penalty, w.square().sum())
    penalty.backward()
    torch.testing.assert_close(network.w.grad, 2 * w)


def test_the_penalty_enters_the_loss_with_its_weight_and_period():
    objective = Adversarial(discriminator=PLAIN.discriminator, augmentation=(), r1_weight=0.3, r1_every=4)
    network = Linear(torch.tensor([3.0, 4.0]))
    networks, x0, fake = Networks(None, players={"discriminator": network}), torch.randn(6, 2), torch.randn(6, 2)
    draw = objective.draw(None, x0, torch.Generator())
    without, _ = objective.discriminator_loss(networks, x0, fake, None, draw)
    with_it, numbers = objective.discriminator_loss(networks, x0, fake, None, draw, penalise=True)
    torch.testing.assert_close(with_it - without, torch.tensor(4 * 0.3 / 2 * 25))
    torch.testing.assert_close(numbers["r1"], torch.tensor(25.0))


def test_when_who_learns():
    alternating = Adversarial(start=10, r1_weight=1.0, r1_every=3)
    assert [alternating.active(step) for step in (9, 10, 11)] == [False, True, True]
    assert [alternating.trains_student(step) for step in (8, 9, 10, 11, 12)] == [True, True, True, False, True]
    assert [alternating.trains_discriminator(step) for step in (9, 10, 11, 12, 13)] == [False, False, True, False, True]
    assert [step for step in range(11, 31, 2) if alternating.penalises(step)] == [11, 17, 23, 29]
    together = Adversarial(start=10, alternate=False)
    assert [(together.trains_student(s), together.trains_discriminator(s)) for s in (9, 10, 11)] == [
        (True, False),
        (True, True),
        (True, True),
    ]
    assert not any(together.penalises(step) for step in range(100))


@pytest.mark.parametrize(("loss", "reference"), [("hinge", hinge_generator), ("log", log_generator)])
def test_the_generators_loss_is_that_of_the_estimate(loss, reference):
    """A number for each sample, whose mean is the loss; gradient at the estimate, none at the discriminator."""
    objective = Adversarial(discriminator=PLAIN.discriminator, augmentation=(), loss=loss)
    networks, estimate = vector_networks(), torch.randn(6, 2, requires_grad=True)
    networks.made["estimate"] = estimate
    losses = objective(networks, estimate, None, objective.draw(None, estimate, torch.Generator()))
    assert losses.shape == (6,)
    torch.testing.assert_close(losses.mean(), reference(networks.players["discriminator"](estimate)))
    losses.mean().backward()
    assert float(estimate.grad.abs().min()) > 0
    assert all(
        parameter.grad is None and parameter.requires_grad
        for parameter in networks.players["discriminator"].parameters()
    )


def test_the_discriminators_loss_moves_it_and_not_the_student():
    networks, x0 = vector_networks(), torch.randn(6, 2)
    fake = networks.student.jump(x0, torch.ones(6), torch.full((6,), 0.5))
    loss, numbers = PLAIN.discriminator_loss(networks, x0, fake, None, PLAIN.draw(None, x0, torch.Generator()))
    loss.backward()
    assert all(parameter.grad is not None for parameter in networks.players["discriminator"].parameters())
    assert all(parameter.grad is None for parameter in networks.student.parameters())
    torch.testing.assert_close(numbers["logit_gap"], numbers["logit_real"] - numbers["logit_fake"])


def test_accuracy_is_the_share_told_rightly():
    networks = Networks(None, players={"discriminator": Linear(torch.tensor([1.0]))})
    real, fake = torch.tensor([[1.0], [2.0], [-1.0], [3.0]]), torch.tensor([[-1.0], [1.0], [1.0], [-2.0]])
    _, numbers = PLAIN.discriminator_loss(networks, real, fake, None, PLAIN.draw(None, real, torch.Generator()))
    assert float(numbers["accuracy"]) == pytest.approx((3 / 4 + 2 / 4) / 2)
    assert float(numbers["logit_gap"]) == pytest.approx(5 / 4 + 1 / 4)


def test_data_and_fakes_have_augmentations_of_their_own_and_processes_take_rows():
    objective, like = Adversarial(), torch.zeros(8, 1, 16, 16)
    whole = objective.draw(None, like, torch.Generator().manual_seed(1))
    assert not torch.equal(whole.real.brightness, whole.fake.brightness)
    halves = [whole.rows(slice(0, 4)), whole.rows(slice(4, 8))]
    for side in ("real", "fake"):
        for name in ("brightness", "contrast", "shift", "offset"):
            parts = [getattr(getattr(half, side), name) for half in halves]
            assert torch.equal(torch.cat(parts), getattr(getattr(whole, side), name))


def test_vectors_with_augmentation_and_wrong_settings_are_sentences():
    with pytest.raises(ValueError, match=r"the data have shape \(2,\): set augmentation to \[\]"):
        Adversarial().draw(None, torch.zeros(4, 2), torch.Generator())
    with pytest.raises(ValueError, match="loss must be hinge or log, got 'wgan'"):
        Adversarial(loss="wgan")
    with pytest.raises(ValueError, match="augmentation must be some of colour, translation, cutout, got flip"):
        Adversarial(augmentation=("flip",))
    with pytest.raises(ValueError, match="r1_every at least 1"):
        Adversarial(r1_every=0)
    with pytest.raises(ValueError, match="give a Matching before it"):
        fake_maker([DenoisingScoreMatching(), Adversarial(), Matching()], 1)
    with pytest.raises(ValueError, match="starts at step 5, Matching, whose estimate it judges, at 6"):
        fake_maker([Matching(start=6), Adversarial(start=5)], 1)
    assert fake_maker([Matching(start=6), Adversarial(start=6)], 1) == 0


def test_the_fake_is_the_estimate_of_the_same_draw_made_once():
    """The same numbers as the estimate that Matching compares; in a step the student jumps from t once for both losses."""
    networks, x0 = vector_networks(), torch.randn(6, 2)
    objectives = [Matching(grid_points=6), PLAIN]
    batch = draw_batch(
        objectives, networks.student, x0, None, total=6, part=slice(0, 6), condition_dropout=0.0,
        generator=step_generator(0, 0),
    )  # fmt: skip
    module = LossModule(networks.student, objectives)
    module(batch, networks.target, networks.teacher, networks.players)
    assert len(module.outputs) == 1
    made = module.made[1]["estimate"].clone()
    with torch.no_grad():
        assert module(batch, networks.target, networks.teacher, make_for=[1]) == []
    torch.testing.assert_close(module.made[1]["estimate"], made)


def test_a_step_with_the_adversarial_loss_is_the_gradient_of_the_weighted_sum():
    """balance's gradients against one backward pass of matching + λ·adversarial, λ within the objective's own range."""
    networks, x0 = vector_networks(), torch.randn(6, 2)
    objectives = [Matching(grid_points=6), PLAIN]
    batch = draw_batch(
        objectives, networks.student, x0, None, total=6, part=slice(0, 6), condition_dropout=0.0,
        generator=step_generator(0, 0),
    )  # fmt: skip
    module = LossModule(networks.student, objectives)
    call = (batch, networks.target, networks.teacher, networks.players)
    weights = backward(module, module(*call), ranges=[objective.weight_range for objective in objectives])
    found = {name: parameter.grad.clone() for name, parameter in module.named_parameters()}
    module.zero_grad()
    losses = module(*call)
    norms = [torch.autograd.grad(loss, module.last_layer.weight, retain_graph=True)[0].norm() for loss in losses]
    torch.testing.assert_close(weights[1], (norms[0] / (norms[1] + 1e-4)).clamp(0.01, 10))
    (losses[0] + weights[1] * losses[1]).backward()
    for name, parameter in module.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(("scale", "expected"), [(1e-6, 10.0), (1e6, 0.01)])
def test_the_adversarial_weight_stays_in_its_range(scale, expected):
    layer, x = torch.nn.Linear(3, 3), torch.randn(5, 3)
    output = layer(x)
    losses = [output.square().mean(), output.square().mean(), scale * output.square().mean()]
    ranges = [(0.0, 1e4), DenoisingScoreMatching().weight_range, Adversarial().weight_range]
    weights, _ = balance(losses, [output], layer.weight, ranges=ranges)
    assert [float(w) for w in weights] == [1, pytest.approx(1, rel=1e-2), pytest.approx(expected)]


def test_the_policy_says_what_is_done():
    images = torch.rand(4, 1, 16, 16)
    only = Adversarial(augmentation=("translation",))
    draw = only.draw(None, images, torch.Generator().manual_seed(0))
    seen = only._seen(images, draw.real)
    values = set(images.flatten().tolist()) | {0.0}
    assert set(seen.flatten().tolist()) <= values
    assert not torch.equal(seen, images)


def test_images_are_judged_with_the_batchs_labels():
    """A class the discriminator was taught for one side only: with the label it knows, without it it cannot."""
    objective = Adversarial(
        discriminator=ProjectedDiscriminator((EfficientNetLite0(side=32),), mixed_channels=8, width=8), augmentation=()
    )
    network = objective.discriminator.build((1, 8, 8), 2).eval()
    networks, x0 = Networks(None, players={"discriminator": network}), torch.rand(4, 1, 8, 8)
    draw = objective.draw(None, x0, torch.Generator())
    some, none = (
        objective.discriminator_loss(networks, x0, x0, labels, draw)[0]
        for labels in (torch.tensor([0, 1, 1, -1]), torch.full((4,), -1))
    )
    unlabelled, _ = objective.discriminator_loss(networks, x0, x0, None, draw)
    assert not torch.equal(some, none)
    torch.testing.assert_close(none, unlabelled)


def test_batches_of_early_steps_have_no_adversarial_draw():
    objectives, x0 = [DenoisingScoreMatching(), Adversarial(start=3, augmentation=())], torch.zeros(2, 2)
    made = [
        draw_batch(
            objectives, mixture(2), x0, None, total=2, part=slice(0, 2), condition_dropout=0.0,
            generator=step_generator(0, step), step=step,
        )
        for step in (2, 3)
    ]  # fmt: skip
    assert isinstance(made[0], Batch)
    assert [[draw is None for draw in batch.draws] for batch in made] == [[False, True], [False, False]]
