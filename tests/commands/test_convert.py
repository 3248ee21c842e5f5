import os
import stat

import pytest
import torch

import ctm
from ctm.networks import DDPMpp
from ctm.teachers.official import to_official

from ..conftest import random_weights
from ..teachers.edm_files import write_edm, write_pickle
from .test_cli import run, sentence

EDM = {"img_resolution": 8, "img_channels": 3, "label_dim": 4, "model_type": "SongUNet"}


def network(s=True) -> DDPMpp:
    small = {"channels": 16, "channel_mult": [1, 2], "blocks": 1, "attention": [4]}
    return random_weights(DDPMpp((3, 8, 8), 4, **small, s_embedding=s))


@pytest.fixture
def edm(tmp_path):
    return write_edm(tmp_path / "edm.pkl", to_official(network(s=False)), EDM)


@pytest.fixture
def official(tmp_path):
    torch.save(to_official(network()), tmp_path / "ema_0.999.pt")
    return tmp_path / "ema_0.999.pt"


def test_an_edm_pickle_becomes_a_directory_that_samples(capsys, edm, tmp_path):
    out = tmp_path / "models" / "edm"
    code, printed, _ = run(capsys, "convert", edm, out)
    assert code == 0
    assert printed.splitlines() == [
        "found: edm.pkl: an EDM pickle, EDMPrecond around SongUNet (its code was not run)",
        "found: a diffusion model: EDM's SongUNet (DDPMpp), 8×8 with 3 channels, 4 classes, no s layers, "
        "0.189 million parameters",
        "told by the file: model = diffusion",
        "told by the file: sigma_data = 0.5",
        "assumed: sigma_min = 0.002 (EDM's sampling range; the file gives no end)",
        "assumed: sigma_max = 80 (EDM's sampling range; the file gives no end)",
        f"written: {out}",
    ]
    assert sorted(path.name for path in out.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    modes = {stat.S_IMODE(path.stat().st_mode) for path in out.iterdir()}
    assert len(modes) == 1
    assert [path.name for path in out.parent.iterdir()] == ["edm"]
    assert stat.S_IMODE(out.stat().st_mode) == stat.S_IMODE((tmp_path / "models").stat().st_mode)
    assert run(capsys, "sample", out, "--num", 2, "--steps", 3, "--out", tmp_path / "s.npz")[0] == 0


def test_a_ctm_there_and_back(capsys, official, tmp_path):
    options = ["--preset", "ctm-cifar10", "--set", "outer=variance", "--set", "sigma_data=0.7"]
    code, printed, _ = run(capsys, "convert", official, tmp_path / "out", *options)
    assert code == 0
    for line in (
        "told by the file: model = trajectory",
        "set: outer = variance",
        "set: sigma_data = 0.7",
        "assumed: inner = edm (preset ctm-cifar10)",
    ):
        assert line in printed.splitlines()
    model = ctm.load_model(tmp_path / "out")
    assert (model.outer, model.sigma_data) == ("variance", 0.7)
    code, printed, _ = run(capsys, "convert", tmp_path / "out", tmp_path / "back.pt")
    assert code == 0
    assert "outer = variance" in printed
    back, given = (torch.load(path, weights_only=True) for path in (tmp_path / "back.pt", official))
    assert back.keys() == given.keys()
    assert all(torch.equal(back[name], given[name]) for name in given)


def test_one_part_of_a_file_with_several(capsys, tmp_path):
    state = to_official(network())
    torch.save({"model": state, "target": {k: v + 1 for k, v in state.items() if "filter" not in k}}, tmp_path / "x.pt")
    options = ["--preset", "ctm-cifar10", "--part", "model"]
    code, printed, _ = run(capsys, "convert", tmp_path / "x.pt", tmp_path / "out", *options)
    assert code == 0
    assert "found: read part 'model' of model, target" in printed


def malicious(path):
    class Bad:
        def __reduce__(self):
            return os.system, (f"touch {path.parent / 'ran'}",)

    return write_pickle(path, {"ema": Bad()})


def mistaken(tmp_path, what):
    """The file of one mistake."""
    path = tmp_path / "given.pt"
    state = to_official(network())
    last = "model.dec.8x8_block0.conv1.weight"
    writers = {
        "absent": lambda: None,
        "empty": lambda: path.write_bytes(b""),
        "text": lambda: path.write_text("<html>not found</html>"),
        "malicious": lambda: malicious(path),
        "cut": lambda: path.write_bytes(write_edm(path, state, EDM).read_bytes()[:-500]),
        "cut torch": lambda: (torch.save(state, path), path.write_bytes(path.read_bytes()[:-500])),
        "other": lambda: torch.save(torch.nn.Linear(2, 2).state_dict(), path),
        "missing": lambda: torch.save({name: state[name] for name in state if name != last}, path),
        "unexpected": lambda: torch.save({**state, "model.lora": torch.ones(1)}, path),
        "no s": lambda: torch.save(to_official(network(s=False)), path),
        "good": lambda: torch.save(state, path),
    }
    writers[what]()
    return path


@pytest.mark.parametrize(
    ("what", "options", "message"),
    [
        ("absent", [], "given.pt is no file: give a checkpoint (.pkl, .pt) or a model directory"),
        ("empty", [], "is neither an EDM pickle nor a file of torch.save (it is empty)"),
        ("text", [], "it begins like a web page"),
        ("malicious", [], "system, which a network's file does not need. Refused; nothing in it was run"),
        ("cut", [], "given.pt is cut short or no pickle"),
        ("cut torch", [], "given.pt is cut short or damaged"),
        ("other", [], "the state dict of no network known here"),
        ("missing", ["--preset", "ctm-cifar10"], "missing key dec.8x8_block0.conv1.weight"),
        ("unexpected", ["--preset", "ctm-cifar10"], "unexpected key lora"),
        ("no s", ["--preset", "ctm-cifar10"], "this looks like a consistency or diffusion model, not a CTM"),
        ("good", [], "do not tell sigma_data, sigma_min, sigma_max, inner, outer. Give --preset ctm-cifar10"),
        ("good", ["--preset", "edm-cifar10"], "this has s layers, so it is a CTM, not the diffusion model"),
        ("good", ["--preset", "ctm-imagenet64"], "preset ctm-imagenet64 is for the ADM U-Net"),
        ("good", ["--preset", "mine"], "there is no preset 'mine': presets are edm-cifar10"),
        ("good", ["--set", "sigma_data"], "--set takes key=value"),
        ("good", ["--set", "speed=3"], "'speed' is no setting of a checkpoint"),
        ("good", ["--part", "ema"], "holds one state dict and no parts"),
    ],
)
def test_mistakes_are_one_sentence_and_write_nothing(capsys, tmp_path, what, options, message):
    path = mistaken(tmp_path, what)
    before = set(tmp_path.iterdir())
    assert message in sentence(capsys, "convert", path, tmp_path / "out", *options)
    assert set(tmp_path.iterdir()) == before


def test_targets_that_do_not_fit(capsys, edm, official, tmp_path, small_ctm):
    small_ctm.save_pretrained(tmp_path / "mlp")
    assert "is there already" in sentence(capsys, "convert", edm, tmp_path / "mlp")
    assert "is there already" in sentence(capsys, "convert", tmp_path / "mlp", official)
    assert "is a checkpoint already" in sentence(capsys, "convert", official, tmp_path / "new.pt")
    assert "is a directory: OUT must end in .pt" in sentence(capsys, "convert", tmp_path / "mlp", tmp_path / "out")
    assert "a MLP has no official form" in sentence(capsys, "convert", tmp_path / "mlp", tmp_path / "new.pt")
    mistake = sentence(capsys, "convert", tmp_path / "mlp", tmp_path / "new.pt", "--set", "sigma_data=1")
    assert "only --set qkv_order" in mistake
    assert not (tmp_path / "new.pt").exists()
    (tmp_path / "empty").mkdir()
    assert run(capsys, "convert", edm, tmp_path / "empty")[0] == 0


def test_nothing_is_left_where_writing_fails(capsys, edm, tmp_path, monkeypatch):
    def full(self, directory):
        (directory / "config.json").write_text("{}")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ctm.DiffusionModel, "_save_pretrained", full)
    before = set(tmp_path.iterdir())
    assert "out: No space left on device" in sentence(capsys, "convert", edm, tmp_path / "out")
    assert set(tmp_path.iterdir()) == before
