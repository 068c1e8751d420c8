"""A reader of the sentences of sample data, version 2, that knows nothing of how they were written.

It mends typing errors, takes a sentence apart, and looks for what the parts fit in a scene of scenes.json. Thresholds
lie within the margins that the writer promises.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from typing import Any

from tests.scene_reader import (
    NUMBERS,
    RANK,
    SAYS,
    SAYS_NOTHING,
    SIDE,
    SIDE_OF,
    SINGULAR,
    Object,
    fitting,
    in_order,
    is_in,
    outermost,
    plain_words,
    stands,
    understand_set,
    wanted,
)

RELATIONS = (
    "(?:to )?left of|(?:to )?right of|above|below|under|beneath|closest to|nearest to|next to|in front of"
    "|partly covering|behind|partly hidden by"
)
THAT_IS = "(?:(?:that|which) is )?"
MOST = {"biggest": "large", "largest": "large", "smallest": "small", "littlest": "small"}
FUNCTION_WORDS = """
the a an which not neither nor without of to from in on at near above below under beneath closest nearest next front
partly covering behind hidden by between middle center side corner farthest far very picture image
"""
LEXICON = frozenset([*SAYS, *SAYS_NOTHING, *SIDE_OF, *RANK, *MOST, *FUNCTION_WORDS.split()])

# Tried in this order. x: a description by looks; y, z: whole descriptions of landmarks.
FORMS = {
    "neither": rf"(?P<x>.+?) {THAT_IS}neither (?P<y>.+) nor (?P<z>.+)",
    "without": r"(?P<x>.+?) without (?P<y>stripes|dots|checks)",
    "not": rf"(?P<x>.+?) {THAT_IS}not (?P<y>.+)",
    "between": rf"(?P<x>.+?) {THAT_IS}between (?P<y>.+) and (?P<z>.+)",
    "both": rf"(?P<x>.+?) {THAT_IS}(?P<one>{RELATIONS}) (?P<y>.+) and (?P<two>{RELATIONS}) (?P<z>.+)",
    "relation": rf"(?P<x>.+?) {THAT_IS}(?P<one>{RELATIONS}) (?P<y>.+)",
    "order": rf"(?:(?P<x>.+) )?(?P<rank>{'|'.join(RANK)})(?: (?P<noun>.+))? from (?P<side>left|right|top|bottom)",
    "far": rf"(?:(?P<x>.+) (?:on far|at very|farthest)|far) (?P<side>{SIDE})(?: (?P<noun>.+))?",
    "most": rf"(?P<most>{'|'.join(MOST)})(?: (?P<x>.+))?",
    "bare": r"(?:in )?(?P<where>(?:top|bottom|upper|lower) (?:left|right)|middle|center)(?: corner)?",
    "bare side": rf"(?P<side>{'|'.join(SIDE_OF)})",
    "in": rf"(?P<x>.+?) (?:(?:on|at|near|in) )?(?P<where>{SIDE}(?: {SIDE})?|middle|center)(?: side| corner)?",
    "first in": r"(?P<where>(?:top|bottom|upper|lower) (?:left|right)|center) (?P<x>.+)",
    "side": rf"(?P<side>{'|'.join(SIDE_OF)}) (?P<x>.+)",
    "looks": r"(?P<x>.+)",
}
WHERE = re.compile(rf"(?:(?:on|at|near|in) )?(?P<where>{SIDE}|middle|center)(?: side)?")
RELATION = re.compile(rf"(?P<one>{RELATIONS}) (?P<y>.+)")
ANYTHING = "thing"


@dataclass(frozen=True)
class Said:
    """A sentence taken apart: its form, and what stands for the parts of the form."""

    form: str
    parts: dict[str, str]

    @property
    def x(self) -> str:
        """The looks of the object itself."""
        return self.parts.get("x") or self.parts.get("noun") or ANYTHING


def take_apart(text: str) -> Said:
    """Return the first form that a sentence without articles has."""
    for form, pattern in FORMS.items():
        if match := re.fullmatch(pattern, text):
            return Said(form, {key: value for key, value in match.groupdict().items() if value})
    raise AssertionError(text)


def cleaned(sent: str) -> str:
    """Return the sentence in the words of the lexicon, without articles and without naming the picture."""
    return plain_words(" ".join(word if word in LEXICON else mended(word) for word in sent.split()))


@cache
def mended(word: str) -> str:
    """Return the only word of the lexicon that is one edit away."""
    (meant,) = (known for known in LEXICON if one_edit_apart(word, known))
    return meant


def one_edit_apart(one: str, other: str) -> bool:
    """Say whether the words differ by a letter left out or added, another letter, or two neighbours swapped."""
    start = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    a, b = one[start:], other[start:]
    return a[1:] == b or a == b[1:] or a[1:] == b[1:] or (a[2:] == b[2:] and a[:2] == b[1::-1])


def understand(sent: str, image: dict[str, Any]) -> list[Object]:
    """Return the objects that a sentence may mean."""
    return meant_by(cleaned(sent), image)


def meant_by(text: str, image: dict[str, Any]) -> list[Object]:
    """Return the objects that a cleaned sentence may mean."""
    said = take_apart(text)
    group = fitting(said.x, image)
    parts = said.parts
    if said.form == "neither":
        return [found for found in group if not (fits(found, parts["y"], image) or fits(found, parts["z"], image))]
    if said.form in ("without", "not"):
        return [found for found in group if not fits(found, parts["y"], image)]
    if said.form in ("between", "both", "relation"):
        return related(said, group, image)
    if said.form == "order":
        rank = RANK[parts["rank"]]
        return [in_order(group, parts["side"], image)[rank]] if rank < len(group) else []
    if said.form in ("far", "side", "bare side"):
        return outermost(group, SIDE_OF[parts["side"]], image)
    if said.form == "most":
        return extreme_in_size(group, MOST[parts["most"]])
    if said.form in ("bare", "in", "first in"):
        return [found for found in group if is_in(found, parts["where"], image)]
    return group


def fits(found: Object, denied: str, image: dict[str, Any]) -> bool:
    """Say whether an object has what is denied: a look, a place, or a relation to the one object meant."""
    if match := WHERE.fullmatch(denied):
        return is_in(found, match["where"], image)
    if match := RELATION.fullmatch(denied):
        landmark = the_only(match["y"], image)
        assert found is not landmark or len(image["objects"]) > 1
        return found is landmark or stands(found, match["one"], [landmark], short_side(image))
    return all(found[name] == value for name, value in wanted(denied).items())


def related(said: Said, group: list[Object], image: dict[str, Any]) -> list[Object]:
    """Return the objects of a group that stand as is said to one landmark, or two."""
    parts = said.parts
    landmarks = [the_only(parts[key], image) for key in "yz" if key in parts]
    rest = [found for found in group if found not in landmarks]
    if said.form == "between":
        return [found for found in rest if stands(found, "between", landmarks, short_side(image))]
    links = [parts[key] for key in ("one", "two") if key in parts]
    for word, landmark in zip(links, landmarks, strict=True):
        everything = [found for found in group if found not in landmarks]
        nearby = near(word, everything, landmark, image)
        rest = [found for found in rest if found in nearby]
    return rest


def near(word: str, group: list[Object], landmark: Object, image: dict[str, Any]) -> list[Object]:
    """Return the objects of a group in one relation to a landmark."""
    if word.split()[0] in ("closest", "nearest", "next"):
        distance = {one["ann_id"]: distance_of(one, landmark) / short_side(image) for one in group}
        return [one for one in group if distance[one["ann_id"]] < min(distance.values()) + 0.1]
    return [one for one in group if stands(one, word, [landmark], short_side(image))]


def distance_of(one: Object, other: Object) -> float:
    """Return the distance of two centres in pixels."""
    (ax, ay), (bx, by) = one["centre"], other["centre"]
    return float(((ax - bx) ** 2 + (ay - by) ** 2) ** 0.5)


def the_only(text: str, image: dict[str, Any]) -> Object:
    """Return the one object that the description of a landmark means."""
    found = meant_by(text, image)
    assert len(found) == 1, f"no such landmark: {text}"
    return found[0]


def short_side(image: dict[str, Any]) -> int:
    """Return the shorter side of an image in pixels."""
    return min(image["width"], image["height"])


def extreme_in_size(group: list[Object], size: str) -> list[Object]:
    """Return those of at least two objects of one shape whose visible areas are about the largest or the smallest."""
    assert len(group) > 1 and len({found["shape"] for found in group}) == 1
    if size == "large":
        return [one for one in group if one["area"] * 1.2 > max(other["area"] for other in group)]
    return [one for one in group if one["area"] < 1.2 * min(other["area"] for other in group)]


# ---------------------------------------------------------------- kinds

PLACES = ("far", "bare", "bare side", "in", "first in", "side")


def kinds_of(sent: str) -> tuple[str, set[str]]:
    """Return what it takes to find the object, and all kinds of information in a sentence."""
    return kinds_in(cleaned(sent))


def kinds_in(text: str) -> tuple[str, set[str]]:
    """Return the kind and the kinds of information of a cleaned sentence."""
    said = take_apart(text)
    looks = set(wanted(said.x))
    if said.form in ("not", "neither", "without"):
        return "negation", {"negation"} | looks | denied_kinds(said.parts["y"])
    if said.form in ("between", "both", "relation"):
        inner = [kinds_in(said.parts[key]) for key in "yz" if key in said.parts]
        steps = 2 if said.form != "relation" or inner[0][0].startswith("relation") else 1
        return f"relation{steps}", {"relation"}.union(looks, *(kinds for _, kinds in inner))
    if said.form == "order":
        return "ordinal", {"ordinal"} | looks
    if said.form in PLACES:
        return "place", {"place"} | looks
    looks |= {"size"} if said.form == "most" else set()
    named = sorted(looks - {"shape"})
    return ("looks" if len(named) > 1 else named[0] if named else "shape"), looks


def denied_kinds(text: str) -> set[str]:
    """Return the kinds of information in what is denied."""
    if WHERE.fullmatch(text):
        return {"place"}
    if match := RELATION.fullmatch(text):
        return {"relation"} | kinds_in(match["y"])[1]
    return set(wanted(text))


# ---------------------------------------------------------------- sets of objects


def understand_some(sent: str, image: dict[str, Any]) -> list[Object]:
    """Return the objects, one, several or none, that a sentence means."""
    alone = re.search(r" (?:between|neither|not|without) | and (?:the )?(?:" + RELATIONS + ") ", cleaned_words(sent))
    return understand(sent, image) if alone else understand_set(sent, image, understand)


def cleaned_words(sent: str) -> str:
    """Return the sentence with its typing errors mended, as far as it is about one object."""
    known = {*LEXICON, *SINGULAR, *NUMBERS, "all", "every", "both", "everything", "except", "for", "but", "half"}
    return " ".join(word if word in known else mended(word) for word in sent.split())
