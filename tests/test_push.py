"""A model to the hub and back, against a local stand-in of its HTTP interface (tests/hub_stand_in.py)."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from huggingface_hub import constants

from ctm import TrajectoryModel, load_model
from ctm.data import load_images
from ctm.models.card import card

from .commands.test_cli import run, sentence
from .hub_stand_in import READER, WRITER, standing_in


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """The stand-in, asked in place of the hub, with a cache of its own and no token."""
    with standing_in() as (hub, address):
        monkeypatch.setattr(constants, "ENDPOINT", address)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # large files by LFS, which the stand-in speaks
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
            monkeypatch.delenv(name, raising=False)
        hub.address = address
        yield hub


def same(a, b):
    return all(torch.equal(value, b.state_dict()[name]) for name, value in a.state_dict().items())


def test_a_model_goes_to_the_hub_and_comes_back_by_revision_token_and_cache(hub, small_ctm, monkeypatch):
    said = {"facts": {"data": "digits", "teacher": "runs/teacher"}, "numbers": {"Fréchet": 1.25}}
    first = small_ctm.push_to_hub("ann/secret", token=WRITER, private=True, model_card_kwargs=said)
    with torch.no_grad():
        changed = TrajectoryModel(small_ctm.network, shape=(1, 8, 8), num_classes=10)
        old = {name: value.clone() for name, value in small_ctm.state_dict().items()}
        next(changed.parameters()).add_(1.0)
    second = changed.push_to_hub("ann/secret", token=WRITER)
    small_ctm.load_state_dict(old)
    commits = [address.rpartition("/")[2] for address in (first, second)]
    assert first.startswith(f"{hub.address}/ann/secret/commit/")
    files = hub.repositories["ann/secret"]["commits"][commits[0]]
    assert set(files) == {"config.json", "model.safetensors", "README.md"}
    text = files["README.md"].decode()
    assert all(words in text for words in ("| data | digits |", "| teacher | runs/teacher |", "| Fréchet | 1.25 |"))
    for missing in ({}, {"token": False}):
        with pytest.raises(FileNotFoundError, match="no such repository, or it is private and the token is missing"):
            TrajectoryModel.from_pretrained("ann/secret", **missing)
    with pytest.raises(FileNotFoundError, match="it has no revision v9: give a branch, a tag or a commit"):
        TrajectoryModel.from_pretrained("ann/secret", revision="v9", token=READER)
    by_commit = TrajectoryModel.from_pretrained("ann/secret", revision=commits[0], token=READER)
    assert same(small_ctm, by_commit)
    newest = TrajectoryModel.from_pretrained("ann/secret", token=READER)
    assert not same(small_ctm, newest)
    assert not newest.training
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    asked = len(hub.asked)
    assert same(small_ctm, TrajectoryModel.from_pretrained("ann/secret", revision=commits[0]))
    assert same(newest, load_model("ann/secret"))
    with pytest.raises(FileNotFoundError, match="it is not in the cache, and the hub was not asked"):
        TrajectoryModel.from_pretrained("ann/other")
    assert len(hub.asked) == asked


def test_what_the_hub_refuses_is_a_sentence(hub, small_ctm, monkeypatch, tmp_path, capsys):
    with pytest.raises(PermissionError, match="the hub takes nothing for ann/m without a token that it knows: log in"):
        small_ctm.push_to_hub("ann/m")
    with pytest.raises(PermissionError, match="does not let this token write to ann/m: give a token with write access"):
        small_ctm.push_to_hub("ann/m", token=READER)
    with pytest.raises(PermissionError, match="does not let this token write to bob/m"):
        small_ctm.push_to_hub("bob/m", token=WRITER)
    with pytest.raises(ValueError, match="ann/m/n is no name of a hub repository: give OWNER/NAME"):
        small_ctm.push_to_hub("ann/m/n", token=WRITER)
    assert not hub.repositories
    small_ctm.save_pretrained(tmp_path / "model")
    said = sentence(capsys, "export", tmp_path / "model", "ann/m", "--to", "hub")
    assert "without a token that it knows: log in by `hf auth login`, or set HF_TOKEN" in said
    said = sentence(capsys, "export", tmp_path / "model", tmp_path / "out", "--to", "diffusers", "--private")
    assert "--evaluation, --private and --branch are for --to hub" in said
    said = sentence(capsys, "export", "ann/there", "ann/m", "--to", "hub")
    assert "--to hub sends a model or run directory, and ann/there is none" in said
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ConnectionError, match=r"the upload of ann/m to http://127\.0\.0\.1:9 failed \(.*\): try again"):
        small_ctm.push_to_hub("ann/m", token=WRITER)


RECIPE = "data: {name: digits, batch_size: 8}\nteacher: runs/teacher\nsteps: 20\n"


@pytest.fixture
def made_run(small_ctm, tmp_path):
    """The files of a run: its model with the run's card, its recipe, and a grid of samples."""
    place = tmp_path / "run"
    small_ctm.save_pretrained(place / "model")
    facts = {"data": "digits; 1797 images", "teacher": "runs/teacher", "objectives": "Matching"}
    (place / "model" / "README.md").write_text(card(small_ctm, facts))
    (place / "config.yaml").write_text(RECIPE)
    (place / "samples").mkdir()
    (place / "samples" / "step-20.png").write_bytes(b"\x89PNG grid")
    return place


@pytest.mark.slow
def test_a_runs_card_says_how_it_was_made_how_good_it_is_and_for_what(
    hub, made_run, tmp_path, session_cache, monkeypatch, capsys
):
    monkeypatch.setenv("CTM_CACHE", str(session_cache))
    monkeypatch.setenv("HF_TOKEN", WRITER)
    images = load_images("digits")
    np.savez(tmp_path / "digits.npz", images=images.pixels[:120], labels=images.labels[:120])
    asked = ["--data", tmp_path / "digits.npz", "--features", "classifier", "--num", 40, "--steps", 1]
    assert run(capsys, "evaluate", made_run, *asked, "--out", tmp_path / "found")[0] == 0
    code, printed, err = run(capsys, "export", made_run, "ann/fast", "--to", "hub", "--evaluation", tmp_path / "found")
    assert code == 0, err
    assert "the card does not say" not in printed
    _, files = hub.files("ann/fast", "main")
    assert set(files) == {"README.md", "config.json", "model.safetensors", "quality.png", "recipe.yaml", "samples.png"}
    text = files["README.md"].decode()
    number = json.loads((tmp_path / "found" / "result.json").read_text())["rows"][0]["numbers"]["frechet"]["value"]
    for words in (
        "| data | digits; 1797 images |",
        "| teacher | runs/teacher |",
        "![samples](samples.png)",
        "| model, 1 |",
        "* samples of each row: 40",
        "* feature network: classifier",
        "steps: 20",
        "## Intended use",
        "## Limits",
    ):
        assert words in text, words
    assert f"{number:.3g}"[:3] in text
    assert text.startswith("---\nlibrary_name: ctm-torch")
    assert files["recipe.yaml"].decode() == RECIPE
    assert same(load_model(made_run), load_model("ann/fast"))


def test_what_a_card_cannot_say_is_printed_and_a_branch_is_another_place(
    hub, made_run, small_ctm, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("HF_TOKEN", WRITER)
    code, printed, err = run(capsys, "export", made_run, "ann/fast", "--to", "hub", "--private", "--branch", "v1")
    assert code == 0, err
    assert printed.splitlines()[0] == (
        "the card does not say numbers with their protocol: give --evaluation, the folder of a ctm evaluate"
    )
    assert hub.repositories["ann/fast"]["private"]
    assert "step-20.png" in hub.files("ann/fast", "v1")[1]
    assert hub.files("ann/fast", "main")[1] == {}
    small_ctm.save_pretrained(tmp_path / "plain")
    printed = run(capsys, "export", tmp_path / "plain", "ann/plain", "--to", "hub")[1]
    assert [line.split(":")[0].removeprefix("the card does not say ") for line in printed.splitlines()[:5]] == [
        "the data",
        "the teacher",
        "the recipe",
        "numbers with their protocol",
        "how samples look",
    ]


SCRIPT = """
import ctm, sys
from ctm.networks import MLP
model = ctm.TrajectoryModel(MLP((1, 8, 8), 0, width=16, blocks=1, embedding=8), shape=(1, 8, 8))
model.push_to_hub("ann/mine")
print(type(ctm.load_model("ann/mine")).__name__)
"""


@pytest.mark.slow
def test_hf_endpoint_is_the_address(small_ctm, tmp_path):
    """In a process of its own, as a user sets it: HF_ENDPOINT and HF_TOKEN in the environment."""
    with standing_in() as (hub, address):
        there = {
            "HF_ENDPOINT": address,
            "HF_TOKEN": WRITER,
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HOME": str(tmp_path / "home"),
        }
        command = [sys.executable, "-c", SCRIPT]
        done = subprocess.run(command, env={**os.environ, **there}, capture_output=True, text=True, timeout=300)
        assert done.stdout.split() == ["TrajectoryModel"], done.stderr
        assert "model.safetensors" in hub.files("ann/mine", "main")[1]
