"""EDM's geometric augmentation, each change against what it does to a function that is known between the pixels."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from ctm.data.geometry import LABEL_COUNT, Geometry, draw_geometry

HEIGHT, WIDTH = 48, 64
MARGIN = 16  # pixels from the border, beyond which sources may lie outside the picture


def wave(x, y):
    """A smooth function of pixels from the centre, x to the right and y down, without a symmetry."""
    return np.sin(0.11 * x + 0.05 * y + 0.3) + 0.5 * np.cos(0.07 * y - 0.04 * x)


def pixels(height=HEIGHT, width=WIDTH):
    return np.meshgrid(np.arange(width) - (width - 1) / 2, np.arange(height) - (height - 1) / 2)


def changed(height=HEIGHT, width=WIDTH, **values):
    """The wave's picture after one change, (H, W)."""
    picture = torch.from_numpy(wave(*pixels(height, width))).float()
    geometry = replace(Geometry.nothing(1), **{name: np.array([float(value)]) for name, value in values.items()})
    return geometry.apply(picture[None, None])[0, 0].numpy()


def inside(values):
    return values[MARGIN:-MARGIN, MARGIN:-MARGIN]


def turned(x, y, angle):
    return math.cos(angle) * x - math.sin(angle) * y, math.sin(angle) * x + math.cos(angle) * y


@pytest.mark.parametrize(
    ("values", "source"),
    [
        ({"scale": 1.5}, lambda x, y: (x / 2**0.3, y / 2**0.3)),
        ({"scale": -0.8}, lambda x, y: (x / 2**-0.16, y / 2**-0.16)),
        ({"rotation": 0.2}, lambda x, y: turned(x, y, 0.2)),
        ({"stretch": 1.0}, lambda x, y: (x / 2**0.2, y * 2**0.2)),
        ({"stretch": 1.0, "along": math.pi / 2}, lambda x, y: (x * 2**0.2, y / 2**0.2)),
        ({"right": 0.4}, lambda x, y: (x - 0.4 * WIDTH / 8, y)),
        ({"down": -0.7}, lambda x, y: (x, y + 0.7 * HEIGHT / 8)),
    ],
    ids=["larger", "smaller", "turned", "wide", "tall", "right", "up"],
)
def test_each_change_moves_the_function(values, source):
    """The picture at (x, y) is the function where (x, y) came from; bicubic values are off by less than 1e-3 for this wave."""
    expected = wave(*source(*pixels()))
    assert np.abs(inside(changed(**values)) - inside(expected)).max() < 1e-3
    assert np.abs(inside(expected) - inside(wave(*pixels()))).max() > 0.1


def test_a_stretch_is_along_its_direction():
    """At any angle: the same as turned there, stretched to the right, and turned back."""
    angle, size = 0.6, 2**0.1
    x, y = turned(*pixels(), angle)
    expected = wave(*turned(x / size, y * size, -angle))
    assert np.abs(inside(changed(stretch=0.5, along=angle)) - inside(expected)).max() < 1e-3


def test_changes_follow_one_another_in_the_order_of_the_paper():
    """Flipped, scaled, turned, stretched, moved: so a source is found by undoing the move first and the flip last."""
    x, y = pixels()
    x, y = x - 0.3 * WIDTH / 8, y
    x, y = x / 2**0.1, y * 2**0.1
    x, y = turned(x, y, 0.2)
    x, y = -x / 2**0.1, y / 2**0.1
    found = changed(mirror=1, scale=0.5, rotation=0.2, stretch=0.5, right=0.3)
    assert np.abs(inside(found) - inside(wave(x, y))).max() < 1e-3


def test_flips_moves_by_whole_pixels_and_quarter_turns_are_exact():
    """To the bit, in a picture of eight pixels a side, which moves by whole ones."""
    random = torch.from_numpy(np.random.default_rng(0).uniform(-1, 1, (1, 3, 8, 8))).float()

    def one(**values):
        return replace(Geometry.nothing(1), **{n: np.array([float(v)]) for n, v in values.items()}).apply(random)

    assert torch.equal(one(), random)
    assert torch.equal(one(mirror=1), random.flip(-1))
    assert torch.equal(one(turn_over=1), random.flip(-2))
    assert torch.equal(one(right=1)[..., 1:], random[..., :-1])
    assert torch.equal(one(down=-2)[..., :-2, :], random[..., 2:, :])
    assert torch.equal(one(right=2)[..., :2], random[..., 1:3].flip(-1))  # mirrored at the border
    assert torch.equal(one(right=14), random)  # and again and again
    assert torch.equal(one(rotation=math.pi / 2), torch.rot90(random, 1, (-2, -1)))
    assert torch.equal(one(rotation=-math.pi / 2), torch.rot90(random, -1, (-2, -1)))
    assert torch.equal(one(rotation=math.pi), random.flip(-1, -2))


@pytest.mark.parametrize("values", [{"scale": 0.7}, {"rotation": 0.3}, {"stretch": 0.6, "along": 0.9}, {"right": 0.3}])
def test_the_opposite_change_undoes_it(values):
    forth = replace(Geometry.nothing(1), **{name: np.array([value]) for name, value in values.items()})
    back = replace(forth, **{name: -np.array([v]) for name, v in values.items() if name != "along"})
    picture = torch.from_numpy(wave(*pixels())).float()[None, None]
    again = back.apply(forth.apply(picture))[0, 0].numpy()
    assert np.abs(inside(again) - inside(picture[0, 0].numpy())).max() < 2e-3


def test_the_labels_say_what_was_done():
    drawn = draw_geometry(20_000, 0.12, 0, 0)
    labels = drawn.labels()
    assert (labels.shape, labels.dtype) == ((20_000, LABEL_COUNT), torch.float32)
    assert set(labels[:, 0].tolist()) == set(labels[:, 1].tolist()) == {0.0, 1.0}
    shares = (labels != 0).double().mean(0)  # of 20,000: a deviation of 0.0035 and less
    assert shares[0] == pytest.approx(0.5, abs=0.015)
    assert shares[1] == pytest.approx(0.06, abs=0.008)
    assert torch.allclose(shares[2:], torch.tensor(0.12).double(), atol=0.01)
    assert labels[:, 3].min() >= -2
    assert labels[:, 3].max() <= 0
    assert labels[:, 4].abs().max() <= 1
    angle = torch.atan2(labels[:, 4], labels[:, 3] + 1).numpy()
    assert np.allclose(np.cos(angle - drawn.rotation), 1, atol=1e-5)
    assert np.allclose(np.hypot(*labels[:, 5:7].numpy().T), np.abs(drawn.stretch), atol=1e-5)
    for values in (drawn.scale, drawn.stretch, drawn.right, drawn.down):  # standard normal where it is done
        assert np.std(values[values != 0]) == pytest.approx(1, abs=0.06)
    assert torch.equal(Geometry.nothing(3).labels(), torch.zeros(3, LABEL_COUNT))


def test_a_picture_of_labels_0_is_as_it_was():
    pictures = torch.from_numpy(np.random.default_rng(1).uniform(-1, 1, (200, 1, 6, 9))).float()
    drawn = draw_geometry(200, 0.12, 5, 3)
    same = (drawn.labels() == 0).all(1)
    assert 20 < same.sum() < 120
    made = drawn.apply(pictures)
    assert torch.equal(made[same], pictures[same])
    assert not (made[~same] == pictures[~same]).flatten(1).all(1).any()


def test_the_draw_is_that_of_the_seed_the_step_and_the_row():
    whole = draw_geometry(16, 0.5, 3, 7)
    part = draw_geometry(16, 0.5, 3, 7).rows(slice(4, 9))
    assert torch.equal(part.labels(), whole.labels()[4:9])
    for other in (draw_geometry(16, 0.5, 4, 7), draw_geometry(16, 0.5, 3, 8)):
        assert not torch.equal(other.labels(), whole.labels())
