import os
import tracemalloc

import pytest
import torch

import ctm
from ctm.networks import ADM, MLP, DDPMpp, DhariwalUNet
from ctm.teachers.checkpoints import read_checkpoint, write_official
from ctm.teachers.official import to_official

from ..conftest import random_weights
from .edm_files import Persistent, edm_object, write_edm, write_pickle

SMALL = {"channels": 16, "channel_mult": [1, 2], "blocks": 1, "attention": [4]}
ADM_SET = {"image_size": 8, "head_channels": 16}


def song(s=True, classes=0, **more):
    return random_weights(DDPMpp((3, 8, 8), classes, **SMALL, s_embedding=s, **more))


def adm(s=True):
    return random_weights(ADM((3, 8, 8), 5, **{**SMALL, "channels": 32}, head_channels=16, s_embedding=s))


def official(network, **more) -> dict:
    return to_official(network, **({"qkv_order": "three-heads-dim"} if isinstance(network, ADM) else {}), **more)


def saved(path, state):
    torch.save(state, path)
    return path


def edm_file(path, network, **more):
    given = {"img_resolution": 8, "img_channels": 3, "label_dim": 0, "model_type": "SongUNet", "dropout": 0.13}
    return write_edm(path, official(network), {**given, **more})


def same_network(model, network) -> bool:
    ours, others = model.network.state_dict(), network.state_dict()
    return ours.keys() == others.keys() and all(torch.equal(ours[name], others[name]) for name in ours)


def test_an_edm_pickle_needs_no_settings(tmp_path):
    network = song(s=False, classes=0)
    read = read_checkpoint(edm_file(tmp_path / "net.pkl", network))
    assert isinstance(read.model, ctm.DiffusionModel)
    assert same_network(read.model, network)
    assert (read.model.sigma_min, read.model.sigma_max, read.model.sigma_data) == (0.002, 80.0, 0.5)
    assert read.told == ["model = diffusion", "sigma_data = 0.5"]
    assert [line.split(" (")[0] for line in read.assumed] == ["sigma_min = 0.002", "sigma_max = 80"]
    assert "EDM's SongUNet (DDPMpp), 8×8 with 3 channels, no classes, no s layers" in read.found[-1]
    assert read.model.network.init_args["dropout"] == 0.13
    assert not read.model.training


def test_heads_come_from_the_pickles_blocks(tmp_path):
    small = {**SMALL, "channels": 32}
    network = random_weights(DhariwalUNet((3, 8, 8), **small, head_channels=16, s_embedding=False))
    given = {"img_resolution": 8, "img_channels": 3, "model_type": "DhariwalUNet"}
    read = read_checkpoint(write_edm(tmp_path / "net.pkl", official(network), given, head_channels=16))
    assert "head_channels = 16" in read.told
    assert same_network(read.model, network)
    chosen = read_checkpoint(tmp_path / "net.pkl", settings={"head_channels": 32, "sigma_max": 40})
    assert chosen.chosen == ["head_channels = 32", "sigma_max = 40"]
    assert chosen.model.sigma_max == 40


def test_an_edm_pickle_that_says_little(tmp_path):
    """Only the tree of modules: the defaults of EDM's classes, each said."""
    wide = random_weights(DhariwalUNet((3, 8, 8), **{**SMALL, "channels": 64}, s_embedding=False))
    given = {"img_resolution": 8, "img_channels": 3, "model_type": "DhariwalUNet"}
    bare = edm_object(official(wide), given)
    waiting = [bare]
    while waiting:
        module = waiting.pop()
        inside = module.state if isinstance(module, Persistent) else module.__dict__
        for name in set(inside) & {"num_heads", "sigma_data", "sigma_min", "sigma_max", "_init_kwargs", "_init_args"}:
            del inside[name]
        waiting += [child for child in inside["_modules"].values() if child is not None]
    read = read_checkpoint(write_pickle(tmp_path / "net.pkl", {"ema": bare}))
    assert same_network(read.model, wide)
    assert "head_channels = 64 (DhariwalUNet's own, and EDM2's)" in read.assumed
    assert "sigma_data = 0.5 (EDMPrecond's default)" in read.assumed


def test_a_preset_gives_what_a_state_dict_lacks(tmp_path):
    path = saved(tmp_path / "model.pt", official(song()))
    read = read_checkpoint(path, preset="ctm-cifar10")
    assert isinstance(read.model, ctm.TrajectoryModel)
    assert read.told == ["model = trajectory"]
    assert "inner = edm (preset ctm-cifar10)" in read.assumed
    assert "sigma_data = 0.5 (preset ctm-cifar10)" in read.assumed
    by_hand = {"sigma_data": 0.7, "sigma_min": 0.01, "sigma_max": 50, "inner": "no", "outer": "variance"}
    model = read_checkpoint(path, settings=by_hand).model
    assert (model.sigma_data, model.sigma_min, model.inner, model.outer) == (0.7, 0.01, "no", "variance")


@pytest.mark.parametrize("order", ["three-heads-dim", "heads-three-dim"])
def test_the_order_of_attention_channels(tmp_path, order):
    network = adm()
    path = saved(tmp_path / "model.pt", to_official(network, qkv_order=order))
    read = read_checkpoint(path, preset="ctm-imagenet64", settings={**ADM_SET, "qkv_order": order})
    assert same_network(read.model, network)
    assert (read.model.num_classes, read.model.shape) == (5, (3, 8, 8))


def test_a_consistency_model(tmp_path):
    """f(x, σ_min) = x; it jumps to the end only, and multistep sampling is all it needs."""
    path = saved(tmp_path / "cd_imagenet64_lpips.pt", official(adm(s=False)))
    model = read_checkpoint(path, preset="cm-imagenet64", settings=ADM_SET).model
    assert isinstance(model, ctm.ConsistencyModel)
    x, low = torch.randn(2, 3, 8, 8), torch.full((2,), 0.002)
    assert torch.equal(model.jump(x, low, low), x)
    assert torch.equal(model.jump(x, 9 + low, low), model.denoise(x, 9 + low))
    with pytest.raises(ValueError, match=r"a consistency model jumps to sigma_min = 0.002 only, got s = \[1, 1\]"):
        model.jump(x, 9 + low, torch.ones(2))
    assert ctm.generate(model, 2, steps=3, gamma=1.0).isfinite().all()
    model.save_pretrained(tmp_path / "m")
    again = ctm.load_model(tmp_path / "m")
    assert isinstance(again, ctm.ConsistencyModel)
    assert torch.equal(again.denoise(x, 9 + low), model.denoise(x, 9 + low))


def test_a_half_precision_file_becomes_float32(tmp_path):
    state = {name: value.half() for name, value in official(song()).items()}
    model = read_checkpoint(saved(tmp_path / "h.pt", state), preset="ctm-cifar10").model
    assert {p.dtype for p in model.parameters()} == {torch.float32}


class TestMistakes:
    """Each is one sentence with the file's name; nothing else is wrong with the file."""

    def says(self, path, *parts: str, **options):
        with pytest.raises(ValueError, match=r"(?s).") as caught:
            read_checkpoint(path, **options)
        text = str(caught.value)
        assert text.startswith(str(path))
        assert "\n" not in text
        for part in parts:
            assert part in text, text

    def test_needed_settings(self, tmp_path):
        path = saved(tmp_path / "m.pt", official(adm()))
        self.says(
            path, "this is the ADM U-Net with s layers; its names and shapes do not tell image_size, head_channels, "
        )
        self.says(
            path, "qkv_order, sigma_data, sigma_min, sigma_max, inner, outer. Give --preset ctm-imagenet64, or --set "
        )
        self.says(
            path, "do not tell outer", settings={**ADM_SET, "qkv_order": "three-heads-dim", **FIVE, "inner": "edm"}
        )
        plain = saved(tmp_path / "p.pt", official(adm(s=False)))
        self.says(plain, "without s layers", "model", "Give --preset edm-imagenet64 or cm-imagenet64")

    def test_no_s_layers_where_a_ctm_is_asked(self, tmp_path):
        path = saved(tmp_path / "cd.pt", official(adm(s=False)))
        said = "this looks like a consistency or diffusion model, not a CTM as preset ctm-imagenet64 says"
        self.says(
            path, said, "time_embed_s.0.weight", "--preset edm-imagenet64 or cm-imagenet64", preset="ctm-imagenet64"
        )
        edm = edm_file(tmp_path / "net.pkl", song(s=False))
        self.says(edm, "not a CTM as --set model says", "map_layer0_s.weight", settings={"model": "trajectory"})

    def test_s_layers_where_another_model_is_asked(self, tmp_path):
        path = saved(tmp_path / "m.pt", official(adm()))
        self.says(
            path, "so it is a CTM, not the consistency model that preset cm-imagenet64 says", preset="cm-imagenet64"
        )

    def test_another_network_than_the_preset(self, tmp_path):
        path = saved(tmp_path / "m.pt", official(adm()))
        self.says(
            path, "preset ctm-cifar10 is for EDM's SongUNet, but these are the keys of the ADM", preset="ctm-cifar10"
        )
        edm = edm_file(tmp_path / "net.pkl", song(s=False))
        self.says(edm, "is for the ADM U-Net, but these are the keys of EDM's SongUNet", preset="cm-imagenet64")

    @pytest.mark.parametrize("network", [song, adm])
    def test_missing_and_unexpected_keys(self, tmp_path, network):
        state = official(network())
        last = [name for name in state if "conv1" in name or "out_layers.3" in name][-1]
        options = {"preset": "ctm-cifar10"} if network is song else {"preset": "ctm-imagenet64", "settings": ADM_SET}
        without = {name: value for name, value in state.items() if name != last}
        self.says(saved(tmp_path / "a.pt", without), f"missing key {last.removeprefix('model.')}", **options)
        extra = {**state, f"{'model.' if network is song else ''}lora.down": torch.ones(1)}
        self.says(saved(tmp_path / "b.pt", extra), "unexpected key lora.down", **options)
        odd = {**state, last: state[last][:1]}
        self.says(saved(tmp_path / "c.pt", odd), last.removeprefix("model."), **options)

    def test_other_state_dicts(self, tmp_path):
        self.says(saved(tmp_path / "a.pt", torch.nn.Linear(2, 2).state_dict()), "no network known here", "bias, weight")
        names = {"time_embed.0.weight": torch.ones(2, 2), "input_blocks.0.0.weight": torch.ones(1, 1, 1, 1)}
        self.says(saved(tmp_path / "b.pt", names), "it lacks out.2.weight")
        shapes = {name: torch.ones(()) for name in official(adm())}
        self.says(saved(tmp_path / "c.pt", shapes), "has shape (), where an official network has")

    def test_weights_that_are_no_numbers(self, tmp_path):
        state = official(song())
        name = next(iter(state))
        state[name] = torch.full_like(state[name], float("nan"))
        self.says(saved(tmp_path / "a.pt", state), "not finite numbers", preset="ctm-cifar10")

    def test_settings_without_meaning(self, tmp_path):
        path = saved(tmp_path / "m.pt", official(song()))
        say = "image_size = 64 was set, but the file's names and shapes say 8"
        self.says(path, say, preset="ctm-cifar10", settings={"image_size": 64})
        read_checkpoint(path, preset="ctm-cifar10", settings={"image_size": 8, "resample_filter": [1, 1]})
        said = "head_channels has no meaning for EDM's SongUNet as this kind of model"
        self.says(path, said, preset="ctm-cifar10", settings={"head_channels": 8})
        plain = saved(tmp_path / "p.pt", official(song(s=False)))
        self.says(plain, "outer has no meaning for EDM's SongUNet", preset="edm-cifar10", settings={"outer": "euler"})
        with pytest.raises(ValueError, match="there is no preset 'best': presets are edm-cifar10, "):
            read_checkpoint(path, preset="best")
        with pytest.raises(ValueError, match="'speed' is no setting"):
            read_checkpoint(path, settings={"speed": 3})


FIVE = {"sigma_data": 0.5, "sigma_min": 0.002, "sigma_max": 80}


class TestLoadTeacher:
    def test_of_a_file(self, tmp_path, caplog):
        teacher = ctm.load_teacher(edm_file(tmp_path / "net.pkl", song(s=False)))
        assert not any(p.requires_grad for p in teacher.parameters())
        assert [record.levelname for record in caplog.records] == ["WARNING"] * 2
        assert "assumed sigma_min = 0.002 (EDM's sampling range" in caplog.text
        x, t = torch.randn(2, 3, 8, 8), torch.tensor([0.1, 10.0])
        assert teacher.denoise(x, t).shape == x.shape
        assert teacher.score(x, t).isfinite().all()

    def test_a_consistency_model_is_no_denoiser_and_that_is_said(self, tmp_path, caplog):
        path = saved(tmp_path / "cd.pt", official(adm(s=False)))
        ctm.load_teacher(path, preset="cm-imagenet64", settings=ADM_SET)
        assert "its weights can start a CTM, but its output is no denoiser" in caplog.text

    def test_settings_are_for_files(self, small_ctm, tmp_path):
        small_ctm.save_pretrained(tmp_path / "m")
        assert isinstance(ctm.load_teacher(tmp_path / "m"), ctm.TrajectoryModel)
        with pytest.raises(ValueError, match="is no checkpoint file: a model directory holds its settings"):
            ctm.load_teacher(tmp_path / "m", preset="edm-cifar10")

    def test_a_file_that_is_not_there(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"absent\.pkl is no file"):
            ctm.load_teacher(tmp_path / "absent.pkl")

    def test_a_pickle_that_runs_something(self, tmp_path):
        class Bad:
            def __reduce__(self):
                return os.system, (f"touch {tmp_path / 'ran'}",)

        with pytest.raises(ValueError, match="Refused; nothing in it was run"):
            ctm.load_teacher(write_pickle(tmp_path / "bad.pkl", {"ema": Bad()}))
        assert not (tmp_path / "ran").exists()

    def test_it_teaches(self, tmp_path):
        """A student of the same network starts from an EDM pickle's weights."""
        from ctm.training.student import start_from_teacher

        teacher = ctm.load_teacher(edm_file(tmp_path / "net.pkl", song(s=False)))
        student = ctm.TrajectoryModel(DDPMpp((3, 8, 8), **SMALL), shape=(3, 8, 8))
        new = start_from_teacher(student, teacher).new
        assert new
        assert all(name.startswith("s_embedding") or "s_affine" in name for name in new)
        x, t = torch.randn(2, 3, 8, 8), torch.tensor([0.1, 10.0])
        torch.testing.assert_close(student.denoise(x, t), teacher.denoise(x, t))


def test_writing_the_official_form(tmp_path):
    network = song()
    model = ctm.TrajectoryModel(network, shape=(3, 8, 8))
    write_official(model, tmp_path / "model.pt")
    back = torch.load(tmp_path / "model.pt", weights_only=True)
    assert back.keys() == official(network).keys()
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt"]
    with pytest.raises(ValueError, match="a MLP has no official form"):
        write_official(ctm.TrajectoryModel(MLP((1, 8, 8)), shape=(1, 8, 8)), tmp_path / "mlp.pt")
    with pytest.raises(ValueError, match="give qkv_order"):
        write_official(ctm.TrajectoryModel(adm(), shape=(3, 8, 8)), tmp_path / "adm.pt")
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt"]


def test_reading_copies_no_weights(tmp_path):
    """20 MB of weights come through without a copy of them on python's side, and as the file's own mapped memory."""
    network = DDPMpp((3, 8, 8), channels=128, channel_mult=[2], blocks=1, attention=[])
    path = saved(tmp_path / "big.pt", official(network))
    assert path.stat().st_size > 20e6
    tracemalloc.start()
    model = read_checkpoint(path, preset="ctm-cifar10").model
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4e6
    assert same_network(model, network)
