"""Sentences about drawn scenes that mean one object, several or none: what gRefCOCO adds to RefCOCO.

As in `expressions`, a sentence is drawn at random, asked what it means, and kept if that is as many objects as wanted.
No rule answers if a person could hesitate about a single object. A sentence that means nothing is a near miss: it
speaks of the colours, shapes and places of its scene, but not as they are found together there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import Random
from typing import Any

from data.sample import expressions
from data.sample.draws import Weighted
from data.sample.expressions import (
    COSTS,
    VAGUELY,
    Group,
    Names,
    View,
    along,
    describe_after,
    describe_look,
    matching,
    offset,
    sufficient,
    without,
)
from data.sample.scene import COLOURS, SHAPES, Look

NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
EVERYTHING = ("everything", "everything", "all objects", "all shapes", "all things", "every object")
# Properties that are named together of what is not there.
SEVERAL_NAMES = Weighted({names: 0.35**cost for names, cost in COSTS.items() if len(names) > 1})
HALVES = {
    "left": ("on the left", "on the left", "on the left side", "in the left half"),
    "right": ("on the right", "on the right", "on the right side", "in the right half"),
    "top": ("at the top", "at the top", "in the top half", "in the upper half"),
    "bottom": ("at the bottom", "at the bottom", "in the bottom half", "in the lower half"),
}
OUTERMOST = {
    "left": ("leftmost",),
    "right": ("rightmost",),
    "top": ("topmost", "highest"),
    "bottom": ("bottommost", "lowest"),
}
DIRECTIONS = {
    "left": ("left of", "to the left of"),
    "right": ("right of", "to the right of"),
    "top": ("above",),
    "bottom": ("below", "under"),
}
EXCEPT = ("except", "except for", "but")
# Words that then fit, with [CLS], [SEP] and a full stop, into the 20 ids that gRefCOCO's users read.
MAX_WORDS = 17
TRIALS = 80


@dataclass(frozen=True)
class SetPhrase:
    """A sentence, the objects that it means, in their order, and which writer wrote it."""

    text: str
    meant: Group
    form: str


@dataclass(frozen=True)
class Description:
    """Named properties of a look, and the objects they fit."""

    look: Look
    names: Names
    group: Group


# ---------------------------------------------------------------- what is clearly meant


def in_half(view: View, group: Group, side: str) -> Group | None:
    """Return those within 0.42 of a side of the image, if all others are 0.58 or farther from it."""
    places = {i: along(view, i, side) for i in group}
    if any(0.42 < place < 0.58 for place in places.values()):
        return None
    return tuple(i for i in group if places[i] <= 0.42)


def towards(view: View, group: Group, landmark: int, side: str) -> Group | None:
    """Return those on a side of the landmark: 0.1 or more that way, and at most twice as far across.

    None unless all others are 0.1 or more the other way.
    """
    ways = {i: offset(view, i, landmark, side) for i in without(group, landmark)}
    there = tuple(i for i, (ahead, across) in ways.items() if ahead >= 0.1 and across <= 2 * ahead)
    others = without(tuple(ways), *there)
    return there if all(ways[i][0] <= -0.1 for i in others) else None


def outermost(view: View, group: Group, side: str, count: int) -> Group | None:
    """Return the `count` of a larger group that are nearest to a side, by 0.08 before the next."""
    order = sorted(group, key=lambda i: along(view, i, side))
    if count >= len(order):
        return None
    gap = along(view, order[count], side) - along(view, order[count - 1], side)
    return tuple(sorted(order[:count])) if gap >= 0.08 else None


# ---------------------------------------------------------------- descriptions


def loosely(rng: Random, view: View) -> Description:
    """Return few properties of some object, or none at all, and the objects they fit."""
    index = rng.randrange(len(view.objects))
    names = VAGUELY.one(rng) if rng.random() < 0.85 else ()
    return Description(view.objects[index].look, names, view.groups[index][names])


def imagine(rng: Random, view: View) -> Description | None:
    """Return properties that no object has together, or None if those drawn fit one.

    All are of the scene, but for a colour or a shape now and then; at least two are named.
    """
    found = {name: getattr(rng.choice(view.objects).look, name) for name in vars(view.objects[0].look)}
    chance = rng.random()
    if chance < 0.15:
        found["colour"] = rng.choice(list(COLOURS))
    elif chance < 0.3:
        found["shape"] = rng.choice(SHAPES)
    names = SEVERAL_NAMES.one(rng)
    look = Look(**found)
    return None if matching(view.objects, look, names) else Description(look, names, ())


def all_of(rng: Random, known: Description, count: int) -> str:
    """Put all objects that a description fits into words: "the two red stars", "every circle", "everything".

    count: how many there are, or would be.
    """
    if not known.names:
        return rng.choice(EVERYTHING)
    if rng.random() < 0.12:
        return f"every {describe_look(rng, known.look, known.names)}"
    quantifiers = ["all", "all", "all the", "the", *[f"the {NUMBERS[count]}"] * 3, *["both"] * 2 * (count == 2)]
    return f"{rng.choice(quantifiers)} {describe_look(rng, known.look, known.names, several=True)}"


def the_only(rng: Random, view: View, index: int) -> str | None:
    """Return "the red star" for an object that some properties tell apart, None for a twin."""
    names = sufficient(rng, view, index)
    return f"the {describe_look(rng, view.objects[index].look, names)}" if names else None


def clipped(rng: Random, text: str) -> str:
    """Return the text mostly without the article it begins with, as people type it."""
    return text.removeprefix("the ") if rng.random() < 0.7 else text


# ---------------------------------------------------------------- sentences

# A writer returns a sentence that clearly means a set of objects, maybe of another number than wanted, or None.


def by_group(rng: Random, view: View) -> SetPhrase | None:
    """Write "the two red stars", "all circles" or "everything"."""
    known = loosely(rng, view)
    return SetPhrase(all_of(rng, known, len(known.group)), known.group, "group")


def by_half(rng: Random, view: View) -> SetPhrase | None:
    """Write "everything on the left" or "both stars in the upper half"."""
    known, side = loosely(rng, view), rng.choice(list(HALVES))
    meant = in_half(view, known.group, side)
    if meant is None:
        return None
    return SetPhrase(f"{all_of(rng, known, plausible(rng, meant))} {rng.choice(HALVES[side])}", meant, "half")


def by_direction(rng: Random, view: View) -> SetPhrase | None:
    """Write "all circles above the red star"."""
    known, side, near = loosely(rng, view), rng.choice(list(DIRECTIONS)), rng.randrange(len(view.objects))
    meant, landmark = towards(view, known.group, near, side), the_only(rng, view, near)
    if meant is None or landmark is None or not without(known.group, near):
        return None
    text = f"{all_of(rng, known, plausible(rng, meant))} {rng.choice(DIRECTIONS[side])} {landmark}"
    return SetPhrase(text, meant, "direction")


def by_rank(rng: Random, view: View) -> SetPhrase | None:
    """Write "the two leftmost circles"."""
    known, side, count = loosely(rng, view), rng.choice(list(OUTERMOST)), rng.choice((2, 2, 3))
    meant = outermost(view, known.group, side, count)
    if meant is None:
        return None
    many = describe_look(rng, known.look, known.names, several=True)
    return SetPhrase(f"the {NUMBERS[count]} {rng.choice(OUTERMOST[side])} {many}", meant, "rank")


def by_exception(rng: Random, view: View) -> SetPhrase | None:
    """Write "all circles except the red one"."""
    known = loosely(rng, view)
    left_out = rng.choice(known.group)
    other = the_only(rng, view, left_out)
    if other is None:
        return None
    whole = (
        f"all {describe_look(rng, known.look, known.names, several=True)}" if known.names else rng.choice(EVERYTHING)
    )
    return SetPhrase(f"{whole} {rng.choice(EXCEPT)} {other}", without(known.group, left_out), "exception")


def by_union(rng: Random, view: View) -> SetPhrase | None:
    """Write "the star and the blue cross" or "red heart and both circles"."""
    parts = [part_of_union(rng, view) for _ in range(rng.choice((2, 2, 2, 2, 3)))]
    texts = [text for text, _ in parts if text]
    meant = [i for _, group in parts for i in group]
    if len(texts) < len(parts) or len(meant) > len(set(meant)):
        return None
    return SetPhrase(clipped(rng, " and ".join(texts)), tuple(sorted(meant)), "union")


def part_of_union(rng: Random, view: View) -> tuple[str | None, Group]:
    """Return one object, or now and then all of a kind, and the words for them; None for want of words."""
    if rng.random() < 0.8:
        index = rng.randrange(len(view.objects))
        return the_only(rng, view, index), (index,)
    known = loosely(rng, view)
    if len(known.group) < 2 or not known.names:
        return None, ()
    return all_of(rng, known, len(known.group)), known.group


def by_one(rng: Random, view: View) -> SetPhrase | None:
    """Write what refcoco says of one object."""
    target = rng.randrange(len(view.objects))
    writer = expressions.WRITTEN["refcoco"].one(rng)
    phrase = expressions.try_hard(writer, rng, view, target, full=False)
    return SetPhrase(phrase.text, (target,), "one") if phrase else None


def absent_look(rng: Random, view: View) -> SetPhrase | None:
    """Write "the purple heart" or "all big stars" of what is not there, now and then with a place."""
    known = imagine(rng, view)
    if known is None:
        return None
    if rng.random() < 0.35:
        text = all_of(rng, known, plausible(rng, ()))
        tails = [tail for tails in HALVES.values() for tail in tails]
    else:
        after = known.names != ("shape",) and rng.random() < 0.1
        text = article(rng, (describe_after if after else describe_look)(rng, known.look, known.names))
        tails = [template.removeprefix("{x} ") for templates in expressions.SIDES.values() for template in templates]
    tail = f" {rng.choice(tails)}" if rng.random() < 0.15 else ""
    return SetPhrase(text + tail, (), "absent")


def absent_at_side(rng: Random, view: View) -> SetPhrase | None:
    """Write "red star on the left" if all red stars are on the right."""
    known, side = loosely(rng, view), rng.choice(list(expressions.SIDES))
    if in_half(view, known.group, side) != ():
        return None
    x = describe_look(rng, known.look, known.names)
    return SetPhrase(article(rng, rng.choice(expressions.SIDES[side]).format(x=x)), (), "absent at side")


def absent_in_direction(rng: Random, view: View) -> SetPhrase | None:
    """Write "circle left of the star" if all circles are right of it."""
    known, side, near = loosely(rng, view), rng.choice(list(DIRECTIONS)), rng.randrange(len(view.objects))
    landmark = the_only(rng, view, near)
    if landmark is None or towards(view, known.group, near, side) != () or not without(known.group, near):
        return None
    text = f"{describe_look(rng, known.look, known.names)} {rng.choice(DIRECTIONS[side])} {landmark}"
    return SetPhrase(article(rng, text), (), "absent in direction")


def absent_union(rng: Random, view: View) -> SetPhrase | None:
    """Write "purple heart and the green star" if neither is there."""
    first, second = imagine(rng, view), imagine(rng, view)
    if first is None or second is None:
        return None
    texts = [f"the {describe_look(rng, known.look, known.names)}" for known in (first, second)]
    return SetPhrase(clipped(rng, " and ".join(texts)), (), "absent union")


def article(rng: Random, text: str) -> str:
    """Return the text, now and then with an article."""
    return f"the {text}" if rng.random() < 0.2 else text


def plausible(rng: Random, meant: Group) -> int:
    """Return how many objects a plural speaks of: as many as there are, some number if there are none."""
    return len(meant) or rng.choice((2, 2, 3))


Writer = Callable[[Random, Any], SetPhrase | None]  # some take a view of version 2

SEVERAL: Mapping[Writer, int] = {
    by_group: 6,
    by_half: 3,
    by_direction: 2,
    by_rank: 2,
    by_exception: 2,
    by_union: 6,
}
# By how many objects a sentence is to mean (3: three or more): the writers, and how often each is asked.
WRITERS: Mapping[int, Mapping[Writer, int]] = {
    0: {absent_look: 8, absent_at_side: 2, absent_in_direction: 2, absent_union: 1, by_half: 1, by_direction: 1},
    1: {by_one: 1},
    2: SEVERAL,
    3: SEVERAL,
}
WRITTEN = {count: Weighted(writers) for count, writers in WRITERS.items()}


def write(rng: Random, view: Any, count: int, written: Mapping[int, Weighted[Writer]] = WRITTEN) -> SetPhrase | None:
    """Return a sentence that means `count` objects (3: three or more), None if none was found.

    view: as the writers take it. The writer is drawn first, so that common ones do not crowd out choosy ones.
    """
    writers = written[count]
    for _ in range(4):
        writer = writers.one(rng)
        for _ in range(TRIALS // 4):
            phrase = writer(rng, view)
            if phrase and min(len(phrase.meant), 3) == count and len(phrase.text.split()) <= MAX_WORDS:
                return phrase
    return None


def words() -> list[str]:
    """Return every word that only these sentences hold, sorted."""
    tables = [*HALVES.values(), *OUTERMOST.values(), *DIRECTIONS.values(), EXCEPT, EVERYTHING, NUMBERS[1:]]
    lines = [line for table in tables for line in table]
    lines += [*map(expressions.plural, (*SHAPES, *expressions.ANYTHING)), "all every both"]
    known = set(expressions.vocabulary())
    return sorted({word for line in lines for word in line.split()} - known)
