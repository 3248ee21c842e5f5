"""Text in PNG files: what other programs see of it, what it survives, and hostile files."""

import io
import zlib
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from ctm.provenance import Claim, text

from .pictures import CLAIM, pixels, pixels_of, png


@pytest.mark.parametrize("picture", [pixels(), pixels(8, 3), pixels(5, 4)], ids=["grey", "RGB", "RGBA"])
def test_a_claim_comes_back_and_no_pixel_changes(picture):
    plain = png(picture)
    written = text.write(plain, CLAIM.as_text())
    assert Claim.from_text(text.read(written)) == CLAIM
    assert np.array_equal(pixels_of(written), picture)
    assert written[:33] == plain[:33]
    assert written.endswith(plain[33:])
    assert text.read(plain) == {}


def test_other_programs_read_it():
    written = text.write(png(), {"model": "Größe 28 µm", "seed": "7"})
    with Image.open(io.BytesIO(written)) as picture:
        assert picture.info["ctm:model"] == "Größe 28 µm"
        picture.verify()  # checks each chunk's checksum


def test_it_survives_where_text_is_kept_and_goes_where_it_is_not():
    written = text.write(png(), {"seed": "7"})
    with Image.open(io.BytesIO(written)) as picture:
        kept, dropped, jpeg = io.BytesIO(), io.BytesIO(), io.BytesIO()
        chunks = PngImagePlugin.PngInfo()
        for name, value in picture.text.items():
            chunks.add_itxt(name, value)
        picture.save(kept, "png", pnginfo=chunks, optimize=True)
        picture.save(dropped, "png")
        picture.save(jpeg, "jpeg")
    assert text.read(kept.getvalue()) == {"seed": "7"}
    assert text.read(dropped.getvalue()) == {}
    with pytest.raises(ValueError, match="the text of ctm is kept in PNG files, and this is none"):
        text.read(jpeg.getvalue())


def test_text_of_other_programs_is_not_ours():
    chunks = PngImagePlugin.PngInfo()
    chunks.add_text("Software", "another")
    chunks.add_text("seed", "1")
    assert text.read(png(pnginfo=chunks)) == {}
    assert text.read(text.write(png(pnginfo=chunks), {"seed": "2"})) == {"seed": "2"}


@settings(max_examples=15)
@given(
    st.dictionaries(
        st.from_regex(r"[a-z][a-z0-9_]{0,39}", fullmatch=True),
        st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=50),
        max_size=4,
    )
)
def test_any_text_comes_back(fields):
    assert text.read(text.write(png(), fields)) == fields


@pytest.mark.parametrize(
    ("data", "fields", "message"),
    [
        (b"GIF89a", {}, "kept in PNG files, and this is none"),
        (png()[:20], {}, "kept in PNG files, and this is none"),
        (png()[:60], {}, "this PNG file cannot be read"),
        (png(), {"Seed": "1"}, "a field's name is 1 to 40 small letters, digits or _, got 'Seed'"),
        (png(), {"seed": "1\0"}, "the field seed must be a text of at most 65536 characters without zero bytes"),
        (png(), {"seed": 1}, "the field seed must be a text"),
        (text.write(png(), {"seed": "1"}), {"seed": "2"}, "this PNG file has the text seed of ctm already"),
    ],
)
def test_wrong_arguments_are_sentences(data, fields, message):
    with pytest.raises(ValueError, match=message):
        text.write(data, fields)


def test_text_that_inflates_is_refused():
    """64 MB of text in 60 kB."""
    packed = b"ctm:seed\0\1\0\0\0" + zlib.compress(b"x" * (64 << 20))
    bomb = io.BytesIO()
    PngImagePlugin.putchunk(bomb, b"iTXt", packed)
    plain = png()
    with pytest.raises(ValueError, match=r"this PNG file cannot be read \(.*too large"):
        text.read(plain[:33] + bomb.getvalue() + plain[33:])


@given(st.integers(0, 400), st.integers(1, 255))
def test_a_damaged_file_gives_a_sentence_or_the_text_as_it_was(place, change):
    """Each chunk has a checksum: no changed text is taken for the text."""
    written = bytearray(text.write(png(pixels(4)), {"seed": "7"}))
    written[place % len(written)] ^= change
    with suppress(ValueError):  # anything else that is raised fails the test
        assert text.read(bytes(written)) == {"seed": "7"}
