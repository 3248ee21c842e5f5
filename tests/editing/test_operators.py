import pytest
import torch

from ctm.editing import averaging, greying, masking

MASK = torch.rand(8, 8, generator=torch.Generator().manual_seed(0)) < 0.5
OPERATORS = [masking(MASK), averaging((8, 8), (2, 4)), averaging((8, 8), (3, 5)), greying()]


@pytest.mark.parametrize("operator", OPERATORS)
def test_the_pseudo_inverse_is_moores_and_penroses(operator):
    """A A⁺ A = A, A⁺ A A⁺ = A⁺, and A⁺A symmetric (so is A A⁺ for these)."""
    x, y = torch.randn(2, 2, 3, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(operator.A(operator.projection(x)), operator.A(x))
    torch.testing.assert_close(operator.projection(operator.A_pinv(operator.A(x))), operator.A_pinv(operator.A(x)))
    torch.testing.assert_close((operator.projection(x) * y).sum(), (operator.projection(y) * x).sum())


def test_named_operators_are_the_known_projections():
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    means = averaging((8, 8), (2, 2)).projection(x)
    torch.testing.assert_close(means[0, 1, :4, 4:], x[0, 1, :4, 4:].mean().expand(4, 4))
    weights = torch.tensor([0.2989, 0.5870, 0.1140], dtype=torch.float64)
    grey = torch.einsum("c,bchw->bhw", weights, x)[:, None]
    torch.testing.assert_close(greying().projection(x), grey * (weights / weights.square().sum())[:, None, None])
    averaged = averaging((8, 8), (3, 3)).A(torch.ones(1, 1, 8, 8))
    torch.testing.assert_close(averaged, torch.ones(1, 1, 3, 3))


def test_mistakes_are_said():
    with pytest.raises(ValueError, match="at most 8×8 pixels, got 9×8"):
        averaging((8, 8), (9, 8))
    with pytest.raises(ValueError, match="known must be a mask of bools"):
        masking(torch.ones(8, 8))
