"""The commands that pages show, as their own parsers read them; nothing of them runs."""

from __future__ import annotations

import argparse
import importlib
import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from torch.distributed import launch
from torch.distributed.run import get_args_parser

ROOT = Path(__file__).parent.parent
BLOCK = re.compile(r"^( *)```(\w+)\n(.*?)^\1```$", re.DOTALL | re.MULTILINE)
LAUNCHERS = {"torchrun": get_args_parser(), "torch.distributed.launch": None}  # the second has a function of its own


class Command(NamedTuple):
    """A command of this project."""

    line: str
    module: str  # train, test, refer.prepare, …
    processes: int
    args: argparse.Namespace
    flags: set[str]  # that `--help` shows


class Parsed(Exception):
    """Carries what a parser made of a command line, and the parser; nothing runs after it."""


def blocks(text: str, language: str) -> list[str]:
    """Return the fenced blocks of a page in a language."""
    return [
        re.sub(f"^{indent}", "", code, flags=re.M) for indent, name, code in BLOCK.findall(text) if name == language
    ]


def lines(text: str) -> Iterator[list[str]]:
    """Yield the commands in a page's bash blocks, each in words; comments are left out."""
    for code in blocks(text, "bash"):
        for line in code.splitlines():
            words = shlex.split(line.replace("; ", " && ").replace(" | ", " && "), comments=True)
            while words:
                end = words.index("&&") if "&&" in words else len(words)
                yield _bare(words[:end])
                words = words[end + 1 :]


def _bare(words: list[str]) -> list[str]:
    """Return a command without what the shell does with it: its output into a file, its life after the terminal's."""
    words = words[: words.index(">")] if ">" in words else words
    while words[0] in ("nohup", "setsid"):
        words = words[1:]
    return words


def is_ours(words: list[str]) -> bool:
    """Tell whether a command is one of this project."""
    return words[0] == "torchrun" or (
        Path(words[0]).name == "python" and words[1:2] != [] and words[1:3] not in (["-m", "venv"], ["-m", "pytest"])
    )


def parse(line: str) -> Command:
    """Give a command to the parser of the script that it names; unknown flags and values end with SystemExit."""
    words, processes = shlex.split(line), 1
    launcher = words[2] if words[1:2] == ["-m"] else words[0]
    if launcher in LAUNCHERS:
        parser = LAUNCHERS[launcher]
        launched = parser.parse_args(words[1:]) if parser else launch.parse_args(words[3:])
        processes = int(launched.nproc_per_node)
        name, rest = launched.training_script, launched.training_script_args
    else:
        assert Path(words[0]).name == "python", line
        name, *rest = words[2:] if words[1] == "-m" else words[1:]
    module = name.removesuffix(".py")
    args, parser = _parsed(module, rest)
    return Command(line, module, processes, args, set(shown_flags(parser)))


def _parsed(module: str, words: list[str]) -> tuple[argparse.Namespace, argparse.ArgumentParser]:
    parse_args = argparse.ArgumentParser.parse_args

    def stop(self: argparse.ArgumentParser, *arguments: Any) -> None:
        raise Parsed(parse_args(self, *arguments), self)

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stop)
        path = ROOT.joinpath(*module.split("."))
        name = f"{module}.__main__" if path.is_dir() else module
        with pytest.raises(Parsed) as caught:
            importlib.import_module(name).main(words)
    args, parser = caught.value.args
    return args, parser


def shown_flags(parser: argparse.ArgumentParser) -> Iterator[str]:
    """Yield the flags in the help of a parser and its subcommands."""
    for action in parser._actions:
        if action.help != argparse.SUPPRESS:
            yield from action.option_strings
        if isinstance(action, argparse._SubParsersAction):
            for subparser in action.choices.values():
                yield from shown_flags(subparser)


@cache
def launcher_flags() -> set[str]:
    """Return the flags of torchrun."""
    return set(shown_flags(get_args_parser()))
