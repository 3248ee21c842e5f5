"""Training objectives: each a small frozen object, called on the networks and a batch."""

from ctm.objectives.balance import balance
from ctm.objectives.base import Networks, Objective
from ctm.objectives.denoising import DenoisingScoreMatching
from ctm.objectives.distances import Distance, PseudoHuber, Squared
from ctm.objectives.matching import Matching
from ctm.objectives.walks import TargetJump, TargetJumps, TeacherWalk

__all__ = [
    "DenoisingScoreMatching",
    "Distance",
    "Matching",
    "Networks",
    "Objective",
    "PseudoHuber",
    "Squared",
    "TargetJump",
    "TargetJumps",
    "TeacherWalk",
    "balance",
]
