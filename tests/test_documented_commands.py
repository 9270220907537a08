"""The commands on the pages are those that our programs take: each is parsed by its own parser."""

import argparse
import importlib
import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import NoReturn
from unittest import mock

import pytest

from test_docs import (
    CODE_BLOCK,
    CODE_SPAN,
    CURRENT_PAGES,
    ENVIRONMENT_TOOLS,
    name_of,
    shell_blocks,
)

PROGRAM = re.compile(r"(?:benchmarks|training|tools|apps/fastsam3d)/(\w+)\.py")
MODULE = re.compile(r"(?:benchmarks|training)\.\w+")
ACCURACY = re.compile(r"make accuracy DATA=(\S+)(?: ACCURACY=\"([^\"]*)\")?")
END_OF_COMMAND = {"|", "||", "&&", ";", "&", ">", "--"}


def spans(page: Path) -> list[str]:
    """Return the code in the sentences of a page, lines joined."""
    return CODE_SPAN.findall(CODE_BLOCK.sub("", page.read_text(encoding="utf-8")))


def program_and_arguments(command: str) -> tuple[str, list[str]] | None:
    """Return the module that a command line runs, and its arguments; None if it runs none of ours.

    A name of a program in a sentence, without an option, is no command.
    """
    if made := ACCURACY.search(command):
        return "benchmarks.accuracy", ["--data", made[1], *shlex.split(made[2] or "")]
    words = shlex.split(command)
    for number, word in enumerate(words):
        arguments = words[number + 1 :]
        ends = [at for at, each in enumerate(arguments) if each in END_OF_COMMAND]
        arguments = arguments[: ends[0]] if ends else arguments
        if MODULE.fullmatch(word) and words[number - 1] == "-m":
            return word, arguments
        if found := PROGRAM.fullmatch(word):
            folder = word.partition("/")[0]
            return (f"{folder}." if folder in ("benchmarks", "training") else "") + found[
                1
            ], arguments
    return None


def documented() -> Iterator[tuple[str, str, str, list[str]]]:
    """Yield page, command line, module and arguments of every command on the pages."""
    for page in CURRENT_PAGES:
        lines = [line for block in shell_blocks(page) for line in block.splitlines()]
        for command in map(str.strip, [*lines, *(span for span in spans(page) if " " in span)]):
            if "'" in command and command.count("'") % 2:
                continue  # a string over several lines, as that of curl
            if found := program_and_arguments(command):
                yield name_of(page), command, *found


def program(module: str) -> ModuleType:
    """Import a program; what it sets in the environment is not for the servers of later tests."""
    with mock.patch.dict(os.environ):
        return importlib.import_module(module)


class Parsed(Exception):
    """The parser took the arguments; what the program would do with them is not done."""


@pytest.fixture
def stops_after_parsing(monkeypatch: pytest.MonkeyPatch) -> None:
    parse_args = argparse.ArgumentParser.parse_args

    def stop(parser: argparse.ArgumentParser, arguments: list[str]) -> NoReturn:
        parse_args(parser, arguments)
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stop)


COMMANDS = list(documented())


@pytest.mark.usefixtures("stops_after_parsing")
@pytest.mark.parametrize(
    ("module", "arguments"),
    [row[2:] for row in COMMANDS],
    ids=[f"{page}: {command}" for page, command, *_ in COMMANDS],
)
def test_the_program_takes_the_options(
    module: str, arguments: list[str], capsys: pytest.CaptureFixture
) -> None:
    environment = dict(os.environ)
    try:
        program(module).main(arguments)
    except Parsed:
        assert dict(os.environ) == environment
        return
    except SystemExit:
        pytest.fail(capsys.readouterr().err)
    pytest.fail(f"{module} did not parse its arguments")


def test_every_kind_of_program_is_documented() -> None:
    modules = {row[2] for row in COMMANDS}
    assert len(COMMANDS) > 40
    assert {"benchmarks.accuracy", "benchmarks.replace_weights", "train", "checkpoint"} <= modules


@pytest.mark.usefixtures("stops_after_parsing")
def test_a_wrong_option_is_found(capsys: pytest.CaptureFixture) -> None:
    """The commands of the pages are read as a shell reads them: environment, script or module."""
    command = "X=1 .venv/bin/python -m benchmarks.untrained_encoder --data data --pert eval | less"
    module, arguments = program_and_arguments(command) or ("", [])
    assert arguments == ["--data", "data", "--pert", "eval"]
    with pytest.raises(SystemExit):
        program(module).main(arguments)
    assert "--pert" in capsys.readouterr().err


@pytest.mark.parametrize("page", CURRENT_PAGES, ids=name_of)
def test_commands_in_sentences_run_in_the_environment(page: Path) -> None:
    """Shell blocks may activate the environment (see `test_docs`), a sentence cannot."""
    firsts = {span.split()[0] for span in spans(page) if program_and_arguments(span)}
    assert not firsts & ENVIRONMENT_TOOLS
