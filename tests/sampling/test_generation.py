import pytest
import torch

from ctm import DiffusionModel, generate
from ctm.networks import MLP
from ctm.noise import karras_grid
from ctm.sampling import class_labels, heun, starting_noise, stream
from ctm.sampling.image_noise import ImageNoise

from ..conftest import mixture


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0])
def test_an_image_depends_on_seed_and_index_alone(small_ctm, gamma):
    options = {"steps": 4, "gamma": gamma, "seed": 7, "labels": 3}
    together = generate(small_ctm, 11, batch_size=11, **options)
    for batch_size in (1, 4):
        torch.testing.assert_close(
            generate(small_ctm, 11, batch_size=batch_size, **options), together, rtol=0, atol=1e-4
        )
    torch.testing.assert_close(generate(small_ctm, 5, **options), together[:5], rtol=0, atol=1e-4)
    assert not torch.allclose(generate(small_ctm, 11, **{**options, "seed": 8}), together)


def test_noise_has_the_same_bits_in_any_batch_and_dtype():
    like = torch.empty(3, 2, 5)
    whole = ImageNoise(5, [0, 1, 2])
    first, second = whole(like), whole(like)
    single = ImageNoise(5, [2])
    assert torch.equal(single(like[:1])[0], first[2])
    assert torch.equal(single(like[:1])[0], second[2])
    assert torch.equal(ImageNoise(5, [1])(like[:1].double()).float()[0], first[1])
    assert torch.equal(starting_noise((2, 5), [1, 0], seed=5), first[[1, 0]])


def test_noise_of_images_and_seeds_is_independent():
    noise = torch.stack([starting_noise((64,), range(50), seed=seed) for seed in range(50)]).reshape(2500, 64)
    assert len(torch.unique(noise[:, 0])) == 2500
    assert noise.mean().item() == pytest.approx(0, abs=0.015)
    assert noise.std().item() == pytest.approx(1, abs=0.01)
    correlation = (noise[:-1] * noise[1:]).mean().item()
    assert correlation == pytest.approx(0, abs=0.015)


def test_one_step_is_one_jump_from_the_starting_noise(small_ctm):
    labels = torch.tensor([1, 2, 3])
    expected = small_ctm.jump(
        80 * starting_noise((1, 8, 8), range(3)), torch.full((3,), 80.0), torch.full((3,), 0.002), labels
    )
    torch.testing.assert_close(generate(small_ctm, 3, condition=labels), expected, rtol=0, atol=1e-5)


def test_stream_yields_what_generate_concatenates(small_ctm):
    parts = list(stream(small_ctm, 10, batch_size=4, steps=2))
    assert [len(part) for part in parts] == [4, 4, 2]
    assert torch.equal(torch.cat(parts), generate(small_ctm, 10, batch_size=4, steps=2))
    assert parts[0].dtype == torch.float32


def test_labels_none_draws_a_class_for_each_image(small_ctm):
    drawn = class_labels(small_ctm, 500, None, seed=3)
    assert drawn.dtype == torch.int64
    assert torch.equal(drawn[:7], class_labels(small_ctm, 7, None, seed=3))
    assert set(drawn.tolist()) == set(range(10))
    assert torch.equal(generate(small_ctm, 3, seed=3), generate(small_ctm, 3, seed=3, condition=drawn[:3]))
    network = MLP((2,), width=8, blocks=1, embedding=8)
    assert class_labels(DiffusionModel(network, shape=(2,)), 5) is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"gamma": 1.5}, r"gamma must be in \[0, 1\], got 1.5"),
        ({"labels": 10}, "label 10 is not known to this model"),
        ({"labels": torch.tensor([1, 2])}, "labels must be whole numbers .*: one for all, or 3 of them"),
        ({"labels": torch.tensor([1.0, 2, 3])}, "labels must be whole numbers"),
        ({"labels": -2}, "label -2 is not known"),
        ({"steps": 0}, "steps must be a whole number of at least 1"),
        ({"batch_size": 0}, "batch_size must be a whole number of at least 1, got 0"),
    ],
)
def test_generate_refuses(small_ctm, arguments, message):
    with pytest.raises(ValueError, match=message):
        generate(small_ctm, 3, **arguments)


def test_a_diffusion_model_needs_a_sampler():
    model = DiffusionModel(MLP((2,), width=8, blocks=1, embedding=8, s_embedding=False), shape=(2,)).eval()
    with pytest.raises(ValueError, match="has no jump, only denoise"):
        generate(model, 3)
    grid = torch.cat([karras_grid(5), torch.zeros(1)])
    made = generate(model, 3, grid=grid, sampler=heun)
    expected = heun(model, 80 * starting_noise((2,), range(3)), grid)
    torch.testing.assert_close(made, expected, rtol=0, atol=1e-5)


def test_generating_from_a_mixture_gives_its_distribution():
    teacher = mixture(2)
    samples = generate(teacher, 2000, condition=-1, batch_size=2000)
    mean = (teacher.weights @ teacher.means).float()
    torch.testing.assert_close(samples.mean(0), mean, rtol=0, atol=0.08)
    assert (samples - mean).square().mean().sqrt().item() == pytest.approx(teacher.sigma_data, rel=0.05)


def test_a_list_of_seeds_gives_the_first_image_of_each(small_ctm):
    many = generate(small_ctm, 3, seed=[4, 9, 4], steps=2, gamma=0.5, condition=3, batch_size=2)
    alone = [generate(small_ctm, 1, seed=seed, steps=2, gamma=0.5, condition=3) for seed in (4, 9, 4)]
    torch.testing.assert_close(many, torch.cat(alone), rtol=0, atol=1e-4)
    drawn = class_labels(small_ctm, 2, None, seed=[4, 9])
    assert drawn.tolist() == [class_labels(small_ctm, 1, None, seed=seed).item() for seed in (4, 9)]
    with pytest.raises(ValueError, match="a sequence of seeds needs one for each image, got 4 for 3 images"):
        generate(small_ctm, 3, seed=[1, 2, 3, 4])
    with pytest.raises(ValueError, match="a sequence of seeds needs one for each image, got 2 for 3 images"):
        generate(small_ctm, 3, seed=[1, 2])
    with pytest.raises(ValueError, match="seeds must be at least 0, got -1"):
        generate(small_ctm, 1, seed=[-1])


def test_float64_shows_what_rounding_does():
    """The same noise in both precisions: the results differ by rounding only."""
    teacher, grid = mixture(2), karras_grid(20, dtype=torch.float64)
    double = generate(teacher, 50, grid=grid, sampler=heun, dtype=torch.float64, condition=-1)
    single = generate(teacher, 50, grid=grid, sampler=heun, condition=-1)
    assert (double.dtype, single.dtype) == (torch.float64, torch.float32)
    difference = (double - single).abs().max().item()
    assert 0 < difference < 1e-3
