"""Networks: F(x, t, s, condition) -> like x. They receive c_in·x and the noise levels themselves, and embed those."""

from ctm.foreign.allowed import allowing, register
from ctm.networks.adm import ADM, DhariwalUNet
from ctm.networks.diffusers import DiffusersNetwork
from ctm.networks.mlp import MLP
from ctm.networks.song import DDPMpp, NCSNpp

__all__ = ["ADM", "MLP", "DDPMpp", "DhariwalUNet", "DiffusersNetwork", "NCSNpp", "allowing", "register"]
