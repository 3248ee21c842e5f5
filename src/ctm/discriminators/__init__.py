"""Discriminators: what tells data from samples, as settings that build a module for the data at hand."""

from ctm.discriminators.base import Discriminator
from ctm.discriminators.projected import ProjectedDiscriminator
from ctm.discriminators.vectors import MLPDiscriminator

__all__ = ["Discriminator", "MLPDiscriminator", "ProjectedDiscriminator"]
