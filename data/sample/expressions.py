"""Sentences about drawn scenes, each referring to exactly one object of its scene.

Every rule below returns the object that a description clearly refers to, or None if a person could hesitate. A
sentence is drawn at random and kept if it refers to the target.

A *group* is the objects that a description ("red circle") matches, as indices into the view. Positions are fractions
of the image's width or height, and distances between objects are in units of its shorter side.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import combinations, pairwise
from random import Random

from data.sample.draws import Weighted
from data.sample.scene import COLOURS, SHAPES, Look, Seen

PROPERTIES = ("size", "texture", "colour")
KINDS = ("shape", *PROPERTIES, "place", "relation", "ordinal")

# A choice of properties, in the order of `PROPERTIES` and then the shape; a group of objects.
Names = tuple[str, ...]
Group = tuple[int, ...]

# The cost of a choice, one per word. A colour is cheap: people name it even if they need not. A noun without meaning
# ("one", "object") is expensive, so it is rare.
COSTS = {
    names: len(names) - 4 * ("colour" in names) + (0.0 if "shape" in names else 1.6)
    for length in range(5)
    for names in combinations((*PROPERTIES, "shape"), length)
}
# Weights of the choices that describe an object only in part: few words, mostly with the shape.
VAGUE = {
    names: {0: 0.3, 1: 0.1, 2: 0.05}[count] * (30 if "colour" in names else 1) * (0.85 if "shape" in names else 0.15)
    for names in COSTS
    if (count := len(set(names) - {"shape"})) < 3
}
VAGUELY = Weighted(VAGUE)

# ---------------------------------------------------------------- the words

ADJECTIVES = {
    "small": ("small", "small", "little"),
    "large": ("large", "big", "big"),
    "plain": ("plain", "plain", "solid"),
    "striped": ("striped",),
    "dotted": ("dotted", "dotted", "spotted"),
    "checked": ("checked",),
    **{colour: (colour,) for colour in COLOURS},
}
# Textures as they are expressed after the noun.
WITH = {"plain": "with no pattern", "striped": "with stripes", "dotted": "with dots", "checked": "with checks"}
# What only version 2 says.
LATER = ("checked", "checks")
ANYTHING = ("one", "object", "thing", "shape")

# Words that sometimes replace the usual ones in hard data.
RARE = {
    "red": ("crimson", "scarlet"),
    "orange": ("tangerine",),
    "yellow": ("golden",),
    "green": ("emerald",),
    "blue": ("azure",),
    "purple": ("violet",),
    "white": ("ivory",),
    "black": ("ebony",),
    "small": ("tiny",),
    "large": ("huge", "enormous"),
    "big": ("huge", "enormous"),
    "striped": ("banded",),
    "dotted": ("speckled",),
    "circle": ("disc",),
    "diamond": ("rhombus",),
    "cross": ("plus",),
}
RARELY = 0.2  # probability

# {x}: the description of the target; others: its corner or rank, or the descriptions of its landmarks.
EXTREMES = {
    "left": ("left {x}", "left {x}", "leftmost {x}", "{x} farthest left"),
    "right": ("right {x}", "right {x}", "rightmost {x}", "{x} farthest right"),
    "top": ("top {x}", "highest {x}", "topmost {x}", "upper {x}"),
    "bottom": ("bottom {x}", "lowest {x}", "bottommost {x}", "lower {x}"),
}
SIDES = {
    "left": ("{x} on the left", "{x} on left", "{x} on the left side"),
    "right": ("{x} on the right", "{x} on right", "{x} on the right side"),
    "top": ("{x} at the top", "{x} at top", "{x} near the top"),
    "bottom": ("{x} at the bottom", "{x} at bottom", "{x} near the bottom"),
}
CORNERS = (
    "{corner} {x}",
    "{x} {corner}",
    "{x} in {corner} corner",
    "{x} in the {corner}",
    "{x} in the {corner} corner",
)
ROWS = {"top": ("top", "upper"), "bottom": ("bottom", "lower")}
CENTRES = ("center {x}", "{x} in the middle", "{x} in the center", "{x} in middle")
ORDINALS = ("{rank} {x} from the {side}", "{rank} {x} from {side}")
RANKS = (("first", "1st"), ("second", "2nd"), ("third", "3rd"), ("fourth", "4th"))
DIRECTIONS = {
    "left": ("left of", "to the left of"),
    "right": ("right of", "to the right of"),
    "top": ("above",),
    "bottom": ("below", "below", "under", "beneath"),
}
CLOSEST = ("closest to", "nearest to", "next to")
IN_FRONT = ("in front of", "partly covering")
BEHIND = ("behind", "partly hidden by")
BETWEEN = "{x} between the {y} and the {z}"
OF_IMAGE = ("", "", " of the picture", " of the image")
IN_IMAGE = ("", "", " in the picture", " in the image")

# With [CLS], [SEP] and a full stop, such a sentence fits into the 21 token ids that a model reads.
MAX_WORDS = 18


@dataclass(frozen=True)
class View:
    """The visible parts of the objects in an image, back to front, and the image's size in pixels."""

    width: int
    height: int
    objects: list[Seen]

    @cached_property
    def short(self) -> int:
        """The shorter side in pixels."""
        return min(self.width, self.height)

    @cached_property
    def groups(self) -> list[dict[Names, Group]]:
        """For each object and every choice of its properties, the group that they match."""
        return [{names: tuple(matching(self.objects, seen.look, names)) for names in COSTS} for seen in self.objects]

    @cached_property
    def sufficient(self) -> list[Weighted[Names] | None]:
        """For each object, the choices that match it alone, cheap ones more likely; None if there are none."""
        unique = [[names for names in COSTS if len(groups[names]) == 1] for groups in self.groups]
        return [Weighted({names: 0.35 ** COSTS[names] for names in choices}) if choices else None for choices in unique]


@dataclass(frozen=True)
class Phrase:
    """A sentence and the kinds of information in it (of `KINDS`)."""

    text: str
    kinds: frozenset[str]


# ---------------------------------------------------------------- rules


def along(view: View, index: int, side: str) -> float:
    """Return the distance of an object's centre from a side of the image, from 0 (that side) to 1 (the opposite)."""
    x, y = view.objects[index].centre
    fraction = x / view.width if side in ("left", "right") else y / view.height
    return 1 - fraction if side in ("right", "bottom") else fraction


def extreme(view: View, group: Group, side: str) -> int | None:
    """Return the object nearest to a side, if the next is at least 0.08 farther; a single one must be within 0.4."""
    order = sorted(group, key=lambda i: along(view, i, side))
    if len(order) == 1:
        return order[0] if along(view, order[0], side) < 0.4 else None
    gap = along(view, order[1], side) - along(view, order[0], side)
    return order[0] if gap >= 0.08 else None


def at_side(view: View, group: Group, *sides: str) -> int | None:
    """Return the object within 0.33 of the side (or of both sides of a corner), if no other is within 0.5."""
    reach = {i: max(along(view, i, side) for side in sides) for i in group}
    return only(group, lambda i: reach[i] < 0.33, lambda i: reach[i] <= 0.5)


def central(view: View, group: Group) -> int | None:
    """Return the object within 0.17 of the image's centre, if no other is within 0.3."""
    off = {i: math.dist((along(view, i, "left"), along(view, i, "top")), (0.5, 0.5)) for i in group}
    return only(group, lambda i: off[i] < 0.17, lambda i: off[i] <= 0.3)


def ordinal(view: View, group: Group, rank: int, side: str) -> int | None:
    """Return the rank-th object (from 0) counted from a side, if there are three or more, all at least 0.05 apart."""
    order = sorted(group, key=lambda i: along(view, i, side))
    positions = [along(view, i, side) for i in order]
    if len(order) < 3 or rank > len(order) - 2:
        return None
    clear = all(after - before >= 0.05 for before, after in pairwise(positions))
    return order[rank] if clear else None


def beside(view: View, group: Group, landmark: int, side: str) -> int | None:
    """Return the object on a side of the landmark: at least 0.15 in that direction, and at most 0.6 times that across.

    No other object may be in that direction, unless it is more than 1.6 times as far across.
    """
    way = {i: offset(view, i, landmark, side) for i in group}
    return only(
        group,
        lambda i: way[i][0] >= 0.15 and way[i][1] <= 0.6 * way[i][0],
        lambda i: way[i][0] > 0 and way[i][1] <= 1.6 * way[i][0],
    )


def offset(view: View, index: int, landmark: int, side: str) -> tuple[float, float]:
    """Return the distance of an object from the landmark towards a side (below 0: away from it), and across."""
    way = [a - b for a, b in zip(view.objects[index].centre, view.objects[landmark].centre, strict=True)]
    axis = 0 if side in ("left", "right") else 1
    sign = 1 if side in ("right", "bottom") else -1
    return sign * way[axis] / view.short, abs(way[1 - axis]) / view.short


def closest(view: View, group: Group, landmark: int) -> int | None:
    """Return the object nearest to the landmark, if it is within 0.5 and the next is at least 0.12 farther."""
    if len(group) < 2:
        return None
    here = view.objects[landmark].centre
    distance = {i: math.dist(view.objects[i].centre, here) / view.short for i in group}
    first, second = sorted(group, key=distance.__getitem__)[:2]
    clear = distance[first] <= 0.5 and distance[second] - distance[first] >= 0.12
    return first if clear else None


def between(view: View, group: Group, start: int, end: int) -> int | None:
    """Return the object in the middle half of the line between two objects that are at least 0.4 apart.

    Its distance from the line may be 0.15 of the line's length. No other object may be within 0.4 of the line, or of
    its extension by 0.15 at both ends.
    """
    (ax, ay), (bx, by) = view.objects[start].centre, view.objects[end].centre
    length = math.hypot(bx - ax, by - ay)
    if length < 0.4 * view.short:
        return None
    position, offset = {}, {}  # along the line and across, in units of its length
    for i in group:
        x, y = view.objects[i].centre
        position[i] = ((x - ax) * (bx - ax) + (y - ay) * (by - ay)) / length**2
        offset[i] = abs((x - ax) * (by - ay) - (y - ay) * (bx - ax)) / length**2
    return only(
        group,
        lambda i: 0.25 <= position[i] <= 0.75 and offset[i] <= 0.15,
        lambda i: -0.15 <= position[i] <= 1.15 and offset[i] <= 0.4,
    )


def in_front(view: View, group: Group, landmark: int) -> int | None:
    """Return the object that covers at least 0.05 of the landmark's area, if no other covers any of it."""
    covers = view.objects[landmark].hidden_by
    return only(group, lambda i: covers.get(i, 0) >= 0.05, lambda i: i in covers)


def behind(view: View, group: Group, landmark: int) -> int | None:
    """Return the object of which the landmark covers at least 0.05, if it covers nothing of any other."""
    covered = {i: view.objects[i].hidden_by.get(landmark, 0) for i in group}
    return only(group, lambda i: covered[i] >= 0.05, lambda i: covered[i] > 0)


def only(group: Group, clearly: Callable[[int], bool], perhaps: Callable[[int], bool]) -> int | None:
    """Return the object that is clearly meant, if no other is perhaps meant."""
    candidates = [i for i in group if perhaps(i)]
    return candidates[0] if len(candidates) == 1 and clearly(candidates[0]) else None


# ---------------------------------------------------------------- descriptions


def matching(objects: list[Seen], look: Look, names: Names) -> list[int]:
    """Return the indices of the objects that share the named properties with a look."""
    wanted = [(name, getattr(look, name)) for name in names]
    return [i for i, seen in enumerate(objects) if all(getattr(seen.look, name) == value for name, value in wanted)]


def sufficient(rng: Random, view: View, index: int) -> Names | None:
    """Return properties that match only this object, or None if it has a twin."""
    choices = view.sufficient[index]
    return choices.one(rng) if choices else None


def loosely(
    rng: Random, view: View, index: int, choices: Weighted[Names] = VAGUELY, tries: int = 3
) -> tuple[Names, Group]:
    """Return a few properties of the object and the group that they match, mostly of several objects.

    choices: of properties. tries: how often others are drawn if only one object matches.
    """
    for _ in range(tries):
        names = choices.one(rng)
        group = view.groups[index][names]
        if len(group) > 1:
            break
    return names, group


def describe_look(rng: Random, look: Look, names: Names, *, several: bool = False) -> str:
    """Put the named properties into words: "small red circle", "big star with dots"; several: "red circles"."""
    words = {name: rng.choice(ADJECTIVES[getattr(look, name)]) for name in names if name != "shape"}
    tail = ""
    if "texture" in words and rng.random() < 0.2:
        tail = " " + WITH[look.texture]
        del words["texture"]
    order = PROPERTIES if rng.random() < 0.6 else ("size", "colour", "texture")
    adjectives = [words[name] for name in order if name in words]
    word = noun(rng, look, names)
    return " ".join([*adjectives, plural(word) if several else word]) + tail


def describe_after(rng: Random, look: Look, names: Names) -> str:
    """Put the named properties into words, the adjectives last: "circle that is big and red"."""
    words = [rng.choice(ADJECTIVES[getattr(look, name)]) for name in names if name != "shape"]
    return f"{noun(rng, look, names)} that is {' and '.join(words)}"


def noun(rng: Random, look: Look, names: Names) -> str:
    """Return the shape if it is to be named, or else a word for any object."""
    return look.shape if "shape" in names else rng.choice(ANYTHING)


def plural(word: str) -> str:
    """Return the plural of a noun."""
    return word + ("es" if word.endswith("s") else "s")


def landmark(rng: Random, view: View, target: int) -> tuple[int, Names] | None:
    """Return another object and properties that match only that one, or None if the drawn object has a twin."""
    index = rng.choice([i for i in range(len(view.objects)) if i != target])
    names = sufficient(rng, view, index)
    return (index, names) if names else None


# ---------------------------------------------------------------- sentences

# A writer draws a sentence, and returns it if it clearly refers to the target, else None.
# `full`: in the long style of refcocog, not in the short one of refcoco.


def by_look(rng: Random, view: View, target: int, full: bool) -> Phrase | None:
    """Write "striped star" or "star that is big and red", from the appearance alone."""
    names, look = sufficient(rng, view, target), view.objects[target].look
    if names is None:
        return None
    if names != ("shape",) and rng.random() < 0.12:
        text = describe_after(rng, look, names)
    else:
        text = describe_look(rng, look, names) + (rng.choice(IN_IMAGE) if full else "")
    return finish(rng, text, names, full, indefinite=0.4)


def by_extreme(rng: Random, view: View, target: int, full: bool) -> Phrase | None:
    """Write "leftmost circle"."""
    names, group = loosely(rng, view, target)
    side = rng.choice(list(EXTREMES))
    if extreme(view, group, side) != target:
        return None
    text = rng.choice(EXTREMES[side]).format(x=describe_look(rng, view.objects[target].look, names))
    return finish(rng, text, (*names, "place"), full)


def by_region(rng: Random, view: View, target: int, full: bool) -> Phrase | None:
    """Write "red star on the left", "circle in the top left corner" or "heart in the middle"."""
    names, group = loosely(rng, view, target)
    row, column = rng.choice(list(ROWS)), rng.choice(("left", "right"))
    regions = (((row,), SIDES[row]), ((column,), SIDES[column]), ((row, column), CORNERS), ((), CENTRES))
    sides, templates = rng.choices(regions, (1, 1, 2, 2))[0]
    if (at_side(view, group, *sides) if sides else central(view, group)) != target:
        return None
    # Full sentences need an article.
    suitable = [template for template in templates if " the " in template or not full]
    known = describe_look(rng, view.objects[target].look, names)
    text = rng.choice(suitable).format(x=known, corner=f"{rng.choice(ROWS[row])} {column}")
    return finish(rng, text + (rng.choice(OF_IMAGE) if full else ""), (*names, "place"), full)


def by_order(rng: Random, view: View, target: int, full: bool) -> Phrase | None:
    """Write "second square from the right"."""
    names, group = loosely(rng, view, target)
    side, rank = rng.choice(list(SIDES)), rng.randrange(len(RANKS))
    if ordinal(view, group, rank, side) != target:
        return None
    template = ORDINALS[0] if full else rng.choice(ORDINALS)
    known = describe_look(rng, view.objects[target].look, names)
    text = template.format(rank=rng.choice(RANKS[rank]), x=known, side=side)
    return finish(rng, text, (*names, "ordinal"), full)


def by_relation(rng: Random, view: View, target: int, full: bool) -> Phrase | None:
    """Write "circle left of the star", "heart closest to the big square" or "cross behind the diamond"."""
    near = landmark(rng, view, target)
    if near is None:
        return None
    names, group = loosely(rng, view, target)
    rule, words = choose_relation(rng)
    if rule(view, without(group, near[0]), near[0]) != target:
        return None
    known, other = (describe_look(rng, view.objects[i].look, n) for i, n in ((target, names), near))
    link = rng.choice(("", "", "", "that is ", "which is ")) if full else ""
    the = "the " if full or rng.random() < 0.6 else ""
    text = f"{known} {link}{rng.choice(words)} {the}{other}"
    indefinite = 0 if words is CLOSEST else 0.3
    return finish(rng, text, (*names, *near[1], "relation"), full, indefinite)


def choose_relation(rng: Random) -> tuple[Callable[[View, Group, int], int | None], tuple[str, ...]]:
    """Return a rule that finds the object in some relation to a landmark, and the words for this relation."""
    side = rng.choice(list(DIRECTIONS))
    relations = (
        (partial(beside, side=side), DIRECTIONS[side]),
        (closest, CLOSEST),
        (in_front, IN_FRONT),
        (behind, BEHIND),
    )
    return rng.choices(relations, (3, 1, 1, 1))[0]


def by_placed_landmark(rng: Random, view: View, target: int, full: bool) -> Phrase | None:
    """Write "circle left of the topmost star": the landmark itself is described by its place."""
    near = rng.choice([i for i in range(len(view.objects)) if i != target])
    landmark_phrase = rng.choice((by_extreme, by_region, by_order))(rng, view, near, full=True)
    if landmark_phrase is None:
        return None
    names, group = loosely(rng, view, target)
    rule, words = choose_relation(rng)
    if rule(view, without(group, near), near) != target:
        return None
    text = f"{describe_look(rng, view.objects[target].look, names)} {rng.choice(words)} {landmark_phrase.text}"
    return finish(rng, text, (*names, *landmark_phrase.kinds, "relation"), full)


def by_two_landmarks(rng: Random, view: View, target: int, full: bool) -> Phrase | None:
    """Write "circle between the star and the big heart"."""
    first, second = landmark(rng, view, target), landmark(rng, view, target)
    if first is None or second is None or first[0] == second[0]:
        return None
    names, group = loosely(rng, view, target)
    if between(view, without(group, first[0], second[0]), first[0], second[0]) != target:
        return None
    parts = ((target, names), first, second)
    x, y, z = (describe_look(rng, view.objects[i].look, n) for i, n in parts)
    text = BETWEEN.format(x=x, y=y, z=z)
    return finish(rng, text, (*names, *first[1], *second[1], "relation"), full)


def without(group: Group, *landmarks: int) -> Group:
    """Return a group without the landmarks."""
    return tuple(i for i in group if i not in landmarks)


def finish(rng: Random, text: str, kinds: Names, full: bool, indefinite: float = 0) -> Phrase | None:
    """Return the phrase, mostly with an article if it is `full`; None if it has too many words.

    indefinite: probability that a full sentence begins with "a" or "an"; 0 for superlatives.
    """
    if len(text.split()) >= MAX_WORDS:
        return None
    if full and rng.random() < indefinite and not text.startswith("one"):
        text = f"{'an' if text.startswith('o') else 'a'} {text}"
    elif full or rng.random() < 0.2:
        text = f"the {text}"
    return Phrase(text, frozenset(kinds))


Writer = Callable[[Random, View, int, bool], Phrase | None]

# Per data set: weights of the writers, and below in COUNTS the weights of 1, 2, 3 or 4 sentences per object.
WRITERS = {
    "refcoco": {by_look: 16, by_extreme: 2, by_region: 2, by_order: 1, by_relation: 1},
    "refcoco+": {by_look: 1},
    "refcocog": {by_look: 2, by_extreme: 1, by_region: 2, by_order: 2, by_relation: 20, by_two_landmarks: 10},
}
# The same for hard data: appearance is sufficient less often, and relations are longer.
HARD_WRITERS = {
    "refcoco": {by_look: 6, by_extreme: 2, by_region: 3, by_order: 2, by_relation: 3, by_placed_landmark: 3},
    "refcoco+": {by_look: 1},
    "refcocog": {by_look: 1, by_order: 2, by_relation: 10, by_placed_landmark: 10, by_two_landmarks: 10},
}
COUNTS = {"refcoco": (1, 3, 5, 1), "refcoco+": (1, 3, 5, 1), "refcocog": (3, 6, 1, 0)}
WRITTEN = {dataset: Weighted(writers) for dataset, writers in WRITERS.items()}
WRITTEN_HARD = {dataset: Weighted(writers) for dataset, writers in HARD_WRITERS.items()}
HOW_MANY = {dataset: Weighted(dict(enumerate(counts, start=1))) for dataset, counts in COUNTS.items()}


def write_sentences(rng: Random, view: View, target: int, dataset: str, *, hard: bool = False) -> list[Phrase]:
    """Return up to four different sentences that refer to the target; none if no trial succeeds."""
    count = HOW_MANY[dataset].one(rng)
    writers = (WRITTEN_HARD if hard else WRITTEN)[dataset]
    phrases: dict[str, Phrase] = {}
    for _ in range(4 * count):
        writer = writers.one(rng)
        phrase = try_hard(writer, rng, view, target, dataset == "refcocog")
        if phrase and hard:
            phrase = Phrase(with_rare_words(rng, phrase.text), phrase.kinds)
        if phrase:
            phrases[phrase.text.removeprefix("the ")] = phrase
        if len(phrases) == count:
            break
    return list(phrases.values())


def try_hard(writer: Writer, rng: Random, view: View, target: int, full: bool) -> Phrase | None:
    """Return the first sentence out of ten trials, so that writers which often fail are not underrepresented."""
    trials = (writer(rng, view, target, full) for _ in range(10))
    return next((phrase for phrase in trials if phrase), None)


def with_rare_words(rng: Random, text: str, rarely: float = RARELY) -> str:
    """Return the sentence with some of its words replaced by rarer ones."""
    words = (rng.choice(RARE[word]) if word in RARE and rng.random() < rarely else word for word in text.split(" "))
    return re.sub(r"\ban? (?=(\w))", lambda match: "an " if match[1] in "aeiou" else "a ", " ".join(words))


def as_typed(rng: Random, text: str) -> str:
    """Return the sentence as a person may type it: sometimes with a capital letter or a full stop."""
    if rng.random() < 0.1:
        text = text[0].upper() + text[1:]
    return text + "." if rng.random() < 0.06 else text


def vocabulary() -> list[str]:
    """Return all words of possible sentences, sorted."""
    tables: list[Mapping[str, Sequence[str]]] = [ADJECTIVES, EXTREMES, SIDES, ROWS, DIRECTIONS]
    lines = [line for table in tables for row in table.values() for line in row]
    lines += [*WITH.values(), *ANYTHING, *SHAPES, *CORNERS, *CENTRES, *ORDINALS, *CLOSEST, *IN_FRONT, *BEHIND]
    lines += [*sum(RANKS, ()), BETWEEN, *OF_IMAGE, *IN_IMAGE, "a an the", "that which is and", *SIDES]
    return sorted({word for line in lines for word in line.split() if "{" not in word and word not in LATER})


def rare_words() -> list[str]:
    """Return the words that only hard data have, sorted."""
    return sorted({word for choices in RARE.values() for word in choices})
