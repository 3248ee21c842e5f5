"""What a service keeps: each change and its entry are one; the queue; reports; retention; many writers."""

import json
import logging
import threading
from datetime import timedelta

import pytest
from sqlalchemy import insert, text

from ctm.safety import State, verify
from ctm.safety.head import read_head
from ctm.safety.policy import Policy, Retention
from ctm.safety.record import now
from ctm.safety.schema import pictures
from ctm.safety.state import database_url
from ctm.safety.store import Store

from ..processes import FORK
from .states import picture


@pytest.fixture
def state(tmp_path):
    state = State.open(tmp_path / "state")
    yield state
    state.store.close()


def whole(state):
    return verify(state.store, state.store.record.signer.public, read_head(state.folder / "head.json"))


def test_what_is_served_held_and_blocked(state):
    served, held, blocked = picture("pass", b"one", nonce="00ff", condition=3), picture("hold"), picture("block")
    assert state.store.serve([served, held, blocked]) == [served.id, held.id, blocked.id]
    assert [state.store.picture(each.id).state for each in (served, held, blocked)] == ["served", "held", "blocked"]
    assert [state.store.picture(each.id).may_leave for each in (served, held, blocked)] == [True, False, False]
    assert state.store.picture(served.id).png == b"one"
    assert state.store.picture(blocked.id).png is None  # the default policy stores no blocked bytes
    assert [each.id for each in state.store.held()] == [held.id]
    nonce = state.store.nonces("abc")
    assert [(each.picture, each.nonce, each.condition) for each in nonce] == [(served.id, b"\x00\xff", 3)]
    assert state.store.nonces("other") == []
    assert whole(state).whole
    assert whole(state).count == 3


def test_all_pictures_of_a_call_are_kept_or_none(state):
    first = picture()
    state.store.serve([first])
    with pytest.raises(ValueError, match=f"there is a picture {first.id} already"):
        state.store.serve([picture(), first])
    twice = picture()
    with pytest.raises(ValueError, match=f"there is a picture {twice.id} already"):
        state.store.serve([twice, twice])
    assert whole(state).count == 1
    assert len(state.store.listed("served")) == 1


def test_a_held_picture_is_released_or_rejected_by_someone_for_a_reason(state):
    one, other = picture("hold"), picture("hold")
    state.store.serve([one, other])
    state.store.release(one.id, "Ann", "a beach")
    state.store.reject(other.id, "Ann", "not for us")
    assert state.store.held() == []
    assert state.store.picture(one.id).may_leave
    assert not state.store.picture(other.id).may_leave
    kinds = [
        (entry["kind"], entry["body"].get("by"), entry["body"].get("reason")) for entry in state.store.history(one.id)
    ]
    assert kinds == [("held", None, None), ("released", "Ann", "a beach")]
    with pytest.raises(ValueError, match="is released, and only a picture that is held or rejected can be released"):
        state.store.release(one.id, "Bob")
    state.store.reject(one.id, "Bob", "taken down after a report")
    assert state.store.picture(one.id).state == "rejected"
    assert whole(state).whole


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda store, id: store.reject(id, "Ann", " "), "a rejection needs a reason"),
        (lambda store, id: store.delete(id, "Ann", ""), "a deletion needs a reason"),
        (lambda store, id: store.reject(id, "Ann", "x" * 4001), "may have 4000 characters, got 4001"),
        (lambda store, id: store.reject(id, "Ann", "a\0b"), "a zero byte"),
        (lambda store, id: store.reject(id, "\ud800", "b"), "half a character"),
        (lambda store, id: store.release("nothing", "Ann"), "there is no picture 'nothing'"),
        (lambda store, id: store.picture("\ud800"), "there is no picture"),
        (lambda store, id: store.picture("a\0b"), "there is no picture"),
        (lambda store, id: store.release("../x" * 99, "Ann"), "there is no picture"),
        (lambda store, id: store.close_report("a\0b", "Ann", ""), "there is no open report"),
        (lambda store, id: store.picture("nothing"), "there is no picture 'nothing'"),
        (lambda store, id: store.report("nothing", "bad"), "there is no picture 'nothing'"),
        (lambda store, id: store.report(id, "  "), "a report has no words"),
        (lambda store, id: store.close_report("none", "Ann", ""), "there is no open report none"),
    ],
)
def test_what_cannot_be_done_changes_nothing(state, act, message):
    held = picture("hold")
    state.store.serve([held])
    with pytest.raises(ValueError, match=message):
        act(state.store, held.id)
    assert whole(state).count == 1


def test_a_blocked_picture_without_bytes_cannot_be_released(state):
    blocked = picture("block")
    state.store.serve([blocked])
    with pytest.raises(ValueError, match="is blocked, and only a picture that is held or rejected"):
        state.store.release(blocked.id, "Ann")


def test_reports_are_kept_answered_and_their_words_are_not_in_the_record(state):
    served = picture()
    state.store.serve([served])
    id = state.store.report(served.id, "my own face", "key1")
    assert [(each.id, each.words, each.key_id) for each in state.store.reports()] == [(id, "my own face", "key1")]
    state.store.close_report(id, "Ann", "taken down")
    assert state.store.reports() == []
    assert [each.answer for each in state.store.reports(every=True)] == ["taken down"]
    assert "my own face" not in json.dumps(state.store.history(served.id))
    assert whole(state).count == 3


def test_what_is_too_old_is_deleted_and_its_record_stays(tmp_path):
    state = State.open(tmp_path / "state")
    secret = b"these bytes must be gone" * 50
    served, held, blocked = picture("pass", secret), picture("hold", secret + b"2"), picture("block", secret + b"3")
    state.store.serve([served, held, blocked])
    state.store.report(served.id, "words that must be gone")
    assert state.store.expire(now() + timedelta(days=29)).pictures == 0
    expired = state.store.expire(now() + timedelta(days=31))
    assert (expired.pictures, expired.reports) == (1, 0)
    assert state.store.picture(served.id).png is None
    assert state.store.picture(held.id).png == secret + b"2"
    assert [entry["kind"] for entry in state.store.history(served.id)] == ["served", "reported", "deleted"]
    expired = state.store.expire(now() + timedelta(days=366))
    assert (expired.pictures, expired.reports) == (1, 1)
    assert state.store.picture(served.id).sha256 == served.sha256
    assert whole(state).whole
    state.store.close()
    on_disk = b"".join(file.read_bytes() for file in (tmp_path / "state").iterdir() if file.is_file())
    assert b"these bytes must be gone" not in on_disk
    assert b"words that must be gone" not in on_disk


def test_nothing_is_deleted_by_age_where_the_policy_says_forever(tmp_path):
    forever = Policy.of({"retention": dict.fromkeys(Retention.model_fields, "forever")}).retention
    state = State.open(tmp_path / "state")
    store = Store(database_url(state.folder), state.store.record.signer, retention=forever)
    store.serve([picture("pass"), picture("hold"), picture("block")])
    assert store.expire(now() + timedelta(days=36_000)).pictures == 0
    assert len(store.listed("blocked")) == 1
    store.close()
    state.store.close()


def test_a_deleted_picture_is_gone_at_once(state):
    served = picture("pass", b"a face" * 100)
    state.store.serve([served])
    state.store.delete(served.id, "Ann", "the person asked for it")
    assert state.store.picture(served.id).png is None
    assert b"a face" not in b"".join(file.read_bytes() for file in state.folder.iterdir() if file.is_file())
    assert whole(state).whole


def test_threads_do_not_fork_the_chain(state):
    def write():
        for _ in range(5):
            state.store.serve([picture()])

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    findings = whole(state)
    assert findings.whole
    assert findings.count == 20
    assert not findings.notes  # the head is the last writer's, whoever wrote it first


def _write_from_a_process(folder, count):
    state = State.open(folder)
    for _ in range(count):
        state.store.serve([picture()])
    state.store.close()


def test_processes_do_not_fork_the_chain_and_may_all_begin_at_once(tmp_path):
    """Three processes make the state, its keys and its tables at the same time."""
    folder = tmp_path / "state"
    processes = [FORK.Process(target=_write_from_a_process, args=(folder, 5)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    state = State.open(folder)
    assert whole(state).whole
    assert whole(state).count == 15
    state.store.close()


def test_a_database_of_a_newer_version_is_refused(tmp_path):
    state = State.open(tmp_path / "state")
    with state.store.database.writing() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    state.store.close()
    with pytest.raises(ValueError, match=r"has tables of version 9999, newer than this ctm knows \(0001\)"):
        State.open(tmp_path / "state")


def test_the_versions_make_the_tables_that_the_code_uses(state):
    """Alembic's own comparison of the migrated database with the tables finds no difference."""
    from alembic.autogenerate import compare_metadata
    from alembic.runtime.migration import MigrationContext

    from ctm.safety.schema import metadata

    with state.store.database.reading() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("nonsense", "the database's URL cannot be read"),
        ("oracle9://x", "the database's URL cannot be read"),
        ("sqlite://", "a database in memory keeps no record"),
        ("sqlite:////nowhere/at/all.sqlite3", "fails: unable to open database file"),
    ],
)
def test_a_database_that_cannot_be_used_is_a_sentence(url, message):
    with pytest.raises((ValueError, OSError), match=message):
        Store(url)


def test_a_file_that_is_no_database_is_a_sentence(tmp_path):
    (tmp_path / "x.sqlite3").write_bytes(b"this is a text file, and has been one for long" * 50)
    with pytest.raises(OSError, match=r"x.sqlite3 fails: file is not a database"):
        Store(f"sqlite:///{tmp_path / 'x.sqlite3'}")


def test_pictures_and_the_record_are_their_owners_only(tmp_path):
    (tmp_path / "state").mkdir(mode=0o755)
    state = State.open(tmp_path / "state")
    state.store.serve([picture()])
    files = [file for file in state.folder.iterdir() if file.name.startswith("service.sqlite3")]
    assert len(files) == 3  # the database, its log and the log's index
    assert all(file.stat().st_mode & 0o077 == 0 for file in files)
    state.store.close()


def test_no_key_picture_or_report_is_in_a_log_or_an_error(state, caplog):
    """With every logger at its most talkative, SQLAlchemy's too, which else shows each statement's values."""
    logging.getLogger("sqlalchemy").setLevel(logging.DEBUG)
    caplog.set_level(logging.DEBUG)
    try:
        text = state.keys.create("Ann")
        assert state.keys.find(text) is not None
        one = picture(content=b"private bytes")
        state.store.serve([one])
        state.store.report(one.id, "private words")
        with (
            pytest.raises(OSError, match="NOT NULL constraint failed") as caught,
            state.store.database.writing() as connection,
        ):
            connection.execute(insert(pictures).values(id=one.id, state="x", png=b"private bytes", sha256="", claim=""))
    finally:
        logging.getLogger("sqlalchemy").setLevel(logging.NOTSET)
    told = f"{caplog.text} {caught.value} {caught.value.__cause__}"
    assert "INSERT INTO pictures" in told
    for private in (text, text.split("_")[2], "private bytes", "private words"):
        assert private not in told


def test_the_keys_are_their_owners_only(state):
    for name in ("record.pem", "api.secret"):
        assert (state.folder / "keys" / name).stat().st_mode & 0o077 == 0
    assert (state.folder / "keys").stat().st_mode & 0o077 == 0


def test_a_key_file_that_holds_no_key_is_a_sentence(tmp_path):
    State.open(tmp_path / "state").store.close()
    (tmp_path / "state" / "keys" / "record.pem").write_text("nothing")
    with pytest.raises(ValueError, match=r"record.pem holds no Ed25519 key"):
        State.open(tmp_path / "state")
