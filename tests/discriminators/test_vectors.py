import pytest
import torch

from ctm.discriminators import MLPDiscriminator
from ctm.objectives.adversarial_losses import log_discriminator


def test_its_logit_becomes_the_density_ratio():
    """Trained with the log-loss on N(1, 1) against N(−1, 1), D(x) → ln p(x)/q(x) = 2x (arXiv 1406.2661, proposition 1)."""
    network = MLPDiscriminator(width=32, layers=2).build((1,), 0)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    for _ in range(300):
        noise = torch.randn(2, 512, 1)
        optimizer.zero_grad()
        log_discriminator(network(noise[0] + 1), network(noise[1] - 1)).backward()
        optimizer.step()
    x = torch.linspace(-1.5, 1.5, 7)[:, None]
    torch.testing.assert_close(network(x)[0].detach(), 2 * x, atol=0.5, rtol=0)


def test_labels_count_and_images_are_flattened():
    network, images = MLPDiscriminator(width=8, layers=1).build((1, 2, 2), 3), torch.randn(2, 1, 2, 2)
    without, some = network(images)[0], network(images, torch.tensor([2, -1]))[0]
    assert without.shape == (2, 1)
    assert torch.equal(without[1], some[1])
    assert not torch.equal(without[0], some[0])


def test_sizes_are_checked():
    with pytest.raises(ValueError, match="must be at least 1, got 0 and 3"):
        MLPDiscriminator(width=0)
