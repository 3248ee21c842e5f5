"""EDM2's network against the equations of its paper (arXiv 2312.02696), written here straight and slow in float64; its pickles
read as data."""

import copy
import math
import pickle
from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import nn

from ctm import DiffusionModel, TrajectoryModel, load_model, load_teacher
from ctm.distill.network import student_network
from ctm.networks import EDM2
from ctm.networks.edm2 import Block, MPConv, mp_cat, mp_silu, mp_sum, normalised
from ctm.teachers.checkpoints import read_checkpoint
from ctm.teachers.official_names import from_our_order
from ctm.training.posthoc import Profile, posthoc_weights

from ..commands.test_cli import run, sentence
from ..conftest import random_weights
from .edm_files import SOURCE, Persistent, write_pickle

SIZES = {"channels": 8, "channel_mult": [1, 2], "blocks": 1, "attention": [4], "head_channels": 4}
EDM2_SIZES = {"model_channels": 8, "channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [4]}


def network(**changed):
    made = random_weights(EDM2((3, 8, 8), 5, **{**SIZES, "s_embedding": False, **changed}), seed=2)
    with torch.no_grad():
        for name, weight in made.named_parameters():
            if name.endswith("gain"):
                weight.fill_(0.7)
    return made.eval()


class Reference:
    """F of EDM2 from a state dict under EDM2's own names and channel order, one loop and one number at a time where that is
    possible, in float64."""

    def __init__(self, state):
        self.state = {name: value.double() for name, value in state.items()}

    def weight(self, name):
        """Equations 47 and 66: each row over its root mean square, then over √fan-in."""
        rows = []
        for row in self.state[f"{name}.weight"]:
            mean_square = (row * row).sum() / row.numel()
            rows.append(row / (mean_square.sqrt() + 1e-4) / math.sqrt(row.numel()))
        return torch.stack(rows)

    def conv(self, name, x, gain=1.0):
        weight = self.weight(name) * gain
        if weight.ndim == 2:
            return torch.einsum("oi,bi->bo", weight, x)
        around = weight.shape[-1] // 2
        padded = nn.functional.pad(x, [around] * 4)
        found = 0
        for i in range(weight.shape[2]):
            for j in range(weight.shape[3]):
                part = padded[:, :, i : i + x.shape[2], j : j + x.shape[3]]
                found = found + torch.einsum("oc,bchw->bohw", weight[:, :, i, j], part)
        return found

    def silu(self, x):
        return x / (1 + (-x).exp()) / 0.596

    def sum(self, a, b, t):
        return ((1 - t) * a + t * b) / math.sqrt((1 - t) ** 2 + t**2)

    def pixel_norm(self, x):
        return x / ((x * x).mean(dim=1, keepdim=True).sqrt() + 1e-4)

    def block(self, name, x, vector):
        if name.endswith("_down"):
            x = (x[:, :, ::2, ::2] + x[:, :, 1::2, ::2] + x[:, :, ::2, 1::2] + x[:, :, 1::2, 1::2]) / 4
        if name.endswith("_up"):
            x = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
        has_skip = f"{name}.conv_skip.weight" in self.state
        if name.startswith("enc"):
            x = self.pixel_norm(self.conv(f"{name}.conv_skip", x) if has_skip else x)
        y = self.conv(f"{name}.conv_res0", self.silu(x))
        scale = 1 + self.conv(f"{name}.emb_linear", vector, self.state[f"{name}.emb_gain"])
        y = self.conv(f"{name}.conv_res1", self.silu(y * scale[:, :, None, None]))
        if name.startswith("dec") and has_skip:
            x = self.conv(f"{name}.conv_skip", x)
        x = self.sum(x, y, 0.3)
        if f"{name}.attn_qkv.weight" in self.state:
            x = self.sum(x, self.attention(name, x), 0.3)
        return x.clamp(-256, 256)

    def attention(self, name, x):
        """Channels of qkv are (heads, dim, three); queries, keys and values have length √dim for each pixel and head."""
        n, c, h, w = x.shape
        parts = self.conv(f"{name}.attn_qkv", x).reshape(n, c // 4, 4, 3, h * w)
        out = torch.zeros(n, c // 4, 4, h * w, dtype=torch.float64)
        for head in range(c // 4):
            q, k, v = (self.pixel_norm(parts[:, head, :, i]) for i in range(3))
            shares = torch.softmax(torch.einsum("bcq,bck->bqk", q, k) / math.sqrt(4), dim=2)
            out[:, head] = torch.einsum("bqk,bck->bcq", shares, v)
        return self.conv(f"{name}.attn_proj", out.reshape(n, c, h, w))

    def __call__(self, x, sigma, one_hot):
        angle = sigma.log()[:, None] / 4 * self.state["emb_fourier.freqs"] + self.state["emb_fourier.phases"]
        vector = self.conv("emb_noise", math.sqrt(2) * angle.cos())
        label = self.conv("emb_label", one_hot * math.sqrt(one_hot.shape[1]))
        vector = self.silu(self.sum(vector, label, 0.5))
        x = torch.cat([x, torch.ones_like(x[:, :1])], dim=1)
        kept = [self.conv("enc.8x8_conv", x)]
        for name in ("enc.8x8_block0", "enc.4x4_down", "enc.4x4_block0"):
            kept.append(self.block(name, kept[-1], vector))
        x = kept[-1]
        for name in ("4x4_in0", "4x4_in1", "4x4_block0", "4x4_block1", "8x8_up", "8x8_block0", "8x8_block1"):
            if "block" in name:
                skip = kept.pop()
                n, m = x.shape[1], skip.shape[1]
                x = torch.cat([x * math.sqrt((n + m) / n), skip * math.sqrt((n + m) / m)], dim=1) / 2 / math.sqrt(0.5)
            x = self.block(f"dec.{name}", x, vector)
        return self.conv("out_conv", x, self.state["out_gain"])


def theirs(state, made):
    """The tensors with qkv in EDM2's channel order."""
    heads = {f"{name}.attn_qkv.weight": part.heads for name, part in made.named_modules() if isinstance(part, Block)}
    return {n: from_our_order(v, heads[n], "heads-dim-three") if n in heads else v for n, v in state.items()}


def drawn(n=3):
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(n, 3, 8, 8, generator=generator, dtype=torch.float64)
    return x, torch.tensor([0.01, 0.9, 60.0], dtype=torch.float64), torch.tensor([3, 0, -1])


def one_hot(labels):
    rows = torch.zeros(len(labels), 5, dtype=torch.float64)
    for row, label in zip(rows, labels, strict=True):
        if label >= 0:
            row[label] = 1
    return rows


def test_the_network_is_the_papers():
    made = network().double()
    x, sigma, labels = drawn()
    with torch.no_grad():
        found = made(x, sigma, condition=labels)
        truth = Reference(theirs(made.state_dict(), made))(x, sigma, one_hot(labels))
    assert torch.allclose(found, truth, rtol=1e-9, atol=1e-9)
    assert float(truth.std()) > 0.1
    assert float((truth - truth.roll(1, 0)).abs().min(dim=0).values.max()) > 1e-2


def test_parts_keep_the_magnitude_of_normal_numbers():
    """Equations 47, 81, 88, 103: of 2·10⁵ numbers the root mean square is 1 to 1 %; three standard errors are 0.5 %."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(4, size, 100, 100, generator=generator) for size in (5, 7))
    size = lambda x: float(x.square().mean().sqrt())  # noqa: E731
    sums = [mp_silu(a), mp_sum(a, b[:, :5], 0.3), mp_cat(a, b, 0.5), normalised(3 * a, (1,))]
    assert [size(x) for x in sums] == pytest.approx([1] * 4, rel=0.01)
    parts = mp_cat(a, b, 0.5)
    assert size(parts[:, :5]) ** 2 * 5 == pytest.approx(size(parts[:, 5:]) ** 2 * 7, rel=0.02)  # each has its half


def test_weights_stay_normalised_through_training_steps_of_several_calls():
    """In train mode the stored rows have a root mean square of 1, also where a step calls the network twice before it goes back;
    the gradient is orthogonal to each row, because only its direction counts."""
    made = random_weights(EDM2((1, 8, 8), 0, **SIZES)).train()
    with torch.no_grad():
        made.out_gain.fill_(1.0)
    optimiser = torch.optim.SGD(made.parameters(), 0.1)
    x, t, s = torch.randn(2, 1, 8, 8), torch.tensor([1.0, 5.0]), torch.tensor([0.5, 0.1])
    for _ in range(2):
        optimiser.zero_grad()
        loss = (made(x, t, s) - made(0.5 * x, s, s)).square().mean()
        loss.backward()
        for part in made.modules():
            if isinstance(part, MPConv) and part.weight.grad is not None:
                rows, slopes = part.weight.detach().flatten(1), part.weight.grad.flatten(1)
                assert float((rows.square().mean(1).sqrt() - 1).abs().max()) < 2e-4
                assert float((rows * slopes).sum(1).abs().max()) <= 1e-3 * float(slopes.norm() * rows.norm()) + 1e-9
        optimiser.step()
    before = {name: value.clone() for name, value in made.eval().state_dict().items()}
    made(x, t, s)
    assert all(
        torch.equal(value, before[name]) for name, value in made.state_dict().items()
    )  # nothing moves in eval mode


def test_a_student_starts_as_its_teacher_and_its_s_branch_learns():
    teacher = DiffusionModel(network(), shape=(3, 8, 8), num_classes=5).eval()
    student = TrajectoryModel(EDM2((3, 8, 8), 5, **SIZES), shape=(3, 8, 8), num_classes=5).eval()
    missing = student.load_state_dict(teacher.state_dict(), strict=False)
    assert not missing.unexpected_keys
    assert all(any(part.startswith("s_") for part in name.split(".")) for name in missing.missing_keys)
    x, sigma, labels = (value.float() if value.is_floating_point() else value for value in drawn())
    with torch.no_grad():
        denoised = teacher.denoise(x, sigma, labels)
        assert torch.allclose(student.g(x, sigma, 0.5 * sigma, labels), denoised, atol=1e-5)
    student.g(x, sigma, 0.5 * sigma, labels).square().mean().backward()
    gains = [weight.grad for name, weight in student.named_parameters() if name.endswith("s_gain")]
    assert gains
    assert all(float(slope.abs()) > 0 for slope in gains)


def test_gradients_with_checkpoints_are_those_without():
    slopes, plain = [], network(s_embedding=True).train()
    kept = copy.deepcopy(plain)
    kept.checkpoint_gradients()
    for made in (plain, kept):
        x, sigma, labels = (value.float() if value.is_floating_point() else value for value in drawn())
        made(x, sigma, 0.5 * sigma, labels).square().mean().backward()
        slopes.append({name: weight.grad for name, weight in made.named_parameters()})
    for name, slope in slopes[0].items():
        assert torch.allclose(slope, slopes[1][name], rtol=1e-4, atol=1e-7), name


def module(class_name, tensors, **attributes):
    """A persistent module as EDM2 pickles it, from dotted names; enc and dec are torch's ModuleDict."""
    own = {name: value for name, value in tensors.items() if "." not in name}
    children = {}
    for name, value in tensors.items():
        head, dot, rest = name.partition(".")
        if dot:
            children.setdefault(head, {})[rest] = value
    inside = OrderedDict()
    for name, values in children.items():
        if name in ("enc", "dec"):
            inside[name] = nn.ModuleDict()
            blocks = {}
            for key, value in values.items():
                head, _, rest = key.partition(".")
                blocks.setdefault(head, {})[rest] = value
            for key, parts in blocks.items():
                inside[name]._modules[key] = _block(key, parts)
        else:
            inside[name] = module("MPFourier" if "fourier" in name else "MPConv", values)
    buffers = {name: value for name, value in own.items() if name in ("freqs", "phases")}
    parameters = {name: nn.Parameter(value) for name, value in own.items() if name not in buffers}
    state = {"training": False, "_parameters": parameters, "_buffers": buffers, "_modules": inside}
    return Persistent(class_name, **state, _non_persistent_buffers_set=set(), **attributes)


def _block(name, tensors):
    if name.endswith("conv"):
        return module("MPConv", tensors)
    width = tensors["conv_res1.weight"].shape[0]
    heads = width // 4 if "attn_qkv.weight" in tensors else 0
    told = {"res_balance": 0.3, "attn_balance": 0.3, "clip_act": 256, "dropout": 0.1, "resample_filter": [1, 1]}
    return module("Block", tensors, out_channels=width, num_heads=heads, flavor="enc", **told)


def write_edm2(path, made, *, encoder="StandardRGBEncoder", **changed):
    """A network file of EDM2 in half precision, with the uncertainty head, its encoder with numpy arrays, and code."""
    state = {name: value.half() for name, value in theirs(made.state_dict(), made).items()}
    unet = module("UNet", state, label_balance=0.5, concat_balance=0.5)
    unet.state["_init_kwargs"] = EDM2_SIZES
    logvar = {"freqs": torch.randn(16), "phases": torch.randn(16)}
    ema = module("Precond", {}, img_resolution=8, img_channels=3, label_dim=5, use_fp16=True, sigma_data=0.5)
    ema.state["_modules"] = OrderedDict(
        unet=unet,
        logvar_fourier=module("MPFourier", logvar),
        logvar_linear=module("MPConv", {"weight": torch.randn(1, 16)}),
    )
    ema.state.update(changed)
    contents = {
        "encoder": Persistent(encoder, scale=np.float32([0.5, 0.25]), bias=np.float32([1, 2]), _vae=None),
        "dataset_kwargs": {"class_name": "training.dataset.ImageFolderDataset", "path": "data.zip"},
        "loss_fn": Persistent("EDM2Loss", P_mean=-0.4, P_std=1.0, sigma_data=0.5),
        "ema": ema,
    }
    write_pickle(path, contents)
    return path


def test_a_pickle_becomes_the_model_and_nothing_of_it_is_run(tmp_path, capsys):
    made = network()
    file = write_edm2(tmp_path / "edm2.pkl", made)
    assert SOURCE.encode() in file.read_bytes()
    teacher = load_teacher(file)
    assert (teacher.shape, teacher.num_classes, teacher.sigma_data) == ((3, 8, 8), 5, 0.5)
    assert (teacher.network.init_args["dropout"], teacher.network.init_args["clip"]) == (0.1, 256.0)
    x, sigma, labels = drawn()
    x = x * (sigma**2 + 0.25).sqrt()[:, None, None, None]
    halves = {name: value.half() for name, value in theirs(made.state_dict(), made).items()}
    with torch.no_grad():
        scaled = x / (sigma**2 + 0.25).sqrt()[:, None, None, None]
        raw = Reference(halves)(scaled, sigma, one_hot(labels))
        skip, out = 0.25 / (sigma**2 + 0.25), sigma * 0.5 / (sigma**2 + 0.25).sqrt()
        truth = skip[:, None, None, None] * x + out[:, None, None, None] * raw
        found = teacher.denoise(x.float(), sigma.float(), labels)
    assert torch.allclose(found.double(), truth, atol=2e-4)
    described, _ = student_network(teacher, guided=True)  # what ctm distill trains
    assert (described["init_args"]["s_embedding"], described["init_args"]["channel_mult"]) == (True, [1, 2])
    checkpoint = read_checkpoint(file)
    assert checkpoint.left == ["the head that estimates the uncertainty in training (logvar)"]
    assert checkpoint.found[0] == "edm2.pkl: an EDM2 pickle, Precond around UNet (its code was not run)"
    code, printed, err = run(capsys, "convert", file, tmp_path / "ours")
    assert code == 0, err
    assert "EDM2's UNet (EDM2), 8×8 with 3 channels, 5 classes" in printed
    with torch.no_grad():
        again = load_model(tmp_path / "ours").denoise(x.float(), sigma.float(), labels)
    assert torch.equal(again, found)


def test_what_a_pickle_has_besides_is_said_or_refused(tmp_path):
    made = network()
    latents = read_checkpoint(write_edm2(tmp_path / "latents.pkl", made, encoder="StabilityVAEEncoder"))
    assert "the file's encoder (StabilityVAEEncoder): the model's samples are" in latents.left[1]
    lost = {name: value for name, value in made.state_dict().items() if name != "dec.4x4_in0.conv_res1.weight"}
    made.state_dict = lambda: lost
    contents = tmp_path / "lost.pkl"
    with pytest.raises(KeyError):
        write_edm2(contents, made)
    del made.state_dict
    file = write_edm2(tmp_path / "whole.pkl", made)
    cut = tmp_path / "cut.pkl"
    cut.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(ValueError, match=r"cut\.pkl"):
        load_teacher(cut)
    hostile = tmp_path / "hostile.pkl"
    hostile.write_bytes(pickle.dumps({"ema": np.zeros(3, dtype=[("a", "f4")])}))
    with pytest.raises(ValueError, match=r"Refused; nothing in it was run|is a pickle without"):
        load_teacher(hostile)


def test_convert_makes_an_average_between_two(tmp_path, capsys):
    """The weights are the shares of the two files' weights, which `posthoc_weights` gives; buffers of both are the same."""
    first, second = network(), network()
    with torch.no_grad():
        for weight in second.parameters():
            weight.add_(0.25)
    files = [
        write_edm2(tmp_path / f"net-100-{length}.pkl", made) for length, made in (("0.050", first), ("0.100", second))
    ]
    code, printed, err = run(capsys, "convert", files[0], tmp_path / "made", "--average", files[1], "--ema", 0.075)
    assert code == 0, err
    share = posthoc_weights([Profile(100, 0.05), Profile(100, 0.1)], Profile(100, 0.075))[0]
    assert f"set: {share:.4g} of net-100-0.050.pkl, sigma_rel 0.05 at 100" in printed
    assert "set: sigma_rel = 0.075 at 100; the profile misses by 5.6% of its length" in printed
    found = load_model(tmp_path / "made").network.state_dict()
    for name, value in found.items():
        one, two = (made.state_dict()[name].half().float() for made in (first, second))
        assert torch.allclose(value, share * one + (1 - share) * two, atol=1e-6), name
    said = sentence(capsys, "convert", files[0], tmp_path / "other", "--ema", 0.075)
    assert "--ema makes an average of two or more stored ones" in said
