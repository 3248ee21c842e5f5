import importlib.util

import pytest
import torch

from ctm.backbones import ShiftTolerant
from ctm.backbones.lpips import _load
from ctm.objectives import LPIPS

from ..conftest import slow


def pictures(side: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Two smooth colour pictures in [−1, 1] by formulas, so that their distance is the same everywhere."""
    y, x = torch.meshgrid(torch.arange(side) / side, torch.arange(side) / side, indexing="ij")
    first = [torch.sin(7 * x + 3 * y), torch.cos(11 * y * x), torch.sin(5 * (x - y)) * torch.cos(9 * x)]
    second = [torch.sin(7 * x + 3 * y + 0.4), torch.cos(13 * y * x), torch.sin(5 * (x - y)) * torch.cos(8 * x)]
    return torch.stack(first)[None], torch.stack(second)[None]


@pytest.mark.parametrize(
    ("network", "side", "reference"),
    [
        ("vgg", 32, 0.08444613218307495),
        ("vgg", 64, 0.1881588101387024),
        slow("vgg", 224, 0.2994330823421478),
        ("alex", 32, 0.02279016003012657),
        ("alex", 64, 0.068387471139431),
        ("alex", 224, 0.17147226631641388),
    ],
)
def test_the_distance_is_the_packages_own(network, side, reference):
    """References: stlpips_pytorch 0.0.2's stlpips.LPIPS(net=network, variant="shift_tolerant")(*pictures(side)) in float32, with
    empty modules in the place of torchvision, IPython and torchsummary, which that call does not use."""
    assert LPIPS(side=side, network=network)(*pictures(side)).item() == pytest.approx(reference, rel=1e-5)


@pytest.mark.parametrize("network", [slow("vgg"), "alex"])
def test_it_is_a_distance_that_grows_with_noise_and_blur(network):
    distance, (picture, other) = LPIPS(side=32, network=network), pictures(32)
    assert distance(picture, picture).item() == 0
    assert distance(picture, other).item() == pytest.approx(distance(other, picture).item(), rel=1e-6)
    noise = torch.randn(picture.shape)
    noisy = [distance(picture, picture + level * noise).item() for level in (0.02, 0.1, 0.5)]
    fine = torch.randn(1, 3, 32, 32).clamp(-1, 1)
    blurred = [
        distance(fine, torch.nn.functional.avg_pool2d(fine, k, 1, k // 2, count_include_pad=False)).item()
        for k in (3, 5, 9)
    ]
    for values in (noisy, blurred):
        assert 0 < values[0] < values[1] < values[2]


def test_grey_images_of_any_size_are_brought_to_the_side():
    small = torch.rand(3, 1, 8, 8) * 2 - 1
    distance = LPIPS(side=32, network="alex")
    assert distance(small, -small).shape == (3,)
    torch.testing.assert_close(distance(small, -small), distance(*(x.expand(-1, 3, -1, -1) for x in (small, -small))))


def test_gradients_reach_the_images_and_not_the_weights():
    first, second = pictures(32)
    first.requires_grad_()
    LPIPS(side=32)(first, second).sum().backward()
    assert float(first.grad.abs().sum()) > 0
    assert not any(parameter.requires_grad for parameter in _load("vgg", "cpu")[0].parameters())


def test_the_heads_weigh_what_the_maps_hold():
    for network in ("vgg", "alex"):
        trunk = ShiftTolerant(network, 32)
        maps, heads = trunk(torch.zeros(1, 3, 8, 8)), trunk.heads("cpu")
        assert [found.shape[1] for found in maps] == [len(head) for head in heads]
        assert all(bool((head >= 0).all()) for head in heads)


def test_other_settings_are_refused():
    with pytest.raises(ValueError, match="side must be at least 24 pixels, got 8"):
        LPIPS(side=8)
    with pytest.raises(ValueError, match="network must be one of vgg, alex, got 'squeeze'"):
        LPIPS(network="squeeze")


def test_an_absent_package_is_a_sentence(monkeypatch):
    _load.cache_clear()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'ctm-torch\[lpips\]'"):
        LPIPS(side=32)(*pictures(32))
