"""A file of latents: written, read back as a data set, refused where it is another one."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from ctm.conditions import presence
from ctm.data import load_images
from ctm.data.digest import digest_of
from ctm.data.latent_files import write_latents
from ctm.data.latents import Latents, RowsOf, Texts, holds_latents, load_latents, text_arrays
from ctm.evaluation.run import judge_of
from ctm.training.levels import measured_deviation


@pytest.fixture
def made(tmp_path):
    """Five latents, of which the second has no text, and the arrays that they were written from."""
    random = np.random.default_rng(0)
    latents, table = (
        random.normal(2.0, 3.0, (5, 4, 2, 3)).astype(np.float32),
        random.normal(size=(2, 3, 6)).astype(np.float32),
    )
    numbers, labels = np.array([0, -1, 1, 1, 0]), np.array([0, 1, 2, -1, 1])
    file = tmp_path / "latents.safetensors"
    beside = text_arrays(Texts(table, numbers)) | {"labels": labels}
    write_latents(file, latents, beside, class_names=["a", "b", "c"])
    return file, latents, table, numbers, labels


def test_it_is_read_back_as_a_data_set(made):
    file, latents, table, numbers, labels = made
    assert holds_latents(file)
    found = load_latents(file)
    assert (found.shape, len(found), found.class_names, found.num_classes) == ((4, 2, 3), 5, ["a", "b", "c"], 3)
    assert found.conditioner.as_json()["fields"] == {"text": [3, 6]}
    x, condition = found.rows(np.array([3, 1]))
    assert torch.equal(x, torch.from_numpy(latents[[3, 1]]))
    assert condition["labels"].tolist() == [-1, 1]
    assert presence(condition, "text", 2).tolist() == [True, False]
    assert torch.equal(condition["text"][0], torch.from_numpy(table[1]))
    assert measured_deviation(found) == (round(float(latents.astype(np.float64).std()), 4), 5)
    whole = table[np.maximum(numbers, 0)]
    plain = Latents(latents, labels, ["a", "b", "c"], fields={"text": whole, "text_present": numbers >= 0})
    assert digest_of(found).value == digest_of(plain).value


def test_it_is_no_set_of_pictures(made):
    with pytest.raises(ValueError, match="holds latents, which only training takes"):
        load_images(str(made[0]))
    with pytest.raises(ValueError, match="an evaluation compares pictures"):
        judge_of(load_latents(made[0]), images=4)


def test_rows_of_a_smaller_array_are_read_like_an_array():
    table, numbers = np.arange(6, dtype=np.float32).reshape(2, 3), np.array([1, 0, 1])
    rows, whole = RowsOf(table, numbers), table[numbers]
    assert (len(rows), rows.shape, rows.ndim, rows.dtype) == (3, (3, 3), 2, np.float32)
    for index in (1, slice(1, 3), np.array([2, 0])):
        assert np.array_equal(rows[index], whole[index])
    assert np.array_equal(np.asarray(rows), whole)
    assert rows.tobytes() == whole.tobytes()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"other": torch.zeros(2)}, "holds latents, other: a file of latents has"),
        ({"latents": torch.zeros(2, 3)}, "latents is torch.float32"),
        ({"latents": torch.zeros(2, 1, 1, 1).half()}, "latents is torch.float16"),
        ({"labels": torch.zeros(3, dtype=torch.int64)}, "differ in number"),
        ({"texts": torch.zeros(2, 1, 1)}, "a file of latents has"),
        ({"texts": torch.zeros(2, 1, 1), "text_rows": torch.tensor([0, 2])}, "text_rows must be −1 … 1"),
    ],
    ids=["name", "rank", "half", "number", "rows", "range"],
)
def test_another_file_is_refused_in_a_sentence(tmp_path, change, sentence):
    file = tmp_path / "latents.safetensors"
    save_file({"latents": torch.zeros(2, 1, 1, 1)} | change, file)
    with pytest.raises(ValueError, match=sentence):
        load_latents(file)


def test_equal_values_have_no_deviation():
    with pytest.raises(ValueError, match="have the same value"):
        measured_deviation(Latents(np.ones((2, 1, 1, 1), dtype=np.float32), name="x"))
    with pytest.raises(ValueError, match="no finite numbers"):
        measured_deviation(Latents(np.full((2, 1, 1, 1), np.nan, dtype=np.float32), name="x"))


def test_what_is_for_pictures_is_refused(made):
    with pytest.raises(
        ValueError, match=r"data.size 8 .* is for pictures, and .* holds latents as they are: leave it out"
    ):
        load_latents(made[0], {"size": 8, "image": None})
