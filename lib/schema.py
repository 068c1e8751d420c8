"""Schemas for values from files, which are checked before they are used.

A kind is a function that takes a value and the name of its entry, and raises `Misfit` if the value is not of this kind.

    person = record({"name": text(), "age": whole(0, 150)}, optional={"friends": list_of(text())})
    check({"name": "Ada", "age": "36"}, person, "people.json")
    # UserError: people.json: its entry age is '36', expected a whole number from 0 to 150

A kind inspects only the parts of a value that it describes. So it is fast even for lists that contain themselves, and
never touches undescribed parts.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from errors import UserError
from errors import plain as escaped
from lib.texts import IS_POINTER, LFS_POINTER

Kind = Callable[[Any, str], None]

LARGEST_WHOLE = 2**53  # floats represent all whole numbers up to this one
LARGEST_NUMBER = 1e300
LONGEST_TEXT = 4096  # characters
SHOWN = 40  # characters of a text in a message

MISSING = object()


class Misfit(Exception):
    """A value is not of the kind of its entry."""

    def __init__(self, entry: str, expected: str, found: str) -> None:
        super().__init__(f"its {f'entry {entry}' if entry else 'content'} is {found}, expected {expected}")


def check(value: object, kind: Kind, source: object, advice: str = "") -> None:
    """Raise UserError with source and entry if a value is not of a kind; advice: what the user can do."""
    try:
        kind(value, "")
    except Misfit as error:
        raise UserError(f"{source}: {error}. {advice}".rstrip(". ")) from error


def parse_json(text: str | bytes, kind: Kind, source: object, what: str) -> Any:
    """Return the value of a JSON text; what: the problem in a message, such as "no result of test.py --json".

    Raises UserError if the text is no JSON, or the value is not of this kind.
    """
    if isinstance(text, bytes) and text.startswith(LFS_POINTER):
        raise UserError(f"{source} {IS_POINTER}")
    try:
        value = json.loads(text)
        kind(value, "")
    except Misfit as error:
        raise UserError(f"{source} is {what}: {error}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{source} is {what} ({type(error).__name__}: {str(error)[:200]})") from error
    return value


def describe(value: object) -> str:
    """Return a few words about any value, but not about the content of a container."""
    if value is MISSING:
        return "missing"
    if value is None or type(value) in (bool, float):
        return str(value)
    if type(value) is int:
        return str(value) if abs(value) < 2**64 else f"a whole number of {value.bit_length()} bits"
    if isinstance(value, str):
        return repr(value) if len(value) <= SHOWN else f"{value[:SHOWN]!r}… ({len(value)} characters)"
    if type(value).__module__ == "torch" or hasattr(value, "layout"):
        return _describe_tensor(value)
    name = type(value).__name__
    if isinstance(value, Sequence | Mapping | set):
        return f"a {name} of {len(value)}" if len(value) else f"an empty {name}"
    return f"a {name}"


def _describe_tensor(value: Any) -> str:
    if not hasattr(value, "layout"):
        return f"{value} of PyTorch"
    kind = str(value.dtype).removeprefix("torch.")
    layout = str(value.layout).removeprefix("torch.")
    device = "" if value.device.type == "cpu" else f" on {value.device}"
    prefix = "" if layout == "strided" else f"{layout} "
    return f"a {prefix}{kind} tensor of {list(value.shape)}{device}"


# ---------------------------------------------------------------- kinds


def leaf(expected: str, fits: Callable[[Any], bool]) -> Kind:
    """Return the kind of the values for which `fits` is true; expected: describes them in messages."""

    def kind(value: Any, entry: str) -> None:
        if not fits(value):
            raise Misfit(entry, expected, describe(value))

    return kind


def whole(low: int = 0, high: int = LARGEST_WHOLE) -> Kind:
    """Return the kind of whole numbers from `low` to `high`; True and False are not whole numbers."""
    limits = f"from {low} to {high}" if high < LARGEST_WHOLE else f"of at least {low}"
    return leaf(f"a whole number {limits}", lambda value: type(value) is int and low <= value <= high)


def number(low: float = -LARGEST_NUMBER, high: float = LARGEST_NUMBER) -> Kind:
    """Return the kind of finite numbers from `low` to `high`."""
    limits = f" from {low:g} to {high:g}" if high < LARGEST_NUMBER else f" of at least {low:g}"
    expected = f"a finite number{limits if low > -LARGEST_NUMBER else ''}"
    return leaf(expected, lambda value: type(value) in (int, float) and low <= value <= high)


def text(longest: int = LONGEST_TEXT) -> Kind:
    """Return the kind of texts of one line that are safe on a terminal, see `errors.plain`.

    Names of files are such texts, also with spaces and joiners that Python does not call printable: macOS writes U+202F
    into the names of screenshots, and Persian needs U+200C.
    """

    def is_safe(value: str) -> bool:
        return value.isprintable() or not ({"\n", "\t"} & set(value) or escaped(value) != value)

    def fits(value: Any) -> bool:
        return isinstance(value, str) and len(value) <= longest and is_safe(value)

    return leaf(f"a line of text of at most {longest} characters, none of them a control character", fits)


def exactly(wanted: str | float | bool | None) -> Kind:
    """Return the kind that contains a single value."""
    return leaf(str(wanted), lambda value: type(value) is type(wanted) and value == wanted)


def near(wanted: float) -> Kind:
    """Return the kind of numbers close to `wanted`, whose last digits differ between machines."""

    def fits(value: Any) -> bool:
        return type(value) in (int, float) and abs(value) < LARGEST_NUMBER and math.isclose(value, wanted, rel_tol=1e-6)

    return leaf(str(wanted), fits)


def maybe(kind: Kind) -> Kind:
    """Return the kind that also contains None."""

    def either(value: Any, entry: str) -> None:
        if value is not None:
            kind(value, entry)

    return either


flag = leaf("True or False", lambda value: type(value) is bool)


def plain(value: object) -> bool:
    """Return whether a value is a short text, a flag or a number, like a command-line option."""
    for kind in (text(), flag, whole(-LARGEST_WHOLE), number()):
        try:
            kind(value, "")
        except Misfit:
            continue
        return True
    return False


option = leaf("a short text, a number, True, False or None", lambda value: value is None or plain(value))


def list_of(kind: Kind, length: int | None = None, longest: int | None = None) -> Kind:
    """Return the kind of lists and tuples whose items are all of one kind."""
    size = f" of {length}" if length is not None else f" of at most {longest}" if longest is not None else ""

    def items(value: Any, entry: str) -> None:
        fits = isinstance(value, list | tuple) and length in (None, len(value)) and len(value) <= (longest or math.inf)
        if not fits:
            raise Misfit(entry, f"a list{size}", describe(value))
        for number, item in enumerate(value):
            kind(item, f"{entry}[{number}]")

    return items


def each_of(kinds: Sequence[Kind]) -> Kind:
    """Return the kind of lists and tuples with one kind for each item."""

    def items(value: Any, entry: str) -> None:
        if not isinstance(value, list | tuple) or len(value) != len(kinds):
            raise Misfit(entry, f"a list of {len(kinds)}", describe(value))
        for number, (kind, item) in enumerate(zip(kinds, value, strict=True)):
            kind(item, f"{entry}[{number}]")

    return items


def record(
    entries: Mapping[Any, Kind], optional: Mapping[Any, Kind] = MappingProxyType({}), others: Kind | None = None
) -> Kind:
    """Return the kind of dictionaries with given entries, by name or number.

    optional: entries that may be missing. others: the kind of all other entries; None: anything.
    """

    def items(value: Any, entry: str) -> None:
        if not isinstance(value, Mapping):
            raise Misfit(entry, "a dictionary", describe(value))
        for name, kind in entries.items():
            kind(value.get(name, MISSING), _inside(entry, name))
        for name in optional.keys() & value.keys():
            optional[name](value[name], _inside(entry, name))
        for name in value.keys() - entries.keys() - optional.keys():
            if others is None:
                break
            if not plain(name):
                raise Misfit(entry, "a dictionary whose entries have short names", describe(value))
            others(value[name], _inside(entry, name))

    return items


def both(*kinds: Kind) -> Kind:
    """Return the kind of the values that are of all these kinds."""

    def kind(value: Any, entry: str) -> None:
        for part in kinds:
            part(value, entry)

    return kind


def _inside(entry: str, name: object) -> str:
    if isinstance(name, int):
        return f"{entry}[{name}]"
    return f"{entry}.{name}" if entry else str(name)
