"""The page's files: their types, the rules that browsers run them under, and nothing in them that names another host."""

import re
from html.parser import HTMLParser

import pytest

from ctm.serve.static import FILES, PLACE, RULES


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_file_comes_with_its_type_and_rules(shared, name):
    _, client = shared
    answer = client.get(f"/page/{name}")
    assert answer.status_code == 200
    assert answer.content == (PLACE / name).read_bytes()
    assert answer.headers["content-type"] == FILES[name]
    assert answer.headers["content-security-policy"] == RULES
    assert answer.headers["x-content-type-options"].startswith("nosniff")
    assert answer.headers["referrer-policy"] == "no-referrer"


def test_the_page_is_found(shared):
    _, client = shared
    answer = client.get("/")
    assert (answer.history[0].status_code, answer.url.path) == (307, "/page/")
    assert "<title>ctm" in answer.text
    assert client.get("/page").url.path == "/page/"
    icon = client.get("/favicon.ico")
    assert (icon.status_code, icon.headers["content-type"]) == (200, "image/svg+xml")


@pytest.mark.parametrize(
    "name", ["nothing.js", "..%2fstatic.py", "%2e%2e/static.py", "index.html%00", "page/main.js", "__init__.py"]
)
def test_no_other_file_is_given(shared, name):
    _, client = shared
    answer = client.get(f"/page/{name}")
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "not_found"


def test_every_file_in_the_folder_is_served():
    assert {path.name for path in PLACE.iterdir()} == set(FILES)
    assert {"index.html", "moderators.html", "style.css", "main.js", "favicon.svg"} <= set(FILES)


def test_the_rules_allow_no_script_in_the_text_and_no_other_host():
    rules = dict(rule.strip().split(" ", 1) for rule in RULES.split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["script-src"] == rules["style-src"] == rules["connect-src"] == "'self'"
    assert rules["img-src"] == "'self' blob:"
    assert not re.search(r"unsafe|\*|https?:|data:", RULES)


class _Names(HTMLParser):
    """What a document refers to, and what its rules forbid."""

    def __init__(self):
        super().__init__()
        self.names, self.inline, self.ids, self.used = [], [], [], []

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.names += [given[name] for name in ("href", "src", "action") if given.get(name)]
        self.inline += [name for name in given if name.startswith("on") or name == "style"]
        self.inline += [tag] if tag == "style" or (tag == "script" and "src" not in given) else []
        self.ids += [given["id"]] if "id" in given else []
        for name in ("for", "aria-controls", "aria-labelledby", "aria-describedby"):
            self.used += given.get(name, "").split()


@pytest.mark.parametrize("name", ["index.html", "moderators.html"])
def test_a_document_names_own_files_only_and_has_nothing_inline(name):
    found = _Names()
    found.feed((PLACE / name).read_text(encoding="utf-8"))
    assert found.inline == []
    assert all(one in FILES or one in ("./", "#work", "#main") for one in found.names), found.names
    assert len(found.ids) == len(set(found.ids))
    assert set(found.used) <= set(found.ids)


def test_no_file_names_another_host():
    for name in FILES:
        text = (PLACE / name).read_text(encoding="utf-8")
        assert set(re.findall(r"(?:https?:)?//[\w.-]+\.\w+[^\s\"']*", text)) <= {"http://www.w3.org/2000/svg"}, name
        assert set(re.findall(r'from "([^"]+)"', text)) <= {f"./{one}" for one in FILES}, name
        assert not re.search(r"\beval\(|innerHTML|document\.write|localStorage|\.style\b", text), name
