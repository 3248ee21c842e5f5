"""The FID's Inception-v3 and DINOv2, with random weights: what the public weights rely on."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

from ctm.evaluation.dino import Dino, load_dino
from ctm.evaluation.extractors import make_extractor
from ctm.evaluation.inception import FILES, InceptionV3, _BlockE, _mean_pool, load_inception, resize_bilinear


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return InceptionV3().eval()


def test_resizing_is_tensorflows_first_rule():
    """New pixel j at j·old/new: no half-pixel offset, the last pixel repeated. By hand."""
    row = torch.tensor([[10.0, 20.0]]).expand(1, 1, 2, 2)
    assert resize_bilinear(row, 5)[0, 0, 0].tolist() == pytest.approx([10, 14, 18, 20, 20])
    four = torch.tensor([0.0, 3.0, 6.0, 9.0]).expand(1, 1, 4, 4)
    assert resize_bilinear(four, 3)[0, 0, 0].tolist() == pytest.approx([0, 4, 8])
    columns = resize_bilinear(four.mT, 3)[0, 0]
    assert columns[:, 0].tolist() == pytest.approx([0, 4, 8])
    image = torch.rand(2, 3, 28, 28)
    assert (resize_bilinear(image) - interpolate(image, 299, mode="bilinear", align_corners=False)).abs().max() > 0.1


def test_preparation_is_128ths_of_grey_values():
    prepared = InceptionV3.prepare(torch.tensor([-1.0, 1.0]).reshape(2, 1, 1, 1).expand(2, 1, 8, 8))
    assert prepared.shape == (2, 3, 299, 299)
    torch.testing.assert_close(prepared[0], torch.full((3, 299, 299), -1.0))
    torch.testing.assert_close(prepared[1], torch.full((3, 299, 299), 127 / 128))


def test_mean_pools_leave_padding_out_and_the_last_block_pools_by_the_maximum():
    ones = torch.ones(1, 2, 4, 4)
    assert torch.equal(_mean_pool(ones), ones)
    ramp = torch.arange(9.0).reshape(1, 1, 3, 3)
    assert _mean_pool(ramp)[0, 0, 0, 0] == (0 + 1 + 3 + 4) / 4
    torch.manual_seed(0)
    mean, last = _BlockE(4, last=False).eval(), _BlockE(4, last=True).eval()
    last.load_state_dict(mean.state_dict())
    x = torch.randn(1, 4, 3, 3)
    by_mean, by_maximum = mean(x), last(x)
    assert torch.equal(by_mean[:, :-192], by_maximum[:, :-192])
    expected = last.branch_pool(torch.nn.functional.max_pool2d(x, 3, 1, 1))
    torch.testing.assert_close(by_maximum[:, -192:], expected)


def test_the_network_has_the_shape_of_the_public_weights(network):
    """23,850,960 parameters with the 1,008 classes; maps of 35, 17 and 8 pixels."""
    assert sum(p.numel() for p in network.parameters()) == 23_850_960
    state = network.state_dict()
    assert state["Mixed_5b.branch5x5_2.conv.weight"].shape == (64, 48, 5, 5)
    assert state["Mixed_6c.branch7x7dbl_2.conv.weight"].shape == (160, 160, 7, 1)
    assert state["Mixed_7c.branch3x3dbl_3a.conv.weight"].shape == (384, 384, 1, 3)
    assert state["fc.weight"].shape == (1008, 2048)
    assert network.Conv2d_1a_3x3.bn.eps == 0.001
    with torch.no_grad():
        features, spatial = network(torch.rand(1, 1, 28, 28) * 2 - 1)
    assert features.shape == (1, 2048)
    assert spatial.shape == (1, 192, 17, 17)
    assert float(spatial.min()) == 0  # after the ReLU, as the node `mixed_6/conv` of the original graph is


@pytest.mark.slow
def test_weights_come_from_the_users_cache(network, tmp_path, monkeypatch):
    """As pytorch-fid's file has them: without the counters of the normalisations."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    state = {name: value for name, value in network.state_dict().items() if not name.endswith("num_batches_tracked")}
    (tmp_path / "checkpoints").mkdir()
    file = tmp_path / "checkpoints" / FILES[1]
    torch.save(state, file)
    extractor = make_extractor("inception", 28)
    images = torch.rand(2, 1, 28, 28) * 2 - 1
    pooled, spatial = extractor(images)
    with torch.no_grad():
        expected, maps = network(images)
    torch.testing.assert_close(pooled, expected)
    assert spatial.shape == (2, extractor.spatial) == (2, 2023)
    innermost = maps.permute(0, 2, 3, 1).numpy()  # (B, H, W, C), as TensorFlow has it
    np.testing.assert_allclose(spatial.numpy(), innermost[..., :7].reshape(2, -1), rtol=1e-4, atol=1e-5)
    assert extractor.record()["resize"] == "bilinear to 299×299 by TensorFlow 1's rule"
    torch.save({**state, "fc.weight": torch.zeros(10, 2048)}, file)
    with pytest.raises(ValueError, match=r"not the weights of the FID's Inception-v3:[^$]*fc\.weight"):
        load_inception()
    with pytest.raises(ValueError, match="299"):
        make_extractor("inception", 28, side=64)


def test_weights_that_cannot_be_fetched_are_a_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr("ctm.evaluation.inception.URL", (tmp_path / "nothing.pth").as_uri())
    with pytest.raises(FileNotFoundError, match=r"put weights-inception-2015-12-05-6726825d\.pth there"):
        load_inception()


@pytest.fixture(scope="module")
def dino(tmp_path_factory):
    import transformers

    torch.manual_seed(0)
    settings = transformers.Dinov2Config(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=56)
    folder: Path = tmp_path_factory.mktemp("dino")
    transformers.Dinov2Model(settings).save_pretrained(folder)
    return folder


def test_dino_is_the_class_token_of_normalised_pictures(dino):
    network = load_dino(56, str(dino))
    images = torch.rand(3, 1, 28, 28) * 2 - 1
    with torch.no_grad():
        features = network(images)
        whole = network.model(pixel_values=network.prepare(images))
    assert features.shape == (3, network.num_features) == (3, 32)
    torch.testing.assert_close(features, whole.pooler_output)
    grey = network.prepare(torch.zeros(1, 1, 8, 8))
    assert grey[0, :, 5, 5].tolist() == pytest.approx(
        [(0.5 - 0.485) / 0.229, (0.5 - 0.456) / 0.224, (0.5 - 0.406) / 0.225]
    )


def test_dinos_mistakes_are_sentences(dino, tmp_path):
    with pytest.raises(ValueError, match="patches of 14×14 pixels: --side must be a multiple, got 60"):
        load_dino(60, str(dino))
    with pytest.raises(FileNotFoundError, match="use --features efficientnet"):
        load_dino(56, str(tmp_path / "nothing"))
    assert Dino(load_dino(56, str(dino)).model, 28).side == 28
