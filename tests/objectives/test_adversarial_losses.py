import math

import pytest
import torch

from ctm.objectives.adversarial_losses import (
    hinge_discriminator,
    hinge_generator,
    log_discriminator,
    log_generator,
)


def test_logits_of_zero_mean_that_the_discriminator_does_not_know():
    """Hinge: 1 + 1; log: ln 2 + ln 2. Maps of any size, and any number of them."""
    unsure = [torch.zeros(3, 1, 4, 4), torch.zeros(3, 1, 9, 9)]
    assert float(hinge_discriminator(unsure, unsure)) == pytest.approx(2)
    assert float(log_discriminator(unsure, unsure)) == pytest.approx(2 * math.log(2))
    assert float(log_generator(unsure)) == pytest.approx(math.log(2))


def test_a_hinge_is_zero_beyond_its_margin_and_a_generator_gains_from_larger_logits():
    sure = [torch.full((2, 5), 1.5)]
    wrong = [torch.full((2, 5), -1.5)]
    assert float(hinge_discriminator(sure, wrong)) == 0
    assert float(hinge_discriminator(wrong, sure)) == pytest.approx(5)
    assert float(hinge_generator(sure)) == pytest.approx(-1.5)
    assert float(log_generator(sure)) < float(log_generator(wrong))


def test_each_discriminator_counts_the_same_whatever_its_map():
    small, large = torch.full((2, 1), 1.0), torch.full((2, 100), 3.0)
    assert float(hinge_generator([small, large])) == pytest.approx(-2)


def test_the_log_loss_is_the_cross_entropy():
    logits = torch.randn(4, 7, dtype=torch.float64)
    expected = torch.nn.functional.binary_cross_entropy_with_logits(logits, torch.ones_like(logits))
    torch.testing.assert_close(log_generator([logits]), expected)
    zeros = torch.nn.functional.binary_cross_entropy_with_logits(logits, torch.zeros_like(logits))
    torch.testing.assert_close(log_discriminator([logits], [logits]), expected + zeros)
