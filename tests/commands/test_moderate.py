"""ctm moderate: every kind of work on a real state, and a sentence for every mistake."""

import json
import sqlite3
from contextlib import closing

import pytest
import yaml

from ctm.cli import main
from ctm.safety import Policy, State, Verdict
from ctm.safety.pictures import Picture, new_id


@pytest.fixture
def run(capsys):
    def run(*arguments):
        try:
            code = main(["moderate", *map(str, arguments)])
        except SystemExit as stop:
            code = stop.code
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture
def held(tmp_path):
    """A state with one held, one served picture and a report; its folder and the two ids."""
    state = State.open(tmp_path / "state")
    pictures = [
        Picture(
            new_id(), content, {"model": "[bold]models/x[/bold]", "seed": 3}, Verdict(decision, "open_nsfw: nsfw 0.5")
        )
        for decision, content in (("hold", b"held bytes"), ("pass", b"served bytes"))
    ]
    state.store.serve(pictures)
    state.store.report(pictures[1].id, "my face\x1b[31m")
    state.store.close()
    return tmp_path / "state", pictures[0].id, pictures[1].id


def test_the_queue_is_worked_off(run, held, tmp_path):
    folder, id, served = held
    code, out, _ = run("--state", folder, "list")
    assert code == 0
    assert id in out
    assert served not in out
    assert "[bold]models/x[/bold]" in out
    code, out, _ = run("show", id, "--state", folder, "--out", tmp_path / "held.png")
    assert code == 0
    assert "held, open_nsfw: nsfw 0.5" in out
    assert (tmp_path / "held.png").read_bytes() == b"held bytes"
    assert run("release", id, "--state", folder, "--by", "Ann", "--reason", "a beach") == (0, f"{id} is released\n", "")
    assert run("list", f"--state={folder}")[1] == "no picture is held\n"
    assert run(f"--state={folder}", "list", "--of", "released")[1].count(id) == 1
    assert "released, by Ann, reason a beach" in run("show", id, "--state", folder)[1]
    assert run("reject", served, "--state", folder, "--reason", "a face")[0] == 0
    assert run("delete", served, "--state", folder, "--reason", "asked for")[0] == 0
    code, out, err = run("show", served, "--state", folder, "--out", tmp_path / "gone.png")
    assert code == 2
    assert f"the bytes of picture {served} are not kept" in err
    assert not (tmp_path / "gone.png").exists()


def test_reports_are_listed_and_closed(run, held):
    folder, _, served = held
    out = run("reports", "--state", folder)[1]
    assert served in out
    assert "my face" in out
    assert "\x1b" not in out
    state = State.open(folder)
    (report,) = state.store.reports()
    state.store.close()
    assert run("reports", "--state", folder, "--close", report.id, "--answer", "taken down")[0] == 0
    assert run("reports", "--state", folder)[1] == "no open reports\n"
    _, out, err = run("reports", "--state", folder, "--closed")
    assert not err
    assert "taken down" in out


def test_the_record_is_verified_and_exported(run, held, tmp_path):
    folder, _, _ = held
    code, out, _ = run("verify", "--state", folder)
    assert code == 0
    assert "3 entries, each unchanged, in its place and signed" in out
    assert "cannot be known without a head" in out
    code, out, _ = run("verify", "--state", folder, "--head", folder / "head.json")
    assert code == 0
    assert "cannot be known" not in out
    assert run("export", "--state", folder, "--out", tmp_path / "record.jsonl")[0] == 0
    lines = (tmp_path / "record.jsonl").read_text().splitlines()
    assert len(lines) == 3
    assert all(json.loads(line)["signature"] for line in lines)
    assert run("export", "--state", folder)[1].splitlines() == lines
    about = ("--export", tmp_path / "record.jsonl", "--public", folder / "keys" / "record.pub.pem")
    assert run("verify", *about)[0] == 0
    (tmp_path / "record.jsonl").write_text("\n".join([lines[0], lines[2]]) + "\n")
    code, out, err = run("verify", *about)
    assert code == 2
    assert out.splitlines()[0] == "entry 2 is missing: it was removed"
    assert err == "ctm: the exported record is not whole: 1 thing is wrong\n"
    (tmp_path / "record.jsonl").write_text('{"number": 1}\n')
    assert "is no entry of a record" in run("verify", *about)[2]


def test_a_damaged_record_can_still_be_verified_and_exported(run, held):
    folder, _, _ = held
    with closing(sqlite3.connect(folder / "service.sqlite3")) as connection, connection:
        connection.execute("DELETE FROM record WHERE number = 3")
    code, out, err = run("verify", "--state", folder, "--head", folder / "head.json")
    assert code == 2
    assert "the head knows 3 entries, and entry 3 is not there (of 2)" in out
    assert "the record is not whole" in err
    assert run("export", "--state", folder)[0] == 0
    assert "entries were removed, or an old database was put back" in run("expire", "--state", folder)[2]


def test_what_is_too_old_is_deleted(run, held):
    folder, _, served = held
    (folder / "policy.yaml").write_text("retention: {served: 0.0000001}\n")
    assert run("expire", "--state", folder)[1].startswith("deleted 1 pictures and 0 reports")
    assert "deleted, its time was over" in run("show", served, "--state", folder)[1]


def test_keys_are_made_listed_and_revoked(run, tmp_path):
    folder = tmp_path / "state"
    code, out, _ = run("keys", "add", "Ann [b]", "--role", "moderator", "--per_minute", 7, "--state", folder)
    text = out.splitlines()[0]
    assert code == 0
    assert "the only time that the key is shown" in out
    state = State.open(folder)
    info = state.keys.find(text)
    state.store.close()
    assert (info.role, info.rate.per_minute) == ("moderator", 7)
    assert info.rate.per_day == Policy().rates.moderator.per_day
    out = run("keys", "list", "--state", folder)[1]
    assert info.id in out
    assert "Ann [b]" in out
    assert text not in out
    assert run("keys", "revoke", info.id, "--state", folder)[0] == 0
    assert run("keys", "revoke", info.id, "--state", folder)[0] == 2
    assert run("verify", "--state", folder)[0] == 0


def test_the_policy_is_shown_and_checked(run, tmp_path):
    code, out, _ = run("policy", "--state", tmp_path / "none")
    assert code == 0
    assert "these are the defaults" in out
    assert not (tmp_path / "none").exists()
    file = tmp_path / "p.yaml"
    file.write_text("thresholds: {}\nretention: {served: forever}\nclasses: {allowed: [1, Flags]}\n")
    out = run("policy", file)[1]
    assert Policy.of(yaml.safe_load(out)) == Policy.load(file)
    assert run("policy", file, "--check")[1].endswith("its filters: none\n")
    file.write_text("thresholds: {weapons: {gun: {block: 0.5}}}\n")
    code, _, err = run("policy", file, "--check")
    assert code == 2
    assert "thresholds for the filter 'weapons', which is not there" in err
    file.write_text("max_imags: 3\n")
    assert run("policy", file, "--check")[2] == f"ctm: {file}: 'max_imags' is no setting: did you mean max_images?\n"


def test_a_block_list_is_made_of_data_and_used_by_a_policy(run, tmp_path):
    import numpy as np
    from sklearn.datasets import load_digits

    pixels = (load_digits().images[:5] * 15).astype(np.uint8)[..., None]
    np.savez(tmp_path / "own.npz", images=pixels)
    code, out, _ = run("block", tmp_path / "own.npz", "--out", tmp_path / "state" / "block.list")
    assert code == 0
    assert out.splitlines()[-1].startswith("5 pictures in")
    (tmp_path / "p.yaml").write_text("block_list: block.list\nthresholds: {block_list: {near: {block: 0.99}}}\n")
    code, out, _ = run("policy", tmp_path / "p.yaml", "--check", "--state", tmp_path / "state")
    assert code == 0
    assert "its filters: block_list" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["list"], "runs/serve is no state of a service"),
        (["list", "--state", "STATE", "--of", "lost"], "--of must be one of held, served"),
        (["show", "nobody", "--state", "STATE"], "there is no picture 'nobody'"),
        (["release", "nobody", "--state", "STATE"], "there is no picture 'nobody'"),
        (["reject", "nobody", "--state", "STATE"], "a rejection needs a reason, which the record keeps: give --reason"),
        (["delete", "nobody", "--state", "STATE"], "a deletion needs a reason, which the record keeps: give --reason"),
        (["reports", "--state", "STATE", "--answer", "x"], "--answer belongs to --close ID"),
        (["reports", "--state", "STATE", "--close", "x"], "there is no open report x"),
        (["verify", "--state", "STATE", "--head", "STATE/nothing"], "nothing: No such file or directory"),
        (["verify", "--state", "STATE", "--head", "STATE/policy.yaml"], "is not readable as JSON"),
        (["verify", "--state", "STATE", "--public", "STATE/policy.yaml"], "holds no public Ed25519 key"),
        (["verify", "--export", "STATE/nothing", "--state", "STATE"], "nothing: No such file or directory"),
        (["export", "--state", "STATE", "--out", "STATE/keys/record.pem/x"], "record.pem is a file, not a directory"),
        (["policy", "STATE/nothing.yaml"], "nothing.yaml: No such file or directory"),
        (["keys", "add", " ", "--state", "STATE"], "HOLDER is empty"),
        (["keys", "add", "Ann", "--role", "king", "--state", "STATE"], "role must be user or moderator, got 'king'"),
        (["keys", "add", "Ann", "--per_day", "0", "--state", "STATE"], "per_day must be at least 1, got 0"),
        (["keys", "revoke", "x", "--state", "STATE"], "there is no key 'x'"),
        (["keys"], "moderate keys needs a change after it: add, list, revoke"),
        (["block", "STATE/keys", "--out", "STATE/list"], "STATE/keys"),
        ([], "moderate needs a task after it: list, show"),
    ],
)
def test_mistakes_are_sentences(run, held, arguments, message, monkeypatch):
    folder, _, _ = held
    monkeypatch.chdir(folder.parent)
    code, _, err = run(*(argument.replace("STATE", "state") for argument in arguments))
    assert code == 2
    assert message.replace("STATE", "state") in err
    assert "Traceback" not in err


def test_a_database_that_is_gone_is_not_made_anew(run, held):
    folder, _, _ = held
    (folder / "service.sqlite3").unlink()
    for work in ("verify", "list", "expire"):
        code, _, err = run(work, "--state", folder)
        assert code == 2
        assert "is no state of a service, with keys and a database" in err
    assert not (folder / "service.sqlite3").exists()


def test_a_damaged_database_is_a_sentence(run, held):
    folder, _, _ = held
    (folder / "service.sqlite3").write_bytes(b"damaged" * 2000)
    code, _, err = run("list", "--state", folder)
    assert code == 2
    assert "fails: file is not a database" in err
