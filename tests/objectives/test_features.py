import pytest
import torch
from torch.overrides import TorchFunctionMode

from ctm import TrajectoryModel
from ctm.backbones import IMAGENET, EfficientNetLite0, FunctionBackbone
from ctm.networks import MLP
from ctm.objectives import LPIPS, FeatureDistance, Networks, PerceptualDistance
from ctm.terminal.recipe_parser import parse_recipe
from ctm.training.engine import set_precision


def image(value):
    return torch.full((2, 3, 8, 8), value)


def test_a_perceptual_distance_sees_images_in_zero_to_one_at_its_side():
    seen = []

    def distance(a, b):
        seen.extend((a, b))
        return (a - b).abs().mean(dim=(1, 2, 3)).reshape(-1, 1, 1, 1)

    result = PerceptualDistance(distance, side=20)(image(-1.0), image(1.0))
    assert result.tolist() == pytest.approx([1.0, 1.0])
    assert seen[0].shape == (2, 3, 20, 20)
    assert (float(seen[0].min()), float(seen[1].max())) == (0.0, 1.0)


def test_features_are_compared_by_direction():
    """Channels of unit length: a map scaled by any factor is the same, an orthogonal one is at distance 2."""
    first, second = torch.zeros(2, 2, 3, 3), torch.zeros(2, 2, 3, 3)
    first[:, 0], second[:, 1] = 5.0, 0.1
    maps = {0.0: [first], 0.5: [second], 1.0: [3 * first]}
    network = FunctionBackbone(
        lambda images: maps[round(float(images.mean()), 3)], mean=(0.5,) * 3, std=(1.0,) * 3, side=4
    )
    distance = FeatureDistance((network,))
    assert distance(image(0.0), image(2.0)).tolist() == pytest.approx([0, 0], abs=1e-7)
    assert distance(image(0.0), image(1.0)).tolist() == pytest.approx([2, 2])


def test_the_input_is_normalised_for_the_network():
    seen = []
    FunctionBackbone(lambda images: seen.append(images) or [images], *IMAGENET, side=8)(image(0.0))
    expected = [(0.5 - mean) / std for mean, std in zip(*IMAGENET, strict=True)]
    assert seen[0][0, :, 0, 0].tolist() == pytest.approx(expected)


def test_gradients_go_through_features():
    x = torch.randn(2, 3, 8, 8, requires_grad=True)
    FeatureDistance((FunctionBackbone(lambda images: [images, images[:, :2] ** 2], side=16),))(
        x, image(0.3)
    ).sum().backward()
    assert float(x.grad.abs().sum()) > 0


@pytest.mark.parametrize(
    ("distance", "expected"),
    [
        (
            "{class_path: ctm.objectives.FeatureDistance, init_args: {backbones: "
            "[{class_path: ctm.backbones.EfficientNetLite0, init_args: {side: 64}}]}}",
            FeatureDistance((EfficientNetLite0(side=64),)),
        ),
        (
            "{class_path: ctm.objectives.LPIPS, init_args: {side: 32, network: alex}}",
            LPIPS(side=32, network="alex"),
        ),
    ],
)
def test_recipes_name_distances(distance, expected):
    """Built from YAML, the distance is the one built by hand, and tells images apart."""
    recipe, _ = parse_recipe(
        [
            "--config",
            "digits-ctm.yaml",
            "--objectives",
            f"""
      [{{class_path: ctm.objectives.Matching, init_args: {{distance: {distance}}}}}]""",
        ]
    )
    built = recipe.objectives[0].distance
    assert built == expected
    a, b = torch.rand(2, 3, 1, 8, 8) * 2 - 1
    assert built(a, a).abs().max().item() == 0
    assert bool((built(a, b) > 0).all())


@pytest.mark.parametrize("distance", [FeatureDistance((EfficientNetLite0(side=64),)), LPIPS(side=32, network="alex")])
def test_feature_networks_compute_in_the_students_precision(distance):
    """bfloat16 keeps eight bits: each feature is off by 0.4 % at most, and distances of different images by a few times that."""
    student = TrajectoryModel(MLP((1, 8, 8), width=8, blocks=1), shape=(1, 8, 8))
    a, b = torch.rand(2, 3, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    plain = distance.between(Networks(student), a, b)
    assert torch.equal(plain, distance(a, b))
    seen, convolution = [], torch.nn.functional.conv2d

    class Watching(TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            found = function(*args, **(kwargs or {}))
            if function in (convolution, torch.conv2d):
                seen.append(found.dtype)
            return found

    set_precision([student], "bf16")
    x = a.clone().requires_grad_()
    with Watching():
        lower = distance.between(Networks(student), x, b)
    assert seen
    assert set(seen) == {torch.bfloat16}
    assert lower.dtype == torch.float32
    torch.testing.assert_close(lower, plain, rtol=0.05, atol=0)
    (gradient,) = torch.autograd.grad(lower.sum(), x)
    assert gradient.abs().sum() > 0
