"""What is prepared ahead is what the step would have made itself: in any order, in pieces, of two processes."""

import threading

import numpy as np
import pytest
import torch

from ctm.conditions import AUGMENT
from ctm.data import Images, epoch_order, scaled_values
from ctm.training.input import Ahead, host_rows
from ctm.training.recipe import DataSettings
from ctm.training.step import rows_of_process

RANDOM = np.random.default_rng(0)
IMAGES = Images(RANDOM.integers(0, 256, (23, 4, 6, 3), dtype=np.uint8), RANDOM.integers(0, 4, 23))
VALUES = scaled_values(
    RANDOM.normal(size=(23, 2, 5)).astype(np.float32),
    None,
    fields={"half": RANDOM.normal(size=(23, 2)).astype(np.float32)},
)
CPU = torch.device("cpu")


def same(a, b):
    assert torch.equal(a[0], b[0])
    if isinstance(b[1], dict):
        assert a[1].keys() == b[1].keys()
        assert all(torch.equal(a[1][name], b[1][name]) for name in b[1])
    else:
        assert torch.equal(a[1], b[1])


@pytest.mark.parametrize(
    ("data", "augment"), [(IMAGES, 0.0), (IMAGES, 0.5), (VALUES, 0.0)], ids=["images", "augmented", "values"]
)
@pytest.mark.parametrize(("processes", "pieces"), [(1, 1), (2, 1), (2, 2)])
def test_ahead_is_the_same_as_at_once(data, augment, processes, pieces):
    settings = DataSettings(name="", batch_size=8, flip=data is IMAGES, augment=augment)
    whole = [host_rows(data, settings, 3, step, slice(0, 8)) for step in range(7)]
    parts = [rows_of_process(8, processes, index, pieces) for index in range(processes)]
    ahead = [Ahead(data, CPU, 7, threads=True) for _ in range(processes)]
    for step in [0, 1, 2, 2, 3, 6, 4, 5, 6]:  # a step again, as a diagnosis asks; a jump, as after a loaded checkpoint
        taken = {}
        for each, own in zip(ahead, parts, strict=True):
            for part in own:
                taken[part.start] = each.take(settings, 3, step, part)
                same(taken[part.start], host_rows(data, settings, 3, step, part))
        assert torch.equal(torch.cat([taken[start][0] for start in sorted(taken)]), whole[step][0])
    assert all(len(each._pending) <= 2 * pieces for each in ahead)


def test_the_next_steps_are_begun_and_none_after_the_last():
    ahead, settings = Ahead(IMAGES, CPU, 3, threads=True), DataSettings(name="", batch_size=4)
    made = []
    original, ahead._made = (
        ahead._made,
        lambda *given: made.append((given[2], threading.current_thread().name)) or original(*given),
    )
    for step in range(3):
        ahead.take(settings, 0, step, slice(0, 4))
    assert sorted(step for step, _ in made) == [0, 1, 2]
    assert all(name.startswith("ctm-input") for step, name in made if step > 0)
    assert not ahead._pending


def test_on_a_processor_no_thread_is_started():
    assert Ahead(IMAGES, CPU, 3)._pool is None
    assert Ahead(IMAGES, torch.device("meta"), 3)._pool is not None


def test_an_error_of_a_thread_is_raised_in_the_step_that_needs_it():
    class Failing(Images):
        def rows(self, indices):
            if 5 in indices:
                raise OSError("the disk is gone")
            return super().rows(indices)

    ahead = Ahead(Failing(IMAGES.pixels), CPU, 9, threads=True)
    settings = DataSettings(name="", batch_size=4)
    order = epoch_order(23, 0, 36, 0).tolist()
    reached = order.index(5) // 4
    for step in range(reached):
        ahead.take(settings, 0, step, slice(0, 4))
    with pytest.raises(OSError, match="the disk is gone"):
        ahead.take(settings, 0, reached, slice(0, 4))


def test_two_epochs_show_each_item_twice():
    ahead, settings = Ahead(IMAGES, CPU, 23, threads=True), DataSettings(name="", batch_size=2)
    seen = torch.cat([ahead.take(settings, 0, step, slice(0, 2))[0] for step in range(23)])
    own, _ = IMAGES.all()
    counts = [(seen == item).flatten(1).all(1).sum().item() for item in own]
    assert counts == [2] * 23


def test_augmentation_changes_what_it_labels_and_nothing_else():
    """Off, a batch has the bits that it had; on, pictures whose nine labels are 0 have them."""
    plain, settings = DataSettings(name="", batch_size=16), DataSettings(name="", batch_size=16, augment=0.12)
    x0, labels = host_rows(IMAGES, plain, 1, 2, slice(0, 16))
    assert torch.equal(x0, IMAGES.batch(epoch_order(23, 32, 16, 1))[0])
    made, condition = host_rows(IMAGES, settings, 1, 2, slice(0, 16))
    assert torch.equal(condition["labels"], labels)
    same = (condition[AUGMENT] == 0).all(1)
    assert 0 < same.sum() < 16
    assert torch.equal(made[same], x0[same])
    assert not torch.equal(made[~same], x0[~same])
