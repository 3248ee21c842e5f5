"""Prompts in the writing of any language, a line each."""

import pytest

from ctm.foreign.prompts import checked_prompt, read_prompts

LANGUAGES = [
    "un chat\u00a0: «\u202fmiaou\u202f»",  # French: spaces that do not break
    "日本の\u3000猫",  # a space of full width
    "می\u200cخواهم",  # Persian: a non-joiner
    "क्\u200dष",  # Hindi: a joiner
    "\u200fשלום",  # Hebrew: a mark of direction
    "👩\u200d🚀 in space",
    "so\u00adft, \ufeff kept",
]


def test_prompts_of_all_languages_are_taken_as_they_are(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("\n".join(LANGUAGES), encoding="utf-8")
    assert read_prompts(file) == [text.strip() for text in LANGUAGES]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_file_of_an_editor_of_windows_is_that_file(tmp_path, end):
    """A byte order mark is no part of the first prompt, blank lines in between are empty prompts, those at the end are none."""
    file = tmp_path / "prompts.txt"
    file.write_bytes(end.join(["\ufeffone", "", "  two\t", "", ""]).encode())
    assert read_prompts(file) == ["one", "", "two"]


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("a\u2028b", "line 2: character 2 of the prompt is U.2028, a separator of lines: a prompt is one line of text"),
        ("ab\u2029c", "character 3 of the prompt is U.2029, a separator of paragraphs"),
        ("a\x1b[2Jb", "character 2 of the prompt is U.001B, a control character"),
        ("a\tb", "character 2 of the prompt is U.0009, a control character"),
        ("a\x0cb", "character 2 of the prompt is U.000C"),
        ("a\rb", "character 2 of the prompt is U.000D"),
        ("a" * 2001, "line 2: a prompt has at most 2,000 characters, this one has 2,001"),
    ],
)
def test_what_a_prompt_does_not_hold_is_named_with_its_place(tmp_path, line, sentence):
    """U+2028, form feeds and the like are within a line: they do not make two prompts of one."""
    file = tmp_path / "prompts.txt"
    file.write_bytes(f"one\n{line}\nthree\n".encode())
    with pytest.raises(ValueError, match=sentence):
        read_prompts(file)


def test_half_a_pair_is_refused():
    with pytest.raises(ValueError, match=r"--prompt: character 2 of the prompt is U\+D800, half of a pair of UTF-16"):
        checked_prompt("a\ud800b", "--prompt")


def test_a_file_without_prompts_and_no_file(tmp_path):
    (tmp_path / "none.txt").write_text(" \n\n")
    with pytest.raises(ValueError, match="holds no prompts"):
        read_prompts(tmp_path / "none.txt")
    with pytest.raises(FileNotFoundError, match="there is no file"):
        read_prompts(tmp_path / "nothing.txt")
