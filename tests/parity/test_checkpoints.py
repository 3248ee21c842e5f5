"""Official checkpoints through `ctm convert` and `load_teacher`, against what the official networks computed."""

import re

import pytest
import torch
from torch import Tensor, nn

import ctm
from ctm.cli import main
from ctm.noise import match_dims
from ctm.parametrization import output_scalings
from ctm.teachers.presets import parse_settings

from ..teachers.edm_files import write_edm
from . import vectors
from .test_networks import CTM, EDM, head_channels, official_params

KEPT = ("img_resolution", "img_channels", "label_dim", "augment_dim", "model_type", "model_channels", "channel_mult")
LEVELS = {"sigma_data": 0.5, "sigma_min": 0.002, "sigma_max": 80.0}
FILTERS = {"ncsnpp": [1, 3, 3, 1]}


def convert(*arguments) -> None:
    assert main(["convert", *(str(argument) for argument in arguments)]) == 0


def agree(file: vectors.VectorFile, key: str, model: nn.Module, compute) -> None:
    """compute() gives the file's tensor within float32's bound, with a sigma_data that the manifest admits."""
    bound = file.tolerance(key, torch.float32)
    errors = []
    for model.sigma_data in file.stated("sigma_data", LEVELS["sigma_data"]):
        for model.sigma_min in file.stated("sigma_min", LEVELS["sigma_min"]):
            errors.append(vectors.relative_error(compute(), file[key]))
    assert min(errors) <= bound, f"{file.name} {key}: relative error {min(errors):.2e}, allowed {bound:.2e}"


def labels(file: vectors.VectorFile) -> Tensor | None:
    if "in/y" in file:
        return file["in/y"]
    rows = file.get("in/class_labels")
    return None if rows is None else torch.where(rows.sum(dim=1) > 0, rows.argmax(dim=1), -1)


class Augmented(nn.Module):
    def __init__(self, network: nn.Module, augment: Tensor | None) -> None:
        super().__init__()
        self.network, self.augment = network, augment

    def forward(self, x, t, s, labels):
        return self.network(x, t, s, labels, augment=self.augment)


def edm_pickle(file: vectors.VectorFile, path):
    """The file's network in the form of an EDM pickle, with arguments that it was made with."""
    song = file.config["model_type"] == "SongUNet"
    given = {name: file.config[name] for name in KEPT if name in file.config}
    given |= {"resample_filter": FILTERS.get(file.config.get("arch", ""), [1, 1])} if song else {}
    return write_edm(path, file.params(), given, head_channels=None if song else head_channels(file))


@vectors.each("name", vectors.names(*EDM), fast=("edm_song_ddpmpp_uncond", "edm_adm_cond_heads"))
@torch.no_grad()
def test_edm_pickles(name, tmp_path, capsys):
    """No option is needed: the pickle tells all but the range of levels, and that is said."""
    file = vectors.VectorFile(name)
    convert(edm_pickle(file, tmp_path / "net.pkl"), tmp_path / "out")
    said = capsys.readouterr().out
    assert "found: net.pkl: an EDM pickle" in said
    assert "told by the file: sigma_data = 0.5" in said
    assert [line.split()[1] for line in said.splitlines() if line.startswith("assumed")] == ["sigma_min", "sigma_max"]
    x, sigma = file["in/x"].float(), file["in/sigma"].float()
    augment = file.get("in/augment_labels")
    for model in (ctm.load_model(tmp_path / "out"), ctm.load_teacher(tmp_path / "net.pkl")):
        assert isinstance(model, ctm.DiffusionModel)
        assert not model.training
        model.network = Augmented(model.network, None if augment is None else augment.float())
        agree(file, "out/D", model, lambda model=model: model.denoise(x, sigma, labels(file)))
        if "out/D_no_label" in file:
            agree(file, "out/D_no_label", model, lambda model=model: model.denoise(x, sigma))


def ctm_options(file: vectors.VectorFile, kind: str, settings: dict) -> list[str]:
    settings = settings | {name: file.config[name] for name in LEVELS if name in file.config}
    song = file.config.get("model_type") == "SongUNet"
    if not song:
        settings["head_channels"] = head_channels(file)
    if "image_size" in file.config:
        settings |= {"image_size": file.config["image_size"], "qkv_order": order(file)}
    preset = f"{kind}-cifar10" if song else f"{kind}-imagenet64"
    return ["--preset", preset, *(part for k, v in settings.items() for part in ("--set", f"{k}={v}"))]


def order(file: vectors.VectorFile) -> str:
    return "heads-three-dim" if "headmajor" in file.name else "three-heads-dim"


@vectors.each("name", vectors.names(*CTM), fast=("ctm_song_ncsnpp_uncond", "ctm_adm_cond_heads", "ctm_unet_cond"))
@torch.no_grad()
def test_ctm_checkpoints_there_and_back(name, tmp_path):
    """Each inner and outer that the file has; and the .pt written from our directory holds the official tensors."""
    file = vectors.VectorFile(name)
    state = official_params(file)
    torch.save(state, tmp_path / "ema_0.999_000100.pt")
    x, t, s = (file[f"in/{what}"].float() for what in "xts")
    pairs = [found for key in file.keys("out/G/") if (found := re.fullmatch(r"out/G/(\w+)/(\w+)", key))]
    assert pairs
    for number, pair in enumerate(pairs):
        options = ctm_options(file, "ctm", {"inner": pair[1], "outer": pair[2]})
        convert(tmp_path / "ema_0.999_000100.pt", tmp_path / f"out{number}", *options)
        model = ctm.load_model(tmp_path / f"out{number}")
        assert (model.inner, model.outer) == (pair[1], pair[2])
        agree(file, pair[0], model, lambda model=model: model.jump(x, t, s, labels(file)))
    adm = ["--set", f"qkv_order={order(file)}"] if "image_size" in file.config else []
    convert(tmp_path / "out0", tmp_path / "back.pt", *adm)
    back = torch.load(tmp_path / "back.pt", weights_only=True)
    assert back.keys() == state.keys()
    for key, value in state.items():
        torch.testing.assert_close(back[key], value, rtol=1e-3 if key.endswith("filter") else 0, atol=0)


@vectors.each("name", vectors.names("ctm_unet_*"))
@pytest.mark.parametrize("kind", ["cm", "edm"])
@torch.no_grad()
def test_a_network_without_s_layers_as_consistency_and_as_diffusion_model(name, kind, tmp_path):
    """The official network with s = None is the one without s layers: F_s_none through the cm or the edm scalings."""
    file = vectors.VectorFile(name)
    torch.save({key: v for key, v in official_params(file).items() if "_s." not in key}, tmp_path / "cd.pt")
    options = ctm_options(file, kind, {})
    model = ctm.load_teacher(tmp_path / "cd.pt", preset=options[1], settings=parse_settings(options[3::2]))
    assert isinstance(model, ctm.ConsistencyModel if kind == "cm" else ctm.DiffusionModel)
    x, t = file["in/x"].float(), file["in/t"].float()
    for sigma_data in file.stated("sigma_data", LEVELS["sigma_data"]):
        model.sigma_data = sigma_data
        c_skip, c_out = (match_dims(c, x) for c in output_scalings(kind, t, sigma_data, model.sigma_min))
        expected = c_out * file["out/F_s_none"].float() + c_skip * x
        errors = vectors.relative_error(model.denoise(x, t, labels(file)), expected)
        if errors <= file.tolerance("out/F_s_none", torch.float32):
            return
    pytest.fail(f"relative error {errors:.2e}")
