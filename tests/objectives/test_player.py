"""Rhythms, and what a list of objectives with players must fulfil."""

from dataclasses import dataclass, field

import pytest
import torch

from ctm.objectives import Adversarial, DenoisingScoreMatching, Matching, Networks, Objective, Player, Rhythm
from ctm.objectives.player import fixed, makers, players_of, student_learns, trainable_copy

RHYTHMS = [
    Rhythm(),
    Rhythm(4),
    Rhythm.alternating(),
    Rhythm.alternating(3),
    Rhythm.ahead(5),
    Rhythm.ahead(5, start=7),
    Rhythm(2, period=4, player=(0, 1, 3), student=(2, 3), phase=1),
]


@pytest.mark.parametrize("rhythm", RHYTHMS, ids=str)
def test_the_count_is_that_of_the_steps_before(rhythm):
    """Against counting; before the start the student learns alone, afterwards somebody learns in every step."""
    for step in range(40):
        assert rhythm.count(step) == sum(rhythm.player_learns(earlier) for earlier in range(step))
        assert rhythm.player_learns(step) or rhythm.student_learns(step)
        if step < rhythm.start:
            assert (rhythm.player_learns(step), rhythm.student_learns(step)) == (False, True)
    assert rhythm.first == min(step for step in range(40) if rhythm.player_learns(step))


def test_five_steps_ahead_of_each_of_the_student():
    rhythm = Rhythm.ahead(5, start=3)
    assert [step for step in range(20) if rhythm.student_learns(step)] == [0, 1, 2, 7, 12, 17]
    assert [step for step in range(20) if rhythm.player_learns(step)] == list(range(3, 20))


def test_the_official_rhythm_is_by_absolute_steps():
    rhythm = Rhythm.alternating(4)
    assert [step for step in range(10) if rhythm.player_learns(step)] == [5, 7, 9]
    assert [step for step in range(10) if not rhythm.student_learns(step)] == [5, 7, 9]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"period": 2, "player": (2,), "student": (0, 1)}, r"places 0 … 1 of a period.*got player \[2\]"),
        ({"period": 3, "player": (0,), "student": (1,)}, "each place at least once"),
        ({"player": (), "student": (0,)}, "one at least each"),
        ({"start": -1}, "start must be at least 0 and period at least 1, got start -1"),
        ({"period": 0}, "got start 0 and period 0"),
    ],
)
def test_rhythms_that_cannot_be_are_sentences(settings, words):
    with pytest.raises(ValueError, match=words):
        Rhythm(**settings)


@dataclass
class Made(Player):
    name: str = "critic"
    learns_from: tuple[str, ...] = ("sample",)
    rhythm: Rhythm = field(default_factory=Rhythm)

    def build(self, networks):
        return torch.nn.Linear(2, 1)

    def loss(self, networks, lesson):
        return networks.player(self.name)(lesson.made["sample"]).mean(), {}

    def optimizer(self, parameters):
        return torch.optim.SGD(parameters, lr=1e-2)


@dataclass
class Owner(Objective):
    made: Player = field(default_factory=Made)
    makes: tuple[str, ...] = ("sample",)
    start: int = 0

    def player(self):
        return self.made

    def active(self, step):
        return step >= self.start

    def draw(self, model, like, generator):
        return None

    def __call__(self, networks, x0, condition, draw):
        return x0.mean(1)


def test_players_are_found_with_their_objectives():
    objectives = [Matching(), DenoisingScoreMatching(), Adversarial(start=3), Owner()]
    assert {index: player.name for index, player in players_of(objectives).items()} == {2: "discriminator", 3: "critic"}
    assert (makers(objectives, 2), makers(objectives, 3)) == ([0], [3])
    assert players_of([Matching()]) == {}


def test_what_a_player_learns_from_is_made_by_the_last_objective_up_to_its_own():
    needs_both = Owner(Made(learns_from=("sample", "estimate")), makes=())
    assert makers([Matching(), Owner(), Matching(), needs_both, Owner()], 3) == [1, 2]


def test_the_student_learns_where_all_rhythms_let_it():
    objectives = [Matching(), Adversarial(start=0), Owner(Made(rhythm=Rhythm.ahead(5)))]
    assert [step for step in range(40) if student_learns(objectives, step)] == [4, 14, 24, 34]
    assert all(student_learns([Matching()], step) for step in range(3))


@pytest.mark.parametrize(
    ("objectives", "words"),
    [
        ([Owner(), Owner()], "Owner and Owner both train a player of the name 'critic'"),
        ([Owner(Made("Fake Score"))], "the player of Owner is called 'Fake Score': use small letters"),
        ([Owner(Made("student"))], "none of ema, last_layer_gradient, loss, model, student"),
        ([Owner(makes=()), Matching()], "learns from the 'sample' of a step, which neither it nor an objective before"),
        ([Owner(start=3)], "critic of Owner first learns in step 0, where Owner takes no part yet"),
        (
            [Matching(start=6), Owner(Made(learns_from=("estimate",), rhythm=Rhythm(5)))],
            "first learns in step 5, where Matching takes no part yet: let its rhythm start later",
        ),
        (
            [Matching(), Adversarial(), Owner(Made(rhythm=Rhythm(period=2, player=(0,), student=(1,))))],
            "rhythms of the players discriminator, critic together leave no step in which the student learns",
        ),
    ],
)
def test_players_that_cannot_be_are_sentences(objectives, words):
    with pytest.raises(ValueError, match=words):
        players_of(objectives)


def test_a_network_that_is_not_there_is_a_sentence():
    with pytest.raises(ValueError, match=r"no network of a player 'critic' here \(there are: discriminator\)"):
        Networks(None, players={"discriminator": None}).player("critic")


def test_a_copy_learns_and_its_source_does_not():
    source = torch.nn.Linear(2, 1).requires_grad_(False)
    copy = trainable_copy(source)
    with torch.no_grad():
        copy.weight.add_(1)
    assert [p.requires_grad for p in copy.parameters()] == [True, True]
    assert torch.equal(copy.weight, source.weight + 1)


def test_what_is_fixed_learns_again_afterwards():
    network = torch.nn.Linear(2, 1)
    network.bias.requires_grad_(False)
    with fixed(network):
        assert not any(p.requires_grad for p in network.parameters())
    assert [p.requires_grad for p in network.parameters()] == [True, False]
