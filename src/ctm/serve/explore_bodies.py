"""The bodies of the requests under /v1/ctm: what OpenAI's interface has no word for."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from ctm.serve.bodies import Asked, FormAsked, Steps

__all__ = ["CompareBody", "InterpolateBody", "LikelihoodBody", "PathBody", "StrokeBody", "Variant"]

Gamma = Annotated[float, Field(ge=0, le=1)] | None
Scale = Annotated[float, Field(ge=-100, le=100)] | None
_FIELDS = "the model's fields: an array each"


class Variant(BaseModel):
    """One way to make a picture of the noise that all variants share."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    model: Annotated[str, Field(max_length=200)] | None = Field(None, description="the first where left out")
    steps: Steps = None
    gamma: Gamma = None
    guidance: Scale = None
    sampler: Annotated[str, Field(max_length=40)] | None = None


class CompareBody(Asked):
    """POST /v1/ctm/compare. The variants name the models."""

    variants: Annotated[list[Variant], Field(min_length=1, max_length=32)]
    condition: dict[str, Any] | None = Field(None, description=_FIELDS)

    @property
    def num(self) -> int:
        """One picture for each variant."""
        return len(self.variants)


class PathBody(Asked):
    """POST /v1/ctm/path."""

    steps: Steps = Field(None, description="jumps; 1 where left out")
    gamma: Gamma = None
    guidance: Scale = None
    sampler: Annotated[str, Field(max_length=40)] | None = Field(None, description="gamma or consistency")
    condition: dict[str, Any] | None = Field(None, description=_FIELDS)
    guesses: bool = Field(False, description="also the clean picture that the network sees in each state")

    @property
    def num(self) -> int:
        """One picture for each jump, two with the guesses."""
        return (self.steps or 1) * (2 if self.guesses else 1)


class StrokeBody(FormAsked):
    """POST /v1/ctm/stroke, the fields beside the file."""

    sigma: Annotated[float, Field(gt=0)] | None = Field(
        None, description="noise level laid over the picture; 1 where left out"
    )
    steps: Steps = Field(None, description="jumps; 2 where left out")
    gamma: Gamma = None


class InterpolateBody(FormAsked):
    """POST /v1/ctm/interpolate, the fields beside the two files."""

    @property
    def num(self) -> int:
        """The number of pictures, with the two ends; 7 where left out."""
        return 7 if self.n is None else self.n


class LikelihoodBody(FormAsked):
    """POST /v1/ctm/likelihood, the fields beside the file."""
