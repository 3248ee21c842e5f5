"""ctm sample and ctm edit with --policy: refused before, screened and marked after, and a record of it; without it, as before."""

import hashlib
import io
import json

import numpy as np
import pytest
from PIL import Image

from ctm import TrajectoryModel, generate
from ctm.cli import main
from ctm.pictures import to_uint8
from ctm.safety import State, verify
from ctm.safety.block_list import BlockList, features_of
from ctm.safety.head import read_head
from ctm.serve.nonces import nonces_of

NUM = 6
SEED = 5
KEY = bytes(range(32))


@pytest.fixture
def model(small_ctm, tmp_path):
    small_ctm.save_pretrained(tmp_path / "model")
    (tmp_path / "state" / "keys").mkdir(parents=True, mode=0o700)
    (tmp_path / "state" / "keys" / "watermark.key").write_bytes(KEY)
    return tmp_path / "model"


@pytest.fixture
def run(capsys, model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        try:
            code = main([*map(str, arguments)])
        except SystemExit as stop:
            code = stop.code
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


SAMPLE = ("sample", "model", "--num", NUM, "--seed", SEED, "--labels", "0-2", "--batch_size", 4)
STATE = ("--policy", "p.yaml", "--state", "state")


def pixels(model):
    """What the samples are, (6, 8, 8, 1), by the library: marked by the state's key."""
    import torch

    mark = (KEY, nonces_of(KEY, "local", SEED, NUM))
    options = {"condition": torch.tensor([0, 1, 2, 0, 1, 2]), "seed": SEED, "batch_size": 4, "watermark": mark}
    return to_uint8(generate(TrajectoryModel.from_pretrained(model), NUM, **options)).numpy()


def pixels_in(path):
    with Image.open(path) as image:
        return np.asarray(image)


@pytest.fixture
def policy(model, tmp_path):
    """A policy whose block list holds sample 4, with thresholds so that another sample is held: the nearest to it."""
    samples = pixels(model)
    BlockList.of([samples[4:5]]).save(tmp_path / "list")
    cosines = features_of(samples) @ features_of(samples[4:5])[0]
    near = np.argsort(-cosines)
    assert near[0] == 4
    between = float((cosines[near[1]] + cosines[near[2]]) / 2)
    above = float((1 + cosines[near[1]]) / 2)
    text = (
        f"thresholds: {{block_list: {{near: {{hold: {between}, block: {above}}}}}}}\nblock_list: {tmp_path / 'list'}\n"
    )
    (tmp_path / "p.yaml").write_text(text)
    return int(near[1])


def whole(folder):
    state = State.open(folder)
    findings = verify(state.store, state.store.record.signer.public, read_head(folder / "head.json"))
    state.store.close()
    return findings.whole


def names(folder):
    return sorted(path.name for path in folder.glob("*.png"))


def test_what_is_held_or_blocked_is_not_written_and_its_number_is_missing(run, policy, model, tmp_path):
    code, out, err = run(*SAMPLE, "--out", "out", *STATE)
    assert (code, err) == (0, "")
    passed = [n for n in range(NUM) if n not in (4, policy)]
    assert names(tmp_path / "out") == [f"{n:06d}.png" for n in passed]
    assert f"1 held by the policy and not written, number {policy}: ctm moderate list --state state" in out
    assert "1 blocked by the policy and not written, number 4\n" in out
    assert f"{NUM - 2} of {NUM} samples in out" in out
    state = State.open(tmp_path / "state")
    (held,) = state.store.held()
    with Image.open(io.BytesIO(state.store.picture(held.id).png)) as image:
        assert (np.asarray(image) == pixels(model)[policy, ..., 0]).all()
    assert (held.claim["seed"], held.claim["index"], held.claim["condition"]) == (SEED, policy, policy % 3)
    written = {hashlib.sha256((tmp_path / "out" / f"{n:06d}.png").read_bytes()).hexdigest() for n in passed}
    assert {kept.sha256 for kept in state.store.listed("served")} == written
    state.store.close()
    assert whole(tmp_path / "state")


def test_the_same_command_again_judges_nothing_twice(run, policy, tmp_path):
    assert run(*SAMPLE, "--out", "out", *STATE)[0] == 0
    (tmp_path / "out" / names(tmp_path / "out")[0]).unlink()
    kept = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.png")}
    code, out, _ = run(*SAMPLE, "--out", "out", *STATE)
    assert code == 0
    assert f"{NUM - 2} of {NUM} samples" in out
    assert len(names(tmp_path / "out")) == NUM - 2
    assert kept.items() <= {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.png")}.items()
    state = State.open(tmp_path / "state")
    assert len(state.store.held()) == 1
    assert len(state.store.listed("served")) == NUM - 2 + 1  # the one that was made again
    state.store.close()


def test_samples_of_another_policy_are_not_mixed(run, policy, tmp_path):
    assert run(*SAMPLE, "--out", "out", *STATE)[0] == 0
    (tmp_path / "p.yaml").write_text("thresholds: {}\n")
    code, _, err = run(*SAMPLE, "--out", "out", *STATE)
    assert code == 2
    assert "samples made with another policy" in err
    code, _, err = run(*SAMPLE, "--out", "out")  # without a policy it would write what is withheld
    assert code == 2
    assert "samples made with another policy, watermark" in err
    assert run(*SAMPLE, "--out", "plain")[0] == 0
    code, _, err = run(*SAMPLE, "--out", "plain", *STATE)
    assert code == 2
    assert "samples made with another policy, watermark" in err


def test_one_picture_has_empty_cells(run, policy, model, tmp_path):
    (tmp_path / "open.yaml").write_text("thresholds: {}\n")
    assert run(*SAMPLE, "--out", "plain.png", "--policy", "open.yaml", "--state", "state")[0] == 0
    assert run(*SAMPLE, "--out", "screened.png", *STATE)[0] == 0
    plain, screened = (np.asarray(Image.open(tmp_path / f"{name}.png")) for name in ("plain", "screened"))
    assert plain.shape == screened.shape
    side = plain.shape[1] // 3 if plain.shape[1] > plain.shape[0] else plain.shape[0] // 3
    changed = np.argwhere(plain != screened)
    places = {(int(row) // side) * 3 + int(column) // side for row, column in changed}
    assert places == {4, policy}
    assert len(np.unique(screened[screened != plain])) == 1  # the ground


def test_without_a_policy_nothing_is_kept_and_nothing_is_marked(run, model, tmp_path):
    (tmp_path / "p.yaml").write_text("thresholds: {}\n")
    assert run(*SAMPLE, "--out", "plain")[0] == 0
    assert [path.name for path in (tmp_path / "state").iterdir()] == ["keys"]
    assert "policy" not in json.loads((tmp_path / "plain" / "sample.json").read_text())
    code, out, _ = run(*SAMPLE, "--out", "passed", *STATE)
    assert code == 0
    assert "6 passed unseen: the policy has no filter\n" in out
    marked = pixels(model)
    for number, name in enumerate(names(tmp_path / "plain")):
        assert (pixels_in(tmp_path / "passed" / name) == marked[number, ..., 0]).all()
        assert (pixels_in(tmp_path / "plain" / name) != marked[number, ..., 0]).any()
        assert b"ctm:" not in (tmp_path / "plain" / name).read_bytes()


@pytest.mark.parametrize("out", ["out", "out.png"])
def test_small_pictures_are_held_if_the_policy_says_so(run, tmp_path, out):
    """With the shipped classifier, which judges nothing under 64 pixels."""
    (tmp_path / "p.yaml").write_text("small_images: hold\n")
    code, said, _ = run(*SAMPLE, "--out", out, *STATE)
    assert code == 0
    assert "6 held by the policy and not written, numbers 0, 1, 2, 3, 4, 5: ctm moderate list" in said
    assert "none of 6 samples is written" in said
    assert not (tmp_path / "out.png").exists()
    assert names(tmp_path / "out") == []


@pytest.mark.parametrize(
    ("text", "arguments", "message"),
    [
        ("max_images: 5", (), "at most 5 images, got 6"),
        ("classes: {blocked: [1]}", (), "the policy does not allow the class 1"),
        ("classes: {blocked: [9]}", ("--cfg", "0"), "with guidance below 1"),
        ("thresholds: {}", ("--out", "x.npz"), "with --policy samples are pictures"),
        ("max_imags: 5", (), "p.yaml: 'max_imags' is no setting: did you mean max_images?"),
        ("thresholds: {weapons: {gun: {block: 1}}}", (), "the filter 'weapons', which is not there"),
        ("block_list: nothing\nthresholds: {block_list: {near: {block: 1}}}", (), "No such file"),
    ],
)
def test_what_the_policy_forbids_is_refused_before_anything_is_made(run, tmp_path, text, arguments, message):
    (tmp_path / "p.yaml").write_text(text + "\n")
    code, _, err = run(*SAMPLE, "--out", "out", *arguments, *STATE)
    assert code == 2
    assert message in err
    assert not (tmp_path / "out").exists()


def test_a_class_that_was_drawn_and_is_blocked_asks_for_labels(run, small_ctm, model, tmp_path):
    """By its name and number, once where they are the same; and no advice to ask for another where none was asked for."""
    for names, shown in (([str(i) for i in range(10)], "3"), ([f"n{i}" for i in range(10)], "n3 3")):
        small_ctm.class_names = names
        small_ctm.save_pretrained(model)
        (tmp_path / "p.yaml").write_text("classes: {blocked: [3]}\n")
        code, _, err = run("sample", "model", "--num", 64, "--out", "out", *STATE)
        assert code == 2
        said = f"the policy does not allow the class {shown}, which was drawn for a sample: name classes by --labels"
        assert said in " ".join(err.split())
        code, _, err = run("sample", "model", "--labels", 3, "--out", "out", *STATE)
        assert code == 2
        assert f"the policy does not allow the class {shown}: ask for another" in " ".join(err.split())


def test_a_state_without_a_policy_is_refused(run):
    code, _, err = run(*SAMPLE, "--state", "state")
    assert code == 2
    assert "--state state belongs to --policy FILE" in err


@pytest.fixture
def picture(tmp_path):
    values = np.random.default_rng(0).integers(0, 256, (8, 8), dtype=np.uint8)
    Image.fromarray(values).save(tmp_path / "in.png")
    return values


EDIT = ("edit", "stroke", "model", "in.png", "--sigma", 1, "--num", 4, "--labels", 0)


def test_edits_are_screened_before_and_after(run, picture, tmp_path):
    (tmp_path / "p.yaml").write_text("thresholds: {}\n")
    assert run(*EDIT, "--out", "plain")[0] == 0
    code, out, _ = run(*EDIT, "--out", "passed", *STATE)
    assert code == 0
    assert "4 of 4 results in passed" in out
    for name in names(tmp_path / "plain"):
        assert (pixels_in(tmp_path / "plain" / name) == pixels_in(tmp_path / "passed" / name)).all()
    with Image.open(tmp_path / "plain" / "000002.png") as image:
        BlockList.of([np.asarray(image)[None, ..., None]]).save(tmp_path / "list")
    (tmp_path / "p.yaml").write_text("thresholds: {block_list: {near: {hold: 0.99999}}}\nblock_list: ../list\n")
    code, out, _ = run(*EDIT, "--out", "screened", *STATE)
    assert code == 0
    assert "1 held by the policy and not written, number 2" in out
    assert "3 of 4 results in screened" in out
    assert names(tmp_path / "screened") == ["000000.png", "000001.png", "000003.png", "input.png"]
    assert run(*EDIT, "--out", "plain", *STATE)[0] == 0  # there the earlier edit has a number 2, which is now withheld
    assert names(tmp_path / "plain") == ["000000.png", "000001.png", "000003.png", "input.png"]
    assert run(*EDIT, "--out", "strip.png", *STATE)[0] == 0
    assert whole(tmp_path / "state")


def test_a_picture_that_the_filters_do_not_pass_is_not_edited(run, picture, tmp_path):
    BlockList.of([picture[None, ..., None]]).save(tmp_path / "list")
    (tmp_path / "p.yaml").write_text("thresholds: {block_list: {near: {hold: 0.999}}}\nblock_list: ../list\n")
    code, _, err = run(*EDIT, "--out", "out", *STATE)
    assert code == 2
    assert "the policy does not let in.png be used (the upload: block_list: near 1, from 0.999 on: hold)" in err
    assert not (tmp_path / "out").exists()
    state = State.open(tmp_path / "state")
    assert state.store.held() == []  # an upload is not kept
    state.store.close()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("uploads: nobody\nthresholds: {}", "the policy allows uploads to nobody only"),
        ("max_images: 3\nthresholds: {}", "at most 3 images, got 4"),
        ("classes: {blocked: [0]}\nthresholds: {}", "the policy does not allow the class 0"),
    ],
)
def test_edits_that_the_policy_forbids_are_refused(run, picture, tmp_path, text, message):
    (tmp_path / "p.yaml").write_text(text + "\n")
    code, _, err = run(*EDIT, "--out", "out", *STATE)
    assert code == 2
    assert message in err
