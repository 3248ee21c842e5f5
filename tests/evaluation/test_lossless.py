import numpy as np
import pytest

from ctm.evaluation.lossless import histogram_bits, png_bits


def test_a_png_of_noise_costs_eight_bits_and_its_header():
    pixels = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    assert png_bits(pixels) == pytest.approx([8.07] * 2, abs=0.06)
    assert png_bits(np.zeros((1, 64, 64, 1), dtype=np.uint8))[0] < 0.3


def test_histogram_bits_tend_to_the_entropy():
    """Each value 0 or 1 with probability ¼ and ¾."""
    pixels = (np.random.default_rng(0).random((4000, 3, 3, 1)) < 0.75).astype(np.uint8)
    assert histogram_bits(pixels).mean() == pytest.approx(0.8113, abs=0.02)


def test_an_image_is_not_coded_by_itself():
    """A value that no other image has costs what the one count spread evenly gives it: log2(256·N)."""
    pixels = np.zeros((4, 1, 1, 1), dtype=np.uint8)
    pixels[0] = 9
    assert histogram_bits(pixels)[0] == pytest.approx(np.log2(256 * 4))
