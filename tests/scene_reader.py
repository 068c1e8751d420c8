"""A reader of sentences about drawn scenes that knows nothing of how they were written.

It takes the words apart and looks for what they fit in a scene of scenes.json.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np

PROPERTIES = {
    "shape": "circle square triangle diamond star cross heart",
    "colour": "red orange yellow green blue purple white black",
    "size": "small large little:small big:large",
    "texture": "plain striped dotted solid:plain spotted:dotted pattern:plain stripes:striped dots:dotted "
    "checked checks:checked",
}
# Word → the property it names and its value.
SAYS = {
    entry.split(":")[0]: (name, entry.split(":")[-1])
    for name, entries in PROPERTIES.items()
    for entry in entries.split()
}
# What hard data say now and then, by what they mean.
RARELY = {
    "crimson": "red",
    "scarlet": "red",
    "tangerine": "orange",
    "golden": "yellow",
    "emerald": "green",
    "azure": "blue",
    "violet": "purple",
    "ivory": "white",
    "ebony": "black",
    "tiny": "small",
    "huge": "large",
    "enormous": "large",
    "banded": "striped",
    "speckled": "dotted",
    "disc": "circle",
    "rhombus": "diamond",
    "plus": "cross",
}
SAYS |= {word: SAYS[meaning] for word, meaning in RARELY.items()}
SAYS_NOTHING = {"one", "object", "thing", "shape", "that", "is", "and", "with", "no"}
SIDE_OF = {
    **dict.fromkeys(("top", "upper", "highest", "topmost"), "top"),
    **dict.fromkeys(("bottom", "lower", "lowest", "bottommost"), "bottom"),
    **{word: side for side in ("left", "right") for word in (side, f"{side}most")},
}
RANK = {"first": 0, "1st": 0, "second": 1, "2nd": 1, "third": 2, "3rd": 2, "fourth": 3, "4th": 3}
RELATION = re.compile(
    r"(?P<x>.+?) (?:(?:that|which) is )?(?P<word>between|(?:to )?left of|(?:to )?right of|above|below|under|beneath"
    r"|closest to|nearest to|next to|in front of|partly covering|behind|partly hidden by) (?P<y>.+)"
)
ORDINAL = re.compile(rf"(?P<rank>{'|'.join(RANK)}) (?P<x>.+) from (?P<side>left|right|top|bottom)")
SIDE = r"(?:top|bottom|upper|lower|left|right)"
REGION = re.compile(rf"(?P<x>.+?) (?:(?:on|at|near|in) )?(?P<where>{SIDE}(?: {SIDE})?|middle|center)(?: side| corner)?")
FARTHEST = re.compile(r"(?P<x>.+) farthest (?P<side>left|right)")
CORNER_FIRST = re.compile(r"(?P<where>(?:top|bottom|upper|lower) (?:left|right)|center) (?P<x>.+)")
SIDE_FIRST = re.compile(rf"(?P<side>{'|'.join(SIDE_OF)}) (?P<x>.+)")

Object = dict[str, Any]


def plain_words(sent: str) -> str:
    """Return the sentence without articles and without naming the picture."""
    text = " ".join(word for word in sent.split() if word not in ("the", "a", "an"))
    return re.sub(r" (in|of) (picture|image)$", "", text)


def wanted(description: str) -> dict[str, str]:
    """Return the properties a description names."""
    words = [word for word in description.split() if word not in SAYS_NOTHING]
    assert words or description in SAYS_NOTHING, description
    return dict(SAYS[word] for word in words)


def fitting(description: str, image: dict[str, Any]) -> list[Object]:
    """Return the objects of an image that a description fits."""
    named = wanted(description).items()
    return [found for found in image["objects"] if all(found[key] == value for key, value in named)]


def kinds_of(sent: str) -> set[str]:
    """Return the kinds of information in a sentence."""
    text = plain_words(sent)
    if match := RELATION.fullmatch(text):
        return {"relation"}.union(wanted(match["x"]), *(kinds_of(part) for part in match["y"].split(" and ")))
    if match := ORDINAL.fullmatch(text):
        return {"ordinal", *wanted(match["x"])}
    for pattern in (FARTHEST, REGION, CORNER_FIRST, SIDE_FIRST):
        if match := pattern.fullmatch(text):
            return {"place", *wanted(match["x"])}
    return set(wanted(text))


def understand(sent: str, image: dict[str, Any]) -> list[Object]:
    """Return the objects a sentence may refer to; thresholds are within the margins promised by the writer."""
    text = plain_words(sent)
    if match := RELATION.fullmatch(text):
        return related(match["x"], match["word"], match["y"], image)
    if match := ORDINAL.fullmatch(text):
        return [in_order(fitting(match["x"], image), match["side"], image)[RANK[match["rank"]]]]
    if match := FARTHEST.fullmatch(text):
        return outermost(fitting(match["x"], image), match["side"], image)
    if match := REGION.fullmatch(text) or CORNER_FIRST.fullmatch(text):
        return [found for found in fitting(match["x"], image) if is_in(found, match["where"], image)]
    if match := SIDE_FIRST.fullmatch(text):
        return outermost(fitting(match["x"], image), SIDE_OF[match["side"]], image)
    return fitting(text, image)


def away(found: Object, side: str, image: dict[str, Any]) -> float:
    """Return an object's distance from a side of the image, as a share."""
    x, y = found["centre"][0] / image["width"], found["centre"][1] / image["height"]
    return {"left": x, "right": 1 - x, "top": y, "bottom": 1 - y}[side]


def in_order(group: list[Object], side: str, image: dict[str, Any]) -> list[Object]:
    """Return three objects or more in order from a side; no two may be level."""
    order = sorted(group, key=lambda found: away(found, side, image))
    places = [away(found, side, image) for found in order]
    assert len(order) >= 3 and min(np.diff(places)) > 0.04
    return order


def outermost(group: list[Object], side: str, image: dict[str, Any]) -> list[Object]:
    """Return all that are about as near to the side as the nearest."""
    nearest = min(away(found, side, image) for found in group)
    assert len(group) > 1 or nearest < 0.45
    return [found for found in group if away(found, side, image) < nearest + 0.06]


def is_in(found: Object, where: str, image: dict[str, Any]) -> bool:
    """Say whether an object is in the middle, at a side or in a corner."""
    if where in ("middle", "center"):
        return math.hypot(away(found, "left", image) - 0.5, away(found, "top", image) - 0.5) < 0.24
    return all(away(found, SIDE_OF[word], image) < 0.44 for word in where.split())


def related(x: str, word: str, y: str, image: dict[str, Any]) -> list[Object]:
    """Return the objects that x fits and that are in the relation to the object, or the two objects, of y."""
    landmarks = [understand(part, image) for part in (y.split(" and ") if word == "between" else [y])]
    assert all(len(fits) == 1 for fits in landmarks), f"no such landmark: {y}"
    others = [fits[0] for fits in landmarks]
    group = [found for found in fitting(x, image) if found not in others]
    short = min(image["width"], image["height"])
    if word.split()[0] in ("closest", "nearest", "next"):
        distance = [math.dist(found["centre"], others[0]["centre"]) / short for found in group]
        return [found for found, one in zip(group, distance, strict=True) if one < min(distance) + 0.1]
    return [found for found in group if stands(found, word, others, short)]


def stands(found: Object, word: str, others: list[Object], short: int) -> bool:
    """Return whether an object is in a relation to the others."""
    here, there = np.array(found["centre"]), np.array(others[0]["centre"])
    if word == "between":
        # Inside the flat ellipse around both.
        ends = math.dist(there, others[1]["centre"])
        return math.dist(here, there) + math.dist(here, others[1]["centre"]) < 1.15 * ends
    if word in ("in front of", "partly covering"):
        return found["ann_id"] in map(int, others[0]["hidden_by"])
    if word in ("behind", "partly hidden by"):
        return others[0]["ann_id"] in map(int, found["hidden_by"])
    dx, dy = here - there
    side = word.removeprefix("to ").removesuffix(" of")
    ahead = {"left": -dx, "right": dx, "above": -dy}.get(side, dy)
    across = abs(dy) if side in ("left", "right") else abs(dx)
    return ahead > 0.02 * short and across < 1.2 * ahead


# ---------------------------------------------------------------- sets of objects

COUNTING = "one two three four five six seven eight nine ten"
Reader = Callable[[str, dict[str, Any]], list[Object]]
NUMBERS = {word: n for n, word in enumerate(COUNTING.split(" "), start=1)}
SINGULAR = {f"{word}s": word for word in (*PROPERTIES["shape"].split(), "one", "object", "thing")}
SINGULAR |= {"crosses": "cross", "shapes": "shape"}
NEXT_PART = re.compile(r" and (?=(?:the|all|both|every) )")
EXCEPTION = re.compile(r"(?P<whole>.+?) (?:except for|except|but) (?P<out>the .+)")
QUANTIFIED = re.compile(rf"(?:(?P<count>{'|'.join(NUMBERS)}|both) |all |every )?(?P<rest>.+)")
OUTERMOST = re.compile(rf"(?P<side>{'|'.join(SIDE_OF)}) (?P<x>.+)")
HALF = re.compile(rf"(?P<x>.+) (?:on|at|in) (?P<side>{SIDE})(?: side| half)?")


def understand_set(sent: str, image: dict[str, Any], alone: Reader = understand) -> list[Object]:
    """Return the objects that a sentence refers to: one, several or none, in the order of depth.

    alone: reads what is said of one object.
    """
    meant: list[Object] = []
    for part in NEXT_PART.split(sent):
        found = understand_part(part, image, alone)
        assert not [one for one in found if one in meant], f"{part} is said twice"
        meant += found
    return sorted(meant, key=lambda found: found["depth"])


def understand_part(text: str, image: dict[str, Any], alone: Reader = understand) -> list[Object]:
    """Return what a sentence without "and" means."""
    if match := EXCEPTION.fullmatch(text):
        whole, (out,) = understand_part(match["whole"], image), understand(match["out"], image)
        assert out in whole and len(whole) > 1
        return [found for found in whole if found is not out]
    words = plain_words(text).replace("everything", "every object").split()
    if not (set(words) & {*SINGULAR, "every"} or words[-1] == "half"):
        return alone(text, image)
    match = QUANTIFIED.fullmatch(" ".join(SINGULAR.get(word, word) for word in words))
    assert match
    count = 2 if match["count"] == "both" else NUMBERS.get(match["count"])
    found = understand_several(match["rest"], count, image)
    assert not found or count in (None, len(found)), f"there are {len(found)}"
    return found


def understand_several(text: str, count: int | None, image: dict[str, Any]) -> list[Object]:
    """Return what the words after "all" mean, or those after a number; the nouns are in the singular."""
    if match := RELATION.fullmatch(text):
        return all_beyond(match["x"], match["word"], match["y"], image)
    if match := HALF.fullmatch(text):
        places = [(away(found, SIDE_OF[match["side"]], image), found) for found in fitting(match["x"], image)]
        assert all(abs(place - 0.5) > 0.05 for place, _ in places)
        return [found for place, found in places if place < 0.5]
    if match := OUTERMOST.fullmatch(text):
        side = SIDE_OF[match["side"]]
        order = sorted(fitting(match["x"], image), key=lambda found: away(found, side, image))
        assert count and away(order[count], side, image) > away(order[count - 1], side, image) + 0.06
        return order[:count]
    return fitting(text, image)


def all_beyond(x: str, word: str, y: str, image: dict[str, Any]) -> list[Object]:
    """Return all that x fits on one side of what y means; none of the others may be near that side."""
    (landmark,) = understand(y, image)
    side = word.removeprefix("to ").removesuffix(" of")
    axis, sign = {"left": (0, -1), "right": (0, 1), "above": (1, -1)}.get(side, (1, 1))
    others = [found for found in fitting(x, image) if found is not landmark]
    ahead = [sign * (found["centre"][axis] - landmark["centre"][axis]) for found in others]
    assert others and all(abs(way) > 0.08 * min(image["width"], image["height"]) for way in ahead)
    return [found for found, way in zip(others, ahead, strict=True) if way > 0]


# ---------------------------------------------------------------- long sentences

OPENING = re.compile(r"(?:find |segment |the mask of |this tile shows )?(?P<x>.+?)(?: in this aerial image)?")
LOOKS = re.compile(r"(?:all of )?which (?:is|are) (?P<value>\w+)")


def understand_long(sent: str, image: dict[str, Any]) -> list[Object]:
    """Return the objects that a sentence means; whatever it says besides must be true."""
    first, *clauses = sent.split(", ")
    opening = OPENING.fullmatch(first)
    assert opening
    meant = understand_set(opening["x"], image)
    for clause in clauses:
        assert holds(clause, meant, image), clause
    return meant


def holds(clause: str, meant: list[Object], image: dict[str, Any]) -> bool:
    """Say whether a clause about the objects meant, about others or about the scene is true."""
    if match := re.fullmatch(r"in an image of (\w+) objects altogether", clause):
        return NUMBERS[match[1]] == len(image["objects"])
    if clause.startswith("but not "):
        others = understand_set(clause.removeprefix("but not "), image)
        return bool(others) and not [found for found in others if found in meant]
    if match := LOOKS.fullmatch(clause):
        name, value = SAYS[match["value"]]
        return all(found[name] == value for found in meant)
    said = [part.split() for part in clause.removeprefix("of which ").split(" and ")]
    (name,) = {SAYS[word][0] for _, _, word in said}
    return Counter({SAYS[word][1]: NUMBERS[n] for n, _, word in said}) == Counter(found[name] for found in meant)
