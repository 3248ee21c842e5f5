"""Other directories than the public one (case 33): they are made here of the kept files, with truths that stay the official ones.

* Labels: networks with four classes whose label embedding is zero for the classes in `in/y` and not for the others, nor for
  none. So the official numbers of the network without labels hold, if and only if every call gets the right labels.
* Ends of the noise levels: the official defaults stay (0.002, 80, 7), what depends on the ends is written out again.
* A sigma_min in another file that is above a network file's own levels.
"""

from __future__ import annotations

import hashlib
import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file

from . import test_networks, test_training, vectors
from .test_maths import hold_denoising_levels
from .test_networks import CTM
from .test_training import Official, settings_of

CLASSES = 4


@pytest.fixture
def other(tmp_path, monkeypatch):
    """Writes a directory of the files in `changes`, name -> change(tensors, config), and makes it the one that is read."""

    def write(changes):
        entries, source = {}, vectors.directory()
        for name, change in changes.items():
            entry = json.loads(json.dumps(vectors.manifest()[f"{name}.safetensors"]))
            tensors = load_file(source / f"{name}.safetensors")
            change(tensors, entry["config"])
            path = tmp_path / f"{name}.safetensors"
            save_file({key: value.contiguous() for key, value in tensors.items()}, path)
            entries[path.name] = entry | {"sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        (tmp_path / "manifest.json").write_text(json.dumps({"files": entries}))
        monkeypatch.setenv("CTM_VECTORS", str(tmp_path))
        vectors._entries.cache_clear()

    yield write
    vectors._entries.cache_clear()


def with_labels(tensors, config):
    """EDM's map_label of √K·onehot: W·√K + b is 0 in the columns of `in/y`, and exact in float16."""
    generator = torch.Generator().manual_seed(0)
    config["label_dim"] = CLASSES
    batch = len(tensors["in/x_start"])
    tensors["in/y"] = torch.tensor([3, 1])[torch.arange(batch) % 2]
    for who in ("model", "target", "teacher"):
        bias = torch.randn(config["model_channels"], generator=generator).half()
        weight = torch.randn(len(bias), CLASSES, generator=generator).half()
        weight[:, [1, 3]] = -bias[:, None] / CLASSES**0.5
        tensors[f"{who}/param/model.map_label.weight"], tensors[f"{who}/param/model.map_label.bias"] = weight, bias


def as_it_is(tensors, config):
    """The public file."""


@pytest.fixture
def labelled(other):
    other({"train_nets": with_labels, "train_ctm_default": as_it_is})


def test_labels_of_the_shared_networks_reach_every_call(labelled):
    test_training.test_every_tensor_of_the_networks_is_read()
    test_training.test_one_step_of_training("train_ctm_default", "f64")


def test_without_the_labels_the_numbers_are_others(labelled):
    """So the test above can fail."""
    levels = settings_of(vectors.VectorFile("train_ctm_default").config)
    nets = Official(torch.float64, levels=levels)
    with torch.no_grad():
        t = torch.full((len(nets.x0),), 2.0, dtype=torch.float64)
        right, none, wrong = (
            nets.teacher.denoise(nets.x0, t, labels) for labels in (nets.labels, None, nets.labels - 1)
        )
    assert nets.labels.tolist()[:2] == [3, 1]
    assert vectors.relative_error(none, right) > 1e-3
    assert vectors.relative_error(wrong, right) > 1e-3


def test_official_defaults_stay_where_the_ends_are_others(other):
    low, high, rho = 0.01, 50.0, 5.0

    def other_ends(tensors, config):
        config.update(sigma_min=low, sigma_max=high, rho=rho)
        top, bottom = high ** (1 / rho), low ** (1 / rho)
        for key in [key for key in tensors if "/halflognormal_bs" in key and key.endswith("/sigmas")]:
            size, share = (float(number) for number in re.findall(r"[\d.]+", key))
            first = int(size) // 2
            u = tensors["dsm/u"][: int(size) - first]
            drawn = (config["P_mean"] + config["P_std"] * tensors["dsm/z"][:first]).exp()
            tensors[key] = torch.cat([drawn, (top + share * u * (bottom - top)) ** rho]).to(tensors[key].dtype)

    other({"math_distributions": other_ends})
    with vectors.open_file("math_distributions", ignore=("*",)) as file:
        hold_denoising_levels(file, torch.Generator().manual_seed(0))


def test_a_sigma_min_above_a_files_own_levels_is_not_its_own(other):
    name = vectors.names(*CTM)[0]
    above = float(vectors.VectorFile(name)["in/s"].min()) * 2

    def far(tensors, config):
        config["sigma_min"] = above

    other({name: as_it_is, "math_time_scalings_weights": far})
    assert vectors.VectorFile(name).stated("sigma_min", 0.002) == [0.002]
    test_networks.test_ctm_networks(name)
