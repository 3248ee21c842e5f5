"""The page by the keyboard alone, behind API keys, and the moderators' page, in Chromium against `ctm serve`."""

import contextlib
import io
import re

import pytest

from ctm.cli import main

from .browser import Page, pixels
from .server import RATES, Server

pytestmark = pytest.mark.slow
HOLDING = f"small_images: hold\n{RATES}\n"  # what the filter cannot judge waits for a moderator: all pictures of 8×8
REFUSED = "the server responded with a status of 40"


@pytest.fixture(scope="module")
def open_server(tmp_path_factory):
    made = Server(tmp_path_factory.mktemp("page") / "state", policy=f"{RATES}\n")
    yield made
    made.stop()


@pytest.fixture(scope="module")
def guarded(tmp_path_factory):
    """A service that holds every picture, behind keys: its address, a user's key and a moderator's."""
    state = tmp_path_factory.mktemp("guarded") / "state"
    keys = [_key(state, role) for role in ("user", "moderator")]
    made = Server(state, policy=HOLDING)
    yield made.url.removesuffix("/v1"), *keys
    made.stop()


def _key(state, role):
    """A new key of the state, as `ctm moderate keys add` prints it."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert main(["moderate", "--state", str(state), "keys", "add", "Grace", "--role", role]) == 0
    return re.search(r"ctm_\w+_[\w-]+", printed.getvalue())[0]


def focused(page):
    """The element with the focus: its id, or its tag and words."""
    return page.tab.evaluate("() => document.activeElement.id || document.activeElement.textContent.trim()")


def to(page, wanted, most=80):
    """Press Tab until the focus is there; each stop on the way shows that it has the focus."""
    for _ in range(most):
        if focused(page) == wanted:
            return
        page.tab.keyboard.press("Tab")
        style = "() => { const s = getComputedStyle(document.activeElement); return [s.outlineStyle, s.outlineWidth]; }"
        kind, width = page.tab.evaluate(style)
        assert focused(page) in ("work", "main") or (kind != "none" and float(width.removesuffix("px")) >= 2), focused(
            page
        )
    raise AssertionError(f"{wanted} is not reached by Tab")


def test_everything_is_reached_by_the_keyboard(browser, open_server):
    page = Page(browser, open_server.url.removesuffix("/v1")).ready()
    press = page.tab.keyboard.press
    to(page, "class")
    press("7")  # the option that begins so
    page.settle()
    assert page.tab.input_value("#class") == "7"
    to(page, "steps")
    press("ArrowRight")
    assert page.settle().startswith("One picture came")
    assert page.tab.inner_text("#steps-value") == "2"
    to(page, "gamma")
    press("End")
    page.settle()
    to(page, "lock")
    press(" ")
    assert page.tab.is_checked("#lock")
    to(page, "tab-make")
    to(page, "make")
    press("Enter")
    page.settle()
    for wanted in ("Download", "To the board", "Report", "Where it comes from"):
        to(page, wanted)
    press("Enter")
    assert page.tab.is_visible("#made dl")
    page.tab.keyboard.press("Shift+Tab")
    press("Enter")
    assert focused(page) == "report-words"
    press("Escape")
    assert not page.tab.is_visible("#report-dialog")
    page.close()


def test_drawing_and_filling_in_by_the_keyboard(browser, open_server):
    page = Page(browser, open_server.url.removesuffix("/v1")).ready()
    press = page.tab.keyboard.press
    to(page, "tab-make")
    for wanted in ("tab-compare", "tab-path", "tab-edit"):
        press("ArrowRight")
        assert focused(page) == wanted
    to(page, "board")
    assert "Column 5, row 5" in page.tab.inner_text("#board-place")
    press(" ")
    for key in ("ArrowUp", "ArrowUp", "ArrowLeft"):
        press(key)
    press("Escape")
    assert "Column 4, row 3; the brush is up" in page.tab.inner_text("#board-place")
    press("Tab")
    press("ArrowDown")
    assert page.tab.is_checked("input[value=mask]")
    page.tab.keyboard.press("Shift+Tab")
    assert focused(page) == "board"
    press("ArrowDown")
    press("Enter")
    assert "marked" in page.tab.inner_text("#board-place")
    to(page, "inpaint")
    press("Enter")
    page.settle()
    (png,) = page.downloads("#edited")
    made = pixels(png)
    kept = [(4, 4), (3, 4), (2, 4), (2, 3)]  # (row, column) of the stroke, from 0
    assert [made[place] for place in kept] == [255] * 4
    assert made[0, 0] == 0  # not marked, and black on the board
    page.close()


def test_a_key_is_asked_for_once_and_kept_out_of_addresses(browser, guarded):
    base, user, _ = guarded
    page = Page(browser, base, expected=[REFUSED])
    asked = []
    page.tab.on("request", lambda request: asked.append((request.url, request.headers.get("authorization"))))
    page.tab.wait_for_selector("#key-form:not([hidden])")
    assert "This service asks for a key" in page.tab.inner_text("#status")
    assert not page.tab.is_visible("#main")
    page.tab.fill("#key", "ctm_wrong_key")
    page.tab.keyboard.press("Enter")
    page.tab.wait_for_selector("#alert:not(:empty)")
    assert "unknown or revoked" in page.alert
    page.tab.fill("#key", user)
    page.tab.keyboard.press("Enter")
    page.ready()
    assert not page.tab.is_visible("#key-form")
    assert page.alert == ""
    assert page.tab.evaluate("() => [sessionStorage.getItem('ctm-key'), localStorage.length]") == [user, 0]
    page.tab.reload()
    page.ready()
    assert all(user not in url for url, _ in asked)
    assert f"Bearer {user}" in [header for _, header in asked]
    assert user not in page.tab.content()
    page.close()
    other = Page(browser, base, expected=[REFUSED])
    other.tab.wait_for_selector("#key-form:not([hidden])")
    other.close()


def entered(browser, base, key, path="", **options):
    page = Page(browser, base, path, expected=[REFUSED], **options)
    page.tab.wait_for_selector("#key-form:not([hidden])")
    page.tab.fill("#key", key)
    page.tab.keyboard.press("Enter")
    return page


def test_a_users_key_opens_no_moderation(browser, guarded):
    base, user, _ = guarded
    page = entered(browser, base, user, "moderators.html")
    page.tab.wait_for_selector("text=this needs the key of a moderator")
    assert not page.tab.is_visible("#main")
    page.close()


def test_a_held_picture_is_released_and_another_rejected(browser, guarded, axe_script):
    base, user, moderator = guarded
    page = entered(browser, base, user).ready()
    page.do("#make")
    assert "is held until a moderator has looked at it" in page.tab.inner_text("#made")
    page.tab.click("text=Ask for it again")
    page.tab.wait_for_selector("text=The picture is not released, or not yet.")
    assert page.violations(axe_script) == []
    id = re.search(r"[0-9a-f]{32}", page.tab.inner_text("#made"))[0]
    desk = entered(browser, base, moderator, "moderators.html").ready()
    card = f"#held [data-picture='{id}']"
    blurred = f'() => getComputedStyle(document.querySelector("{card} img")).filter'
    assert "blur" in desk.tab.evaluate(blurred)
    assert desk.violations(axe_script) == []
    desk.tab.click(f"{card} .veil")
    assert desk.tab.evaluate(blurred) == "none"
    assert desk.violations(axe_script) == []
    desk.tab.click(f"{card} >> text=Reject")
    desk.tab.wait_for_selector("text=Reject needs a reason")
    desk.tab.fill(f"{card} input", "a digit")
    desk.tab.click(f"{card} >> text=Release")
    desk.tab.wait_for_selector("text=Done: release.")
    assert desk.tab.query_selector(card) is None
    page.tab.click("text=Ask for it again")
    page.tab.wait_for_selector("text=The picture was released.")
    (png,) = page.downloads("#made")
    assert pixels(png).shape == (8, 8)
    page.tab.click("#made >> text=Report")
    page.tab.fill("#report-words", "<b>odd</b>")
    page.tab.keyboard.press("Tab")
    page.tab.keyboard.press("Enter")
    page.tab.wait_for_selector("text=The report was sent")
    page.close()
    desk.tab.click("#refresh")
    report = "#reports li"
    desk.tab.wait_for_selector(report)
    assert "<b>odd</b>" in desk.tab.inner_text(report)
    desk.tab.fill(f"{report} input", "seen")
    desk.tab.click(f"{report} >> text=Take the picture down")
    desk.tab.wait_for_selector("text=Done: take the picture down.")
    desk.tab.click(f"{report} >> text=Close the report")
    desk.tab.wait_for_selector("text=Done: close the report.")
    assert desk.tab.is_visible("#reports-none")
    desk.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_moderators_page_on_a_phone_by_the_keyboard(browser, guarded, axe_script, scheme):
    base, user, moderator = guarded
    page = entered(browser, base, user).ready()
    page.do("#make")
    page.close()
    phone = {"viewport": {"width": 360, "height": 720}, "color_scheme": scheme}
    desk = entered(browser, base, moderator, "moderators.html", **phone).ready()
    assert desk.tab.evaluate("() => document.scrollingElement.scrollWidth") <= 360
    assert desk.violations(axe_script) == []
    for wanted in ("refresh", "Show"):
        to(desk, wanted)
    desk.tab.keyboard.press("Enter")
    id = desk.tab.get_attribute("#held li", "data-picture")  # the one that waits longest
    assert desk.tab.get_attribute(f"[data-picture='{id}'] .veil", "aria-pressed") == "true"
    to(desk, "Reject")
    desk.tab.keyboard.press("Shift+Tab")
    desk.tab.keyboard.press("Shift+Tab")
    desk.tab.keyboard.type("not wanted")
    to(desk, "Reject")
    desk.tab.keyboard.press("Enter")
    desk.tab.wait_for_selector("text=Done: reject.")
    assert focused(desk) == "held-title"
    assert desk.tab.query_selector(f"[data-picture='{id}']") is None
    desk.close()
