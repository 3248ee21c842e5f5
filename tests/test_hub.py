"""The hub is asked within a bounded time, also where nothing answers."""

import socket
import time

import pytest
from huggingface_hub import constants

from ctm import hub, load_model
from ctm.data import load_images
from ctm.hub import asking_hub


@pytest.fixture(params=["silent", "closed"])
def no_answer(request, monkeypatch):
    """A hub that takes connections and says nothing, or one that takes none: the libraries' own tries take half a minute."""
    import datasets

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        if request.param == "silent":
            taken.listen()
        place = f"http://127.0.0.1:{taken.getsockname()[1]}"
        for module, name in ((constants, "ENDPOINT"), (datasets.config, "HF_ENDPOINT")):
            monkeypatch.setattr(module, name, place)
        for module in (constants, datasets.config):
            monkeypatch.setattr(module, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(hub, "_SECONDS", 0.5)
        yield


@pytest.mark.parametrize("load", [load_model, load_images], ids=["model", "data"])
def test_where_nothing_answers_one_sentence_comes_soon(no_answer, load, capfd):
    started = time.monotonic()
    with pytest.raises(FileNotFoundError, match="the hub does not give it"):
        load("nobody/nothing")
    assert time.monotonic() - started < 10  # three tries are 7 s of waiting alone
    assert "Retry" not in "".join(capfd.readouterr())
    assert not constants.HF_HUB_OFFLINE


def failing(inside: list[bool]) -> None:
    with asking_hub():
        inside.append(constants.HF_HUB_OFFLINE)
        raise OSError


def test_an_error_inside_leaves_the_libraries_as_they_were(no_answer):
    inside: list[bool] = []
    with pytest.raises(OSError):  # noqa: PT011
        failing(inside)
    assert inside == [True]
    assert not constants.HF_HUB_OFFLINE
