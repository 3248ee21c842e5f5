"""Vectors, sequences and fields from files of arrays: every kind of file, one item, odd numbers, many; damage; scalings."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from ctm.data import Images, Values, load_dataset, scaled_values
from ctm.data.digest import digest_of
from ctm.evaluation.values import ValueJudge
from ctm.scaling import Scaling, scaling_from

KINDS = ("npy", "npz", "packed", "safetensors")
SHAPES = {"vectors": (3,), "sequences": (2, 8), "fields": (2, 4, 6)}
RANDOM = np.random.default_rng(0)


def stored(folder: Path, kind: str, **arrays: np.ndarray) -> Path:
    """The arrays in a file of that kind; `data` is the one that is named."""
    if kind == "npy":
        for name, values in arrays.items():
            np.save(folder / f"{name}.npy", values)
        return folder / "data.npy"
    if kind == "safetensors":
        save_file({name: np.ascontiguousarray(values) for name, values in arrays.items()}, folder / "a.safetensors")
        return folder / "a.safetensors"
    (np.savez if kind == "npz" else np.savez_compressed)(folder / "a.npz", **arrays)
    return folder / "a.npz"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [1, 7])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_every_file_gives_the_numbers_and_their_condition(tmp_path, kind, count, shape):
    values = RANDOM.normal(3, 2, (count, *shape)).astype(np.float32)
    observation = RANDOM.normal(size=(count, 5)).astype(np.float32)
    path = stored(tmp_path, kind, data=values, observation=observation)
    found = load_dataset(str(path), condition=["observation"], scaling="none")
    assert isinstance(found, Values)
    assert (len(found), found.shape, found.scaling.rule) == (count, shape, "none")
    assert found.conditioner.fields == {"observation": (5,)}
    order = RANDOM.permutation(count)
    x, condition = found.rows(order)
    np.testing.assert_array_equal(x, values[order])
    np.testing.assert_array_equal(condition["observation"], observation[order])
    assert isinstance(found.values, np.memmap) == (kind != "packed")


@pytest.mark.parametrize("kind", KINDS)
def test_uint8_is_minus_one_to_one_and_comes_back(tmp_path, kind):
    values = RANDOM.integers(0, 256, (9, 16), dtype=np.uint8)
    found = load_dataset(str(stored(tmp_path, kind, data=values)))
    x, _ = found.all()
    torch.testing.assert_close(x, torch.from_numpy(values) / 127.5 - 1, atol=1e-6, rtol=0)
    np.testing.assert_allclose(found.scaling.undo(x), values, atol=1e-5)


def test_an_npy_of_pictures_is_pictures_and_memory_mapped(tmp_path):
    pixels = RANDOM.integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)
    np.save(tmp_path / "p.npy", pixels)
    found = load_dataset(str(tmp_path / "p.npy"))
    assert isinstance(found, Images)
    assert isinstance(found.pixels, np.memmap)
    np.testing.assert_array_equal(found.pixels, pixels)
    save_file({"images": pixels, "labels": np.arange(5)}, tmp_path / "p.safetensors")
    assert load_dataset(str(tmp_path / "p.safetensors")).num_classes == 5


@pytest.mark.parametrize("rule", ["standard", "range"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_a_rule_does_what_it_says_and_is_undone(rule, shape):
    """Also about a large offset, where float32 alone would leave four digits of the spread."""
    values = RANDOM.normal(size=(400, *shape)) * 3
    values[:, 0] = values[:, 0] / 100 + 1000
    found = scaled_values(values.astype(np.float32), rule)
    x = found.all()[0].double().transpose(0, 1).flatten(1)
    if rule == "standard":
        torch.testing.assert_close(x.mean(1), torch.zeros(len(x)).double(), atol=1e-4, rtol=0)
        torch.testing.assert_close(x.std(1, correction=0), torch.full((len(x),), 0.5).double(), atol=1e-4, rtol=0)
    else:
        torch.testing.assert_close(x.amin(1), -torch.ones(len(x)).double(), atol=3e-3, rtol=0)
        torch.testing.assert_close(x.amax(1), torch.ones(len(x)).double(), atol=3e-3, rtol=0)
    torch.testing.assert_close(found.scaling.undo(found.all()[0]), torch.from_numpy(found.values), rtol=2e-7, atol=1e-6)
    measured = float(found.all()[0].double().std(correction=0))
    assert found.moments.deviation(found.scaling) == pytest.approx(measured, rel=1e-6)
    assert scaling_from(found.scaling.as_json(), shape) == found.scaling


def test_a_channel_of_one_number_is_moved_and_said():
    values = RANDOM.normal(size=(20, 3)).astype(np.float32)
    values[:, 1] = 7
    found = scaled_values(values, "standard")
    assert found.notes == ("one number throughout in channel 1: moved to 0, not stretched",)
    assert float(found.all()[0][:, 1].abs().max()) == 0
    with pytest.raises(ValueError, match="are equal, so that they have no spread"):
        scaled_values(np.ones((4, 2), np.float32), None)


def test_a_million_items_are_mapped_and_read_once(tmp_path):
    """A sparse file of 10⁶ items: all zeros but a few, so that the moments are known."""
    values = np.lib.format.open_memmap(tmp_path / "data.npy", "w+", np.float32, (1_000_000, 2))
    values[::1000] = 1
    values.flush()
    found = load_dataset(str(tmp_path / "data.npy"))
    assert len(found) == 1_000_000
    assert isinstance(found.values, np.memmap)
    np.testing.assert_allclose(found.moments.mean, 1e-3, rtol=1e-12)
    np.testing.assert_allclose(found.moments.variance, 1e-3 - 1e-6, rtol=1e-9)
    x, _ = found.batch(np.array([999_999, 999_000]))
    np.testing.assert_allclose(found.scaling.undo(x), [[0, 0], [1, 1]], atol=1e-6)


def test_an_items_order_in_the_file_does_not_matter(tmp_path):
    values = np.asfortranarray(RANDOM.normal(size=(6, 2, 4)).astype(np.float32))
    np.save(tmp_path / "data.npy", values)
    np.savez(tmp_path / "a.npz", data=values)
    for name in ("data.npy", "a.npz"):
        np.testing.assert_array_equal(load_dataset(str(tmp_path / name), scaling="none").all()[0], values)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_what_is_not_finite_is_refused_by_its_number(tmp_path, kind, wrong):
    values = RANDOM.normal(size=(9, 3)).astype(np.float32)
    values[6, 1] = wrong
    path = stored(tmp_path, kind, data=values)
    with pytest.raises(
        ValueError, match=r"item 6, counted from 0, is not finite \(NaN or infinity\): leave such items out"
    ):
        load_dataset(str(path))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("values", "said"),
    [
        (np.zeros((0, 3), np.float32), "with at least one item"),
        (np.zeros((4, 3), np.int64), r"data must be floats of 16, 32 or 64 bits .* array\.astype\('float32'\); labels"),
        (np.zeros(4, np.float32), r"\(N, D\), \(N, C, L\) or \(N, C, H, W\)"),
        (np.zeros((2, 2, 2, 2, 2), np.float32), r"\(N, D\), \(N, C, L\) or \(N, C, H, W\)"),
    ],
    ids=["empty", "integers", "numbers", "five"],
)
def test_what_is_no_data_set_is_refused(tmp_path, kind, values, said):
    with pytest.raises(ValueError, match=said):
        load_dataset(str(stored(tmp_path, kind, data=values)))


@pytest.mark.parametrize("kind", ["npy", "npz"])
def test_objects_are_refused(tmp_path, kind):
    path = stored(tmp_path, kind, data=np.array([{1: 2}, None], dtype=object))
    with pytest.raises(ValueError, match=r"holds the arrays|Python objects|no such array"):
        load_dataset(str(path), image="data")


@pytest.mark.parametrize("kind", KINDS)
def test_a_condition_of_another_length_is_refused(tmp_path, kind):
    path = stored(tmp_path, kind, data=np.ones((4, 3), np.float32), observation=np.ones((5, 2), np.float32))
    with pytest.raises(
        ValueError, match=r"a field of the condition must be real numbers \(4, …\), got float32 \(5, 2\)"
    ):
        load_dataset(str(path), condition=["observation"], scaling="none")
    with pytest.raises(ValueError, match="there is no such array"):
        load_dataset(str(path), condition=["other"])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [0.02, 0.5, 0.99])
def test_a_file_cut_short_is_refused(tmp_path, kind, share):
    path = stored(tmp_path, kind, data=RANDOM.normal(size=(300, 3)).astype(np.float32))
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(ValueError, match=r"damaged|cut short|no safetensors file|no .npz"):
        load_dataset(str(path))


@pytest.mark.parametrize(
    ("kind", "pictures"),
    [("npy", False), ("npz", False), ("safetensors", False), ("npy", True), ("safetensors", True)],
)
def test_a_mapped_file_that_changes_under_its_reader_is_named(tmp_path, kind, pictures):
    """A cut one killed the process; a changed one gave other numbers than were checked."""
    values = RANDOM.integers(0, 255, (300, 8, 8, 3), dtype=np.uint8) if pictures else RANDOM.normal(size=(300, 3))
    name = "images" if pictures and kind != "npy" else "data"
    path = stored(tmp_path, kind, **{name: values})
    found = load_dataset(str(path))
    first = found.batch(np.arange(4))[0]
    content = path.read_bytes()
    moved = path.rename(tmp_path / "old")
    path.write_bytes(bytes(len(content)))  # another file of that name: what is mapped is the old one
    assert torch.equal(found.batch(np.arange(4))[0], first)
    moved.replace(path)
    with path.open("r+b") as file:
        file.write(content[:10])
    with pytest.raises(ValueError, match=f"{path.name} was written to while it was being read from"):
        found.batch(np.arange(4))
    again = load_dataset(str(path))
    os.truncate(path, 100)
    for read in (lambda: again.batch(np.arange(4)), lambda: digest_of(again)):
        with pytest.raises(ValueError, match=f"{path.name} was cut while it was being read from"):
            read()


@pytest.mark.parametrize("kind", ["npy", "npz", "packed"])
@pytest.mark.parametrize("dtype", [">f2", ">f4", ">f8"])
def test_the_other_order_of_bytes_gives_the_same_numbers(tmp_path, kind, dtype):
    values = RANDOM.normal(3, 2, (9, 3)).astype(dtype)
    found = load_dataset(str(stored(tmp_path, kind, data=values)), scaling="none")
    np.testing.assert_array_equal(found.all()[0], values.astype("f4"))
    np.testing.assert_array_equal(
        ValueJudge(found).gaussian.mean, ValueJudge(scaled_values(values.astype("f8"), "none")).gaussian.mean
    )


@pytest.mark.parametrize("kind", ["npy", "npz"])
def test_floats_that_torch_has_not_are_refused(tmp_path, kind):
    path = stored(tmp_path, kind, data=np.zeros((4, 3), np.longdouble))
    with pytest.raises(ValueError, match=r"got float(128|96) \(4, 3\)\. Save numbers as float32"):
        load_dataset(str(path))


def test_numbers_too_small_for_float32_are_named_by_their_channel(tmp_path):
    values = RANDOM.normal(size=(64, 3)) * [1, 1e-200, 1]
    for rule in (None, "none", "range"):
        with pytest.raises(
            ValueError, match=r"data\.npy: the numbers of channel 1, counted from 0, differ by .*e-200 at most"
        ):
            load_dataset(str(stored(tmp_path, "npy", data=values)), scaling=rule)
    small = load_dataset(str(stored(tmp_path, "npy", data=values * [1, 1e165, 1]))).all()[0]
    assert float(small[:, 1].std(correction=0)) == pytest.approx(0.5, rel=1e-5)


def test_an_ending_in_capitals_is_an_ending(tmp_path):
    stored(tmp_path, "npy", data=np.eye(3, dtype="f4"), observation=np.ones((3, 2), "f4"))
    (tmp_path / "data.npy").rename(tmp_path / "data.NPY")
    found = load_dataset(str(tmp_path / "data.NPY"), condition=["observation"], scaling="none")
    np.testing.assert_array_equal(found.fields["observation"], np.ones((3, 2)))


@pytest.mark.parametrize(
    "names",
    [np.array("abc"), np.array([["a", "b", "c"]]), np.array([1, 2, 3]), np.array(["a"])],
    ids=["one", "table", "numbers", "few"],
)
@pytest.mark.parametrize("items", ["data", "images"])
def test_names_of_classes_that_are_none_are_refused(tmp_path, names, items):
    values = np.zeros((6, 4, 4), np.uint8)
    values[0] = 9
    labels = np.arange(6) % 3
    path = stored(tmp_path, "npz", **{items: values}, labels=labels, class_names=names)
    with pytest.raises(ValueError, match=r"class_names must be texts, one for each class 0 … 2, got"):
        load_dataset(str(path))
    without = load_dataset(str(stored(tmp_path, "npz", **{items: values}, class_names=names)))
    assert any(note.startswith("not read: class_names (") for note in without.notes)


def test_options_of_pictures_and_of_values_are_told_apart(tmp_path):
    path = str(stored(tmp_path, "npz", data=np.eye(3, dtype=np.float32)))
    with pytest.raises(ValueError, match=r"--data.size 8 .* is for pictures"):
        load_dataset(path, 8)
    with pytest.raises(ValueError, match=r"--data.scaling range .* is for arrays of numbers, and digits is pictures"):
        load_dataset("digits", scaling="range")
    with pytest.raises(ValueError, match=r"--data.scaling bytes .* is for uint8"):
        load_dataset(path, scaling="bytes")
    np.savez(tmp_path / "last.npz", images=np.zeros((2, 8, 8, 3), np.float32))
    with pytest.raises(ValueError, match=r"Floats are taken with the channels in front"):
        load_dataset(str(tmp_path / "last.npz"))


def test_the_digest_is_of_the_numbers(tmp_path):
    values = RANDOM.normal(size=(5, 3)).astype(np.float32)
    digests = [
        digest_of(scaled_values(each, rule)).value for each in (values, values + 1) for rule in ("range", "none")
    ]
    assert digests[0] == digests[1] != digests[2] == digests[3]


@pytest.mark.parametrize(
    "entry",
    [
        {"rule": "standard", "offset": [0.0], "scale": [0.0]},
        {"rule": "standard", "offset": [0.0, 1.0], "scale": [1.0]},
        {"rule": "other", "offset": [0.0], "scale": [1.0]},
        {"rule": "range", "offset": [True], "scale": [1.0]},
        {"rule": "range", "offset": [1e39], "scale": [1.0]},
        {"rule": "range", "offset": [0.0] * 4, "scale": [1.0] * 4},
        {"rule": ["range"], "offset": [0.0], "scale": [1.0]},
        [1],
    ],
    ids=str,
)
def test_a_damaged_scaling_is_refused(entry):
    with pytest.raises(ValueError, match="scal"):
        scaling_from(entry, (3,))


def test_a_scaling_keeps_the_precision_of_a_large_offset():
    scaling = Scaling("standard", (1e6,), (0.5,))
    v = torch.tensor([[1e6 + 0.25]], dtype=torch.float64)
    assert float(scaling.apply(v)) == 0.5
    assert float(scaling.undo(torch.tensor([[0.5]], dtype=torch.float64))) == 1e6 + 0.25
