"""The record against tampering: what is changed, removed, reordered, inserted, cut off or put back is found, or said to be beyond
what can be known. The one who tampers is sqlite3, which knows nothing of this code."""

import hashlib
import json
import re
import shutil
import sqlite3
from contextlib import closing

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from ctm.safety import State, verify
from ctm.safety.head import Head, HeadFailure, read_head, write_head
from ctm.safety.policy import Rate
from ctm.safety.record import Entry, canonical
from ctm.safety.schema import reports
from ctm.safety.signing import PublicKey, Signer
from ctm.safety.store import Store

from .states import filled, picture


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    folder = tmp_path_factory.mktemp("states") / "state"
    filled(folder).store.close()
    return folder


@pytest.fixture
def folder(template, tmp_path):
    return shutil.copytree(template, tmp_path / "state")


def tamper(folder, *statements):
    with closing(sqlite3.connect(folder / "service.sqlite3")) as connection, connection:
        for statement, values in statements:
            connection.execute(statement, values)


def rows(folder):
    with closing(sqlite3.connect(folder / "service.sqlite3")) as connection:
        return connection.execute("SELECT number, entry, hash, signature FROM record ORDER BY number").fetchall()


def found(folder, head=None):
    store = Store(f"sqlite:///{folder / 'service.sqlite3'}")
    findings = verify(store, PublicKey.load(folder / "keys" / "record.pub.pem"), head)
    store.close()
    return findings


def test_an_entry_can_be_checked_by_anyone_with_the_public_key(folder):
    """By hashlib and cryptography alone: each text has its hash and its signature, and names the hash before it."""
    public = load_pem_public_key((folder / "keys" / "record.pub.pem").read_bytes())
    before = "0" * 64
    for number, text, digest, signature in rows(folder):
        assert hashlib.sha256(text.encode()).hexdigest() == digest
        public.verify(bytes.fromhex(signature), b"ctm record 1\n" + text.encode())
        content = json.loads(text)
        assert (content["number"], content["previous"]) == (number, before)
        assert text == json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        before = digest
    assert number == 6


def test_a_whole_record_is_whole_and_says_what_it_cannot_know(folder):
    without, with_head = found(folder), found(folder, read_head(folder / "head.json"))
    assert without.whole
    assert without.count == 6
    assert "cannot be known without a head" in without.notes[0]
    assert with_head.whole
    assert not with_head.notes


@pytest.mark.parametrize("also_the_hash", [False, True])
def test_a_changed_entry_is_named(folder, also_the_hash):
    number, text, _, _ = rows(folder)[2]
    text = text.replace('"seed":1', '"seed":2')
    tamper(folder, ("UPDATE record SET entry = ? WHERE number = ?", (text, number)))
    if also_the_hash:
        new = hashlib.sha256(text.encode()).hexdigest()
        tamper(folder, ("UPDATE record SET hash = ? WHERE number = ?", (new, number)))
    problems = found(folder).problems
    words = "not signed by the key" if also_the_hash else "does not have the hash"
    assert words in problems[0]
    assert problems[0].startswith("entry 3 was changed")
    assert not any(f"entry {other} " in problem for other in (1, 2, 4, 5, 6) for problem in problems)


def test_a_removed_entry_is_named(folder):
    tamper(folder, ("DELETE FROM record WHERE number IN (3, 4)", ()))
    assert found(folder).problems[0] == "entries 3 to 4 are missing: they were removed"


def test_an_entry_removed_and_the_others_renumbered_is_found(folder):
    tamper(folder, ("DELETE FROM record WHERE number = 3", ()))
    tamper(folder, *[("UPDATE record SET number = ? WHERE number = ?", (n - 1, n)) for n in (4, 5, 6)])
    assert (
        found(folder)
        .problems[0]
        .startswith("place 3 of the record holds entry 4: entries were reordered, or renumbered")
    )


def test_swapped_entries_are_named(folder):
    swap = "UPDATE record SET number = ? WHERE number = ?"
    tamper(folder, (swap, (99, 2)), (swap, (2, 3)), (swap, (3, 99)))
    problems = found(folder).problems
    assert [problem[: len("place 2 of the record holds entry 3")] for problem in problems[:2]] == [
        "place 2 of the record holds entry 3",
        "place 3 of the record holds entry 2",
    ]


def test_an_inserted_entry_is_named(folder):
    """Made with another key, with a hash and a chain that fit."""
    last = rows(folder)[-1]
    text = canonical(json.loads(last[1]) | {"number": 7, "previous": last[2]})
    signature = Signer(Ed25519PrivateKey.generate()).sign(text.encode())
    new = (7, text, hashlib.sha256(text.encode()).hexdigest(), signature)
    tamper(folder, ("INSERT INTO record (number, entry, hash, signature) VALUES (?, ?, ?, ?)", new))
    assert found(folder).problems[0].startswith("entry 7 was changed or inserted: it is not signed by the key")


def test_a_copy_of_a_signed_entry_at_another_place_is_named(folder):
    copy = "INSERT INTO record SELECT 7, entry, hash, signature, picture FROM record WHERE number = 2"
    tamper(folder, (copy, ()))
    assert found(folder).problems[0].startswith("place 7 of the record holds entry 2")


def test_a_record_cut_off_is_found_with_the_head_only(folder):
    head = read_head(folder / "head.json")
    gone = "IN (SELECT picture FROM record WHERE number > 4)"
    cut = [f"DELETE FROM pictures WHERE id {gone}", f"DELETE FROM nonces WHERE picture {gone}"]
    tamper(folder, *[(line, ()) for line in [*cut, "DELETE FROM record WHERE number > 4"]])
    without = found(folder)
    assert without.whole
    assert "cannot be known" in without.notes[0]
    assert found(folder, head).problems == [
        "the head knows 6 entries, and entry 6 is not there (of 4): entries were cut off the end, or an old database was put back"
    ]


def test_an_old_database_put_back_is_found_with_the_head_and_not_gone_on_with(folder, tmp_path):
    shutil.copy(folder / "service.sqlite3", tmp_path / "old")
    state = State.open(folder)
    state.store.serve([picture()])
    state.store.close()
    head = read_head(folder / "head.json")
    shutil.copy(tmp_path / "old", folder / "service.sqlite3")
    assert "the head knows 7 entries" in found(folder, head).problems[0]
    with pytest.raises(
        ValueError, match=r"head.json knows 7 entries .* has 6: entries were removed, or an old database"
    ):
        State.open(folder)


def test_an_old_database_gone_on_with_is_found_with_the_head(folder, tmp_path):
    """The chain and all signatures fit, because the service itself went on from the old file."""
    shutil.copy(folder / "service.sqlite3", tmp_path / "old")
    state = State.open(folder)
    state.store.serve([picture()])
    state.store.close()
    head = read_head(folder / "head.json")
    shutil.copy(folder / "head.json", tmp_path / "head")
    shutil.copy(tmp_path / "old", folder / "service.sqlite3")
    (folder / "head.json").unlink()
    state = State.open(folder)
    state.store.serve([picture(), picture()])
    state.store.close()
    assert found(folder).whole
    shutil.copy(tmp_path / "head", folder / "head.json")
    with pytest.raises(
        ValueError, match=r"entry 7 in .* is not the one that .*head.json knows: the record was made anew"
    ):
        State.open(folder)
    assert found(folder, head).problems == ["entry 7 is not the one that the head knows: the record was made anew"]


def test_an_entry_exchanged_for_one_of_another_branch_is_found(folder, tmp_path):
    """Both are signed by the service, for the same place: only the chain tells that one does not belong."""
    shutil.copy(folder / "service.sqlite3", tmp_path / "old")
    for _ in range(2):
        shutil.copy(folder / "service.sqlite3", tmp_path / "other")
        shutil.copy(tmp_path / "old", folder / "service.sqlite3")
        (folder / "head.json").unlink(missing_ok=True)
        state = State.open(folder)
        state.store.note("a test", {})
        state.store.note("a test", {})
        state.store.close()
    assert found(folder).whole
    with closing(sqlite3.connect(tmp_path / "other")) as connection:
        values = connection.execute("SELECT entry, hash, signature FROM record WHERE number = 7").fetchone()
    tamper(folder, ("UPDATE record SET entry = ?, hash = ?, signature = ? WHERE number = 7", values))
    assert found(folder).problems == ["entry 8 does not follow the entry before it: one of both was replaced"]


def test_a_head_that_is_missing_or_older_is_written_when_the_state_is_opened(folder):
    newest = (folder / "head.json").read_bytes()
    (folder / "head.json").unlink()
    State.open(folder).store.close()
    assert json.loads((folder / "head.json").read_bytes()) == json.loads(newest)


def test_a_head_that_cannot_be_written_is_said_before_anything_is_decided(folder):
    (folder / "policy.yaml").write_text("head: policy.yaml/head.json\n")
    with pytest.raises(OSError, match=r"policy\.yaml"):
        State.open(folder)


def test_a_late_writer_does_not_put_an_older_head_back(folder):
    signer, text = Signer.load_or_create(folder / "keys"), rows(folder)
    newest = (folder / "head.json").read_bytes()
    write_head(folder / "head.json", Entry(*text[3], None), signer)
    assert (folder / "head.json").read_bytes() == newest


def test_a_record_signed_anew_with_another_key_is_found(folder, tmp_path):
    """Whoever replaces the public key too is found by the head, or by a public key kept elsewhere."""
    head, kept = read_head(folder / "head.json"), tmp_path / "kept.pem"
    shutil.copy(folder / "keys" / "record.pub.pem", kept)
    other = Signer.load_or_create(tmp_path / "other")
    for number, text, _, _ in rows(folder):
        tamper(folder, ("UPDATE record SET signature = ? WHERE number = ?", (other.sign(text.encode()), number)))
    assert len(found(folder).problems) >= 6
    shutil.copy(tmp_path / "other" / "record.pub.pem", folder / "keys" / "record.pub.pem")
    assert found(folder).whole  # all that is here was replaced: only what is kept elsewhere can tell
    assert "the head is not signed by the key" in found(folder, head).problems[0]
    store = Store(f"sqlite:///{folder / 'service.sqlite3'}")
    assert len(verify(store, PublicKey.load(kept)).problems) >= 6
    store.close()


def test_a_changed_head_is_no_head(folder):
    head = read_head(folder / "head.json")
    changed = Head(head.count - 1, head.hash, head.key, head.signature)
    assert "the head is not signed by the key" in found(folder, changed).problems[0]


def test_a_service_does_not_go_on_with_another_key(folder):
    for name in ("record.pem", "record.pub.pem"):
        (folder / "keys" / name).unlink()
    with pytest.raises(ValueError, match=r"is not signed by the key .* put the service's own keys back"):
        State.open(folder)


@pytest.mark.parametrize(
    ("statement", "words"),
    [
        ("UPDATE pictures SET png = X'00' WHERE id = ?", "the bytes of picture .* were changed"),
        ("UPDATE pictures SET png = 'a text' WHERE id = ?", "the bytes of picture .* were changed"),
        ("UPDATE pictures SET claim = X'00' WHERE id = ?", "how picture .* was made is not what the record says"),
        ("UPDATE record SET entry = X'00' WHERE picture = ?", "entry 2 was changed: it is no text"),
        ("UPDATE record SET entry = 5 WHERE picture = ?", "entry 2 was changed: its content does not have the hash"),
        ("UPDATE record SET signature = X'00' WHERE picture = ?", "entry 2 was changed: it is no text"),
        (
            "UPDATE record SET signature = 'no hex' WHERE picture = ?",
            "entry 2 was changed or inserted: it is not signed",
        ),
        (
            "UPDATE record SET picture = 'other' WHERE picture = ?",
            "entry 2 was changed: the picture beside it is other",
        ),
        (
            "UPDATE pictures SET png = NULL WHERE id = ?",
            "the bytes of picture .* are gone, and the record does not say",
        ),
        (
            "UPDATE pictures SET state = 'released' WHERE id = ?",
            "is released in the database, and served by the record",
        ),
        ("UPDATE pictures SET claim = '{}' WHERE id = ?", "how picture .* was made is not what the record says"),
        ("DELETE FROM pictures WHERE id = ?", "of which entry 2 tells, is not in the database"),
        ("DELETE FROM nonces WHERE picture = ?", "the nonce of picture .*, its model or its condition are not"),
        (
            "UPDATE nonces SET model = 'x' WHERE picture = ?",
            "the nonce of picture .*, its model or its condition are not",
        ),
        (
            "UPDATE nonces SET condition = '3' WHERE picture = ?",
            "the nonce of picture .*, its model or its condition are",
        ),
    ],
)
def test_a_picture_unlike_its_entry_is_named(folder, statement, words):
    with closing(sqlite3.connect(folder / "service.sqlite3")) as connection:
        (id,) = connection.execute("SELECT picture FROM record WHERE number = 2").fetchone()
    tamper(folder, (statement, (id,)))
    problems = found(folder).problems
    assert re.search(words, problems[0])
    assert len(problems) == 1 or "record" in statement
    assert id in problems[-1]


def test_a_picture_that_the_record_does_not_know_is_named(folder):
    columns = "state, png, sha256, claim, verdict, key_id, made, changed, reason"
    tamper(folder, (f"INSERT INTO pictures SELECT 'ff', {columns} FROM pictures LIMIT 1", ()))
    assert found(folder).problems == ["the record does not tell of picture ff, which is in the database"]


def test_a_nonce_of_no_picture_is_named(folder):
    tamper(folder, ("INSERT INTO nonces SELECT 'ff', nonce, model, condition FROM nonces LIMIT 1", ()))
    assert found(folder).problems == ["the record does not tell of picture ff, which has a nonce"]


def test_bytes_that_the_record_calls_deleted_are_named(folder):
    state = State.open(folder)
    blocked, gone = picture("block"), picture()
    state.store.serve([blocked, gone])
    state.store.delete(gone.id, "Ann", "asked for")
    state.store.close()
    assert found(folder).whole
    tamper(folder, *[("UPDATE pictures SET png = ? WHERE id = ?", (one.png, one.id)) for one in (blocked, gone)])
    words = "the bytes of picture {} are there, and by the record they are not kept"
    assert set(found(folder).problems) == {words.format(blocked.id), words.format(gone.id)}


def test_a_decision_whose_picture_s_entry_was_removed_is_no_failure(folder):
    state = State.open(folder)
    shown = picture()
    state.store.serve([shown])
    state.store.reject(shown.id, "Ann", "no")
    state.store.close()
    tamper(folder, ("DELETE FROM record WHERE number = 7", ()))
    problems = found(folder).problems
    assert problems[0] == "entry 7 is missing: it was removed"
    assert problems[-1] == f"the record does not tell of picture {shown.id}, which is in the database"


@pytest.mark.parametrize(
    ("statement", "words"),
    [
        ("UPDATE reports SET words = 'nothing' WHERE id = ?", "the report {} was changed"),
        ("UPDATE reports SET picture = 'ff' WHERE id = ?", "the report {} was changed"),
        ("UPDATE reports SET key_id = NULL WHERE id = ?", "the report {} was changed"),
        ("UPDATE reports SET closed = '2026', answer = 'no' WHERE id = ?", "whether the report {} is closed"),
        ("DELETE FROM reports WHERE id = ?", "the report {}, of which the record tells, is not"),
        ("UPDATE reports SET id = 'ff' WHERE id = ?", "the record does not tell of the report ff"),
    ],
)
def test_a_report_unlike_its_entry_is_named(folder, statement, words):
    """Someone who was reported makes the report vanish; an answered and a deleted one are as they were."""
    state = State.open(folder)
    shown = picture()
    state.store.serve([shown])
    open_one, answered, old = [state.store.report(shown.id, f"words {number}", "key1") for number in range(3)]
    state.store.close_report(answered, "Ann", "taken down")
    with state.store.writing() as writing:
        writing.connection.execute(reports.delete().where(reports.c.id == old))
        writing.note("report deleted", {"report": old, "by": "retention"}, shown.id)
    state.store.close()
    assert found(folder).whole
    tamper(folder, (statement, (open_one,)))
    assert found(folder).problems[0].startswith(words.format(open_one))


def test_a_key_that_became_a_moderators_is_named(folder):
    state = State.open(folder)
    id = state.keys.find(state.keys.create("Ann", "user", Rate(per_minute=1))).id
    state.store.close()
    assert found(folder).whole
    tamper(folder, ("UPDATE api_keys SET role = 'moderator' WHERE id = ?", (id,)))
    assert found(folder).problems[0].startswith(f"the API key {id} was changed")


def test_the_record_holds_finite_values_only(folder):
    state = State.open(folder)
    with pytest.raises(ValueError, match="not JSON compliant"):
        state.store.note("a test", {"score": float("nan")})
    state.store.close()
    assert found(folder).count == 6


def test_a_head_of_another_record_is_not_written_over(folder, tmp_path):
    other = filled(tmp_path / "other", 1)
    other.store.close()
    shutil.copy(tmp_path / "other" / "head.json", folder / "head.json")
    with pytest.raises(ValueError, match=r"head.json is the head of another record"):
        State.open(folder)
    shutil.copy(folder / "head.json", tmp_path / "foreign")
    (folder / "head.json").unlink()
    state = State.open(folder)
    shutil.copy(tmp_path / "foreign", folder / "head.json")
    with pytest.raises(HeadFailure, match=r"is in the record .entry 7., but .*head.json is the head of another record"):
        state.store.serve([picture()])
    state.store.close()
