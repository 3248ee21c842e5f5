from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctm.data.images import epoch_order
from ctm.training.step import rows_of_process


@given(size=st.integers(1, 5), processes=st.integers(1, 8), pieces=st.integers(1, 4), step=st.integers(0, 50))
def test_every_image_of_a_step_goes_to_one_piece_of_one_process(size, processes, pieces, step):
    total = size * processes * pieces
    order = epoch_order(3 * total, step * total, total, seed=1)
    taken = [order[part] for p in range(processes) for part in rows_of_process(total, processes, p, pieces)]
    assert [len(rows) for rows in taken] == [size] * processes * pieces
    assert sorted(np.concatenate(taken)) == sorted(order)
    assert len(set(order)) == total  # three whole batches an epoch: none holds an image twice


@given(size=st.integers(1, 5), processes=st.integers(1, 8), pieces=st.integers(1, 4))
def test_a_piece_is_the_same_for_any_number_of_processes(size, processes, pieces):
    total = size * processes * pieces
    alone = rows_of_process(total, 1, 0, pieces)
    for index, whole in enumerate(alone):
        shared = [rows_of_process(total, processes, p, pieces)[index] for p in range(processes)]
        assert shared[0].start == whole.start
        assert shared[-1].stop == whole.stop
        assert all(a.stop == b.start for a, b in pairwise(shared))


def test_a_batch_that_does_not_divide_is_a_sentence():
    with pytest.raises(
        ValueError, match=r"batch_size 20 does not divide among 3 processes in 2 pieces each: take a mul"
    ):
        rows_of_process(20, 3, 0, 2)
