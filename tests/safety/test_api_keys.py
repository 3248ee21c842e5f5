"""API keys: shown once, found by their text, kept as a digest under a secret of the state."""

import hashlib
import hmac
import sqlite3
from contextlib import closing

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ctm.safety import State
from ctm.safety.policy import Rate


@pytest.fixture(scope="module")
def state(tmp_path_factory):
    state = State.open(tmp_path_factory.mktemp("keys") / "state")
    yield state
    state.store.close()


def test_a_key_is_found_by_its_text_until_it_is_revoked(state):
    text = state.keys.create("Ann", "moderator", Rate(per_minute=3, per_day=5))
    info = state.keys.find(text)
    assert (info.name, info.role, info.rate) == ("Ann", "moderator", Rate(per_minute=3, per_day=5))
    assert info.id in [key.id for key in state.keys.list()]
    state.keys.revoke(info.id, "Bob")
    assert state.keys.find(text) is None
    assert next(key for key in state.keys.list() if key.id == info.id).revoked is not None
    with pytest.raises(ValueError, match=r"was revoked at .* already"):
        state.keys.revoke(info.id)


def test_two_keys_have_nothing_in_common(state):
    one, other = state.keys.create("Ann"), state.keys.create("Ann")
    assert state.keys.find(one).id != state.keys.find(other).id
    mixed = "_".join([*one.split("_", 2)[:2], other.split("_", 2)[2]])
    assert state.keys.find(mixed) is None
    assert len(one.split("_", 2)[2]) == 43  # 256 bits, base64


def test_no_file_of_the_state_holds_a_key_only_its_hmac(state):
    text = state.keys.create("Ann")
    secret = (state.folder / "keys" / "api.secret").read_bytes()
    with closing(sqlite3.connect(state.folder / "service.sqlite3")) as connection:
        digests = [digest for (digest,) in connection.execute("SELECT digest FROM api_keys")]
    assert hmac.new(secret, text.encode(), hashlib.sha256).hexdigest() in digests
    everything = b"".join(file.read_bytes() for file in state.folder.rglob("*") if file.is_file())
    assert text.split("_", 2)[2].encode() not in everything


@settings(max_examples=20)
@given(st.text() | st.from_regex(r"ctm_[0-9a-f]{12}_.*", fullmatch=True))
def test_any_other_text_is_no_key(state, text):
    assert state.keys.find(text) is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((" ",), "a key's name is its holder's, 1 to 200 printable"),
        (("a\nb",), "a key's name is its holder's, 1 to 200 printable"),
        (("x" * 201,), "a key's name is its holder's, 1 to 200 printable"),
        (("Ann", "admin"), "role must be user or moderator, got 'admin'"),
    ],
)
def test_a_key_that_cannot_be_is_refused(state, arguments, message):
    with pytest.raises(ValueError, match=message):
        state.keys.create(*arguments)


def test_an_unknown_key_cannot_be_revoked(state):
    with pytest.raises(ValueError, match="there is no key 'nobody'"):
        state.keys.revoke("nobody")


def test_a_short_secret_is_refused(tmp_path):
    State.open(tmp_path / "state").store.close()
    (tmp_path / "state" / "keys" / "api.secret").write_bytes(b"short")
    with pytest.raises(ValueError, match=r"api.secret is shorter than 32 bytes"):
        State.open(tmp_path / "state")
