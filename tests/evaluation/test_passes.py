import subprocess
import sys
import threading

import numpy as np
import pytest
import torch

from ctm.evaluation.classifier import Classifier
from ctm.evaluation.extractors import Extractor, classifier_extractor, make_extractor
from ctm.evaluation.passes import Processes, run_pass
from ctm.evaluation.sources import ImageSource
from ctm.evaluation.statistics import Layout, Statistics

LAYOUT = Layout(features=64, spatial=3, classes=4, rows=30, pixels=5, shape=(8, 8, 1))


class Pictures:
    """Grey images number i, drawn from i alone; `after`: Ctrl-C in the batch after that many."""

    def __init__(self, count, after=None):
        self.count, self.after, self.asked = count, after, []

    def batch(self, indices):
        if self.after is not None and len(self.asked) == self.after:
            raise KeyboardInterrupt
        self.asked.append(int(indices[0]))
        rows = [torch.rand(1, 8, 8, generator=torch.Generator().manual_seed(int(i))) for i in indices]
        return 2 * torch.stack(rows) - 1, torch.from_numpy(indices % 4)


@pytest.fixture
def networks():
    torch.manual_seed(0)
    classifier = Classifier(1, 8, 4).eval()
    inner = classifier_extractor(classifier)
    look = lambda images: (classifier.features(images), images.flatten(1)[:, :3])  # noqa: E731
    return Extractor("test", inner.checksum, "none", 64, 3, look), classifier


def look(source, networks, path, processes=None, key="a", batch_size=7):
    return run_pass(source, *networks, LAYOUT, path=path, key=key, batch_size=batch_size, processes=processes)


def close(a: Statistics, b: Statistics) -> None:
    for name, tensor in a.tensors().items():
        if name != "seconds":
            torch.testing.assert_close(b.tensors()[name], tensor, rtol=1e-12, atol=1e-9)


def test_a_pass_sees_every_image_once(networks, tmp_path):
    seen = look(Pictures(100), networks, tmp_path / "s.safetensors")
    images, _ = Pictures(100).batch(np.arange(100))
    features = networks[0]((images.add(1).mul(127.5).round() / 127.5) - 1)[0].double()
    gaussian = seen.moments.gaussian()
    assert seen.count == 100
    torch.testing.assert_close(gaussian.mean, features.mean(0), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gaussian.covariance, features.T.cov(), rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(seen.rows.double(), features[:30], rtol=1e-5, atol=1e-6)
    assert torch.equal(seen.pixels[..., 0], images[:5, 0].add(1).mul(127.5).round().byte())
    assert seen.classes.count.tolist() == [25] * 4
    assert seen.probabilities.count.sum() == 100
    assert seen.spatial.count.sum() == 100
    assert [p.name for p in tmp_path.iterdir()] == ["s.safetensors"]


@pytest.mark.parametrize("piece", [2000, 20])
@pytest.mark.parametrize("after", [1, 6, 14])
def test_cut_short_it_goes_on_where_it_was(networks, after, piece, tmp_path, monkeypatch):
    """Case 32: wherever it is cut, the same rows are multiplied with each other, so the bits are those of an unbroken pass;
    in one piece, and where pieces of 20 rows end inside batches of 7."""
    monkeypatch.setattr("ctm.evaluation.moments._PIECE", piece)
    whole = look(Pictures(100), networks, tmp_path / "whole.safetensors")
    path = tmp_path / "s.safetensors"
    with pytest.raises(KeyboardInterrupt):
        look(Pictures(100, after=after), networks, path)
    assert not path.exists()
    rest = Pictures(100)
    again = look(rest, networks, path)
    assert rest.asked == list(range(7 * after, 100, 7))
    for name, tensor in whole.tensors().items():
        assert name == "seconds" or torch.equal(tensor, again.tensors()[name]), name
    third = Pictures(100)
    close(whole, look(third, networks, path))
    assert third.asked == []


def test_a_file_of_another_key_or_a_damaged_one_is_not_taken(networks, tmp_path):
    path = tmp_path / "s.safetensors"
    look(Pictures(20), networks, path)
    other = Pictures(20)
    look(other, networks, path, key="b")
    assert len(other.asked) == 3
    path.write_bytes(b"damaged")
    again = Pictures(20)
    assert look(again, networks, path).count == 20
    assert len(again.asked) == 3


def together(count, sources, networks, path):
    """`count` processes as threads that wait for each other; one that is interrupted leaves the others to their own end."""
    barrier, found, errors = threading.Barrier(count, timeout=60), [None] * count, []

    def one(index):
        try:
            found[index] = look(sources[index], networks, path, Processes(index, count, wait=barrier.wait))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=one, args=(index,)) for index in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found, errors


def test_processes_share_the_work_and_agree_with_one(networks, tmp_path):
    alone = look(Pictures(100), networks, tmp_path / "alone.safetensors")
    sources = [Pictures(100) for _ in range(3)]
    found, errors = together(3, sources, networks, tmp_path / "s.safetensors")
    assert not errors
    for each in found:
        close(alone, each)
    assert sorted(start for source in sources for start in source.asked) == list(range(0, 100, 7))


def test_another_number_of_processes_goes_on(networks, tmp_path):
    alone = look(Pictures(100), networks, tmp_path / "alone.safetensors")
    path = tmp_path / "s.safetensors"
    _, errors = together(3, [Pictures(100, after=2) for _ in range(3)], networks, path)
    assert errors
    rest = [Pictures(100), Pictures(100)]
    found, errors = together(2, rest, networks, path)
    assert not errors
    close(alone, found[0])
    assert sum(len(source.asked) for source in rest) == 15 - 6
    assert not list(tmp_path.glob("*.part*"))


def test_a_merge_cut_short_counts_nothing_twice(networks, tmp_path):
    """The first process has written all parts into its own, and died before removing the others."""
    whole = look(Pictures(21), networks, tmp_path / "whole.safetensors")
    path = tmp_path / "s.safetensors"
    for name, indices in (("s.part1", [1]), ("s.part0", [0, 1])):
        part = Statistics(LAYOUT)
        for chunk in indices:
            source = Pictures(21)
            chosen = np.arange(7 * chunk, 7 * chunk + 7)
            from ctm.evaluation.passes import _look

            _look(source, *networks, chosen, part, None, torch.device("cpu"))
            part.done.add(chunk)
        part.save(tmp_path / f"{name}.safetensors", "a")
    rest = Pictures(21)
    close(whole, look(rest, networks, path))
    assert rest.asked == [14]


def test_what_is_kept_does_not_grow_with_the_stream(networks, tmp_path):
    sizes = []
    for count in (40, 400):
        seen = look(Pictures(count), networks, tmp_path / f"{count}.safetensors")
        sizes.append(sum(tensor.nbytes for tensor in seen.tensors().values()))
    assert sizes[0] == sizes[1]


def test_efficientnet_sees_the_same_in_any_company():
    extractor = make_extractor("efficientnet", 28)
    images = torch.rand(5, 1, 28, 28) * 2 - 1
    pooled, spatial = extractor(images)
    assert pooled.shape == (5, extractor.features) == (5, 1280)
    assert spatial.shape == (5, extractor.spatial) == (5, 7 * 8 * 8)
    torch.testing.assert_close(extractor(images[2:4])[0], pooled[2:4], rtol=1e-4, atol=1e-5)
    assert extractor.record() == {
        "name": "efficientnet",
        "checksum": extractor.checksum,
        "resize": "bilinear to 64×64, no antialiasing",
    }
    assert make_extractor("efficientnet", 65).resize == "bilinear to 224×224, no antialiasing"
    with pytest.raises(ValueError, match="--features must be one of classifier, efficientnet, inception, dinov2"):
        make_extractor("magic", 28)


MILLION = """
import resource, sys, torch
from pathlib import Path
from ctm.evaluation.classifier import Classifier
from ctm.evaluation.extractors import classifier_extractor
from ctm.evaluation.passes import run_pass
from ctm.evaluation.sources import ModelSource
from ctm.evaluation.statistics import Layout
from ctm.sampling import gamma
from ctm.teachers import GaussianMixture

torch.manual_seed(0)
model = GaussianMixture(torch.zeros(1, 1, 8, 8), 0.5, torch.ones(1))
classifier = Classifier(1, 8, 10).eval()
count = int(sys.argv[1])
source = ModelSource(model, count, torch.tensor([80.0, 0.002]), gamma, None, 0, torch.device("cpu"))
layout = Layout(64, 0, 10, 2000, 1024, (8, 8, 1))
seen = run_pass(source, classifier_extractor(classifier), classifier, layout, path=Path(sys.argv[2]), key="", batch_size=1000)
print(seen.count, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


@pytest.mark.slow
def test_a_million_samples_take_no_more_memory_than_twenty_thousand(tmp_path):
    """The peak of a whole process; 15 MB more are allowed for what an allocator does in minutes. Images alone would be
    256 MB, their features as much again."""
    peaks = []
    for count in (20_000, 1_000_000):
        command = [sys.executable, "-c", MILLION, str(count), str(tmp_path / f"{count}.safetensors")]
        seen, peak = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
        assert int(seen) == count
        peaks.append(float(peak))
    print(f"peak memory: {peaks[0]:.0f} MB for 20,000 samples, {peaks[1]:.0f} MB for 1,000,000")
    assert peaks[1] < peaks[0] + 15


@pytest.mark.slow
def test_two_processes_of_accelerate_give_the_numbers_of_one(small_ctm, tmp_path):
    import json

    small_ctm.save_pretrained(tmp_path / "model")
    rows = []
    for count, launcher in (
        (1, []),
        (2, ["torch.distributed.run", "--nproc_per_node", "2", "--standalone", "-m", "--"]),
    ):
        out = tmp_path / f"out{count}"
        asked = ["--data", "digits", "--num", "300", "--steps", "1,2", "--features", "classifier", "--out", str(out)]
        command = [sys.executable, "-m", *launcher, "ctm", "evaluate", str(tmp_path / "model"), *asked]
        done = subprocess.run([*command, "--batch_size", "50"], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        result = json.loads((out / "result.json").read_text())
        assert result["environment"]["processes"] == count
        rows.append([row["numbers"] for row in result["rows"]])
    for one, two in zip(*rows, strict=True):
        assert one.keys() == two.keys()
        for name, number in one.items():
            assert two[name]["value"] == pytest.approx(number["value"], rel=1e-9, abs=1e-9), name


def test_an_image_source_loses_the_order_of_its_files():
    from ctm.data import load_images

    images = load_images("digits")
    source = ImageSource(images, 1797)
    assert sorted(source.numbers.tolist()) == list(range(1797))
    pixels, labels = source.batch(np.array([3, 0]))
    assert torch.equal(labels, torch.from_numpy(images.labels[source.numbers[[3, 0]]].astype(np.int64)))
    assert pixels.shape == (2, 1, 8, 8)
