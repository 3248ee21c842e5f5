"""A claim through texts and back, and what is no claim."""

import json
from dataclasses import replace

import pytest

from ctm.provenance import Claim

from .pictures import CLAIM


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"condition": None, "nonce": None, "record": None},
        {"condition": {"labels": 3, "text": [0.5, 1.0]}, "model": "Ein Modell: ‘µ’"},
        {"seed": 2**64 - 1, "gamma": 1.0},
        {"sampler": "heun", "guidance": 2.5},
        {"nonce": "12345678", "record": "42"},  # texts that look like numbers stay texts
    ],
)
def test_a_claim_comes_back_from_texts_and_from_json(changes):
    claim = replace(CLAIM, **changes)
    assert Claim.from_text(claim.as_text()) == claim
    assert Claim.from_dict(json.loads(json.dumps(claim.as_dict()))) == claim
    assert all(isinstance(value, str) for value in claim.as_text().values())


def test_what_it_says_of_the_watermark_and_the_time():
    assert CLAIM.nonce_bytes() == bytes.fromhex("00112233445566778899aabbccddeeff")
    assert replace(CLAIM, nonce=None).nonce_bytes() is None
    assert CLAIM.when().isoformat() == "2026-01-02T03:04:05+00:00"


def test_what_may_be_left_out():
    texts = {name: text for name, text in CLAIM.as_text().items() if name not in ("record", "sampler", "guidance")}
    assert Claim.from_text(texts) == replace(CLAIM, record=None)


def test_fields_that_are_not_its_own_are_left_out():
    assert Claim.from_text({**CLAIM.as_text(), "colour": '"blue"'}) == CLAIM


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"nonce": "xyz"}, "a claim's nonce is hexadecimal digits, got 'xyz'"),
        ({"created": "yesterday"}, "a claim's time is as in ISO 8601, got 'yesterday'"),
        ({"created": "2026-01-02T03:04:05"}, "a claim's time needs its zone"),
        ({"grid": (80.0, 0.002)}, r"a claim's grid has steps \+ 1 = 3 levels, got 2"),
        ({"grid": 5}, r"a claim's grid is its noise levels, got 5 \(int\)"),
        ({"gamma": 2}, r"gamma must be in \[0, 1\], got 2"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"guidance": float("nan")}, "guidance must be a finite number, got nan"),
        ({"sampler": 3}, "a claim's sampler is a text of 1 to 1,000 characters"),
        ({"model": ""}, "a claim's model is a text of 1 to 1,000 characters"),
        ({"condition": 0.5}, "a claim's condition is a label, a mapping or None"),
        ({"condition": {"x": float("nan")}}, "a claim's condition is a label, a mapping or None"),
    ],
)
def test_wrong_values_are_sentences(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(CLAIM, **changes)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ({}, "the claim lacks model, digest, seed"),
        ({**CLAIM.as_text(), "seed": "seven"}, "the claim's seed is not readable"),
        ({**CLAIM.as_text(), "grid": "[" * 100_000}, "the claim's grid is not readable"),
        ({**CLAIM.as_text(), "grid": '["80", 2, 1]'}, "a level of the claim's grid must be a finite number"),
    ],
)
def test_texts_of_strangers_are_sentences(texts, message):
    with pytest.raises(ValueError, match=message):
        Claim.from_text(texts)
