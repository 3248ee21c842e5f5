"""Our networks with the official weights against what the official networks computed, forwards and backwards."""

import re
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from ctm import DiffusionModel, TrajectoryModel
from ctm.model import build
from ctm.networks.unet import UNet
from ctm.noise import match_dims
from ctm.parametrization import denoiser_multiple, input_scaling, output_scalings
from ctm.teachers.official import from_official, recognise, to_official

from . import vectors

EDM = ("edm_song_*", "edm_adm_*")
CTM = ("ctm_song_*", "ctm_adm_*", "ctm_unet_*", "unet_headmajor_*")
KINDS = (*EDM, *CTM)
DTYPES = (torch.float32, torch.float64)
HEAD_CHANNELS = 64  # what EDM's DhariwalUNet always has, unless the manifest says that it was overridden


def head_channels(file: vectors.VectorFile) -> int:
    told = file.config.get("num_head_channels") or file.config.get("channels_per_head_override")
    noted = re.search(r"channels_per_head overridden \d+->(\d+)", file.notes)
    return int(told or (noted[1] if noted else HEAD_CHANNELS))


def official_params(file: vectors.VectorFile) -> dict[str, Tensor]:
    """The file's parameters, or those of the file that its description names."""
    if file.keys("param/"):
        return file.params()
    named = re.search(r"(\w+)\.safetensors", file.notes) or re.search(r"as (ctm_unet_\w+)", file.notes)
    assert named, f"{file.name} has no parameters, and its description names no file that has them"
    return vectors.VectorFile(named[1]).params()


class Subject:
    """One file's network, in either precision, its inputs, and its settings."""

    def __init__(self, file: vectors.VectorFile) -> None:
        self.file = file
        self.order = "heads-three-dim" if file.name.startswith("unet_headmajor") else "three-heads-dim"
        self.state = official_params(file)
        if not file.name.startswith(("ctm_unet", "unet_")):
            self.order = None
        found = recognise(
            self.state,
            image_size=file.config.get("image_size"),
            head_channels=head_channels(file),
            qkv_order=self.order,
        )
        assert found.missing == ()
        self.found = found
        self.shape, self.num_classes = found.init_args["shape"], found.init_args["num_classes"]
        self.networks = {dtype: self._network().to(dtype).eval() for dtype in DTYPES}

    def _network(self) -> UNet:
        network = build({"class_path": self.found.class_path, "init_args": self.found.init_args})
        assert isinstance(network, UNet)
        network.load_state_dict(from_official(self.state, network, qkv_order=self.order))
        return network

    def settings(self) -> dict:
        config = self.file.config
        return {
            "shape": self.shape,
            "num_classes": self.num_classes,
            "sigma_min": config.get("sigma_min", 0.002),
            "sigma_max": config.get("sigma_max", 80.0),
            "sigma_data": config.get("sigma_data", 0.5),
        }

    def input(self, name: str, dtype: torch.dtype) -> Tensor | None:
        tensor = self.file.get(f"in/{name}")
        return tensor if tensor is None or not tensor.is_floating_point() else tensor.to(dtype)

    def labels(self) -> Tensor | None:
        """Class numbers; rows of one-hot labels turned into those, −1 for a row of zeros."""
        if "in/y" in self.file:
            return self.file["in/y"]
        rows = self.file.get("in/class_labels")
        return None if rows is None else torch.where(rows.sum(dim=1) > 0, rows.argmax(dim=1), -1)

    def compare_gradients(self, compute) -> None:
        """grad_x_f64 and grad_norms_f64 of (compute(x)·r) summed, the parameters in the order of the manifest's note."""
        file, network = self.file, self.networks[torch.float64]
        x = self.input("x", torch.float64).requires_grad_()
        network.zero_grad()
        (compute(x) * self.input("r", torch.float64)).sum().backward()
        file.compare("out/grad_x_f64", x.grad)
        gradients = {name: p.grad for name, p in network.named_parameters()}
        buffers = {name: buffer for name, buffer in network.named_buffers() if name in network.state_dict()}
        official = to_official(network, gradients | buffers, qkv_order=self.order)
        order = file.tensor_notes["out/grad_norms_f64"].split(":", 1)[1].strip().split(",")
        assert set(order) == {name for name in official if not name.endswith((".freqs", ".resample_filter"))}
        file.compare("out/grad_norms_f64", torch.stack([official[name].norm() for name in order]))


class Augmented(nn.Module):
    """A network with its augmentation labels fixed, so that a model can call it."""

    def __init__(self, network: UNet, augment: Tensor | None) -> None:
        super().__init__()
        self.network, self.augment = network, augment

    def forward(self, x: Tensor, t: Tensor, s: Tensor | None, labels: Tensor | None) -> Tensor:
        return self.network(x, t, s, labels, augment=self.augment)


@pytest.mark.parametrize("name", vectors.names(*EDM))
def test_edm_networks(name):
    with vectors.open_file(name) as file:
        subject = Subject(file)
        labels = subject.labels()

        def compute(what: str, dtype: torch.dtype, labels: Tensor | None, x: Tensor | None = None) -> Tensor:
            x, sigma = subject.input("x", dtype) if x is None else x, subject.input("sigma", dtype)
            network = Augmented(subject.networks[dtype], subject.input("augment_labels", dtype))
            if what == "F":
                scaling = input_scaling(sigma, subject.settings()["sigma_data"])
                return network(match_dims(scaling, x) * x, sigma, None, labels)
            return DiffusionModel(network, **subject.settings()).denoise(x, sigma, labels)

        file.compare_both("out/F", lambda dtype: compute("F", dtype, labels))
        file.compare_both("out/D", lambda dtype: compute("D", dtype, labels))
        file.compare("out/D_f64", compute("D", torch.float64, labels))
        if "out/D_no_label" in file:
            file.compare_both("out/D_no_label", lambda dtype: compute("D", dtype, None))
        subject.compare_gradients(lambda x: compute("D", torch.float64, labels, x))


class PlusTeacher(nn.Module):
    """The official `target_subtract`: F + F_teacher, and with rescaling F·√(t²−s²)/t + F_teacher; F_teacher(z) = 0.3 sin 2z
    as the vectors' README has it."""

    def __init__(self, network: UNet, rescaling: bool) -> None:
        super().__init__()
        self.network, self.rescaling = network, rescaling

    def forward(self, z: Tensor, t: Tensor, s: Tensor, labels: Tensor | None) -> Tensor:
        factor = match_dims((t**2 - s**2).sqrt() / t, z) if self.rescaling else 1
        return self.network(z, t, s, labels) * factor + 0.3 * (2 * z).sin()


class CTMSubject(Subject):
    def inputs(self, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        return self.input("x", dtype), self.input("t", dtype), self.input("s", dtype)

    def F(self, dtype: torch.dtype, *, with_s=True, with_labels=True, x: Tensor | None = None) -> Tensor:
        stored, t, s = self.inputs(dtype)
        x = stored if x is None else x
        scaled = match_dims(input_scaling(t, self.settings()["sigma_data"]), x) * x
        labels = self.labels() if with_labels else None
        return self.networks[dtype](scaled, t, s if with_s else None, labels)

    def of_model(
        self, dtype: torch.dtype, *, what: str, inner="edm", outer="euler", wrap=lambda network: network
    ) -> Tensor:
        """G by the model's own jump; the official `denoised` is g(x, t, s) plus the outer's multiple of x."""
        x, t, s = self.inputs(dtype)
        model = TrajectoryModel(wrap(self.networks[dtype]), inner=inner, outer=outer, **self.settings())
        if what == "G":
            return model.jump(x, t, s, self.labels())
        multiple = match_dims(denoiser_multiple(outer, t, model.sigma_data, model.sigma_min), x)
        return model.g(x, t, s, self.labels()) + multiple * x

    def path(self, dtype: torch.dtype, *, inner: str) -> Tensor:
        """The official denoiser outside CTM's parametrisation: c_out·F + c_skip·x, edm for a teacher, cm otherwise."""
        x, t, _ = self.inputs(dtype)
        settings = self.settings()
        c_skip, c_out = output_scalings(inner, t, settings["sigma_data"], settings["sigma_min"])
        return match_dims(c_skip, x) * x + match_dims(c_out, x) * self.F(dtype)

    def recipe(self, key: str):
        """dtype -> what the tensor of this name must be; None for a name that no rule knows."""
        if found := re.fullmatch(r"out/(denoised|G)/(\w+)/(\w+)", key):
            return partial(self.of_model, what=found[1], inner=found[2], outer=found[3])
        if found := re.fullmatch(r"out/(denoised|G)_(edm|cm|no)_(\w+)_f64", key):
            return partial(self.of_model, what=found[1], inner=found[2], outer=found[3])
        if found := re.fullmatch(r"out/target_subtract_rescaling_(True|False)/(denoised|G)", key):
            wrap = partial(PlusTeacher, rescaling=found[1] == "True")
            return partial(self.of_model, what=found[2], wrap=wrap)
        return {
            "out/F": self.F,
            "out/F_f64": self.F,
            "out/F_s_none": partial(self.F, with_s=False),
            "out/F_no_label": partial(self.F, with_labels=False),
            "out/cm_path": partial(self.path, inner="cm"),
            "out/teacher_path": partial(self.path, inner="edm"),
        }.get(key)


@pytest.mark.parametrize("name", vectors.names(*CTM))
def test_ctm_networks(name):
    with vectors.open_file(name) as file:
        subject = CTMSubject(file)
        with torch.no_grad():
            for key in file.keys("out/"):
                recipe = subject.recipe(key)
                if recipe is not None:
                    for dtype in DTYPES[1:] if key.endswith("_f64") else DTYPES:
                        file.compare(key, recipe(dtype))
        subject.compare_gradients(lambda x: subject.F(torch.float64, x=x))
