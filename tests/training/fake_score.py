from dataclasses import dataclass

import torch
from torch import Tensor

from ctm.noise import lognormal, match_dims, normal_like
from ctm.objectives import DenoisingScoreMatching, Networks, Objective, Player, Rhythm, trainable_copy
from ctm.objectives.base import Draw
from ctm.objectives.denoising import DenoisingDraw

DENOISING = DenoisingScoreMatching(levels=lognormal)


@dataclass(frozen=True)
class Numbers(Draw):
    start: Tensor  # (B, …): the noise that the student's samples come from
    denoising: DenoisingDraw

    def rows(self, part):
        return Numbers(self.start[part], self.denoising.rows(part))


class FakeScore(Player):
    name = "fake_score"
    learns_from = ("sample",)
    rhythm = Rhythm.ahead(5)  # five steps of the fake score for one of the student

    def build(self, networks):
        return trainable_copy(networks.teacher)

    def optimizer(self, parameters):
        return torch.optim.Adam(parameters, lr=1e-3)

    def loss(self, networks, lesson):
        fake = Networks(networks.player("fake_score"))
        losses = DENOISING(fake, lesson.made["sample"], lesson.condition, lesson.draw.denoising)
        return losses.mean(), {}


class MatchDistributions(Objective):
    needs_teacher = True
    makes = ("sample",)

    def player(self):
        return FakeScore()

    def draw(self, model, like, generator):
        return Numbers(normal_like(like, generator), DENOISING.draw(model, like, generator))

    def make(self, networks, x0, condition, draw):
        student, top = networks.student, torch.full_like(draw.denoising.sigma, networks.student.sigma_max)
        bottom = torch.full_like(top, student.sigma_min)
        networks.made["sample"] = student.jump(student.sigma_max * draw.start, top, bottom, condition)

    def __call__(self, networks, x0, condition, draw):
        self.make(networks, x0, condition, draw)
        sample, (sigma, noise) = networks.made["sample"], (draw.denoising.sigma, draw.denoising.noise)
        with torch.no_grad():
            x = sample + match_dims(sigma, sample) * noise
            real = networks.teacher.denoise(x, sigma, condition)
            fake = networks.player("fake_score").denoise(x, sigma, condition)
            scale = (sample - real).abs().flatten(1).mean(1)
            target = sample - (fake - real) / match_dims(scale, sample)
        return (sample - target).square().flatten(1).mean(1) / 2

    def teacher_evaluations(self, draw):
        return 1
