"""config.json is checked before anything is built: kinds, ranges, and whether the weights hold what it asks for."""

import json
import logging

import pytest
import torch
from safetensors.torch import load_file, save_file

import ctm
from ctm.networks import MLP, DDPMpp


@pytest.fixture
def saved(small_ctm, tmp_path):
    small_ctm.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def change(saved, network=None, **settings):
    file = saved / "config.json"
    config = json.loads(file.read_text()) | settings
    config["network"]["init_args"] |= network or {}
    file.write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("network", "settings", "message"),
    [
        ({"width": 0}, {}, "MLP's width must be a whole number from 1 to 65536, got 0"),
        ({"width": 10**6}, {}, "MLP's width must be a whole number from 1 to 65536, got 1000000"),
        ({"blocks": 10**9}, {}, "MLP's blocks must be a whole number from 0 to 1024, got 1000000000"),
        ({"blocks": True}, {}, "MLP's blocks must be a whole number"),
        ({"blocks": 2.0}, {}, "MLP's blocks must be a whole number"),
        ({"width": "32"}, {}, "MLP's width must be a whole number from 1 to 65536, got 32"),
        ({"width": [[[[32]]]]}, {}, r"MLP's width must be a whole number .*, got \[a list\]"),
        ({"dropout": 1.5}, {}, "MLP's dropout must be a number from 0 to below 1, got 1.5"),
        ({"s_embedding": 1}, {}, "MLP's s_embedding must be true or false, got 1"),
        ({"depth": 3}, {}, "MLP does not take these init_args: depth; it takes shape, num_classes, width"),
        ({"num_classes": -1}, {}, "MLP's num_classes must be a whole number from 0"),
        ({"width": 48}, {}, "the weights do not fit the network"),
        ({"width": 65536}, {}, "config.json asks for more than their 32 tensors"),
        ({"blocks": 1024}, {}, "config.json asks for more than their 32 tensors"),
        ({"blocks": 1}, {}, "8 are not of it, first network.blocks.1"),
        ({"shape": [3, 8, 8]}, {}, r"the model's shape is \[1, 8, 8\], its network's \[3, 8, 8\]"),
        (
            {},
            {"shape": [1, 0, 0]},
            r"shape must be a list of whole numbers of at least 1, such as \[3, 32, 32\], got \[1, 0, 0\]",
        ),
        ({}, {"shape": []}, "shape must be a list"),
        ({}, {"shape": "888"}, "shape must be a list"),
        ({}, {"shape": [1, 8.5, 8]}, "shape must be a list"),
        ({}, {"shape": [True, 8, 8]}, "shape must be a list"),
        ({}, {"shape": [1, 10**6, 10**6]}, "shape must have at most 67108864 numbers"),
        ({}, {"num_classes": -3}, "num_classes must be a whole number from 0"),
        ({}, {"num_classes": True}, "num_classes must be a whole number from 0"),
        ({}, {"num_classes": 10**12}, "num_classes must be a whole number from 0"),
        ({}, {"sigma_data": 0}, "a model needs finite numbers 0 < sigma_min < sigma_max and sigma_data > 0"),
        ({}, {"sigma_data": "0.5"}, "a model needs finite numbers"),
        ({}, {"sigma_data": True}, "a model needs finite numbers"),
        ({}, {"sigma_min": 90.0}, "a model needs finite numbers 0 < sigma_min < sigma_max .*got 90.0, 80.0"),
        ({}, {"sigma_max": None}, "a model needs finite numbers"),
        ({}, {"sigma_max": 10**400}, "a model needs finite numbers"),
        ({}, {"sigma_data": -(10**400)}, "a model needs finite numbers"),
        ({}, {"grids": {"1": {"levels": [10**400, 1]}}}, 'the "grids" in config.json are damaged'),
        ({"dropout": 10**400}, {}, "MLP's dropout must be a number from 0 to below 1, got 1000"),
        ({}, {"model": ["x"]}, "names the model 'a list'"),
        ({}, {"network": 3}, "a network is given as"),
        ({}, {"inner": "none"}, "inner"),
    ],
)
def test_case_20_a_config_out_of_range_is_a_sentence(saved, network, settings, message):
    if settings.get("network"):
        (saved / "config.json").write_text(json.dumps(json.loads((saved / "config.json").read_text()) | settings))
    else:
        change(saved, network, **settings)
    with pytest.raises(ValueError, match=message) as caught:
        ctm.load_model(saved)
    assert str(saved) in str(caught.value) or "inner" in settings
    assert len(str(caught.value).splitlines()) == 1


def test_nothing_is_built_before_the_weights_are_compared(saved, monkeypatch):
    """Memory for numbers is taken only after names and shapes agree: torch.empty on the CPU is not called before."""
    change(saved, {"width": 65536, "embedding": 65536})
    taken = []
    empty = torch.empty

    def counting(*sizes, **options):
        made = empty(*sizes, **options)
        taken.append(0 if made.is_meta else made.numel())
        return made

    monkeypatch.setattr(torch, "empty", counting)
    with pytest.raises(ValueError, match="asks for more than"):
        ctm.load_model(saved)
    assert taken
    assert sum(taken) == 0


def test_unknown_settings_are_said_in_one_line_and_kept(saved, caplog, tmp_path):
    change(saved, note="mine", **{"bad\nname": 1})
    with caplog.at_level(logging.WARNING):
        model = ctm.load_model(saved)
    assert [record.getMessage() for record in caplog.records] == [
        f"{saved}: config.json has settings that this version does not know; they change nothing: note, bad name"
    ]
    model.save_pretrained(tmp_path / "again")
    assert json.loads((tmp_path / "again" / "config.json").read_text())["note"] == "mine"


def test_weights_of_other_names_shapes_and_sizes(saved):
    weights = load_file(saved / "model.safetensors")
    first = sorted(weights)[0]
    save_file({name: value for name, value in weights.items() if name != first}, saved / "model.safetensors")
    with pytest.raises(ValueError, match="asks for more than their 31 tensors"):
        ctm.load_model(saved)
    save_file({**weights, "extra": torch.ones(1)}, saved / "model.safetensors")
    with pytest.raises(
        ValueError, match=r"do not fit the network that config\.json describes: 1 are not of it, first extra"
    ):
        ctm.load_model(saved)
    save_file({**weights, first: torch.ones(3)}, saved / "model.safetensors")
    with pytest.raises(ValueError, match="do not fit the network"):
        ctm.load_model(saved)


@pytest.mark.parametrize("place", ["from_pretrained", "load_model"])
def test_both_ways_of_loading_check(saved, place):
    change(saved, {"blocks": 1024})
    load = ctm.TrajectoryModel.from_pretrained if place == "from_pretrained" else ctm.load_model
    with pytest.raises(ValueError, match="asks for more than"):
        load(saved)


@pytest.mark.parametrize(
    "entry",
    [
        [],
        {"2": {}},
        {"2": {"levels": "x"}},
        {"2": {"levels": [80.0, 1.0, 0.002], "gamma": "0"}},
        {"x": {"levels": [2, 1]}},
        7,
    ],
)
def test_damaged_grids_are_a_sentence(saved, entry):
    change(saved, grids=entry)
    with pytest.raises(ValueError, match=r'the "grids" in .* are damaged') as caught:
        ctm.load_model(saved)
    assert len(str(caught.value)) < 600


def test_networks_at_the_ends_of_their_ranges_come_back(tmp_path):
    flat = MLP((2, 3), width=8, blocks=0, embedding=8)
    square = DDPMpp((1, 8, 8), channels=8, channel_mult=[1, 2], blocks=1, attention=[])
    for name, network, shape in (("flat", flat, (2, 3)), ("square", square, (1, 8, 8))):
        ctm.TrajectoryModel(network, shape=shape).save_pretrained(tmp_path / name)
        assert type(ctm.load_model(tmp_path / name).network) is type(network)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda w: w.masked_fill(torch.ones_like(w, dtype=torch.bool), float("nan")), "is not finite"),
        (lambda w: w.to(torch.int8), "is torch.int8: weights are floating-point numbers"),
        (lambda w: w.to(torch.complex64), "is torch.complex64"),
    ],
)
def test_weights_that_are_no_finite_numbers_are_refused(tmp_path, change, words):
    model = ctm.DiffusionModel(MLP((1, 2, 2), width=8, blocks=1, embedding=4, s_embedding=False), shape=(1, 2, 2))
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    name = sorted(weights)[0]
    save_file(weights | {name: change(weights[name])}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=words):
        ctm.load_model(tmp_path)
