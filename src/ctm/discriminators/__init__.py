"""Discriminators, which tell data from samples: settings that build a module for given data."""

from ctm.discriminators.base import Discriminator, built_for
from ctm.discriminators.projected import ProjectedDiscriminator
from ctm.discriminators.vectors import MLPDiscriminator

__all__ = ["Discriminator", "MLPDiscriminator", "ProjectedDiscriminator", "built_for"]
