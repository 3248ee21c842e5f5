import pytest
import torch

from ctm import generate
from ctm.keystream import signs
from ctm.sampling import stream
from ctm.sampling.image_noise import CounterNoise, noise_of
from ctm.sampling.marking import Marks

from ..reads import Reads


def test_counter_noise_has_the_same_bits_in_any_batch_order_and_dtype():
    like = torch.empty(3, 2, 5)
    whole = CounterNoise(5, [0, 1, 2])
    first, second = whole(like), whole(like)
    single = CounterNoise(5, [2])
    assert torch.equal(single(like[:1])[0], first[2])
    assert torch.equal(single(like[:1])[0], second[2])
    assert torch.equal(CounterNoise(5, [1, 0])(like[:2]), first[[1, 0]])
    assert torch.equal(CounterNoise(5, [1])(like[:1].double()).float()[0], first[1])


def test_counter_noise_of_seeds_images_and_draws_is_independent():
    """Also for seeds and images that differ in their upper 32 bits alone."""
    seeds, images = [0, 1, 2**32, 2**32 + 1, 2**64 - 1], [0, 1, 2**32, 2**33]
    rows = []
    for seed in seeds:
        noise = CounterNoise(seed, images)
        rows += [noise(torch.empty(4, 1000)), noise(torch.empty(4, 1000))]
    drawn = torch.cat(rows)
    assert len(torch.unique(drawn[:, 0])) == len(drawn) == 40
    correlations = torch.corrcoef(drawn)[~torch.eye(40, dtype=torch.bool)]
    assert correlations.abs().max() < 5 / 1000**0.5


def test_images_depend_on_seed_and_index_alone_in_the_second_stream(small_ctm):
    options = {"steps": 4, "gamma": 0.5, "seed": 7, "condition": 3, "noise_stream": "v2"}
    together = generate(small_ctm, 11, batch_size=11, **options)
    torch.testing.assert_close(generate(small_ctm, 11, batch_size=4, **options), together, rtol=0, atol=1e-4)
    later = torch.cat(list(stream(small_ctm, 11, batch_size=4, start=8, **options)))
    torch.testing.assert_close(later, together[8:], rtol=0, atol=1e-4)
    assert not torch.allclose(generate(small_ctm, 11, **{**options, "noise_stream": "v1"}), together)


def test_nothing_is_read_back_while_counter_noise_is_drawn():
    noise, like = CounterNoise(3, range(8)), torch.empty(8, 3, 4, 4)
    with Reads() as reads:
        noise(like)
        noise(like)
    assert reads.count == 0, reads.places


def test_a_list_of_seeds_makes_image_0_of_each(small_ctm):
    of_list = generate(small_ctm, 2, seed=[4, 9], condition=1, noise_stream="v2")
    torch.testing.assert_close(
        of_list[1:], generate(small_ctm, 1, seed=9, condition=1, noise_stream="v2"), rtol=0, atol=1e-4
    )


def test_a_watermark_gives_the_second_stream_its_signs():
    key, nonces = b"k" * 32, [b"first", b"second"]
    drawn = noise_of("v2", 3, [0, 1], Marks(key, nonces, 2))(torch.empty(2, 6))
    plain = noise_of("v2", 3, [0, 1])(torch.empty(2, 6))
    assert torch.equal(drawn.abs(), plain.abs())
    for row, nonce in zip(drawn, nonces, strict=True):
        assert torch.equal(row.sign().to(torch.int8), signs(key, nonce, 6))


def test_another_stream_is_refused(small_ctm):
    with pytest.raises(ValueError, match=r'noise_stream must be "v1" .* or "v2" .*, got .*v3'):
        stream(small_ctm, 1, noise_stream="v3")
