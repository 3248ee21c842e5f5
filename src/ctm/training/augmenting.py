"""Whether a run's data can be mirrored and augmented, and whether its network is told."""

from __future__ import annotations

import inspect

from ctm.arguments import as_number
from ctm.data import Dataset, Images
from ctm.data.geometry import LABEL_COUNT
from ctm.data.latents import Latents
from ctm.models import AnyModel, DiffusionModel
from ctm.objectives import DenoisingScoreMatching
from ctm.training.recipe import DataSettings, Recipe

__all__ = ["check_augment", "check_flips"]


def check_flips(settings: DataSettings, data: Dataset) -> None:
    """Raises ValueError where data.flip or data.augment are set and the data are no pictures, or have maps beside them."""
    as_number(settings.augment, "data.augment", 0.0, 1.0)
    changes = (("data.flip", "mirrors", "mirrored", settings.flip, "false"),)
    changes += (("data.augment", "turns and moves", "turned", settings.augment > 0, "0"),)  # type: ignore[assignment]
    for name, does, done, wanted, off in changes:
        if not wanted:
            continue
        if not isinstance(data, Images):
            raise ValueError(f"{name} {does} pictures, and {settings.name} holds arrays: set {name} to {off}")
        if isinstance(data, Latents):
            raise ValueError(
                f"{name} {does} pictures, and a {done} latent is no latent of the {done} picture: set it to {off}"
            )
        maps = [field for field, values in data.fields.items() if values.ndim > 2]
        if maps:
            raise ValueError(
                f"{name} {does} the images and not the field {maps[0]!r} of their condition: set {name} to {off}"
            )


def check_augment(recipe: Recipe, student: AnyModel) -> None:
    """Raises ValueError where data.augment is set, and the run is no teacher's or its network is not told what was done.

    A CTM's student is to follow its teacher where nothing was done to the data, at labels of 0, where it is sampled. Its jumps,
    its discriminator and its features compare with the data as they are."""
    if not recipe.data.augment:
        return
    plain = all(type(objective) is DenoisingScoreMatching for objective in recipe.objectives)
    if not isinstance(student, DiffusionModel) or not plain or recipe.teacher is not None:
        raise ValueError(
            "data.augment is for the training of a teacher: model.kind diffusion, DenoisingScoreMatching alone and no teacher. A "
            "student learns from its teacher on the data as they are: set data.augment to 0"
        )
    network = student.network
    embedding = getattr(network, "augment_embedding", None)
    told = embedding.in_features == LABEL_COUNT if embedding is not None else "augment" in _arguments(network)
    if not told or (embedding is None and hasattr(network, "augment_embedding")):
        raise ValueError(
            f"data.augment gives {LABEL_COUNT} labels that tell the network what was done, or it would learn to make turned "
            f"pictures: set network.init_args.augment_dim to {LABEL_COUNT} (DDPMpp, NCSNpp and DhariwalUNet have it), or "
            "data.augment to 0"
        )
    if min(student.shape[1:]) < 2:
        raise ValueError(f"data.augment needs pictures of at least 2×2, got {student.shape}: set it to 0")


def _arguments(network: object) -> list[str]:
    return list(inspect.signature(network.forward).parameters)  # type: ignore[attr-defined]
