"""What happens to a state when the clock is set back, the disk is full, the directory cannot be written to, moderators race, keys
are damaged, or somebody changes a time or a reason in the database."""

import json
import multiprocessing
import os
import resource
import shutil
import tempfile
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import text

from ctm.cli import main
from ctm.commands.marked import Marker
from ctm.safety import Picture, Screen, State, Store, verify
from ctm.safety.head import HeadFailure, read_head
from ctm.safety.pictures import new_id
from ctm.safety.record import entries, now
from ctm.safety.shipped import filters_for
from ctm.serve.signing import Signing

from .states import filled, picture

FORK = multiprocessing.get_context("forkserver")
FORK.set_forkserver_preload(["ctm.safety.state", "ctm.cli"])


def problems(state):
    return verify(state.store, state.store.record.signer.public).problems


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("UPDATE pictures SET made = '2020-01-01T00:00:00.000000Z'", "the times of picture {id} were changed"),
        ("UPDATE pictures SET changed = '2099-01-01T00:00:00.000000Z'", "the times of picture {id} were changed"),
        ("UPDATE pictures SET reason = 'a beach'", "the reason for what picture {id} is was changed"),
        ("UPDATE reports SET made = '2099-01-01T00:00:00.000000Z'", "was changed: its words, picture, key or time"),
        (
            "UPDATE reports SET closed = '2020-01-01T00:00:00.000000Z'",
            "is closed, or its answer, is not as the record says",
        ),
        ("UPDATE api_keys SET created = '2020-01-01T00:00:00.000000Z'", "limits, digest or time are not those"),
        ("UPDATE api_keys SET revoked = '2099-01-01T00:00:00.000000Z'", "unlike in the record, or at another time"),
    ],
)
def test_a_changed_time_or_reason_is_named(tmp_path, change, message):
    state = State.open(tmp_path / "state")
    held = picture("hold")
    state.store.serve([held])
    state.store.reject(held.id, "Ann", "not for us")
    state.store.close_report(state.store.report(held.id, "look at this"), "Ann", "done")
    state.keys.create("Ada")
    state.keys.revoke(state.keys.list()[0].id)
    assert problems(state) == []
    with state.store.database.writing() as connection:
        connection.execute(text(change))
    (problem,) = problems(state)
    assert message.format(id=held.id) in problem
    state.store.close()


def test_a_clock_that_is_set_back_breaks_no_record_and_is_noted(tmp_path, monkeypatch):
    """A record goes on. A picture of the wrong time is deleted when its own time is over, by the right clock."""
    state = filled(tmp_path / "state", 1)
    ahead = now() + timedelta(days=100)
    for module in ("store", "record", "moderation"):
        monkeypatch.setattr(f"ctm.safety.{module}.now", lambda: ahead)
    early = picture()
    state.store.serve([early])
    monkeypatch.undo()
    state.store.serve([picture()])
    findings = verify(state.store, state.store.record.signer.public, read_head(tmp_path / "state" / "head.json"))
    assert findings.whole
    (note,) = (each for each in findings.notes if "clock" in each)
    assert note.startswith("entry 3 was written at ")
    assert "the clock was set back between them" in note
    assert state.store.expire(now() + timedelta(days=31)).pictures == 2  # of 30 days, by the right clock
    assert state.store.picture(early.id).state == "served"
    assert state.store.expire(ahead + timedelta(days=31)).pictures == 1
    state.store.close()


def test_a_head_that_cannot_be_written_is_loud_and_is_made_up_for(tmp_path):
    state = filled(tmp_path / "state", 2)
    elsewhere = tmp_path / "elsewhere"
    (tmp_path / "p.yaml").write_text(f"head: {elsewhere / 'head.json'}\n")
    state.store.close()
    state = State.open(tmp_path / "state", tmp_path / "p.yaml")
    state.store.check()
    shutil.rmtree(elsewhere)
    elsewhere.write_text("a file where the directory was")
    with pytest.raises(OSError, match="elsewhere"):
        state.store.check()
    late = picture()
    with pytest.raises(
        HeadFailure, match=r"what was decided is in the record \(entry 3\), but .*head.json cannot be written"
    ):
        state.store.serve([late])
    assert state.store.picture(late.id).state == "served"
    elsewhere.unlink()
    state.store.check()
    assert read_head(elsewhere / "head.json").count == 3
    state.store.close()


def _fill_disk(folder, outcomes):
    """Serve until the files may not grow any more, which SQLite meets as a full disk, then go on as if there were room again."""
    state = State.open(folder)
    size = (folder / "service.sqlite3").stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 100_000, resource.RLIM_INFINITY))
    kept = []
    try:
        while len(kept) < 100:
            one = picture(content=os.urandom(40_000))
            state.store.serve([one])
            kept.append(one.id)
    except OSError as error:
        outcomes.put(str(error))
    try:
        state.store.check()
    except OSError as error:
        outcomes.put(type(error).__name__)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    last = picture()
    state.store.serve([last])
    outcomes.put([*kept, last.id])


def test_a_full_disk_loses_nothing_that_was_kept(tmp_path):
    State.open(tmp_path / "state").store.close()
    outcomes = FORK.Queue()
    process = FORK.Process(target=_fill_disk, args=(tmp_path / "state", outcomes))
    process.start()
    found = [outcomes.get(timeout=120)]
    while not isinstance(found[-1], list):
        found.append(outcomes.get(timeout=120))
    process.join()
    assert "service.sqlite3 fails: " in found[0]
    assert 0 < len(found[-1]) < 20
    state = State.open(tmp_path / "state")
    assert sorted(one.id for one in state.store.listed("served")) == sorted(found[-1])
    findings = verify(state.store, state.store.record.signer.public, read_head(tmp_path / "state" / "head.json"))
    assert findings.problems == []
    state.store.close()


def _moderate_as_reader(folder, outcomes):
    """Every command once where it may write, so that all is imported; then as a user who may only read."""
    work = (["list"], ["list", "--of", "served"], ["verify"], ["export"], ["reports"], ["expire"])
    copy = folder.with_name("copy")
    shutil.copytree(folder, copy)
    for arguments in work:
        main(["moderate", *arguments, "--state", str(copy)])
    shutil.rmtree(copy)
    for place in [folder, *folder.rglob("*")]:
        place.chmod(0o555 if place.is_dir() else 0o444)
    if os.geteuid() == 0:
        os.seteuid(65534)
    outcomes.put([main(["moderate", *arguments, "--state", str(folder)]) for arguments in work])


def test_a_state_that_may_only_be_read_can_be_read_and_checked():
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)  # another user must come through
        folder = Path(name) / "state"
        filled(folder, 3).store.close()
        outcomes = FORK.Queue()
        process = FORK.Process(target=_moderate_as_reader, args=(folder, outcomes))
        process.start()
        assert outcomes.get(timeout=120) == [0, 0, 0, 0, 0, 2]
        process.join()
        for place in [folder, *folder.rglob("*")]:
            place.chmod(0o755)


def test_a_log_that_a_reader_could_not_read_is_said(tmp_path, monkeypatch):
    """Without the log beside it a database lacks its newest entries, which must not look as if they had been removed."""
    folder = tmp_path / "state"
    filled(folder, 2).store.close()
    (folder / "service.sqlite3-wal").write_bytes(b"entries")

    def full(path):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("ctm.safety.database.check_place", full)
    with pytest.raises(ValueError, match=r"\(No space left on device\), and service.sqlite3-wal there holds entries"):
        Store(f"sqlite:///{folder / 'service.sqlite3'}")


def _race(folder, ids, begin, kind):
    state = State.open(folder)
    begin.wait()
    for id in ids:
        try:
            if kind == "release":
                state.store.release(id, "Ann")
            elif kind == "reject":
                state.store.reject(id, "Ben", "no")
            else:
                state.store.delete(id, "Cleo", "gone")
        except ValueError:  # another was first
            continue
    state.store.expire(now() + timedelta(days=31))
    state.store.close()


@pytest.mark.slow
def test_moderators_who_race_decide_one_after_the_other(tmp_path):
    """Each decision is taken in the state that the one before it left, and the tables end as the record says."""
    folder = tmp_path / "state"
    state = State.open(folder)
    made = [picture("hold") for _ in range(8)]
    state.store.serve(made)
    ids, begin = [one.id for one in made], FORK.Barrier(3)
    racing = [FORK.Process(target=_race, args=(folder, ids, begin, kind)) for kind in ("release", "reject", "delete")]
    for process in racing:
        process.start()
    for process in racing:
        process.join(120)
    assert [process.exitcode for process in racing] == [0, 0, 0]
    for id in ids:
        told = state.store.history(id)
        assert [each["body"]["was"] for each in told[1:]] == [each["kind"] for each in told[:-1]]
        assert [each["kind"] for each in told].count("deleted") == 1
    assert problems(state) == []
    state.store.close()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("record.pem", b"", "record.pem holds no Ed25519 key"),
        ("record.pem", b"-----BEGIN PRIVATE KEY-----\nMC4C\n", "record.pem holds no Ed25519 key"),
        ("record.pub.pem", b"\0" * 100, "record.pub.pem is not the public half of"),
        ("api.secret", b"short", "api.secret is shorter than 32 bytes"),
        ("watermark.key", b"short", "watermark.key: the key of the watermark must have at least 16 bytes, got 5"),
        ("c2pa/key.pem", b"", "key.pem is no private key in PEM"),
        ("c2pa/key.pem", b"\xff\xfe", "key.pem is no text in UTF-8"),
        ("c2pa/chain.pem", b"\0" * 100, "chain.pem holds no certificates in PEM"),
        ("c2pa/chain.pem", None, "key.pem is there and chain.pem is not"),
        ("../head.json", b"{", "head.json is not readable as JSON"),
        ("../policy.yaml", b"max_images: [", "policy.yaml is not readable"),
    ],
)
def test_a_damaged_key_is_named(tmp_path, name, content, message):
    def opened():
        state = State.open(tmp_path / "state")
        try:
            return Marker(Signing.load_or_create(state.folder / "keys"), state.watermark_key())
        finally:
            state.store.close()

    opened()
    filled(tmp_path / "state", 1).store.close()
    file = tmp_path / "state" / "keys" / name
    file.unlink() if content is None else file.write_bytes(content)
    with pytest.raises(ValueError, match=message.replace(".", r"\.")):
        opened()


def test_what_passed_unseen_is_so_in_the_record(tmp_path):
    state = State.open(tmp_path / "state")
    screen = Screen(state.policy, filters_for(state.policy))
    (verdict,) = screen.images([np.zeros((28, 28, 3), np.uint8)])
    state.store.serve([Picture(new_id(), b"png", {"seed": 1}, verdict)])
    with state.store.database.reading() as connection:
        (entry,) = (json.loads(each.text) for each in entries(connection))
    assert entry["body"]["verdict"]["unseen"] is True
    assert entry["body"]["verdict"]["reason"] == "passed unseen by open_nsfw, which judges no picture under 64 px"
    state.store.close()
