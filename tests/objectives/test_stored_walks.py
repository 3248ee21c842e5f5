"""Stored walks: they are the teacher's flow, fit their budget, are gone on with, and the exact flow has no loss on them."""

from dataclasses import replace

import pytest
import torch

from ctm.objectives import MultistepWalk, Networks, StoredWalks, TargetJumps, TeacherWalk
from ctm.objectives.stored_walks import WalkSource, words_of

from ..conftest import mixture
from .test_objectives import Exact

COUNT = 300


def source(teacher, digest: str = "a", seen: list | None = None) -> WalkSource:
    """Draws of the mixture with their components as the data."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, len(teacher.means), (COUNT,), generator=generator)
    data = teacher.means[labels] + teacher.std * torch.randn(COUNT, 2, generator=generator, dtype=torch.float64)

    class Watched:
        num_classes = len(teacher.means)

        def denoise(self, x, t, condition=None):
            if seen is not None:
                seen.append(len(x))
            return teacher.denoise(x.double(), t.double(), condition).float()

    return WalkSource(Watched(), torch.device("cpu"), lambda rows: (data[rows].float(), labels[rows]), COUNT, digest)


def test_stored_walks_are_the_flow_under_their_own_condition(tmp_path):
    """The end of each of 100 walks of 60 levels, a third of them without a label, against the exact flow; the loss of the exact
    flow is the square of the solver's error, and of a map that stays where it is a thousand times that."""
    teacher = mixture(2)
    way = StoredWalks(str(tmp_path), walks=100, levels=60, left_out=0.3)
    line = way.open(source(teacher), Exact(teacher).teacher)
    assert "100 walks" in line
    assert "5,900 evaluations" in line
    store = way.store
    top, end = (torch.from_numpy(store.states[:, index].copy()).double() for index in (0, -1))
    labels = store.condition
    assert 12 < int((labels < 0).sum()) < 48
    t, s = torch.full((100,), 80.0).double(), torch.full((100,), 0.002).double()
    missed = (end - teacher.jump(top, t, s, labels)).square().mean(1)
    assert missed.median() < 1e-4
    x0 = torch.zeros(24, 2, dtype=torch.float64)
    draw = way.draw(teacher, x0, torch.Generator().manual_seed(0))
    assert bool((draw.s > draw.t).all())
    assert int(draw.s.max()) <= 59
    losses = way(Networks(Exact(teacher), None, teacher), x0, None, draw)
    assert losses.median() < 1e-4

    class Still(Exact):
        def jump(self, x, t, s, labels=None):
            return x

    still = Networks(Still(teacher), None, teacher)
    whole = way(still, x0, None, draw)
    assert whole.median() > 1000 * losses.median()
    parts = [way(still, x0[part], None, draw.rows(part)) for part in (slice(0, 9), slice(9, 24))]
    torch.testing.assert_close(torch.cat(parts), whole)


def test_a_file_is_gone_on_with_to_the_same_bits_and_read_where_it_is_whole(tmp_path):
    teacher, seen = mixture(2), []
    way = StoredWalks(str(tmp_path / "one"), walks=300, levels=6)
    way.open(source(teacher, seen=seen), teacher)
    assert sum(seen) == 300 * 5
    (whole,) = (tmp_path / "one").iterdir()
    content = whole.read_bytes()
    assert len(content) == 300 * 6 * 2 * 4
    cut = tmp_path / "two" / whole.name
    cut.parent.mkdir()
    cut.write_bytes(content[: len(content) // 2])  # one chunk of 128 walks, and a piece of the next
    seen.clear()
    again = replace(way, folder=str(cut.parent))
    assert "172 were made now" in again.open(source(teacher, seen=seen), teacher)
    assert sum(seen) == 172 * 5
    assert cut.read_bytes() == content
    seen.clear()
    assert "made now" not in again.open(source(teacher, seen=seen), teacher)
    assert seen == []


def test_a_solver_has_the_same_words_in_every_process():
    """No address of a function, which the name of the file would change with."""
    assert words_of(TeacherWalk()) == ["ctm.objectives.walks.TeacherWalk", {"step": "ctm.solvers.heun_step"}]
    assert words_of(MultistepWalk()) == ["ctm.objectives.walks.MultistepWalk", {}]


def test_another_teacher_or_setting_has_another_file(tmp_path):
    teacher = mixture(2)
    way = StoredWalks(str(tmp_path), walks=10, levels=4)
    for each, digest in ((way, "a"), (way, "b"), (replace(way, seed=1), "a"), (replace(way, levels=5), "a")):
        each.open(source(teacher, digest), teacher)
    assert len(list(tmp_path.iterdir())) == 4


def test_the_budget_decides_how_many_there_are(tmp_path):
    way = StoredWalks(str(tmp_path), walks=1000, levels=5, gigabytes=4e-6)
    assert way.kept((2,)) == 100
    line = way.open(source(mixture(2)), mixture(2))
    assert "walks: 1000 would take more than 4e-06 GB" in line
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) == 4000
    draw = way.draw(mixture(2), torch.zeros(5000, 2), torch.Generator().manual_seed(0))
    assert int(draw.walk.max()) == 99
    with pytest.raises(ValueError, match=r"one walk takes .*, more than gigabytes"):
        way.kept((3, 64, 64))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"walks": 0}, "walks must be at least 1"),
        ({"gigabytes": 0.0}, "gigabytes must be above 0"),
        ({"left_out": 1.5}, r"left_out in \[0, 1\]"),
        ({"solver": TargetJumps()}, "stored walks are the teacher's, step by step, and TargetJumps makes none"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        StoredWalks("walks", **settings)


def test_walks_that_are_not_there_are_a_sentence():
    way, x0 = StoredWalks("walks", solver=MultistepWalk()), torch.zeros(2, 2)
    with pytest.raises(ValueError, match="these walks are not there yet: call `open` first"):
        way(Networks(Exact(mixture(2))), x0, None, way.draw(mixture(2), x0, torch.Generator()))
