import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.datasets import load_digits

from ctm.data import Images, epoch_order, load_images, to_model_range
from ctm.pictures import grid_picture, to_uint8


def test_digits_are_shipped():
    digits = load_images("digits")
    assert (len(digits), digits.shape, digits.num_classes) == (1797, (1, 8, 8), 10)
    assert "CC BY 4.0" in digits.source
    x, labels = digits.all()
    assert x.min() == -1
    assert x.max() == 1
    counts = torch.bincount(labels)
    assert counts.min() > 170
    assert len(torch.unique(x)) == 17  # the set's own grey levels, 0 … 16


def test_digits_are_scikit_learns():
    reference = load_digits()
    digits = load_images("digits")
    assert np.array_equal(np.round(digits.pixels[..., 0] / 15.9375), reference.images)
    assert np.array_equal(digits.labels, reference.target)


@given(st.integers(0, 255))
def test_bytes_survive_the_model_range(value):
    pixels = torch.full((1, 2, 2, 3), value, dtype=torch.uint8)
    assert torch.equal(to_uint8(to_model_range(pixels)), pixels)


def test_out_of_range_is_clamped_and_rounded():
    x = torch.tensor([-3.0, -1, 0, 0.999, 1, 3]).reshape(1, 1, 1, 6)
    assert to_uint8(x).flatten().tolist() == [0, 0, 128, 255, 255, 255]


@given(length=st.integers(1, 50), seed=st.integers(0, 5), start=st.integers(0, 200), count=st.integers(1, 120))
def test_epoch_order_is_one_endless_sequence_of_permutations(length, seed, start, count):
    whole = epoch_order(length, 0, start + count, seed)
    assert np.array_equal(epoch_order(length, start, count, seed), whole[start:])
    for epoch in range(len(whole) // length):
        assert sorted(whole[epoch * length : (epoch + 1) * length]) == list(range(length))


def test_epochs_and_seeds_differ():
    a, b = epoch_order(50, 0, 50, 0), epoch_order(50, 50, 50, 0)
    assert not np.array_equal(a, b)
    assert not np.array_equal(a, epoch_order(50, 0, 50, 1))


def test_batch_gives_images_and_labels():
    pixels = np.arange(3 * 2 * 2, dtype=np.uint8).reshape(3, 2, 2, 1)
    images = Images(pixels, np.array([0, 1, 1]))
    x, labels = images.batch(np.array([2, 0]))
    torch.testing.assert_close(x[0, 0], torch.tensor([[8.0, 9], [10, 11]]) / 127.5 - 1)
    assert labels.tolist() == [1, 0]
    assert images.num_classes == 2
    assert Images(pixels).batch(np.array([0]))[1] is None


def test_grid_picture_places_images():
    x = torch.stack([torch.full((1, 2, 2), v) for v in (-1.0, 1.0, 0.0)])
    picture = grid_picture(x, columns=2, scale=1)
    assert picture.size == (7, 7)
    assert [picture.getpixel((1, 1)), picture.getpixel((4, 1)), picture.getpixel((1, 4)), picture.getpixel((5, 5))] == [
        0,
        255,
        128,
        32,
    ]
    with pytest.raises(ValueError, match="1 or 3 channels"):
        grid_picture(torch.zeros(1, 2, 4, 4))
