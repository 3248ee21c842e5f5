"""The gallery shows what its script draws."""

import importlib.util
import re
from pathlib import Path

import pytest
import torch
from PIL import Image

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def gallery():
    spec = importlib.util.spec_from_file_location("gallery", ROOT / "tools" / "gallery.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_each_picture_has_its_command_and_is_small(gallery):
    text = (ROOT / "docs" / "gallery.md").read_text()
    shown = re.findall(r"\(gallery/(.+?)\.png\)", text)
    assert shown == re.findall(r"`python tools/gallery.py ([a-z-]+)`", text) == list(gallery.SHEETS)
    files = sorted((ROOT / "docs" / "gallery").iterdir())
    screens = re.findall(
        r"\(gallery/(.+?)\.png\)", (ROOT / "docs" / "serving.md").read_text()
    )  # of the page, in a browser
    assert [file.stem for file in files] == sorted(shown + screens)
    assert max(file.stat().st_size for file in files) <= 150_000
    assert sum(file.stat().st_size for file in files) <= 1_500_000


def test_columns_of_a_sheet_stand_side_by_side_and_steps_below_each_other(gallery):
    dark, light = -torch.ones(2, 1, 8, 8), torch.ones(2, 1, 8, 8)
    beside = gallery.drawn("inpainting", (["a", "b"], [dark, light])).convert("L")
    assert [beside.getpixel((x, gallery.HEADING + 40)) for x in (12, 39)] == [0, 255]
    below = gallery.drawn("steps", (["a", "b"], [dark, light])).convert("L")
    assert [below.getpixel((92, y)) for y in (12, 39)] == [0, 255]


def test_an_unknown_picture_is_a_sentence(gallery):
    with pytest.raises(SystemExit, match="there is no picture portrait"):
        gallery.main(["portrait"])


@pytest.mark.filterwarnings("error::DeprecationWarning")
@pytest.mark.parametrize("name", ["stroke", "steps", "teacher"])
def test_a_picture_is_drawn_again_as_it_is(gallery, name, tmp_path, monkeypatch):
    """To the rounding of another machine: at most 1 % of the pixels are off by more than 8 of 255."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(gallery, "TARGET", tmp_path)
    gallery.main([name])
    made, kept = (Image.open(folder / f"{name}.png").convert("L") for folder in (tmp_path, ROOT / "docs" / "gallery"))
    first, second = (torch.tensor(list(image.tobytes())) for image in (made, kept))
    assert made.size == kept.size
    assert float(((first - second).abs() > 8).double().mean()) < 0.01
