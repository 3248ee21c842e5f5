"""`ctm evaluate` and `ctm compare` end to end, on a few hundred digits and the classifier's features."""

import json
import re
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

from ctm import DiffusionModel, __version__, generate, karras_grid
from ctm.data import Images, load_images
from ctm.evaluation import reference
from ctm.evaluation.classifier import train_classifier
from ctm.evaluation.extractors import spatial_features
from ctm.evaluation.frechet import frechet, frechet_distance
from ctm.evaluation.moments import Gaussian
from ctm.evaluation.neighbours import precision_recall
from ctm.evaluation.passes import Processes
from ctm.evaluation.reference import classifier_of, images_checksum, statistics_file
from ctm.evaluation.run import evaluate_images, judge_of
from ctm.networks import MLP
from ctm.pictures import to_uint8
from ctm.sampling import class_labels

from ..commands.test_cli import run, sentence
from ..conftest import random_weights


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """One classifier and one set of reference statistics for all tests here."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def _shared_cache(cache, monkeypatch):
    monkeypatch.setenv("CTM_CACHE", str(cache))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """300 digits."""
    images = load_images("digits")
    file = tmp_path_factory.mktemp("data") / "digits.npz"
    np.savez(file, images=images.pixels[:300], labels=images.labels[:300])
    return file


@pytest.fixture
def model(small_ctm, tmp_path):
    small_ctm.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def teacher(tmp_path):
    network = random_weights(MLP((1, 8, 8), 10, width=16, blocks=1, embedding=8, s_embedding=False))
    DiffusionModel(network, shape=(1, 8, 8), num_classes=10).save_pretrained(tmp_path / "teacher")
    return tmp_path / "teacher"


FAST = ["--features", "classifier", "--num", 100]


def evaluated(capsys, out, *arguments):
    code, printed, err = run(capsys, "evaluate", *arguments, *FAST, "--out", out)
    assert code == 0, err
    return json.loads((out / "result.json").read_text()), printed


def test_the_whole_result(capsys, model, teacher, data, tmp_path):
    out = tmp_path / "out"
    asked = [model, "--teacher", teacher, "--data", data, "--steps", "1,2", "--gamma", "0,1", "--teacher_steps", 4]
    result, printed = evaluated(capsys, out, *asked)
    rows = result["rows"]
    settings = [(r["role"], r["sampler"], r["steps"], r["evaluations"], r["gamma"]) for r in rows]
    assert settings == [
        ("teacher", "heun", 4, 7, None),
        ("model", "gamma", 1, 1, 0.0),
        ("model", "gamma", 2, 2, 0.0),
        ("model", "gamma", 2, 2, 1.0),
    ]
    protocol = result["protocol"]
    assert protocol["images"] == 100
    assert protocol["reference"]["images"] == 300
    assert re.fullmatch("[0-9a-f]{16}", protocol["features"]["checksum"])
    assert re.fullmatch("[0-9a-f]{16}", protocol["reference"]["checksum"])
    for row in rows:
        assert {"checksum", "ema", "grid", "guidance", "rejection", "seed", "precision"} <= row.keys()
        assert all(np.isfinite(number["value"]) for number in row["numbers"].values())
        assert row["numbers"]["frechet"]["error"] > 0
    expected = {"frechet", "kid", "cmmd", "inception_score", "label_accuracy", "precision", "recall", "density"}
    expected |= {"coverage", "diversity", "memorised", "memorised_expected"}
    assert rows[0]["numbers"].keys() == expected
    assert rows[1]["numbers"].keys() == expected | {"mse_to_teacher", "psnr_to_teacher"}
    assert "model, 2, γ = 1" in printed
    page = (out / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 3
    assert "http" not in page
    left_out = "Fréchet∞ is left out: it needs at least 4 samples for each of the 64 features"  # 100 samples: case 23
    assert all(left_out in text for text in (printed, page, result["warnings"][0]))
    assert {"quality.png", "samples.png", "nearest.png"} <= {p.name for p in out.iterdir()}


def test_likelihood_is_bits_per_dim_of_the_first_images(data):
    """A Gaussian model, whose density is known: its bits per dimension of the reference's first two images."""
    from ctm.evaluation.likelihood import likelihood_number
    from ctm.evaluation.run import make_judge
    from ctm.likelihood import bits_per_dim
    from ctm.teachers import GaussianMixture

    judge = make_judge(str(data), size=8, channels=1, features="classifier", images=100)
    model = GaussianMixture(torch.zeros(1, 1, 8, 8), 0.5, torch.ones(1))
    model.num_classes = 0
    found = likelihood_number(judge, model, 2)
    with np.load(data) as stored:
        pixels = torch.from_numpy(stored["images"][judge.reference.source.numbers[:2]]).permute(0, 3, 1, 2)
    expected = bits_per_dim(model, pixels)
    assert found.value == pytest.approx(float(expected.mean()), rel=1e-9)
    assert found.error == pytest.approx(float(expected.std()) / 2**0.5, rel=1e-9)


def test_numbers_are_those_of_generates_samples(capsys, model, small_ctm, data, tmp_path):
    """The Fréchet distance, label accuracy and MSE computed again from ctm.generate with the same seed."""
    asked = [model, "--data", data, "--steps", "2", "--labels", "uniform", "--seed", 3, "--batch_size", 30]
    result, _ = evaluated(capsys, tmp_path / "out", *asked)
    labels = class_labels(small_ctm, 100, None, seed=3)
    samples = to_uint8(generate(small_ctm, 100, steps=2, seed=3, condition=labels))
    with np.load(data) as stored:
        x, known = torch.from_numpy(stored["images"]), torch.from_numpy(stored["labels"])
    to_model = lambda pixels: pixels.permute(0, 3, 1, 2).float() / 127.5 - 1  # noqa: E731
    images = Images(x.numpy(), known.numpy())
    classifier = classifier_of(images, images_checksum(images), Processes())
    with torch.no_grad():
        features, real = classifier.features(to_model(samples)), classifier.features(to_model(x))
        right = (classifier(to_model(samples)).argmax(1) == labels).float().mean().item()
    numbers = result["rows"][0]["numbers"]
    assert numbers["frechet"]["value"] == pytest.approx(frechet_distance(features, real), rel=1e-3)
    assert numbers["label_accuracy"]["value"] == pytest.approx(right, abs=0.011)


def test_a_teacher_against_itself_has_no_error(capsys, teacher, data, tmp_path):
    asked = [teacher, "--teacher", teacher, "--data", data, "--steps", "4", "--teacher_steps", 4]
    result, _ = evaluated(capsys, tmp_path / "out", *asked)
    assert result["rows"][1]["numbers"]["mse_to_teacher"]["value"] == 0
    first, second = (row["numbers"]["frechet"]["value"] for row in result["rows"])
    assert first == second


def test_samples_of_another_program(capsys, data, tmp_path):
    """The data themselves as a folder of pictures: distance 0, all of them copies; then half of them."""
    with np.load(data) as stored:
        for index, (pixels, label) in enumerate(zip(stored["images"], stored["labels"], strict=True)):
            (tmp_path / "pictures" / str(label)).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels[..., 0]).save(tmp_path / "pictures" / str(label) / f"{index}.png")
    asked = ["--samples", tmp_path / "pictures", "--data", data, "--num", 300]
    code, _, err = run(capsys, "evaluate", "--features", "classifier", *asked, "--out", tmp_path / "out")
    assert code == 0, err
    numbers = json.loads((tmp_path / "out" / "result.json").read_text())["rows"][0]["numbers"]
    assert numbers["frechet"]["value"] == pytest.approx(0, abs=1e-4)
    assert numbers["memorised"]["value"] == 1
    assert numbers["memorised_expected"]["value"] < 0.7
    assert numbers["precision"]["value"] == numbers["recall"]["value"] == numbers["coverage"]["value"] == 1
    assert numbers["diversity"]["value"] == pytest.approx(1)
    assert numbers["label_accuracy"]["value"] > 0.97
    err = sentence(capsys, "evaluate", "--samples", tmp_path / "pictures", "--data", data, "--num", 301, *FAST[:2])
    assert "holds 300 images, fewer than --num 301" in err


def test_an_adm_batch_and_statistics_of_edm(capsys, model, data, tmp_path):
    """ctm sample writes arr_0, which is evaluated as samples; mu and sigma in a file stand for the data."""
    assert run(capsys, "sample", model, "--num", 60, "--out", tmp_path / "batch.npz")[0] == 0
    rng = np.random.default_rng(0)
    mixing = rng.standard_normal((1280, 1280)) / 36
    mean, covariance = rng.standard_normal(1280), mixing @ mixing.T
    np.savez(tmp_path / "stats.npz", mu=mean, sigma=covariance)
    asked = [
        "--samples",
        tmp_path / "batch.npz",
        "--data",
        tmp_path / "stats.npz",
        "--num",
        60,
        "--out",
        tmp_path / "o",
    ]
    code, _, err = run(capsys, "evaluate", *asked, "--side", 32)
    assert code == 0, err
    result = json.loads((tmp_path / "o" / "result.json").read_text())
    assert result["rows"][0]["numbers"].keys() == {"frechet"}
    from ctm.backbones import EfficientNetLite0

    with np.load(tmp_path / "batch.npz") as stored, torch.no_grad():
        x = torch.from_numpy(stored["arr_0"]).permute(0, 3, 1, 2).float() / 127.5 - 1
        features = EfficientNetLite0(side=32).pooled(x)
    reference = Gaussian(torch.from_numpy(mean), torch.from_numpy(covariance))
    expected = frechet(Gaussian.of(features), reference)
    assert result["rows"][0]["numbers"]["frechet"]["value"] == pytest.approx(expected, rel=1e-5)
    np.savez(tmp_path / "other.npz", mu=mean[:50], sigma=covariance[:50, :50])
    err = sentence(capsys, "evaluate", model, "--data", tmp_path / "other.npz", "--num", 20)
    assert "holds statistics of 50 features and the feature network gives 1280" in err


def test_the_same_command_again_computes_nothing_and_says_the_same(capsys, model, data, tmp_path, monkeypatch):
    first, _ = evaluated(capsys, tmp_path / "out", model, "--data", data, "--steps", "1,2")
    monkeypatch.setattr("ctm.evaluation.sources.draw", None)
    again, _ = evaluated(capsys, tmp_path / "out", model, "--data", data, "--steps", "1,2")
    assert again == first


def test_interrupted_it_goes_on(capsys, model, data, tmp_path, monkeypatch):
    from ctm.evaluation import sources

    whole, _ = evaluated(capsys, tmp_path / "whole", model, "--data", data, "--steps", "2", "--batch_size", 20)
    draw, calls = sources.draw, []

    def stopped(*arguments, **options):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return draw(*arguments, **options)

    monkeypatch.setattr(sources, "draw", stopped)
    asked = [model, "--data", data, "--steps", "2", *FAST, "--batch_size", 20, "--out", tmp_path / "out"]
    code, _, err = run(capsys, "evaluate", *asked)
    assert (code, "The same command goes on from here" in err) == (130, True)
    result, _ = evaluated(capsys, tmp_path / "out", *asked[:-2])
    assert len(calls) == 4 + 2
    for name, number in whole["rows"][0]["numbers"].items():
        assert result["rows"][0]["numbers"][name]["value"] == pytest.approx(number["value"], rel=1e-12), name


def test_compare_says_what_is_significant_and_refuses_other_protocols(capsys, model, data, tmp_path):
    evaluated(capsys, tmp_path / "a", model, "--data", data, "--steps", "1")
    evaluated(capsys, tmp_path / "b", model, "--data", data, "--steps", "1", "--seed", 1)
    code, printed, _ = run(capsys, "compare", tmp_path / "a", tmp_path / "b" / "result.json")
    assert code == 0
    assert "significant at 5 % after Holm's correction" in printed
    changed = json.loads((tmp_path / "b" / "result.json").read_text())
    changed["rows"][0]["numbers"]["frechet"]["value"] *= 10
    (tmp_path / "worse.json").write_text(json.dumps(changed))
    _, printed, _ = run(capsys, "compare", tmp_path / "a", tmp_path / "worse.json")
    assert "worse" in printed.split("Holm's correction")[1]
    evaluated(capsys, tmp_path / "c", model, "--data", data, "--steps", "1", "--labels", "uniform")
    err = sentence(capsys, "compare", tmp_path / "a", tmp_path / "c")
    assert "cannot be compared: labels: data and uniform. Evaluate both with the same settings" in err
    changed["protocol"]["images"] = 50
    changed["protocol"]["features"]["checksum"] = "0"
    (tmp_path / "other.json").write_text(json.dumps(changed))
    err = sentence(capsys, "compare", tmp_path / "a", tmp_path / "other.json")
    assert "features.checksum: " in err
    assert "images: 100 and 50" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", "a"], "--steps takes numbers such as 1,2,4, got 'a'"),
        (["--steps", "0"], "--steps must be at least 1 for gamma, got 0"),
        (["--gamma", "2"], "gamma must be in [0, 1], got 2.0"),
        (["--sampler", "magic"], "--sampler must be one of"),
        (["--sampler", "heun", "--gamma", "0.5"], "--gamma belongs to jumps"),
        (
            ["--features", "classifier", "--classifier", "none"],
            "--features classifier are those of the classifier that --classifier none leaves",
        ),
        (["--classifier", "own"], "--classifier must be data or none, got 'own'"),
        (["--features", "magic"], "--features must be one of classifier, efficientnet"),
        (["--labels", "mine"], "--labels must be data or uniform, got 'mine'"),
        (["--num", "1"], "--num and --rows must be at least 2, got 1"),
        (["--side", "50"], "side must be a multiple of 32, got 50"),
        (["--data", "no-such-thing.npz"], "no-such-thing.npz"),
        (["--teacher", "/nowhere"], "there is no directory /nowhere"),
    ],
)
def test_mistakes_are_one_sentence(capsys, model, data, tmp_path, arguments, message):
    out = tmp_path / "out"
    given = ["--data", data] if "--data" not in arguments else []
    assert message in sentence(capsys, "evaluate", model, *given, *arguments, "--out", out)
    assert not out.exists()


def test_a_damaged_classifier_in_the_cache_is_trained_again(monkeypatch, tmp_path, caplog):
    """And the first training is said, with how to go without."""
    monkeypatch.setenv("CTM_CACHE", str(tmp_path))
    monkeypatch.setattr(reference, "train_classifier", partial(train_classifier, steps=2))
    images = load_images("digits")
    images = Images(images.pixels[:20], images.labels[:20], images.class_names, "few")
    first = classifier_of(images, images_checksum(images), Processes())
    assert "few: a classifier of its 10 classes is trained once" in caplog.text
    assert "ctm evaluate --classifier none does without them and it" in caplog.text
    [path] = tmp_path.glob("classifier-*")
    for damage in (b"", path.read_bytes()[:100]):
        path.write_bytes(damage)
        again = classifier_of(images, images_checksum(images), Processes())
        assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))


def test_an_evaluation_goes_without_a_classifier(monkeypatch, tmp_path):
    monkeypatch.setenv("CTM_CACHE", str(tmp_path))
    images = load_images("digits")
    images = Images(images.pixels[:20], images.labels[:20], images.class_names, "few")
    judge = judge_of(images, images=8, rows=8, side=32, classifier=False)
    row = evaluate_images(judge, images, "few", tmp_path / "out")
    assert judge.classifier is None
    assert judge.protocol["classifier"] is None
    assert not list(tmp_path.glob("classifier-*"))
    assert "frechet" in row.numbers
    assert not {"label_accuracy", "inception_score", "diversity"} & row.numbers.keys()
    [table] = tmp_path.glob("reference-*.npy")
    table.write_bytes(b"cut")
    assert judge_of(images, images=8, rows=8, side=32, classifier=False).reference.table.shape == (20, 1280)


def test_nothing_to_evaluate_or_compare(capsys, data, tmp_path):
    assert "nothing to evaluate: give a model, --peer, or --samples" in sentence(capsys, "evaluate", "--data", data)
    assert "there is no file" in sentence(capsys, "compare", tmp_path / "a.json", tmp_path / "b.json")
    (tmp_path / "a.json").write_text("{}")
    assert "is not a result of ctm evaluate" in sentence(capsys, "compare", tmp_path / "a.json", tmp_path / "a.json")


@pytest.fixture(scope="module")
def looked():
    """Digits, their labels and the classifier's features of 8-bit pictures."""
    x, labels = load_images("digits").all()
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    x, labels = x[order], labels[order]
    classifier = train_classifier(x, labels, steps=200)

    def look(images):
        with torch.no_grad():
            return classifier.features(((images + 1) * 127.5).round().clamp(0, 255) / 127.5 - 1)

    return x, labels, look


def blurred(images, times):
    for _ in range(times):
        padded = torch.nn.functional.pad(images, (1, 1, 1, 1), mode="replicate")
        images = (images + torch.nn.functional.avg_pool2d(padded, 3, 1)) / 2
    return images


def test_the_distance_is_zero_to_itself_and_grows_with_blur_noise_and_imbalance(looked):
    x, labels, look = looked
    real, other, noise = look(x[:800]), x[800:1600], torch.randn(800, 1, 8, 8)
    ways = {
        "blur": [look(blurred(x[:800], times)) for times in (0, 1, 2, 4)],
        "noise": [look(x[:800] + strength * noise) for strength in (0, 0.1, 0.2, 0.4, 0.8)],
    }
    for name, steps in ways.items():
        distances = [frechet_distance(real, step) for step in steps]
        assert distances[0] == pytest.approx(0, abs=1e-6), name
        assert distances == sorted(distances), name
        assert distances[-1] > 10, name
    seen, kept = look(other), torch.rand(800)
    imbalance = [frechet_distance(real, seen[(labels[800:1600] < 5) | (kept > share)]) for share in (0, 0.3, 0.6, 0.9)]
    assert imbalance == sorted(imbalance)
    assert imbalance[-1] > 5 * imbalance[0]


def test_noise_costs_precision_and_lost_classes_cost_recall(looked):
    x, labels, look = looked
    real, other = look(x[:800]), x[800:1600]
    every_second = (torch.arange(800) % 2).reshape(-1, 1, 1, 1)
    clean = precision_recall(real, look(other))
    noisy = precision_recall(real, look(other + 0.8 * every_second * torch.randn(800, 1, 8, 8)))
    lost = precision_recall(real, look(other)[labels[800:1600] < 3])
    assert noisy["precision"].value < clean["precision"].value - 0.1
    assert noisy["recall"].value > clean["recall"].value - 0.03
    assert lost["precision"].value > clean["precision"].value - 0.03
    assert lost["recall"].value < clean["recall"].value - 0.4


def test_the_grid_in_the_record_is_the_grid_that_was_used(capsys, model, data, tmp_path):
    result, _ = evaluated(capsys, tmp_path / "out", model, "--data", data, "--steps", "3")
    grid = result["rows"][0]["grid"]
    assert grid == {"kind": "karras", "rho": 7.0, "sigma_min": 0.002, "sigma_max": 80.0}
    assert karras_grid(3).tolist()[0] == grid["sigma_max"]


def test_guided_samples_say_so_and_are_those_of_ctm_sample(capsys, model, data, tmp_path):
    """Under --cfg, and from the files that `ctm sample` writes, whose settings are kept with them."""
    result, _ = evaluated(capsys, tmp_path / "guided", model, "--data", data, "--steps", "2", "--cfg", "2")
    (row,) = result["rows"]
    assert (row["guidance"], row["evaluations"], row["steps"]) == (2.0, 4, 2)
    plain = evaluated(capsys, tmp_path / "plain", model, "--data", data, "--steps", "2", "--cfg", "1")[0]["rows"][0]
    assert (plain["guidance"], plain["evaluations"]) == (1.0, 2)
    assert plain["numbers"]["frechet"]["value"] != row["numbers"]["frechet"]["value"]
    for name in ("made.npz", "made"):
        asked = ["--num", 100, "--steps", 2, "--cfg", 2, "--labels", "all", "--seed", 3, "--out", tmp_path / name]
        assert run(capsys, "sample", model, *asked)[0] == 0
        out = tmp_path / f"of-{name}"
        (kept,) = evaluated(capsys, out, "--samples", tmp_path / name, "--data", data)[0]["rows"]
        known = {key: kept[key] for key in ("role", "sampler", "steps", "gamma", "guidance", "seed", "precision")}
        assert known == {
            "role": "samples",
            "sampler": "gamma",
            "steps": 2,
            "gamma": 0.0,
            "guidance": 2.0,
            "seed": 3,
            "precision": "float32",
        }
        assert kept["made_by"]["checksum"] == row["checksum"]
        assert kept["grid"]["levels"][0] == 80
    assert "guidance: 2.0 and 1.0" in sentence(capsys, "compare", tmp_path / "guided", tmp_path / "plain")


def test_activations_are_kept_as_far_as_rows_say(capsys, model, data, tmp_path):
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "activations.npz", activations=rng.normal(size=(90, 64)).astype(np.float32))
    reference = statistics_file(tmp_path / "activations.npz", 40)
    assert reference.rows.shape == (40, 64)
    assert reference.gaussian.count == reference.count == 90


def test_spatial_statistics_of_adm_are_read_in_their_order(tmp_path):
    """mu_s, sigma_s over a map's first seven channels with the channels innermost: distance 0 to the maps they are of."""
    maps = torch.rand(40, 9, 2, 3, generator=torch.Generator().manual_seed(0))
    flat = maps.permute(0, 2, 3, 1).numpy()[..., :7].reshape(40, -1).astype(np.float64)
    np.savez(
        tmp_path / "adm.npz",
        mu=np.zeros(2),
        sigma=np.eye(2),
        mu_s=flat.mean(axis=0),
        sigma_s=np.cov(flat, rowvar=False),
    )
    spatial = statistics_file(tmp_path / "adm.npz", 10).spatial
    assert frechet(Gaussian.of(spatial_features(maps)), spatial) == pytest.approx(0, abs=1e-6)
    assert frechet(Gaussian.of(maps[:, :7].flatten(1)), spatial) > 0.1


def test_every_row_names_the_version_that_made_it(capsys, model, data, tmp_path):
    result, _ = evaluated(capsys, tmp_path / "out", model, "--data", data, "--steps", "1")
    assert result["rows"][0]["environment"]["version"] == __version__
