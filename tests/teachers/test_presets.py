import pytest

from ctm.teachers.presets import PRESETS, SETTINGS, check_settings, parse_settings


def test_the_named_presets_are_valid_and_complete():
    assert set(PRESETS) == {"edm-cifar10", "edm-imagenet64", "cm-imagenet64", "ctm-cifar10", "ctm-imagenet64"}
    for name, preset in PRESETS.items():
        assert check_settings(preset.settings) == preset.settings
        assert {"model", "sigma_data", "sigma_min", "sigma_max", "resample_filter"} <= set(preset.settings)
        assert {"inner", "outer"} <= set(preset.settings) or not name.startswith("ctm")
        assert {"image_size", "head_channels", "qkv_order"} <= set(preset.settings) or preset.kinds == ("song",)


def test_settings_are_parsed():
    given = ["sigma_data=0.25", "resample_filter=[1, 3,3,1]", "image_size=16", "inner=no", "qkv_order=heads-three-dim"]
    assert parse_settings(given) == {
        "sigma_data": 0.25,
        "resample_filter": [1, 3, 3, 1],
        "image_size": 16,
        "inner": "no",
        "qkv_order": "heads-three-dim",
    }
    assert parse_settings([]) == {}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("sigma", "--set takes key=value"),
        ("colour=3", "'colour' is no setting of a checkpoint: settings are model"),
        ("sigma_data=0", "sigma_data must be a number above 0, got 0"),
        ("sigma_max=Infinity", "sigma_max must be a number above 0"),
        ("sigma_data=half", "sigma_data must be a number above 0, got 'half'"),
        ("image_size=true", "image_size must be a whole number above 0"),
        ("resample_filter=[1,-1]", "resample_filter must be a list of numbers above 0"),
        ("image_size=none", "image_size must be a whole number above 0"),
        ("inner=best", "inner must be one of edm, cm, no, got 'best'"),
        ("model=gan", "model must be one of diffusion, consistency, trajectory, got 'gan'"),
    ],
)
def test_wrong_settings_are_sentences(given, message):
    with pytest.raises(ValueError, match=message):
        parse_settings([given])


def test_a_key_twice():
    with pytest.raises(ValueError, match="each key once"):
        parse_settings(["sigma_data=1", "sigma_data=2"])
    assert len(SETTINGS) == len(set(SETTINGS))
