import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import ctm
from ctm import DiffusionModel, TrajectoryModel, load_model
from ctm.data.load import FASHION_CLASSES
from ctm.networks import MLP, DDPMpp, allowing
from ctm.networks.description import build
from ctm.noise import match_dims

from .conftest import random_weights

OUTERS = ["euler", "variance", "euler_variance_mixed"]


def levels(*values: float) -> torch.Tensor:
    return torch.tensor(values)


@pytest.mark.parametrize("outer", OUTERS)
@pytest.mark.parametrize("inner", ["edm", "cm", "no"])
def test_the_jump_to_the_same_level_is_x_exactly(inner, outer):
    network = random_weights(MLP((3,), width=16, blocks=1, embedding=8))
    model = TrajectoryModel(network, shape=(3,), inner=inner, outer=outer)
    t = levels(80, 2.5, 0.3, 0.002)
    x = torch.randn(4, 3) * match_dims(t, torch.zeros(4, 3))
    assert torch.equal(model.jump(x, t, t), x)


@pytest.mark.parametrize("outer", OUTERS)
def test_the_slope_of_the_jump_is_the_models_flow(outer):
    """∂G/∂s at s = t, by finite differences in float64 with the network's s held at t, is (x − D)/t."""
    network = random_weights(MLP((3,), width=16, blocks=1, embedding=8)).double()
    model = TrajectoryModel(network, shape=(3,), outer=outer)
    x, t = torch.randn(4, 3, dtype=torch.float64), levels(5, 1, 0.3, 0.05).double()
    step = 1e-6 * t
    slope = (x - model.jump(x, t, t - step)) / match_dims(step, x)
    expected = (x - model.denoise(x, t)) / match_dims(t, x)
    torch.testing.assert_close(slope, expected, rtol=1e-4, atol=1e-4)


def test_denoise_is_g_at_s_equal_t_and_score_follows(small_ctm):
    x, t, labels = torch.randn(3, 1, 8, 8), levels(4, 1, 0.1), torch.tensor([3, -1, 0])
    assert torch.equal(small_ctm.denoise(x, t, labels), small_ctm.g(x, t, t, labels))
    assert torch.equal(small_ctm(x, t, labels), small_ctm.denoise(x, t, labels))
    score = (small_ctm.denoise(x, t, labels) - x) / match_dims(t, x) ** 2
    torch.testing.assert_close(small_ctm.score(x, t, labels), score)


def test_no_label_is_label_minus_one(small_ctm):
    x, t = torch.randn(2, 1, 8, 8), levels(4, 1)
    assert torch.equal(small_ctm.denoise(x, t), small_ctm.denoise(x, t, torch.tensor([-1, -1])))
    assert not torch.allclose(small_ctm.denoise(x, t), small_ctm.denoise(x, t, torch.tensor([3, 4])))


@pytest.mark.parametrize("sigma_min", [0.01, 0.003, 0.7])
def test_a_float32_grid_ends_at_sigma_min_for_a_float64_state(sigma_min):
    """float32's 0.01 is below 0.01; a level is judged in the precision that it comes in."""
    model = TrajectoryModel(MLP((3,), width=8, blocks=1, embedding=8), shape=(3,), sigma_min=sigma_min)
    grid = ctm.karras_grid(3, sigma_min=sigma_min)
    x = torch.randn(2, 3, dtype=torch.float64)
    assert model.jump(x, grid[:1].expand(2), grid[-1:].expand(2)).isfinite().all()


def test_float64_state_over_a_float32_network(small_ctm):
    x, t = torch.randn(2, 1, 8, 8, dtype=torch.float64), levels(4, 1)
    result = small_ctm.denoise(x, t)
    assert result.dtype == torch.float64
    torch.testing.assert_close(result.float(), small_ctm.denoise(x.float(), t), rtol=1e-5, atol=1e-5)


def test_half_precision_network_keeps_float32_scalings(small_ctm):
    x, t = 80 * torch.randn(2, 1, 8, 8), levels(80, 60)
    full = small_ctm.denoise(x, t)
    half = small_ctm.half().denoise(x, t)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, full, rtol=0.05, atol=0.05)


@pytest.mark.parametrize(
    ("t", "s", "message"),
    [
        ([1.0, 1.0], [1.0, 1.1], r"sigma_min = 0.002 ≤ s ≤ t for every sample, got t = \[1, 1\], s = \[1, 1.1\]"),
        ([1.0, 1.0], [0.5, 0.001], "sigma_min = 0.002 ≤ s ≤ t"),
        ([1.0, 1.0], [0.5, float("nan")], "s is a noise level, finite and at least 0"),
    ],
)
def test_jump_refuses_levels_out_of_range(small_ctm, t, s, message):
    x = torch.randn(2, 1, 8, 8)
    with pytest.raises(ValueError, match=message):
        small_ctm.jump(x, levels(*t), levels(*s))


@pytest.mark.parametrize(
    ("x", "t", "labels", "message"),
    [
        (torch.zeros(2, 1, 8, 9), torch.ones(2), None, r"x must have shape \(B, 1, 8, 8\), got \(2, 1, 8, 9\)"),
        (torch.zeros(2, 1, 8, 8).long(), torch.ones(2), None, "x must be floating point"),
        (
            torch.zeros(2, 1, 8, 8),
            torch.ones(3),
            None,
            r"t is a noise level: one number, or a tensor of shape \(2,\), one for each sample",
        ),
        (torch.zeros(2, 1, 8, 8), torch.ones(2), torch.tensor([1, 10]), "label 10 is not known to this model"),
        (torch.zeros(2, 1, 8, 8), torch.ones(2), torch.tensor([1.0, 2.0]), "labels must be whole numbers"),
    ],
)
def test_denoise_refuses_unfitting_arguments(small_ctm, x, t, labels, message):
    with pytest.raises(ValueError, match=message):
        small_ctm.denoise(x, t, labels)


@pytest.mark.parametrize("name", ["inner", "outer"])
def test_unknown_scalings_are_refused_when_built(name):
    with pytest.raises(ValueError, match=f"{name} must be one of"):
        TrajectoryModel(nn.Identity(), shape=(2,), **{name: "unheard-of"})


def test_save_and_load_give_the_same_bits(tmp_path, small_ctm):
    small_ctm.save_pretrained(tmp_path / "model")
    assert sorted(p.name for p in (tmp_path / "model").iterdir()) == ["README.md", "config.json", "model.safetensors"]
    loaded = TrajectoryModel.from_pretrained(tmp_path / "model")
    assert not loaded.training
    x, t = torch.randn(2, 1, 8, 8), levels(4, 1)
    assert torch.equal(loaded.jump(x, t, levels(1, 0.5)), small_ctm.jump(x, t, levels(1, 0.5)))
    assert loaded.num_classes == 10
    assert loaded.shape == (1, 8, 8)
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config["network"]["class_path"] == "ctm.networks.MLP"
    assert config["network"]["init_args"] == {
        "shape": [1, 8, 8],
        "num_classes": 10,
        "width": 32,
        "blocks": 2,
        "embedding": 16,
    }


def test_a_network_given_by_class_path_is_built_and_saved(tmp_path):
    spec = {
        "class_path": "ctm.networks.DDPMpp",
        "init_args": {"shape": [3, 8, 8], "channels": 8, "channel_mult": [1, 1]},
    }
    model = TrajectoryModel(spec, shape=(3, 8, 8), sigma_data=0.7, outer="variance")
    model.save_pretrained(tmp_path)
    loaded = ctm.load_model(tmp_path)
    assert isinstance(loaded, TrajectoryModel)
    assert isinstance(loaded.network, DDPMpp)
    assert (loaded.sigma_data, loaded.outer) == (0.7, "variance")
    assert load_file(tmp_path / "model.safetensors").keys() == model.state_dict().keys()


def test_saving_a_network_that_config_json_cannot_describe_says_so(tmp_path):
    class Own(nn.Module):
        def forward(self, x, t, s, labels):
            return x

    with pytest.raises(ValueError, match=r"its network is an Own object, which config\.json cannot describe"):
        TrajectoryModel(Own(), shape=(2,)).save_pretrained(tmp_path)


def test_a_config_cannot_call_what_is_no_module(tmp_path):
    touched = tmp_path / "touched"
    for path in ("os.system", "subprocess.run", "pathlib.Path"):
        with pytest.raises(
            ValueError, match=f"asks for {path}, which is not part of ctm.networks, and no model needs it"
        ):
            build({"class_path": path, "init_args": {"args": f"touch {touched}"}})
        with allowing(path.rpartition(".")[0]), pytest.raises(ValueError, match=r"is not a torch\.nn\.Module"):
            build({"class_path": path, "init_args": {"args": f"touch {touched}"}})
    assert not touched.exists()


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            {"class_path": "ctm.networks.Nothing"},
            "there is no network ctm.networks.Nothing: there are ctm.networks.ADM",
        ),
        ({"class_path": "ctm.networks.MLP", "init_args": {"shape": [2], "depth": 3}}, "does not take these init_args"),
        ({"init_args": {}}, "a network is given as"),
    ],
)
def test_a_wrong_description_is_a_sentence(spec, message):
    with pytest.raises(ValueError, match=message):
        build(spec)


def test_load_model_finds_a_run_directory_and_both_kinds(tmp_path):
    teacher = DiffusionModel(MLP((2,), width=8, blocks=1, embedding=8, s_embedding=False), shape=(2,))
    teacher.save_pretrained(tmp_path / "run" / "model")
    loaded = load_model(tmp_path / "run")
    assert isinstance(loaded, DiffusionModel)
    assert not hasattr(loaded, "jump")
    x = torch.randn(4, 2)
    assert torch.equal(loaded.denoise(x, torch.ones(4)), teacher.eval().denoise(x, torch.ones(4)))


def test_load_model_says_what_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no config.json in .* nor in .*model. Give a model or run directory"):
        load_model(tmp_path)
    with pytest.raises(FileNotFoundError, match="is no directory, and the hub does not give it"):
        load_model("nobody/nothing")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="is not a model's configuration"):
        load_model(tmp_path)


def test_weights_that_do_not_fit_are_named(tmp_path, small_ctm):
    small_ctm.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["network"]["init_args"]["blocks"] = 3
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"do not fit the network: config\.json asks for more than their 32 tensors"):
        load_model(tmp_path)


def test_a_float32_grid_serves_a_float64_state():
    """float32(0.01) is below 0.01: the last jump must not be refused for that."""
    model = TrajectoryModel(MLP((2,), width=8, blocks=1, embedding=8), shape=(2,), sigma_min=0.01).double()
    grid = ctm.karras_grid(2, sigma_min=0.01, dtype=torch.float32)
    assert float(grid[-1]) < 0.01
    assert ctm.sampling.gamma(model, torch.randn(3, 2, dtype=torch.float64), grid).dtype == torch.float64


def test_case_05_class_names_live_in_config_json(small_ctm, tmp_path):
    assert small_ctm.class_names == []
    small_ctm.save_pretrained(tmp_path / "unnamed")
    assert "class_names" not in json.loads((tmp_path / "unnamed" / "config.json").read_text())
    names = [f"class {number}" for number in range(10)]
    small_ctm.class_names = names
    small_ctm.save_pretrained(tmp_path / "named")
    loaded = load_model(tmp_path / "named")
    assert loaded.class_names == names
    assert loaded.extra_config == {}
    for wrong in (names[:9], "abcdefghij", [*names[:9], 9]):
        with pytest.raises(ValueError, match="class_names must be 10 texts, one for each class, or none"):
            small_ctm.class_names = wrong
    config = json.loads((tmp_path / "named" / "config.json").read_text()) | {"class_names": names[:3]}
    (tmp_path / "named" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="class_names must be 10 texts, one for each class, or none: got 3 names"):
        load_model(tmp_path / "named")


def test_case_05_the_shipped_models_know_their_classes():
    models = Path(__file__).parents[1] / "models"
    for kind in ("teacher", "ctm"):
        assert load_model(models / f"digits-{kind}").class_names == [str(number) for number in range(10)]
        assert load_model(models / f"fashion-mnist-{kind}").class_names == FASHION_CLASSES
