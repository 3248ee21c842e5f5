"""Training objectives: each a small frozen object, called on the networks and a batch."""

from ctm.objectives.adversarial import Adversarial
from ctm.objectives.adversarial_losses import (
    hinge_discriminator,
    hinge_generator,
    log_discriminator,
    log_generator,
)
from ctm.objectives.balance import balance
from ctm.objectives.base import Networks, Objective
from ctm.objectives.denoising import DenoisingScoreMatching
from ctm.objectives.distances import Distance, PseudoHuber, Squared
from ctm.objectives.distribution_matching import DistributionMatching, FakeScore
from ctm.objectives.eulerian import Eulerian
from ctm.objectives.features import LPIPS, FeatureDistance, PerceptualDistance
from ctm.objectives.lagrangian import Lagrangian
from ctm.objectives.matching import Matching
from ctm.objectives.matching_times import MatchingTimes, ShrinkingGap
from ctm.objectives.pairs import KarrasPairs, LognormalPairs, Pairs
from ctm.objectives.player import Lesson, Player, Rhythm, fixed, trainable_copy
from ctm.objectives.semigroup import Semigroup
from ctm.objectives.stored_walks import StoredWalks
from ctm.objectives.walks import MultistepWalk, SameNoise, TargetJump, TargetJumps, TeacherWalk

__all__ = [
    "LPIPS",
    "Adversarial",
    "DenoisingScoreMatching",
    "Distance",
    "DistributionMatching",
    "Eulerian",
    "FakeScore",
    "FeatureDistance",
    "KarrasPairs",
    "Lagrangian",
    "Lesson",
    "LognormalPairs",
    "Matching",
    "MatchingTimes",
    "MultistepWalk",
    "Networks",
    "Objective",
    "Pairs",
    "PerceptualDistance",
    "Player",
    "PseudoHuber",
    "Rhythm",
    "SameNoise",
    "Semigroup",
    "ShrinkingGap",
    "Squared",
    "StoredWalks",
    "TargetJump",
    "TargetJumps",
    "TeacherWalk",
    "balance",
    "fixed",
    "hinge_discriminator",
    "hinge_generator",
    "log_discriminator",
    "log_generator",
    "trainable_copy",
]
