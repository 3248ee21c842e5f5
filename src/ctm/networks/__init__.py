"""Networks: F(x, t, s, condition) -> like x. They receive c_in·x and the noise levels themselves, and embed those."""

from ctm.foreign.allowed import allowing, register
from ctm.networks.adm import ADM, DhariwalUNet
from ctm.networks.diffusers import DiffusersNetwork
from ctm.networks.dit import DiT
from ctm.networks.edm2 import EDM2
from ctm.networks.mlp import MLP
from ctm.networks.song import DDPMpp, NCSNpp
from ctm.networks.unet1d import UNet1d

__all__ = [
    "ADM",
    "EDM2",
    "MLP",
    "DDPMpp",
    "DhariwalUNet",
    "DiT",
    "DiffusersNetwork",
    "NCSNpp",
    "UNet1d",
    "allowing",
    "register",
]
