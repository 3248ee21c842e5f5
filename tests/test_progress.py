"""A bar in a terminal; elsewhere a line now and then, with rate and time left."""

import io

import pytest
from rich.console import Console

from ctm import progress
from ctm.progress import JobBar, tracked


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_case_24_a_line_now_and_then_with_rate_and_time_left(capsys, clock):
    for _ in tracked(range(10), "model, 4", unit="batches"):
        clock[0] += 15
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "model, 4: 2/10 batches, 0.0667 batches/s, 120 s left"
    assert len(lines) == 5
    assert lines[-1] == "model, 4: 10/10 batches, 0.0667 batches/s, 0 s left"
    for _ in tracked(range(3), "last"):
        clock[0] += 15
    told = capsys.readouterr().err.splitlines()
    assert [line.split()[1] for line in told] == ["2/3", "3/3"]


def test_case_24_a_short_job_is_silent_and_so_are_other_processes(capsys, clock):
    for _ in tracked(range(10), "short"):
        clock[0] += 1
    for _ in tracked(range(10), "another", shown=False):
        clock[0] += 30
    assert capsys.readouterr() == ("", "")


def test_case_24_of_an_unknown_number(capsys, clock):
    with JobBar("2 steps", None, unit="grids") as bar:
        for count in range(1, 4):
            clock[0] += 25
            bar.reach(count, f"the best {1 / count:.2f}")
    assert capsys.readouterr().err.splitlines()[-1] == "2 steps: 3/? grids, 0.04 grids/s, the best 0.33"


def test_a_terminal_has_a_bar(clock):
    text = io.StringIO()
    console = Console(file=text, force_terminal=True, width=120)
    with JobBar("job [/]", 2, unit="steps", console=console) as bar:
        clock[0] += 1
        bar.advance()
        bar.reach(2, "[b]")
    assert "job [/]" in text.getvalue()
    assert "2/2" in text.getvalue()
    assert "[b]" in text.getvalue()


def test_what_stops_the_loop_stops_the_bar(capsys, clock):
    for item in tracked([1, 2, 3], "job", unit="items"):
        clock[0] += 30
        if item == 2:
            break
    assert capsys.readouterr().err == "job: 1/3 items, 0.0333 items/s, 60 s left\n"
