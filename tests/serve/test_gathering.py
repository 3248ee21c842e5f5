"""A call of the network that nothing waits for takes those along who are asking at this moment."""

import pytest

from ctm.serve.scheduler import Scheduler


class _Asking:
    """In place of the scheduler's condition: while it waits, the next `arriving` requests come."""

    def __init__(self, scheduler, arriving):
        self.scheduler, self.arriving, self.waits = scheduler, list(arriving), 0

    def wait(self, seconds):
        self.waits += 1
        if self.arriving:
            self.scheduler._new += [object()] * self.arriving.pop(0)


@pytest.mark.parametrize(
    ("there", "arriving", "waits", "together"),
    [
        (1, [], 1, 1),  # alone: one short wait
        (1, [5, 9, 0, 50], 3, 15),  # a lull ends it
        (1, [7, 8, 20, 40], 2, 16),  # a full call ends it
        (16, [3], 0, 16),
    ],
)
def test_a_call_waits_for_those_who_are_asking(small_ctm, there, arriving, waits, together):
    scheduler = Scheduler(small_ctm, batch_size=16)
    scheduler._new = [object()] * there
    scheduler._changed = asking = _Asking(scheduler, arriving)
    scheduler._gather()
    assert (asking.waits, len(scheduler._new)) == (waits, together)
