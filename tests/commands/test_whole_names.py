"""Options count by their whole names, in every command."""

import pytest

from ctm.cli import _COMMANDS, _parser

from .test_cli import sentence


def parsers(parser):
    """A parser, and those of its commands below it."""
    yield parser
    below = getattr(parser, "_subcommands_action", None)
    for inner in below._name_parser_map.values() if below is not None else ():
        yield from parsers(inner)


@pytest.mark.parametrize("command", _COMMANDS)
def test_no_command_takes_the_beginning_of_an_option(command):
    assert not any(parser.allow_abbrev for parser in parsers(_parser(command)))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "--config", "digits-teacher", "--data.nam", "x"], "no option --data.nam: did you mean --data.name"),
        (["train", "--config", "digits-teacher", "--dry"], "there is no option --dry: did you mean --dry-run?"),
        (["sample", "models/digits-ctm", "--nu", "3"], "there is no option --nu: did you mean --num?"),
        (["edit", "vary", "models/digits-ctm", "a.png", "--amo", "1"], "no option --amo: did you mean --amount?"),
        (["moderate", "list", "--stat", "x"], "there is no option --stat: did you mean --state?"),
        (["--vers"], "there is no option --vers: did you mean --version?"),
    ],
)
def test_a_cut_option_is_refused_and_the_whole_one_named(capsys, arguments, words):
    """--data.nam was once taken for --data.name: a recipe trained on other data than the word said."""
    assert words in sentence(capsys, *arguments)
