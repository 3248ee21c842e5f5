"""The watermark found: on mixtures, whose flow is exact, every mark; for wrong keys exactly the binomial's rate."""

import pytest
import torch
from scipy import stats

from ctm import generate, karras_grid
from ctm.keystream import signs
from ctm.provenance import Candidate, detect, find, least_matches
from ctm.provenance.watermark import inverted, match_counts
from ctm.sampling import heun, starting_noise

from ..conftest import mixture, slow

KEY = bytes(range(32))
OTHER = bytes(range(1, 33))
NONCES = [i.to_bytes(8, "big") for i in range(12)]
LABELS = torch.arange(12) % 4
EXACT = {"level": None, "share": 1.0}  # float images that followed the flow


@pytest.fixture(scope="module")
def model():
    return mixture(128)


@pytest.fixture(scope="module")
def marked(model):
    return generate(model, 12, condition=LABELS, seed=2, watermark=(KEY, NONCES), dtype=torch.float64)


def test_the_way_back_is_exact_on_a_mixture(model, marked):
    """The flow of a mixture is known, so z is x_T/σ_max up to the solver's error, 1 % of it: it has the magnitudes of the seed,
    and all signs of ε that are larger than the error."""
    magnitudes = starting_noise((128,), range(4), seed=2).abs().double()
    for image in range(4):
        z = inverted(model, marked[image, None], image, level=None)
        torch.testing.assert_close(z[0].abs(), magnitudes[image], rtol=0, atol=0.03)
        right = z[0].sign() == signs(KEY, NONCES[image], 128)
        assert right[magnitudes[image] > 0.03].all()
        counts, bits = match_counts(z, KEY, [NONCES[image]], share=1.0)
        assert (counts.item(), bits) == (int(right.sum()), 128)


def test_every_mark_is_found_and_named(model, marked):
    found = detect(model, marked, KEY, NONCES, range(4), rate=1e-6, **EXACT)
    assert all(one.found for one in found)
    assert [one.nonce for one in found] == NONCES
    assert [one.condition for one in found] == LABELS.tolist()
    assert {one.tried for one in found} == {48}
    assert {one.threshold for one in found} == {1e-6 / 48}
    assert all(one.p_value == pytest.approx(stats.binom.sf(one.matches - 1, one.bits, 0.5)) for one in found)


def test_eight_jumps_and_a_solver_are_found_as_well(model):
    for options in ({"steps": 8}, {"sampler": heun, "grid": karras_grid(24)}):
        images = generate(model, 4, condition=LABELS[:4], seed=3, watermark=(KEY, NONCES[:4]), **options)
        assert all(one.found for one in detect(model, images.double(), KEY, NONCES, rate=1e-6))


def test_without_a_condition_the_flow_of_the_whole_mixture_is_inverted(model):
    none = torch.full((3,), -1)
    images = generate(model, 3, condition=none, seed=2, watermark=(KEY, NONCES[:3]), dtype=torch.float64)
    found = detect(model, images, KEY, NONCES, [None], rate=1e-6, **EXACT)
    assert [one.nonce for one in found if one.found] == NONCES[:3]


def test_rounded_and_noisy_images_are_found_at_a_higher_level(model, marked):
    """Noise of 0.05 stands far above sigma_min. Most signs of the largest coordinates survive it."""
    noisy = marked + 0.05 * torch.randn(marked.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = detect(model, noisy, KEY, NONCES, range(4))
    assert all(one.found for one in found)
    assert {one.bits for one in found} == {38}  # 32 + log2 of the 48 tried


def test_a_wrong_key_an_unmarked_image_and_a_full_step_of_new_noise_are_not_found(model, marked):
    assert not any(one.found for one in detect(model, marked, OTHER, NONCES))
    unmarked = generate(model, 12, condition=LABELS, seed=2, dtype=torch.float64)
    assert not any(one.found for one in detect(model, unmarked, KEY, NONCES))
    with pytest.warns(UserWarning, match="the watermark may not be found"):
        fresh = generate(model, 12, steps=4, gamma=1.0, condition=LABELS, watermark=(KEY, NONCES), dtype=torch.float64)
    assert not any(one.found for one in detect(model, fresh, KEY, NONCES))


@pytest.mark.parametrize("kind", ["marked with another key", slow("all coordinates positive")])
def test_for_wrong_keys_matches_are_binomial(model, marked, kind):
    """Each of 5,000 keys' matches with one image, whatever it is: chi-square against Binomial(64, ½). Fixed keys, so the test
    cannot change its mind; counts of another law of this size give far less than 1e-3."""
    z = inverted(model, marked[:1], 0) if kind.startswith("marked") else torch.linspace(1, 2, 128)[None]
    keys = [bytes(16) + i.to_bytes(16, "big") for i in range(5000)]
    counts = torch.cat([match_counts(z, key, [b"n"], share=0.5)[0] for key in keys]).flatten().numpy()
    bins = [(-1, 26), *((edge, edge + 1) for edge in range(26, 37)), (37, 64)]
    expected = [5000 * (stats.binom.cdf(high, 64, 0.5) - stats.binom.cdf(low, 64, 0.5)) for low, high in bins]
    seen = [((counts > low) & (counts <= high)).sum() for low, high in bins]
    assert stats.chisquare(seen, expected).pvalue > 1e-3


def test_many_nonces_are_compared_in_parts_and_as_one_by_one(monkeypatch):
    z = torch.randn(3, 96)
    together, bits = match_counts(z, KEY, NONCES)
    monkeypatch.setattr("ctm.provenance.watermark._TOGETHER", 300)
    assert torch.equal(match_counts(z, KEY, NONCES)[0], together)
    assert bits == 32
    for image in range(3):
        largest = z[image].abs().argsort(descending=True)[:32]
        plain = [int((z[image].sign() == signs(KEY, nonce, 96))[largest].sum()) for nonce in NONCES]
        assert together[image].tolist() == plain


def test_candidates_are_tried_with_their_own_condition_only(model, marked):
    candidates = [
        Candidate(nonce, label, record=f"r{i}")
        for i, (nonce, label) in enumerate(zip(NONCES, LABELS.tolist(), strict=True))
    ]
    found = find(model, marked, KEY, iter(candidates), **EXACT)
    assert [one.candidate.record for one in found] == [f"r{i}" for i in range(12)]
    assert {one.tried for one in found} == {12}
    assert least_matches(128, 1e-4 / 12) <= min(one.matches for one in found)


def test_wrong_arguments_are_sentences(model, marked):
    for arguments, message in (
        ((marked, KEY, []), "there is no nonce to compare with"),
        ((marked[:, :5], KEY, NONCES), r"images must have shape \(B, 128\), got \(12, 5\)"),
        ((marked, b"short", NONCES), "must have at least 16 bytes, got 5"),
        ((marked, KEY, ["text"]), "a nonce must be 1 to 64 bytes"),
        ((marked, KEY, NONCES, [7]), "label 7 is not known to this model"),
    ):
        with pytest.raises(ValueError, match=message):
            detect(model, *arguments)
    for options, message in (
        ({"rate": 0}, r"rate must be in \(0, 1\], got 0"),
        ({"share": 2}, r"share must be in \(0, 1\], got 2"),
        ({"level": 90}, "level must be in .*, got 90: it is between sigma_min and sigma_max"),
    ):
        with pytest.raises(ValueError, match=message):
            detect(model, marked, KEY, NONCES, **options)
