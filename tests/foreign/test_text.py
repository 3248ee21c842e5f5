"""JSON and YAML from elsewhere, within bounds."""

import json

import pytest
import yaml

from ctm.foreign.text import check_yaml, plain, read_json, read_yaml, with_article


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not readable as JSON"),
        ('{"a": NaN}', "NaN is no finite number"),
        ('{"a": -Infinity}', "Infinity is no finite number"),
        ('{"a": 1e999}', "1e999 is no finite number"),
        ('{"a": 1, "b": {"c": 1, "c": 2}}', "'c' is given twice"),
        ("1" * 5000, "is not readable as JSON"),
        ("[" * 60 + "]" * 60, "is nested deeper than 50"),
        ("[" * 200_000, "is nested deeper than 50"),
        ('"' + "a" * (1 << 20) + '"', "is longer than 1 MB"),
        ("\udcff", r"is no text in UTF-8 .* at byte 0"),
    ],
)
def test_json_that_is_refused(tmp_path, text, message):
    (tmp_path / "x.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError, match=message) as caught:
        read_json(tmp_path / "x.json")
    assert len(str(caught.value)) < 500


def test_json_that_is_read(tmp_path):
    value = {"a": [1, 2.5, None, True, "ü"], "b": {"c": [[[]]]}}
    (tmp_path / "x.json").write_text(json.dumps(value))
    assert read_json(tmp_path / "x.json") == value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: &a [*a]", "has an alias 'a' for what is not there, or for itself"),
        ("a: *b", "has an alias 'b'"),
        ("a: !!python/name:os.system ''", "asks for an object"),
        ("a: !thing 3", "asks for an object"),
        ("[" * 60 + "]" * 60, "nested deeper than 50"),
        ("[" * 200_000, "is not readable as YAML|nested deeper"),
        ("a: [", "is not readable as YAML"),
        ("a: 1\nb: {c: [{d: 1, d: 2}]}", "gives the key 'd' twice"),
        ("a: 1\nb: 2\n'a': 3", "gives the key 'a' twice"),
        ("&k a: 1\n*k : 2", "gives the key 'a' twice"),
        ("k: &k a\nb: {*k : 1, a: 2}", "gives the key 'a' twice"),
        ("- 1\n" * 20_001, "more than 20000 values"),
        (
            "a: &a [1, 2]\n"
            + "\n".join(f"b{i}: &b{i} {{<<: *a, c: [*{'a' if not i else f'b{i - 1}'}, *a]}}" for i in range(5)),
            "",
        ),
    ],
)
def test_yaml_within_bounds(tmp_path, text, message):
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises((ValueError, yaml.YAMLError), match=message):
        read_yaml(tmp_path / "x.yaml")


def test_an_anchor_that_is_used_twice_is_read(tmp_path):
    (tmp_path / "x.yaml").write_text("a: &a {lr: 0.1}\nb: *a\nc: {<<: *a, k: 1}\n")
    assert read_yaml(tmp_path / "x.yaml") == {"a": {"lr": 0.1}, "b": {"lr": 0.1}, "c": {"lr": 0.1, "k": 1}}


def test_names_come_into_messages_as_one_printable_line():
    assert plain("a\n\x1b[31mb\tc") == "a [31mb c"
    assert plain("x" * 1000) == "x" * 80 + "…"
    assert plain([[]]) == "a list"
    assert plain(3) == "an int"


@pytest.mark.parametrize("name", ["MLP", "ADM", "NCSNpp", "EDM2", "Adam", "int", "HTTPError", "RAdam"])
def test_names_that_begin_with_a_vowel_as_they_are_said_have_an(name):
    assert with_article(name) == f"an {name}"


@pytest.mark.parametrize(
    "name", ["UNet1d", "DDPMpp", "DiT", "TrajectoryModel", "Linear", "Sequential", "UserDict", "list"]
)
def test_the_others_have_a(name):
    assert with_article(name) == f"a {name}"


def test_a_key_may_stand_in_many_mappings_and_as_a_value(tmp_path):
    text = "a: &a {a: a, b: [a, a, {a: 1}]}\nb: {a: *a, c: {a: *a}}\n? [a, b]\n: {a: 1}\n? {a: 1}\n: 2\n"
    check_yaml(text, "x.yaml")
    check_yaml("a: 1\n---\na: 1\n", "x.yaml")
