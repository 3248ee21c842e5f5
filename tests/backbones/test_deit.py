"""timm needs torchvision; where both can be imported a tiny network is looked through, elsewhere the sentence is what is left."""

import pytest
import torch

from ctm.backbones import DeiT

try:
    import timm
except (ImportError, RuntimeError):
    timm = None


def test_maps_are_the_patch_tokens_of_four_depths_or_the_sentence_says_what_lacks():
    backbone = DeiT("deit_tiny_distilled_patch16_224", side=32, pretrained=False)
    images = torch.rand(2, 1, 28, 28, requires_grad=True)
    if timm is None:
        with pytest.raises(ImportError, match=r"cannot be imported here .* pip install 'ctm-torch\[deit\]'"):
            backbone(images)
        return
    maps = backbone(images)
    assert [tuple(found.shape) for found in maps] == [(2, 192, 2, 2)] * 4
    assert not torch.equal(maps[0], maps[1])
    maps[-1].sum().backward()
    assert float(images.grad.abs().sum()) > 0


@pytest.mark.parametrize("side", [0, 8, 40])
def test_an_unfitting_side_is_refused(side):
    with pytest.raises(ValueError, match="multiple of 16"):
        DeiT(side=side)
