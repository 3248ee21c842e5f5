"""Opened pictures as equal uint8 images, and the lines that say what was done to them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from ctm.data.files import TRAITS, Picture
from ctm.data.notes import printable
from ctm.data.resize import fit, is_colour, normal_mode

__all__ = ["Frame", "Size", "in_words", "sides_of", "what_was_done"]


Size: TypeAlias = int | Sequence[int]


def sides_of(size: Size) -> tuple[int, int]:
    """(height, width) of a data.size: one number for squares, or two. Raises ValueError for anything else."""
    sides = (size, size) if isinstance(size, int) else tuple(size)
    whole = all(isinstance(side, int) and not isinstance(side, bool) for side in sides)
    if len(sides) != 2 or not whole:
        raise ValueError(f"data.size is one number for squares, or [height, width], got {size}")
    if min(sides) < 1:
        raise ValueError(f"data.size must be at least 1, got {size}")
    return sides[0], sides[1]


@dataclass(frozen=True)
class Frame:
    """The rule for all pictures of a set. height, width: of the images. colour: 3 channels, else 1. example: name of a picture
    whose own size this is, if data.size is not given and no picture is resized."""

    height: int
    width: int
    colour: bool
    example: str | None = None

    @classmethod
    def like(cls, first: Picture, name: str, size: Size | None, colour: bool) -> Frame:
        """The rule for this size; None takes the first picture's own side. Raises ValueError if that picture is not
        square."""
        width, height = first.image.size
        if size is None and width != height:
            raise ValueError(
                f"{printable(name)} is {height} high and {width} wide, not square: give --data.size '[{height}, {width}]', or "
                "one number for squares. Pictures are resized and centre-cropped to it"
            )
        rows, columns = (height, width) if size is None else sides_of(size)
        return cls(rows, columns, colour, name if size is None else None)

    @property
    def channels(self) -> int:
        return 3 if self.colour else 1

    def pixels(self, picture: Picture, name: str) -> tuple[np.ndarray, frozenset[str]]:
        """uint8 (height, width, channels), and what was done to the picture (keys of TRAITS). Raises ValueError for a picture
        of another size where none is resized."""
        image, sides = picture.image, (self.width, self.height)
        if self.example is not None and image.size != sides:
            raise ValueError(
                f"{printable(name)} is {in_words(image.size[::-1])} but {printable(self.example)} is {in_words(sides[::-1])}: "
                "give --data.size, to which pictures are resized and centre-cropped"
            )
        traits = set(picture.traits)
        traits |= {"grey"} if self.colour and not is_colour(image) else set()
        traits |= {"cropped"} if image.width * self.height != image.height * self.width else set()
        traits |= {"enlarged"} if image.width < self.width or image.height < self.height else set()
        fitted = fit(normal_mode(image, self.colour), (self.height, self.width))
        return np.asarray(fitted).reshape(self.height, self.width, self.channels), frozenset(traits)


def in_words(sides: Sequence[int]) -> str:
    """(height, width) for a sentence: "24 high and 40 wide"."""
    return f"{sides[0]} high and {sides[1]} wide"


def what_was_done(
    traits: Counter[str], total: int, *, converted: bool, sides: Sequence[int] | None = None
) -> tuple[str, ...]:
    """One line for each trait, such as "13 of 729 pictures are grey: read as colour". converted: the user gave the channels,
    so that grey pictures read as colour need no line. sides: (height, width) of what they became; None: squares."""
    told = dict(TRAITS)
    if sides is not None and sides[0] != sides[1]:
        form = f"{in_words(sides)}: cropped to their centre"
        told["cropped"] = (f"has another form than {form}", f"have another form than {form}")
    return tuple(
        f"{traits[trait]} of {total} pictures {words[traits[trait] > 1]}"
        for trait, words in told.items()
        if traits[trait] and not (trait == "grey" and converted)
    )
