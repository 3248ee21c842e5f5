"""The autoencoder and text encoder that go with a model trained on latents."""

from __future__ import annotations

from collections.abc import Iterable

from ctm.data import Dataset
from ctm.data.latents import Latents
from ctm.data.notes import tell
from ctm.models import AnyModel
from ctm.models.pipeline import Pipeline
from ctm.teachers.pipelines import autoencoder_in

__all__ = ["pipeline_of_student"]


def pipeline_of_student(models: Iterable[AnyModel | None], data: Dataset) -> tuple[Pipeline | None, list[str]]:
    """The pipeline that decodes a student's samples and reads its prompts: that of the first of the models it comes from that has
    one, else that of the latents it is trained on. With a line that says which autoencoder decodes the latents.

    Raises ValueError where a model's autoencoder scales latents by other factors than that of the data: its weights would mean
    other numbers."""
    own = next((part for model in models if (part := getattr(model, "pipeline", None)) is not None), None)
    theirs = data.pipeline if isinstance(data, Latents) else None
    if theirs is None or theirs.autoencoder is None:
        return own, []
    if own is None:
        return theirs, [f"samples are decoded by the autoencoder in {theirs.source}"]
    if own.autoencoder is not None and own.digest(own.autoencoder) != theirs.digest(theirs.autoencoder):
        kept, made = autoencoder_in(own), autoencoder_in(theirs)
        if (kept.scaling, kept.shift) != (made.scaling, made.shift):
            raise ValueError(
                f"the latents in {theirs.source} were made with scaling {made.scaling:g} and shift {made.shift:g}, and the "
                f"autoencoder of the model to learn from has {kept.scaling:g} and {kept.shift:g}: encode the pictures by its "
                f"own, ctm latents --vae {own.source}"
            )
        tell(
            [
                f"made by another autoencoder than that of the model to learn from, {own.source}, which decodes samples: if they "
                "differ by more than the precision of their files, encode the pictures by that"
            ],
            theirs.source,
        )
    return own, []
