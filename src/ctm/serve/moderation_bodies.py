"""The bodies of moderators' decisions."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["AnswerBody", "ReasonBody"]

Words = Annotated[str, Field(max_length=4000)]


class ReasonBody(BaseModel):
    """POST /v1/moderation/pictures/{id}/release and …/reject."""

    model_config = ConfigDict(extra="forbid")

    reason: Words = Field("", description="why, which the record keeps; a rejection needs one")


class AnswerBody(BaseModel):
    """POST /v1/moderation/reports/{id}/close."""

    model_config = ConfigDict(extra="forbid")

    answer: Words = Field("", description="what was done about it")
