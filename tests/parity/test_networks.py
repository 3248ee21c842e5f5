"""Our networks with the official weights against what the official networks computed, forwards and backwards."""

import re
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from ctm import DiffusionModel, TrajectoryModel
from ctm.networks.description import build
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
        self.settings = {"shape": self.shape, "num_classes": self.num_classes}

    def _network(self) -> UNet:
        network = build({"class_path": self.found.class_path, "init_args": self.found.init_args})
        assert isinstance(network, UNet)
        network.load_state_dict(from_official(self.state, network, qkv_order=self.order))
        return network

    def settle(self, name: str, default: float, reference: str, compute: Callable[[], Tensor]) -> None:
        """Settle a setting that the file's configuration need not state: of the values that the manifest states, the one
        with which `compute` comes nearest to the reference. Whether it agrees is for the comparison to say."""
        candidates = self.file.stated(name, default)

        def error(value: float) -> float:
            self.settings[name] = value
            return vectors.relative_error(compute(), self.file[reference])

        self.settings[name] = candidates[0] if len(candidates) == 1 else min(candidates, key=error)

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


@vectors.each("name", vectors.names(*EDM, *CTM))
def test_sizes_are_recognised(name):
    """Names and shapes tell what the manifest's configuration says, and the way back to official names is exact."""
    file = vectors.VectorFile(name)
    subject, config = Subject(file), file.config
    told = subject.found.init_args
    size = config.get("img_resolution", config.get("image_size"))
    assert told["shape"] == [config.get("img_channels", config.get("in_channels")), size, size]
    assert told["channels"] == config["model_channels"]
    assert told["channel_mult"] == config["channel_mult"]
    assert told["blocks"] == config.get("num_blocks", config.get("num_res_blocks"))
    assert told["num_classes"] == (config.get("label_dim") or config.get("num_classes") or 0)
    assert told.get("augment_dim", 0) == config.get("augment_dim", 0)
    assert told["s_embedding"] == (config.get("training_mode") == "ctm")
    if "attn_resolutions" in config:
        attending = config["attn_resolutions"]
    else:
        attending = [size // factor for factor in config["attention_resolutions"]]
    narrowest = told.get("head_channels", 0)  # a narrower block has no attention
    widths = {size >> level: config["model_channels"] * mult for level, mult in enumerate(config["channel_mult"])}
    assert set(told["attention"]) == {
        size for size, width in widths.items() if size in attending and width >= narrowest
    }
    again = to_official(subject.networks[torch.float32], qkv_order=subject.order)
    assert again.keys() == subject.state.keys()
    assert all(torch.equal(again[key], subject.state[key]) for key in again)


class Augmented(nn.Module):
    """A network with its augmentation labels fixed, so that a model can call it."""

    def __init__(self, network: UNet, augment: Tensor | None) -> None:
        super().__init__()
        self.network, self.augment = network, augment

    def forward(self, x: Tensor, t: Tensor, s: Tensor | None, labels: Tensor | None) -> Tensor:
        return self.network(x, t, s, labels, augment=self.augment)


@vectors.each(
    "name", vectors.names(*EDM), fast=("edm_song_ddpmpp_uncond", "edm_song_ncsnpp_uncond", "edm_adm_cond_heads")
)
def test_edm_networks(name):
    with vectors.open_file(name) as file:
        subject = Subject(file)
        labels = subject.labels()

        def compute(what: str, dtype: torch.dtype, labels: Tensor | None, x: Tensor | None = None) -> Tensor:
            x, sigma = subject.input("x", dtype) if x is None else x, subject.input("sigma", dtype)
            network = Augmented(subject.networks[dtype], subject.input("augment_labels", dtype))
            if what == "F":
                scaling = input_scaling(sigma, subject.settings["sigma_data"])
                return network(match_dims(scaling, x) * x, sigma, None, labels)
            return DiffusionModel(network, **subject.settings).denoise(x, sigma, labels)

        subject.settle("sigma_data", 0.5, "out/F", lambda: compute("F", torch.float64, labels))
        file.compare_both("out/F", lambda dtype: compute("F", dtype, labels), float32_code=True)
        file.compare_both("out/D", lambda dtype: compute("D", dtype, labels), float32_code=True)
        file.compare("out/D_f64", compute("D", torch.float64, labels))
        if "out/D_no_label" in file:
            file.compare_both("out/D_no_label", lambda dtype: compute("D", dtype, None), float32_code=True)
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
        scaled = match_dims(input_scaling(t, self.settings["sigma_data"]), x) * x
        labels = self.labels() if with_labels else None
        return self.networks[dtype](scaled, t, s if with_s else None, labels)

    def of_model(
        self, dtype: torch.dtype, *, what: str, inner="edm", outer="euler", wrap=lambda network: network
    ) -> Tensor:
        """G by the model's own jump; the official `denoised` is g(x, t, s) plus the outer's multiple of x."""
        x, t, s = self.input("x", dtype), self.file["in/t"], self.file["in/s"]  # the model casts the levels itself
        model = TrajectoryModel(wrap(self.networks[dtype]), inner=inner, outer=outer, **self.settings)
        if what == "G":
            return model.jump(x, t, s, self.labels())
        multiple = match_dims(denoiser_multiple(outer, t.to(dtype), model.sigma_data, model.sigma_min), x)
        return model.g(x, t, s, self.labels()) + multiple * x

    def path(self, dtype: torch.dtype, *, inner: str) -> Tensor:
        """The official denoiser outside CTM's parametrisation: c_out·F + c_skip·x, edm for a teacher, cm otherwise."""
        x, t, _ = self.inputs(dtype)
        c_skip, c_out = output_scalings(inner, t, self.settings["sigma_data"], self.settings["sigma_min"])
        return match_dims(c_skip, x) * x + match_dims(c_out, x) * self.F(dtype)

    def rounding(self, key: str) -> float | None:
        """The hint for a tensor that the official float32 code rounds more than its network does: its `denoised` of the
        mixed outer is g + x − c·x with c near 1, which loses 2⁻²⁴·|x|; ours multiplies x by 1 − c written without loss."""
        if not re.fullmatch(r"out/denoised/\w+/euler_variance_mixed", key):
            return None
        lost = 2**-24 * self.file["in/x"].abs().max() / self.file[key].abs().max()
        return max(self.file.hint(key), float(lost))

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


@vectors.each("name", vectors.names(*CTM), fast=("ctm_song_ncsnpp_uncond", "ctm_adm_cond_heads", "ctm_unet_cond"))
def test_ctm_networks(name):
    with vectors.open_file(name) as file:
        subject = CTMSubject(file)
        with torch.no_grad():
            subject.settle("sigma_data", 0.5, "out/F", lambda: subject.F(torch.float64))
            minimum = "out/cm_path" if "out/cm_path" in file else "out/F"
            subject.settle("sigma_min", 0.002, minimum, lambda: subject.path(torch.float64, inner="cm"))
            for key in file.keys("out/"):
                recipe = subject.recipe(key)
                if recipe is not None and key.endswith("_f64"):
                    file.compare(key, recipe(torch.float64))
                elif recipe is not None:
                    file.compare_both(key, recipe, hint=subject.rounding(key), float32_code=True)
        subject.compare_gradients(lambda x: subject.F(torch.float64, x=x))
