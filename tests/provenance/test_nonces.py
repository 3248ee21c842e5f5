"""A file of nonces: what it may hold, and what is refused with its line."""

import json

import pytest

from ctm.provenance import Candidate
from ctm.provenance.nonces import read_nonces


def test_lines_become_candidates(tmp_path):
    file = tmp_path / "nonces.jsonl"
    file.write_text(
        '{"nonce": "00ff"}\n\n{"nonce": "0102", "condition": 4, "model": "abc", "record": "r1", "more": [1]}\n'
        '{"nonce": "03", "condition": {"text": [0.5]}}',
        encoding="utf-8",
    )
    assert list(read_nonces(file)) == [
        Candidate(b"\x00\xff"),
        Candidate(b"\x01\x02", 4, "abc", "r1"),
        Candidate(b"\x03", {"text": [0.5]}),
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"nonce 00ff", "line 2 is not readable as JSON"),
        (b"[1]", r"line 2 is no entry of a nonce: give \{"),
        (b'{"nonce": 7}', "line 2 is no entry of a nonce"),
        (b'{"nonce": "xy"}', "line 2: the nonce must be 1 to 64 bytes in hexadecimal digits, got 'xy'"),
        (b'{"nonce": ""}', "line 2: the nonce must be 1 to 64 bytes"),
        (
            b'{"nonce": "00", "condition": 0.5}',
            "line 2: the condition must be a label, a mapping of fields or null, got 0.5",
        ),
        (b'{"nonce": "00", "condition": true}', "line 2: the condition must be a label"),
        (b'{"nonce": "00", "record": 3}', "line 2: record must be a text or null, got 3"),
        (b'{"nonce": "00", "nonce": "01"}', "'nonce' is given twice"),
        (b"\xff\xfe", "line 2 is no text in UTF-8"),
        (b'{"nonce": "' + b"0" * 70_000, "line 2 is longer than 65536 bytes"),
    ],
)
def test_other_lines_are_sentences(tmp_path, line, message):
    file = tmp_path / "nonces.jsonl"
    file.write_bytes(json.dumps({"nonce": "00"}).encode() + b"\n" + line + b"\n")
    with pytest.raises(ValueError, match=message):
        list(read_nonces(file))
