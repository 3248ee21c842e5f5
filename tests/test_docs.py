"""The pages of docs/ lead somewhere: their links, and the files and functions that docs/architecture.md names, exist."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "ctm"
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
SOURCES = {str(path.relative_to(PACKAGE)): path.read_text() for path in PACKAGE.rglob("*.py")}


def anchors(page: Path) -> set[str]:
    """The names by which a page's headings can be linked to."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_and_headings(page):
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#\s]*)#?([^)\s]*)\)", page.read_text()):
        there = (page.parent / target) if target else page
        assert there.exists(), target
        assert not anchor or anchor in anchors(there), f"{target}#{anchor}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_page_has_a_place_that_was_never_filled(page):
    """Such as MEMORY_TABLE: a line that is one word in capitals, outside of code."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    assert re.findall(r"^\s*[A-Z][A-Z0-9_]+\s*$", text, flags=re.MULTILINE) == []


def named_in_architecture() -> list[tuple[str, str]]:
    """(file, function or class) of each `file.py` and `file.py: name`; a path may start inside the package."""
    text = re.sub(r"\s+", " ", (ROOT / "docs" / "architecture.md").read_text())
    return re.findall(r"`([\w/]+\.py)(?:: ([\w.]+))?`", text)


def test_architecture_names_what_is_there():
    named = named_in_architecture()
    assert len(named) > 100
    for file, name in named:
        there = [text for path, text in SOURCES.items() if path == file or path.endswith(f"/{file}")]
        assert there or (ROOT / file).is_file(), f"{file} is not there"
        for part in filter(None, name.split(".")):
            assert any(re.search(rf"\b(def|class) {part}\b", text) for text in there), f"{file} has no {name}"
