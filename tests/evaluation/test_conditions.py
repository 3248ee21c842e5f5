"""Evaluation, likelihood and tuning of models whose condition has fields: each sample gets the fields of a row of the data, by
number, or of a file."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from ctm import Arrays, DiffusionModel, Labels, TrajectoryModel, generate, karras_grid
from ctm.conditioner import Conditioner
from ctm.data import Images, load_images
from ctm.data.images import to_model_range
from ctm.evaluation.compare import check_protocols, compare
from ctm.evaluation.conditions import PAIRED
from ctm.evaluation.frechet import frechet
from ctm.evaluation.frechet_measure import FrechetMeasure
from ctm.evaluation.likelihood import likelihood_number
from ctm.evaluation.moments import Gaussian
from ctm.evaluation.run import condition_of, judge_of, make_judge
from ctm.evaluation.sources import ImageSource, ModelSource, label_rows
from ctm.likelihood import bits_per_dim
from ctm.networks import MLP
from ctm.pictures import as_saved
from ctm.sampling import FlowDistance, class_labels, gamma, heun
from ctm.teachers import ConditionalGaussian

from ..commands.test_cli import run, sentence
from ..conftest import random_weights

FIELDS = {"ink": (), "half": (1, 8, 8)}
FAST = ["--features", "classifier", "--num", 60]


@pytest.fixture(autouse=True)
def _one_classifier(session_cache, monkeypatch, quick_classifier):
    monkeypatch.setenv("CTM_CACHE", str(session_cache))


def fields_of(pixels: np.ndarray) -> dict[str, np.ndarray]:
    grey = (pixels[..., 0] / 127.5 - 1).astype(np.float32)
    half = grey.reshape(-1, 4, 2, 4, 2).mean(axis=(2, 4)).repeat(2, axis=1).repeat(2, axis=2)
    return {"ink": grey.mean(axis=(1, 2)), "half": half[:, None]}


@pytest.fixture
def data(tmp_path):
    """120 digits with their mean and their blurred picture."""
    images = load_images("digits")
    pixels, labels = images.pixels[:120], images.labels[:120]
    np.savez(tmp_path / "digits.npz", images=pixels, labels=labels, **fields_of(pixels))
    return tmp_path / "digits.npz"


@pytest.fixture
def asked(tmp_path):
    """Three rows of fields in a file."""
    fields = fields_of(load_images("digits").pixels[200:203])
    np.savez(tmp_path / "asked.npz", **fields)
    return tmp_path / "asked.npz"


def network(s: bool = True, arrays: dict = FIELDS) -> MLP:
    return random_weights(MLP((1, 8, 8), 10, width=32, blocks=2, embedding=16, s_embedding=s, arrays=arrays))


@pytest.fixture
def fields_ctm() -> TrajectoryModel:
    return TrajectoryModel(network(), shape=(1, 8, 8), num_classes=10).eval()


@pytest.fixture
def model(fields_ctm, tmp_path):
    fields_ctm.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def teacher(tmp_path):
    """A diffusion model that knows ink and not half."""
    made = DiffusionModel(network(False, {"ink": ()}), shape=(1, 8, 8), num_classes=10)
    made.save_pretrained(tmp_path / "teacher")
    return tmp_path / "teacher"


def result_of(capsys, out, *arguments):
    code, _, err = run(capsys, "evaluate", *arguments, *FAST, "--out", out)
    assert code == 0, err
    return json.loads((out / "result.json").read_text())


# Which row a sample belongs to


def gaussian() -> ConditionalGaussian:
    """1×8×8 pictures in the plane of three directions, all but without noise of their own."""
    matrix = torch.randn(1, 8, 8, 3, generator=torch.Generator().manual_seed(0))
    return ConditionalGaussian(0.1 * matrix, torch.zeros(1, 8, 8), 0.02)


def drawn(n: int) -> Images:
    x, condition = gaussian().sample(n)
    pixels = ((x + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()
    return Images(pixels, fields={"y": condition["y"].numpy()}, name="gaussian")


@pytest.fixture
def judge_on(data):
    """A judge of digits by their classifier whose reference's rows are other images: what is looked at here are the rows."""
    whole = judge_of(load_images(str(data)), features="classifier", images=30, rows=20)

    def made(images: Images, fields="data"):
        reference = replace(whole.reference, source=ImageSource(images, len(images)))
        return replace(whole, reference=reference, fields=fields)

    return made


def source(judge, model) -> ModelSource:
    condition, _ = condition_of(judge, model, 0)
    grid = karras_grid(1)
    return ModelSource(model, judge.images, grid, gamma, condition, 0, torch.device("cpu"))


def test_a_sample_is_of_the_row_whose_fields_it_gets(judge_on):
    """A model that knows the data exactly makes the row's own picture; without fields it makes another one."""
    images = drawn(40)
    judge = judge_on(images)
    rows = label_rows(images, 30, 0)
    assert len(set(rows.tolist())) == 30
    truth = to_model_range(torch.from_numpy(images.pixels[rows]))
    made, labels = source(judge, gaussian()).batch(np.arange(30))
    assert labels is None
    assert (made - truth).square().mean().sqrt() < 0.05  # √2·0.02 and the rounding to bytes; two rows differ by √2·0.17
    away = judge_on(images, fields="none")
    assert (source(away, gaussian()).batch(np.arange(30))[0] - truth).square().mean().sqrt() > 0.15
    later, _ = source(judge, gaussian()).batch(np.array([7, 3]))
    torch.testing.assert_close(later, made[[7, 3]], atol=1e-5, rtol=0)


def test_labels_and_fields_of_a_sample_are_those_of_one_row(data, fields_ctm):
    images = load_images(str(data), condition=list(FIELDS))
    judge = judge_of(images, features="classifier", images=50, rows=20)
    condition, record = condition_of(judge, fields_ctm, 3)
    rows = label_rows(images, 50, 3)
    for name in FIELDS:
        assert np.array_equal(condition[name], images.fields[name][rows])
    assert np.array_equal(condition["labels"], images.labels[rows])
    assert record["fields"]["names"] == ["ink", "half"]
    assert judge.protocol["condition"] == PAIRED


def test_a_row_without_a_field_gives_a_sample_without_it(data, fields_ctm, judge_on):
    images = load_images(str(data), condition=list(FIELDS))
    present = np.arange(120) % 3 > 0
    partly = replace(images, fields={**images.fields, "ink_present": present})
    condition, record = condition_of(judge_on(partly), fields_ctm, 0)
    assert np.array_equal(condition["ink_present"], present[label_rows(images, 30, 0)])
    assert record["fields"]["names"] == ["ink", "half"]
    with pytest.raises(ValueError, match="ink_present must be bool"):
        replace(images, fields={**images.fields, "ink_present": present[:3]})


def test_a_model_of_classes_gets_none_where_the_rows_have_none(data, fields_ctm, judge_on):
    images = load_images(str(data), condition=list(FIELDS))
    unlabelled = Images(images.pixels, fields=images.fields, name="unlabelled")
    condition, _ = condition_of(judge_on(unlabelled), fields_ctm, 0)
    assert condition["labels"].tolist() == [-1] * 30


def test_the_likelihood_of_the_data_is_under_their_own_fields(judge_on):
    """Bits per dimension of the known density, −ln p/(64 ln 2) + log2 128, of pictures with uniform noise within a grey value.
    The spread of Hutchinson's probes and of the noise, over 64 values and 8 pictures, is below 0.1 of a bit."""
    images, truth = drawn(8), gaussian()
    found = likelihood_number(judge_on(images), truth, 8)
    pixels = torch.from_numpy(images.pixels).permute(0, 3, 1, 2)
    x = (pixels + torch.rand(pixels.shape, generator=torch.Generator().manual_seed(0))) / 128 - 1
    exact = truth.log_prob(x, truth.sigma_min, {"y": torch.from_numpy(images.fields["y"])})
    bits = float((-exact / (64 * math.log(2))).mean() + math.log2(128))
    assert found.value == pytest.approx(bits, abs=0.1)
    without = likelihood_number(judge_on(images, fields="none"), truth, 8)
    assert without.value > found.value + 0.15


# ctm evaluate


def test_evaluate_uses_the_fields_that_the_data_have(capsys, model, teacher, data, tmp_path):
    result = result_of(capsys, tmp_path / "out", model, "--teacher", teacher, "--data", data, "--steps", "1")
    assert result["protocol"]["condition"] == PAIRED
    assert [row["fields"]["names"] for row in result["rows"]] == [["ink"], ["ink", "half"]]
    assert "label_accuracy" in result["rows"][1]["numbers"]  # the scores of classes stay
    assert "paired" not in json.dumps(result["rows"])
    other = result_of(capsys, tmp_path / "none", model, "--data", data, "--steps", "1", "--condition", "none")
    assert other["protocol"]["condition"] == "without fields"
    assert "fields" not in other["rows"][0]
    numbers = [each["rows"][-1]["numbers"]["frechet"]["value"] for each in (result, other)]
    assert numbers[0] != pytest.approx(numbers[1], rel=1e-3)


@pytest.mark.slow
def test_evaluate_says_what_is_left_out(capsys, caplog, model, teacher, data, tmp_path):
    out = tmp_path / "out"
    result_of(capsys, out, model, "--teacher", teacher, "--data", data, "--steps", "1", "--data_condition", "half")
    assert "the model is conditioned on ink, of which" in caplog.text
    assert "the teacher is conditioned on ink, of which" in caplog.text
    assert "the teacher does not know half: left out for it" in caplog.text


def test_evaluate_takes_the_rows_of_a_file_in_turn(capsys, model, fields_ctm, data, asked, tmp_path):
    out = tmp_path / "out"
    result = result_of(capsys, out, model, "--data", data, "--steps", "1", "--condition", asked)
    rule = result["protocol"]["condition"]
    assert rule.startswith("the 3 rows of a file in turn, sha256 ")
    assert result["rows"][0]["fields"]["names"] == ["ink", "half"]
    images = load_images(str(data), condition=list(FIELDS))
    with np.load(asked) as stored:
        given = {name: torch.from_numpy(stored[name][np.arange(60) % 3]) for name in FIELDS}
    judge = make_judge(str(data), size=8, channels=1, features="classifier", images=60)
    labels = torch.from_numpy(images.labels[label_rows(images, 60, 0)].astype(np.int64))
    made = generate(fields_ctm, 60, condition={**given, "labels": labels}, batch_size=250)
    features = judge.extractor(as_saved(made))[0].double()
    expected = frechet(Gaussian.of(features), judge.reference.gaussian)
    assert result["rows"][0]["numbers"]["frechet"]["value"] == pytest.approx(float(expected), rel=1e-2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--labels", "uniform"], "--labels uniform draws classes apart from the rows that ink, half come from"),
        (["--data_condition", "labels2"], "--data_condition labels2: no model here takes it; the fields here are ink"),
        (
            ["--condition", "none", "--data_condition", "ink"],
            "names fields of the data, --condition none others: give one",
        ),
        (["--condition", "[ink]"], "Which arrays of --data are read, --data_condition ink,half says"),
        (
            ["--condition", "nowhere.npz"],
            "--condition nowhere.npz: there is no such file. It is data, none, or an .npz with ink, half",
        ),
        (
            ["--condition", "FILE", "--likelihood", "2"],
            "is of the data's images under their own fields, and --condition",
        ),
    ],
)
def test_what_evaluate_cannot_use_is_refused(capsys, model, data, asked, arguments, message):
    arguments = [asked if word == "FILE" else word for word in arguments]
    assert message in sentence(capsys, "evaluate", model, "--data", data, *FAST, *arguments)


def test_fields_of_another_shape_are_refused_before_anything_is_computed(capsys, model, tmp_path):
    pixels = load_images("digits").pixels[:20]
    np.savez(tmp_path / "other.npz", images=pixels, labels=np.arange(20) % 10, ink=np.zeros((20, 2)))
    message = "the model takes the condition 'ink' as [], "
    assert message in sentence(capsys, "evaluate", model, "--data", tmp_path / "other.npz", *FAST)
    assert message in sentence(capsys, "likelihood", model, "--data", tmp_path / "other.npz")
    assert message in sentence(
        capsys, "tune", model, "--data", tmp_path / "other.npz", "--measure", "frechet", "--features", "classifier"
    )


def test_a_condition_for_no_model_or_for_one_without_fields_is_refused(capsys, small_ctm, data, asked, tmp_path):
    small_ctm.save_pretrained(tmp_path / "plain")
    for subject in ([tmp_path / "plain"], ["--samples", data]):
        said = sentence(capsys, "evaluate", *subject, "--data", data, *FAST, "--condition", asked)
        assert "there is no model with fields here, leave it out" in said
        said = sentence(capsys, "evaluate", *subject, "--data", data, *FAST, "--data_condition", "ink")
        assert "--data_condition ink: no model here takes it" in said


def test_statistics_have_no_rows_to_take_fields_from(capsys, tmp_path, model):
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "mu.npz", mu=rng.normal(size=1280), sigma=np.eye(1280), ink=np.zeros(3))
    said = sentence(capsys, "evaluate", model, "--data", tmp_path / "mu.npz", "--num", 20)
    assert "is a file of statistics, whose rows have no fields: give --condition FILE.npz" in said


# ctm compare


def protocol(**further):
    return {"protocol": {"images": 10, "labels": "data", **further}}


def test_results_with_fields_and_without_compare_but_not_with_another_rule(capsys, model, data, asked, tmp_path):
    """Rows of fields and none is as classes and none: the same rule. A file's rows are another rule."""
    check_protocols([("a", protocol()), ("b", protocol(condition=PAIRED))])
    with pytest.raises(ValueError, match="a and b cannot be compared: condition: the fields and the label"):
        check_protocols([("a", protocol()), ("b", protocol(condition="without fields"))])
    results = []
    for name, more in (("a", []), ("b", ["--condition", asked])):
        result_of(capsys, tmp_path / name, model, "--data", data, "--steps", "1", *more)
        results.append(tmp_path / name)
    assert "cannot be compared: condition" in sentence(capsys, "compare", *results)
    assert compare([(name, json.loads((results[0] / "result.json").read_text())) for name in "ab"])


# ctm likelihood


def test_likelihood_of_images_under_their_own_fields(capsys, caplog, model, fields_ctm, data, tmp_path):
    loose = ["--rtol", "1e-2", "--atol", "1e-2", "--num", 4, "--out", tmp_path / "bits.json"]
    code, printed, err = run(capsys, "likelihood", model, "--data", data, *loose)
    assert code == 0, err
    assert "with their classes and with their ink, half" in printed
    result = json.loads((tmp_path / "bits.json").read_text())
    images = load_images(str(data), condition=list(FIELDS))
    pixels = torch.from_numpy(images.pixels[result["drawn"]]).permute(0, 3, 1, 2)
    expected = bits_per_dim(fields_ctm, pixels, images.condition(result["drawn"]), rtol=1e-2, atol=1e-2)
    np.testing.assert_allclose(result["images"]["bits_per_dim"], expected, rtol=1e-4)
    assert result["fields"] == ["ink", "half"]
    run(capsys, "likelihood", model, "--data", data, *loose, "--condition", "none")
    other = json.loads((tmp_path / "bits.json").read_text())
    assert other["fields"] == []
    assert not np.allclose(other["images"]["bits_per_dim"], expected, rtol=1e-3)
    caplog.clear()
    run(capsys, "likelihood", model, "--data", data, *loose, "--data_condition", "half")
    assert "the model is conditioned on ink, of which" in caplog.text
    said = sentence(capsys, "likelihood", model, "--data", data, "--condition", data)
    assert "--condition must be own or none" in said


# ctm tune


@pytest.mark.slow
def test_tuning_by_the_flow_takes_the_rows_of_a_file(capsys, caplog, model, fields_ctm, asked, tmp_path):
    """The held-out samples go on with the rows after those of tuning."""
    with np.load(asked) as stored:
        fields = {name: torch.from_numpy(stored[name]) for name in FIELDS}
    measure = FlowDistance(fields_ctm, num=4, held_out=5, fields=fields)
    grid = karras_grid(2)
    for held_out, rows in ((False, [0, 1, 2, 0]), (True, [1, 2, 0, 1, 2])):
        condition = {name: values[rows] for name, values in fields.items()}
        condition["labels"] = class_labels(fields_ctm, len(rows), None, int(held_out))
        options = {"condition": condition, "seed": int(held_out)}
        made = generate(fields_ctm, len(rows), grid=grid, gamma=0.0, **options)
        flow = generate(fields_ctm, len(rows), grid=karras_grid(39), sampler=heun, **options)
        expected = (made - flow).double().square().flatten(1).mean(dim=1)
        torch.testing.assert_close(measure(grid, 0.0, held_out=held_out), expected, rtol=1e-4, atol=1e-6)
    quick = ["--steps", "2", "--num", "8", "--out", tmp_path / "tuned"]
    assert run(capsys, "tune", model, *quick, "--condition", asked)[0] == 0
    assert "tuned without" not in caplog.text
    assert run(capsys, "tune", model, "--steps", "2", "--num", "8", "--out", tmp_path / "without")[0] == 0
    assert "the model is conditioned on ink, half: tuned without (--condition FILE.npz gives it)" in caplog.text
    for wrong in (["--condition", "data"], ["--data_condition", "ink"]):
        assert "the distance to the flow needs no images" in sentence(capsys, "tune", model, *quick, *wrong)


def test_tuning_by_the_frechet_distance_takes_the_fields_of_the_half(fields_ctm, data):
    images = load_images(str(data), condition=list(FIELDS))
    grid, numbers = karras_grid(2), {}
    for fields in ("data", "none"):
        measure = FrechetMeasure(fields_ctm, images, features="classifier", num=50, repeats=2, fields=fields)
        numbers[fields] = measure(grid, 0.0, held_out=False).item()
    assert numbers["data"] != pytest.approx(numbers["none"], rel=1e-3)


def test_a_conditioner_names_the_fields_that_are_given():
    both = Labels(3) | Arrays(FIELDS | {"scale": ()}, always={"scale": 1.0})
    assert both.given_fields == FIELDS
    assert Conditioner(3).given_fields == {}
