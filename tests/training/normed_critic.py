"""A player whose network has buffers that training moves: a critic with batch normalisation."""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.functional import softplus

from ctm.objectives import Objective, Player, fixed


class Critic(Player):
    name = "critic"
    learns_from = ("estimate",)

    def build(self, networks):
        return nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64), nn.Linear(64, 1))

    def optimizer(self, parameters):
        return torch.optim.Adam(parameters, lr=1e-2)

    def loss(self, networks, lesson):
        critic = networks.player("critic")
        return (softplus(-critic(lesson.x0)) + softplus(critic(lesson.made["estimate"]))).mean(), {}


@dataclass(frozen=True)
class Criticised(Objective):
    def player(self):
        return Critic()

    def draw(self, model, like, generator):
        return NoNumbers()

    def __call__(self, networks, x0, condition, draw):
        critic = networks.player("critic")
        with fixed(critic):
            return softplus(-critic(networks.made["estimate"]))[:, 0]


class NoNumbers:
    def rows(self, part):
        return self
