"""Networks: F(x, t, s, labels) -> like x. They receive c_in·x and the noise levels themselves, and embed those."""

from ctm.networks.ddpmpp import DDPMpp
from ctm.networks.mlp import MLP

__all__ = ["MLP", "DDPMpp"]
