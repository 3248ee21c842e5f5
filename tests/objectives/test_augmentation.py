import pytest
import torch

from ctm.objectives.augmentation import augment, colour, cutout, draw, translate


def images(n=4, channels=3, height=16, width=16):
    return torch.randn(n, channels, height, width, dtype=torch.float64)


def test_neutral_numbers_change_nothing():
    x = images()
    one, zero = torch.ones(4), torch.zeros(4)
    torch.testing.assert_close(colour(x, zero, one, one), x)
    assert torch.equal(translate(x, torch.zeros(4, 2, dtype=torch.int64)), x)


def test_colour_scales_about_the_means():
    x = images()
    zero, one, half = torch.zeros(4), torch.ones(4), torch.full((4,), 0.5)
    grey = colour(x, zero, zero, one)
    torch.testing.assert_close(grey, x.mean(dim=1, keepdim=True).expand_as(x))
    pale = colour(x, zero, one, half)
    torch.testing.assert_close(pale.mean(dim=(1, 2, 3)), x.mean(dim=(1, 2, 3)))
    torch.testing.assert_close(pale.std(dim=(1, 2, 3)), x.std(dim=(1, 2, 3)) / 2)
    torch.testing.assert_close(colour(x, half, one, one), x + 0.5)


@pytest.mark.parametrize("shift", [(2, 0), (-3, 1), (0, -2)])
def test_translation_is_a_shift_with_zeros(shift):
    x = images(1, 1, 8, 6)
    moved = translate(x, torch.tensor([shift]))
    for row in range(8):
        for column in range(6):
            i, j = row + shift[0], column + shift[1]
            expected = x[0, 0, i, j] if 0 <= i < 8 and 0 <= j < 6 else torch.zeros((), dtype=x.dtype)
            assert moved[0, 0, row, column] == expected


def test_a_cutout_in_the_middle_is_a_square_of_zeros():
    x = torch.ones(1, 3, 10, 10)
    result = cutout(x, torch.tensor([[5, 4]]), size=0.4)
    expected = torch.ones(1, 3, 10, 10)
    expected[:, :, 3:7, 2:6] = 0
    assert torch.equal(result, expected)


def test_gradients_reach_the_image_and_shapes_stay():
    x = images(height=16, width=12).requires_grad_()
    random = draw(x.detach(), generator=torch.Generator().manual_seed(0))
    assert random.shift.shape == random.offset.shape == (4, 2)
    result = augment(x, random)
    assert result.shape == x.shape
    result.sum().backward()
    assert float(x.grad.abs().sum()) > 0


def test_draws_are_in_their_ranges_and_repeat_with_the_seed():
    x = images(2000, 1, 16, 16)
    first, second = (draw(x, generator=torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first.offset, second.offset)
    assert -0.5 <= float(first.brightness.min()) < -0.45 < 0.45 < float(first.brightness.max()) < 0.5
    assert 0 <= float(first.saturation.min()) < 0.1 < 1.9 < float(first.saturation.max()) < 2
    assert 0.5 <= float(first.contrast.min()) < 0.55 < 1.45 < float(first.contrast.max()) < 1.5
    assert (int(first.shift.min()), int(first.shift.max())) == (-2, 2)
    assert (int(first.offset.min()), int(first.offset.max())) == (0, 15)  # a hole of 3, odd: inside the image
