"""Every entry of a file's content, replaced by values of other kinds; for the tests of what files may hold."""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from random import Random
from typing import Any

import torch

REMOVED = object()
EVERYTHING = os.environ.get("FUZZ") == "all"  # as at night: what slow tests draw at random otherwise
Path = tuple[Any, ...]  # the names and numbers that lead to an entry


def laughs(depth: int = 12) -> list[Any]:
    """Return lists that share each other: small in memory and in a file, and without end for whoever prints them."""
    bomb: list[Any] = ["lol"] * 10
    for _ in range(depth):
        bomb = [bomb] * 10
    return bomb


KINDS = {
    "removed": REMOVED,
    "None": None,
    "True": True,
    "text": "56",
    "empty text": "",
    "long text": "x" * 100_000,
    "zero": 0,
    "number": 5,
    "negative": -5,
    "large": 100_000,
    "huge": 10**400,
    "fraction": 0.5,
    "nan": math.nan,
    "infinite": math.inf,
    "list": [1, 2],
    "empty list": [],
    "laughs": laughs(),
    "dict": {"a": 1},
    "empty dict": {},
    "tensor": torch.ones(3),
    "one number": torch.ones(1),
    "empty tensor": torch.zeros(0),
    "NaN tensor": torch.full((2, 3), math.nan),
    "sparse": torch.eye(3).to_sparse(),
    "meta": torch.zeros(3, device="meta"),
    "expanded": torch.zeros(1).expand(2**40),
}
# Of a tensor: its numbers in another precision, order, shape or range.
TENSOR_KINDS = {
    "halves": lambda value: value.half(),
    "whole": lambda value: value.long(),
    "complex": lambda value: value.to(torch.complex64),
    "flat": lambda value: value.flatten()[None],
    "longer": lambda value: torch.cat([value.flatten(), value.flatten()]),
    "with NaN": lambda value: torch.full_like(value, math.nan) if value.is_floating_point() else value.float() / 0,
    "sparse": lambda value: value.to_sparse() if value.dim() else torch.eye(3).to_sparse(),
    "meta": lambda value: value.to("meta"),
    "quantised": lambda value: torch.quantize_per_tensor(value.float(), 0.1, 0, torch.qint8),
}


def entries(content: Any, path: Path = ()) -> Iterator[Path]:
    """Yield the path of every entry, at any depth."""
    inside: Iterable[tuple[Any, Any]]
    if isinstance(content, dict):
        inside = content.items()
    elif isinstance(content, list | tuple):
        inside = enumerate(content)
    else:
        return
    for name, value in inside:
        yield (*path, name)
        yield from entries(value, (*path, name))


def replaced(content: Any, path: Path, value: Any) -> Any:
    """Return a copy of some content in which one entry is another, or gone."""
    if not path:
        return value
    changed = list(content) if isinstance(content, tuple) else copy.copy(content)
    if value is REMOVED and len(path) == 1:
        del changed[path[0]]
    else:
        changed[path[0]] = replaced(content[path[0]], path[1:], value)
    return type(content)(changed)


def at(content: Any, path: Path) -> Any:
    """Return the entry that a path leads to."""
    for name in path:
        content = content[name]
    return content


def cases(content: Any, seed: int, count: int | None = None) -> list[tuple[Path, str, Any]]:
    """Return an entry's path, a kind's name and the content that has this kind there.

    count: of all entries and kinds together, drawn at random; None: all.
    """
    found = [(path, name) for path in entries(content) for name in kinds(at(content, path))]
    drawn = found if count is None else Random(seed).sample(found, count)
    return [(path, name, replaced(content, path, kinds(at(content, path))[name]())) for path, name in drawn]


def kinds(value: Any) -> dict[str, Callable[[], Any]]:
    """Return what an entry may be replaced by: by name, a function that makes it."""
    made: dict[str, Callable[[], Any]] = {name: partial(_itself, kind) for name, kind in KINDS.items()}
    if isinstance(value, torch.Tensor):
        made |= {f"{name} of the same": partial(make, value) for name, make in TENSOR_KINDS.items()}
    return made


def _itself(value: Any) -> Any:
    return value


def names_entry(message: str, path: Path) -> bool:
    """Return whether a message names an entry, or one that it is in."""
    text, names = "", []
    for name in path:
        text = f"{text}[{name}]" if isinstance(name, int) else f"{text}.{name}".lstrip(".")
        names.append(text)
    return any(name in message for name in [*names, path[-1] if isinstance(path[-1], str) else text])
