"""Text from files of any origin: lines, JSON Lines, lone surrogates. Also Markdown tables."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from errors import UserError

SURROGATE = re.compile("[\ud800-\udfff]")  # half of a character, such as an emoji, that UTF-16 writes in two parts
# Replaces lone surrogates for the tokenizer: it is in no vocabulary of BERT, so it becomes an unknown word. The
# tokenizer would silently drop U+FFFD.
UNKNOWN_SIGN = "\N{REVERSED QUESTION MARK}"
LFS_POINTER = b"version https://git-lfs"
IS_POINTER = "is a Git LFS pointer, not the file itself: fetch the file with git lfs pull"
OTHER_BOMS = (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def read_lines(path: str | Path) -> list[str]:
    """Return the lines of a UTF-8 file, with or without a byte order mark.

    Lines end only at a line feed, optionally with a carriage return before it; U+2028 and the like are ordinary
    characters. Raises UserError with the file's name, and with the line number if a line is not UTF-8.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error})") from error
    return split_lines(content, path)


def split_lines(content: bytes, source: object) -> list[str]:
    """Return the lines of a file's content; `source` names it in messages. Raises as `read_lines` does."""
    if content.startswith(LFS_POINTER):
        raise UserError(f"{source} {IS_POINTER}")
    if content.startswith(OTHER_BOMS):
        raise UserError(f"{source} is not UTF-8 but UTF-16 or UTF-32: save it as UTF-8")
    parts = content.removeprefix(codecs.BOM_UTF8).split(b"\n")
    if not parts[-1]:
        parts.pop()  # after the final line feed there is no line
    lines = []
    for number, part in enumerate(parts, start=1):
        try:
            lines.append(part.decode("utf-8").removesuffix("\r"))
        except UnicodeDecodeError as error:
            position = f"byte {error.start + 1} of the line"
            raise UserError(f"{source}, line {number} is no UTF-8 text ({position}): save the file as UTF-8") from error
    return lines


def read_json_lines(path: str | Path) -> Iterator[tuple[int, Any]]:
    """Yield the number and the value of every line of a JSON Lines file that is not empty.

    Raises UserError with file and line if a line is no JSON, or has a key twice.
    """
    yield from _parsed(read_lines(path), path)


def parse_json_lines(content: bytes, source: object) -> Iterator[tuple[int, Any]]:
    """Do the same as `read_json_lines` for a file's content; `source` names it in messages."""
    yield from _parsed(split_lines(content, source), source)


def _parsed(lines: Iterable[str], source: object) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(lines, start=1):
        if line.strip():
            yield number, parse_json_line(line, f"{source}, line {number}")


def parse_json_line(line: str, where: str) -> Any:
    """Return the value of a line of JSON; UserError, which names it by `where`, if it is none, or has a key twice."""
    try:
        return json.loads(line, object_pairs_hook=_each_key_once)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} is no JSON ({error})") from error


def _each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(name for name in names if names.count(name) > 1)!r} occurs twice")
    return value


def for_tokenizer(text: str) -> str:
    """Return a text in which UNKNOWN_SIGN replaces lone surrogates, which tokenizers refuse."""
    return SURROGATE.sub(UNKNOWN_SIGN, text)


def showable(text: str) -> str:
    """Return a text that can be drawn and written: U+FFFD replaces lone surrogates."""
    return SURROGATE.sub("\N{REPLACEMENT CHARACTER}", text)


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]], n_texts: int | None = None) -> str:
    """Return a table in Markdown; n_texts: number of leading columns with text, the others are numbers; None: all."""
    n_texts = len(header) if n_texts is None else n_texts
    rule = ["---"] * n_texts + ["---:"] * (len(header) - n_texts)
    return "\n".join(map(markdown_row, (header, rule, *rows)))


def markdown_row(cells: Sequence[str]) -> str:
    """Return a row of a table in Markdown; a bar in a cell, as in the name of a file, does not end it."""
    escaped = (cell.replace("|", r"\|") for cell in cells)
    return f"| {' | '.join(escaped)} |"
