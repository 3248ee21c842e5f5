"""The watermark in x_T: signs of the keystream, magnitudes of (seed, i), and over keys a standard normal."""

import warnings

import pytest
import torch
from scipy import stats

from ctm import generate
from ctm.keystream import signs
from ctm.noise import karras_grid
from ctm.sampling import heun, starting_noise, stream
from ctm.sampling.image_noise import ImageNoise
from ctm.sampling.marking import Marks

from ..conftest import slow

KEY = bytes(range(32))
NONCES = [bytes([i]) * 8 for i in range(5)]


class Noise:
    """A model whose image is the noise that it starts from: the jump returns x_T."""

    shape = (2, 6)

    def denoise(self, x, t, condition=None):
        return x

    def jump(self, x, t, s, condition=None):
        return x


def test_x_t_has_the_magnitudes_of_the_seed_and_the_signs_of_the_keystream():
    marked = generate(Noise(), 5, seed=3, watermark=(KEY, NONCES), batch_size=2)
    plain = generate(Noise(), 5, seed=3)
    assert torch.equal(marked.abs(), plain.abs())
    assert torch.equal(marked.sign().flatten(1).to(torch.int8), torch.stack([signs(KEY, n, 12) for n in NONCES]))


def test_bits_are_reproducible_in_any_batch_dtype_and_order():
    whole = generate(Noise(), 5, seed=3, watermark=(KEY, NONCES))
    for options in ({"batch_size": 1}, {"batch_size": 3}, {"dtype": torch.float64}):
        assert torch.equal(generate(Noise(), 5, seed=3, watermark=(KEY, NONCES), **options).float(), whole)
    assert torch.equal(torch.cat(list(stream(Noise(), 5, seed=3, watermark=(KEY, NONCES), start=3))), whole[3:])
    like = torch.empty(1, 2, 6)
    for image in range(5):  # as a server makes one image of a request
        alone = ImageNoise(3, [image], Marks(KEY, NONCES[image], 1))
        assert torch.equal(80 * alone(like)[0], whole[image])


def test_other_numbers_of_images_and_nonces_are_refused():
    with pytest.raises(ValueError, match="there are 5 nonces for 2 images"):
        ImageNoise(3, [0, 1], Marks(KEY, NONCES, 5))(torch.empty(2, 3))


def test_only_the_first_draw_is_marked():
    like = torch.empty(5, 2, 6)
    marked, plain = ImageNoise(0, range(5), Marks(KEY, NONCES, 5)), ImageNoise(0, range(5))
    assert not torch.equal(marked(like), plain(like))
    assert torch.equal(marked(like), plain(like))


def test_without_watermark_nothing_changes(small_ctm):
    options = {"steps": 3, "gamma": 0.5, "seed": 9, "condition": 1}
    assert torch.equal(generate(small_ctm, 4, **options), generate(small_ctm, 4, watermark=None, **options))
    assert torch.equal(generate(Noise(), 4, seed=9), 80 * starting_noise((2, 6), range(4), seed=9))


@pytest.mark.filterwarnings("ignore:γ = 0.5 adds fresh noise")
def test_a_marked_image_is_made_again(small_ctm):
    options = {"steps": 3, "gamma": 0.5, "seed": 9, "condition": 1, "watermark": (KEY, NONCES)}
    first = generate(small_ctm, 5, **options)
    assert torch.equal(generate(small_ctm, 5, **options), first)
    torch.testing.assert_close(generate(small_ctm, 5, batch_size=2, **options), first, rtol=0, atol=1e-4)
    other_key = generate(small_ctm, 5, **{**options, "watermark": (KEY[::-1], NONCES)})
    assert not torch.allclose(other_key, first)


def test_other_samplers_start_from_the_mark(small_ctm):
    grid = karras_grid(3)
    made = generate(small_ctm, 5, sampler=heun, grid=grid, condition=0, watermark=(KEY, NONCES))
    x = 80 * Marks(KEY, NONCES, 5).put(starting_noise(small_ctm.shape, range(5)))
    expected = heun(small_ctm, x, grid, condition=torch.zeros(5, dtype=torch.int64))
    torch.testing.assert_close(made, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("over", [slow("keys"), "nonces"])
def test_over_keys_and_nonces_x_t_is_standard_normal(over):
    """One seed for all, the magnitudes of 4,000 images: each coordinate is normal, and coordinates are independent. The seed of
    the test is fixed, so the p-values are; a wrong law of these sizes gives less than 1e-6."""
    numbers = [i.to_bytes(16, "big") for i in range(4000)]
    if over == "keys":
        drawn = starting_noise((8,), range(4000), seed=1)
        noise = torch.cat([Marks(key, b"n", 1).put(drawn[i, None]) for i, key in enumerate(numbers)])
    else:
        noise = ImageNoise(1, range(4000), Marks(KEY, numbers, 4000))(torch.empty(4000, 8))
    for column in noise.T:
        assert stats.kstest(column.numpy(), "norm").pvalue > 1e-3
    products = torch.corrcoef(noise.T)[~torch.eye(8, dtype=torch.bool)] * 4000**0.5
    assert products.abs().max() < 4.5
    assert stats.kstest(noise.square().sum(1).numpy(), "chi2", args=(8,)).pvalue > 1e-3


def test_noise_that_replaces_the_mark_is_said(small_ctm):
    options = {"condition": 0, "watermark": (KEY, NONCES)}
    with pytest.warns(
        UserWarning, match="γ = 0.5 adds fresh noise between 3 jumps: .* may not be found; γ = 0 keeps it"
    ):
        generate(small_ctm, 5, steps=3, gamma=0.5, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        generate(small_ctm, 5, steps=1, gamma=0.5, **options)  # one jump adds none
        generate(small_ctm, 5, steps=3, **options)
        generate(small_ctm, 5, steps=3, gamma=0.5, condition=0)


def test_shared_nonces_are_said_and_own_ones_are_not():
    with pytest.warns(UserWarning, match=r"3 images share 1 nonce of the watermark: .* less diverse"):
        shared = generate(Noise(), 3, watermark=(KEY, b"n"))
    assert torch.equal(shared[0].sign(), shared[2].sign())
    with pytest.warns(UserWarning, match="3 images share 2 nonces"):
        generate(Noise(), 3, watermark=(KEY, [b"a", b"b", b"a"]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        generate(Noise(), 1, watermark=(KEY, b"n"))
        generate(Noise(), 5, watermark=(KEY, NONCES))


@pytest.mark.parametrize(
    ("watermark", "message"),
    [
        (KEY, r"watermark must be \(key, nonces\), got a value of type bytes"),
        ((KEY,), r"watermark must be \(key, nonces\)"),
        ((KEY, NONCES[:2]), "a watermark needs one nonce for each image, got 2 for 5 images"),
        ((KEY, 7), r"nonces must be bytes, or a sequence of them, one for each image, got 7 \(int\)"),
        ((b"short", NONCES), "the key of the watermark must have at least 16 bytes"),
        ((KEY, [*NONCES[:4], "text"]), "a nonce must be 1 to 64 bytes, got 'text'"),
    ],
)
def test_wrong_arguments_are_sentences(watermark, message):
    with pytest.raises(ValueError, match=message):
        stream(Noise(), 5, watermark=watermark)
