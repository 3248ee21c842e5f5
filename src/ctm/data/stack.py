"""Opened pictures as equal uint8 squares, and the lines that say what was done to them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from ctm.data.files import TRAITS, Picture
from ctm.data.notes import printable
from ctm.data.resize import fit, is_colour, normal_mode

__all__ = ["Square", "what_was_done"]


@dataclass(frozen=True)
class Square:
    """The rule for all pictures of a set. side: of the squares. colour: 3 channels, else 1. example: name of a picture whose
    own size is `side`, if data.size is not given and no picture is resized."""

    side: int
    colour: bool
    example: str | None = None

    @classmethod
    def like(cls, first: Picture, name: str, size: int | None, colour: bool) -> Square:
        """The rule for side `size`; None takes the first picture's own side. Raises ValueError if that picture is not
        square."""
        width, height = first.image.size
        if size is None and width != height:
            raise ValueError(
                f"{printable(name)} is {width}×{height}, not square: give --data.size, to which pictures are "
                "resized and centre-cropped"
            )
        return cls(width if size is None else size, colour, name if size is None else None)

    @property
    def channels(self) -> int:
        return 3 if self.colour else 1

    def pixels(self, picture: Picture, name: str) -> tuple[np.ndarray, frozenset[str]]:
        """uint8 (side, side, channels), and what was done to the picture (keys of TRAITS). Raises ValueError for a picture
        of another size where none is resized."""
        image, side = picture.image, self.side
        if self.example is not None and image.size != (side, side):
            raise ValueError(
                f"{printable(name)} is {image.width}×{image.height} but {printable(self.example)} is {side}×{side}: give "
                "--data.size, to which pictures are resized and centre-cropped"
            )
        traits = set(picture.traits)
        traits |= {"grey"} if self.colour and not is_colour(image) else set()
        traits |= {"cropped"} if image.width != image.height else set()
        traits |= {"enlarged"} if min(image.size) < side else set()
        square = fit(normal_mode(image, self.colour), side)
        return np.asarray(square).reshape(side, side, self.channels), frozenset(traits)


def what_was_done(traits: Counter[str], total: int, *, converted: bool) -> tuple[str, ...]:
    """One line for each trait, such as "13 of 729 pictures are grey: read as colour". converted: the user gave the channels,
    so that grey pictures read as colour need no line."""
    return tuple(
        f"{traits[trait]} of {total} pictures {words[traits[trait] > 1]}"
        for trait, words in TRAITS.items()
        if traits[trait] and not (trait == "grey" and converted)
    )
