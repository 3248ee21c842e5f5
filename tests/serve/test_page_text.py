"""What strangers write stays text in both pages: names of models and classes, prompts, reports, reasons, names of files and keys.

Each of them is markup that would run a script. In Chromium nothing runs, no element of it is there, and the words are shown as
they were written."""

import contextlib
import io
import re

import numpy as np
import pytest
from PIL import Image

from ctm import TrajectoryModel
from ctm.cli import main
from ctm.networks import MLP

from ..conftest import random_weights
from .browser import Page
from .server import RATES, Server

pytestmark = pytest.mark.slow
IMAGE = "<img src=x onerror=window.ran=1>"  # no slash, so that it can be a file's name
CLOSES = '"><svg onload=window.ran=2>'
SCRIPT = "<script>window.ran=3</script>"
CLASSES = (IMAGE, SCRIPT, CLOSES)
POLICY = f"small_images: hold\n{RATES}\n"
FOUND = """() => ({
  ran: window.ran ?? null,
  markup: document.querySelectorAll("[onerror], [onload], img[src='x'], #work script, body > script, svg").length,
  scripts: [...document.scripts].map((each) => each.getAttribute("src")),
})"""


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A service whose model, classes and keys have markup as their names, and which holds every picture. Its keys: a user's and
    a moderator's."""
    place = tmp_path_factory.mktemp("markup")
    network = MLP((1, 8, 8), 3, width=32, blocks=2, embedding=16, arrays={"tone": (2,)})
    model = random_weights(TrajectoryModel(network, shape=(1, 8, 8), num_classes=3))
    model.class_names = CLASSES
    model.eval().save_pretrained(place / IMAGE)
    state = place / "state"
    keys = [_key(state, role) for role in ("user", "moderator")]
    made = Server(state, policy=POLICY, models=[str(place / IMAGE)])
    made.user, made.moderator = keys
    yield made
    made.stop()


def _key(state, role):
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert main(["moderate", "--state", str(state), "keys", "add", SCRIPT, "--role", role]) == 0
    return re.search(r"ctm_\w+_[\w-]+", printed.getvalue())[0]


def opened(browser, server, path, key, script):
    page = Page(browser, server.url.removesuffix("/v1"), path, expected=["status of 40"])
    page.tab.fill("#key", key)
    page.tab.click("#key-form button")
    page.ready()
    assert page.tab.evaluate(FOUND)["scripts"] == [script]
    return page


def check(page, *shown):
    """Nothing ran, nothing of it is an element, and the words are there to be read."""
    page.tab.wait_for_timeout(200)  # what runs, runs when its picture could not be loaded
    found = page.tab.evaluate(FOUND)
    assert (found["ran"], found["markup"], len(found["scripts"])) == (None, 0, 1)
    text = page.tab.evaluate("() => document.body.textContent")
    for words in shown:
        assert words in text


def test_no_words_of_a_stranger_run_in_the_page(browser, server, tmp_path):
    page = opened(browser, server, "", server.user, "main.js")
    check(page, IMAGE, *CLASSES)  # the model's name and its classes
    page.tab.select_option("#class", label=SCRIPT)
    page.tab.fill("#conditions", f'{{"{IMAGE}": [1, 2]}}')
    page.tab.click("#make")
    page.tab.wait_for_selector("#alert:not(:empty)")
    check(page, "onerror=window.ran=1")  # the refusal names the field
    page.tab.fill("#conditions", f"{SCRIPT}")
    page.tab.click("#make")
    page.tab.wait_for_selector("text=The conditions are no JSON")
    check(page)
    page.tab.fill("#conditions", '{"tone": [1, 2]}')
    page.tab.click("#make")
    page.tab.wait_for_selector("text=is held until a moderator has looked at it")
    check(page)
    page.tab.click("#tab-compare")
    page.tab.fill("#gammas", IMAGE)
    page.tab.click("#compare")
    page.tab.wait_for_selector("#alert:not(:empty)")
    check(page, IMAGE)
    page.tab.click("#tab-edit")
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / f"{IMAGE}.png")
    (tmp_path / f"{SCRIPT.replace('/', '')}.png").write_text(f"{SCRIPT}")
    page.tab.set_input_files("#upload", tmp_path / f"{SCRIPT.replace('/', '')}.png")
    page.tab.wait_for_selector("text=This file is no picture")
    page.tab.set_input_files("#upload", tmp_path / f"{IMAGE}.png")
    page.tab.click("#stroke")
    page.tab.wait_for_selector("text=the image was refused by the service's filter")  # which holds uploads too
    check(page)
    page.close()


def test_no_words_of_a_stranger_run_in_the_moderators_page(browser, server):
    """A held picture, reports with markup in them, a reason with markup, and the released picture in the user's page."""
    headers = {"Authorization": f"Bearer {server.user}"}
    held = server.client.post("/images/generations", json={"prompt": SCRIPT, "n": 2, "seed": 1}, headers=headers)
    first, second = [one["id"] for one in held.json()["error"]["pictures"]]
    for words in (IMAGE, SCRIPT, CLOSES):
        report = {"picture": first, "words": words}
        assert server.client.post("/reports", json=report, headers=headers).status_code == 201
    page = opened(browser, server, "moderators.html", server.moderator, "moderators.js")
    page.tab.wait_for_selector(f"[data-picture='{first}']")
    check(page, IMAGE, SCRIPT, CLOSES)
    for id, button in ((first, "Release"), (second, "Reject")):
        card = page.tab.locator(f"[data-picture='{id}']")
        card.locator("input").fill(IMAGE)
        card.locator(f"text={button}").click()
        page.tab.wait_for_selector(f"[data-picture='{id}']", state="detached")
        check(page)
    page.tab.locator("[data-report] input >> nth=0").fill(SCRIPT)
    page.tab.locator("text=Close the report >> nth=0").click()
    page.tab.wait_for_function("() => document.querySelectorAll('[data-report]').length === 2")
    check(page)
    page.close()
    user = opened(browser, server, "", server.user, "main.js")
    answer = user.tab.evaluate(
        "async ([id, key]) => (await fetch(`../v1/images/${id}`, {headers: {Authorization: `Bearer ${key}`}})).status",
        [first, server.user],
    )
    assert answer == 200
    check(user)
    user.close()
