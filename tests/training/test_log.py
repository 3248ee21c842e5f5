import errno
import json
import os
import threading
import time

import pytest
import torch

from ctm.objectives import DenoisingScoreMatching, Matching
from ctm.training.log import MetricsLog, loss_names, peak_memory
from ctm.training.run_directory import RunDirectory

from ..processes import Forked


def test_losses_of_one_class_are_told_apart():
    objectives = [Matching(), DenoisingScoreMatching(), Matching(kind="local")]
    assert loss_names(objectives) == ["Matching", "DenoisingScoreMatching", "Matching-2"]


def test_a_line_holds_means_over_the_steps_that_have_the_number(tmp_path):
    log = MetricsLog(RunDirectory(tmp_path), ["A"], 8, 0)
    log.add({"loss/A": torch.tensor(1.0), "rare": 4.0})
    log.add({"loss/A": torch.tensor(2.0)})
    assert log.write(2, 1.5, {"learning_rate": 0.1}) == "A 1.5"
    log.add({"loss/A": 5.0})
    log.write(3, 2.0, {"learning_rate": 0.2})
    first, second = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert (first["loss/A"], first["rare"], first["learning_rate"]) == (1.5, 4.0, 0.1)
    assert (second["loss/A"], second["learning_rate"], second["step"]) == (5.0, 0.2, 3)
    assert "rare" not in second
    assert first["images_per_second"] > 0


def print_peaks() -> None:
    """The peak before and after a tensor of 256 MiB."""
    before = peak_memory(torch.device("cpu"))
    kept = torch.ones(256, 2**18)  # a MiB a row
    print(before, peak_memory(torch.device("cpu")), float(kept[0, 0]))


def test_peak_memory_sees_a_large_tensor():
    """In a process of its own, whose peak is what it holds: that of the tests may lie far above it."""
    process = Forked(print_peaks)
    printed, said = process.communicate(60)
    assert process.returncode == 0, said
    before, after, value = map(float, printed.split())
    assert after > before + 200
    assert value == 1


def test_a_full_disk_under_tensorboard_is_told_by_the_main_thread_alone(tmp_path, monkeypatch):
    """Its writer's thread says nothing of it; any other failure of a thread is shown as ever."""
    shown = []
    monkeypatch.setattr(threading, "excepthook", lambda failure: shown.append(failure.exc_type))
    log = MetricsLog(RunDirectory(tmp_path), [], 1, 0)
    worker = log._writer._get_file_writer().event_writer._async_writer._worker

    def full(data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    worker._record_writer.write = full
    with pytest.raises(OSError, match="No space left on device"):  # in one of the next lines
        write_lines(log)
    worker.join()
    assert shown == []
    thread = threading.Thread(target=lambda: 1 / 0)
    thread.start()
    thread.join()
    assert shown == [ZeroDivisionError]


def write_lines(log):
    for step in range(1, 200):
        log.write(step, 0.0, {})
        time.sleep(0.001)
