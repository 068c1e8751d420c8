"""Sentences of version 2: every kind in a fair share, so that colours alone do not decide.

A sentence is drawn at random, read by the rules of `readings`, and kept if it means the target without doubt. Its
`kind` is what it takes to find the object: one property, several ("looks"), a place, an order, one relation, two, or a
negation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property, partial
from random import Random

from data.sample import expressions, readings, typing_errors
from data.sample.draws import Weighted
from data.sample.expressions import (
    ADJECTIVES,
    CENTRES,
    CORNERS,
    DIRECTIONS,
    EXTREMES,
    PROPERTIES,
    RANKS,
    ROWS,
    SIDES,
    Group,
    Names,
    View,
    describe_look,
    without,
)
from data.sample.readings import Reading, exactly

# What a sentence needs to be understood.
LOOKS = ("colour", "shape", "texture", "size", "looks")
KINDS = (*LOOKS, "place", "ordinal", "relation1", "relation2", "negation")

MAX_WORDS = 27  # as in RefCOCO; a model reads 19 or so of them
RARELY = 0.08  # share of the words that are replaced by rarer ones
TYPOS = 0.03  # share of the sentences with a typing error
AGAIN = 0.055  # share of the sentences that repeat another one of their object
WORDY = {"refcoco": 0.03, "refcoco+": 0.0, "refcocog": 0.1}  # share of the sentences of two steps that name everything

# Weights of the few properties that describe an object together with its place or relations.
VAGUE = {
    names: {0: 0.4, 1: 0.15, 2: 0.03}[count] * (0.8 if "shape" in names else 0.2)
    for names in expressions.COSTS
    if (count := len(set(names) - {"shape"})) < 3
}
ALL = ("size", "texture", "colour", "shape")

NOUNLESS = {
    "plain": ("plain", "solid"),
    "striped": ("striped", "stripes"),
    "dotted": ("dotted", "dots", "spotted"),
    "checked": ("checked", "checks"),
}
MOST = {"small": ("smallest", "littlest", "smallest"), "large": ("biggest", "largest")}
WITHOUT = {"striped": "stripes", "dotted": "dots", "checked": "checks"}
FAR = ("far {side} {x}", "{x} on the far {side}", "{x} at the very {side}")
BARE_SIDES = ("{side}", "{side}", "{side}most", "far {side}")
BARE_CORNERS = ("{corner}", "{corner} corner", "the {corner} corner")
BARE_CENTRES = ("middle", "center", "in the middle")
ORDINALS = ("{rank} {x} from the {side}", "{rank} {x} from {side}", "{x} {rank} from the {side}")
CLOSEST, IN_FRONT, BEHIND = expressions.CLOSEST, expressions.IN_FRONT, expressions.BEHIND


@dataclass(frozen=True)
class Told:
    """A sentence, its kind (of `KINDS`), and all kinds of information in it (of `expressions.KINDS` and "negation")."""

    text: str
    kind: str
    kinds: frozenset[str]


# Part of a sentence: its words, and the kinds of information in them.
Part = tuple[str, Names]


# ---------------------------------------------------------------- parts


def loosely(rng: Random, view: LooksView, index: int) -> tuple[Names, Group]:
    """Return a few properties of the object and the group that they match, mostly of several objects."""
    return expressions.loosely(rng, view, index, VAGUELY, tries=4)


def known(rng: Random, view: LooksView, index: int, names: Names) -> str:
    """Return words for the named properties of an object."""
    return describe_look(rng, view.objects[index].look, names)


class LooksView(View):
    """A view that knows which looks it takes to tell its objects apart."""

    @cached_property
    def needed(self) -> list[dict[str, list[Names]]]:
        """For each object and kind of looks, the properties that match it alone, but not if one is left out."""
        return [needed_looks(groups) for groups in self.groups]


def needed_looks(groups: Mapping[Names, Group]) -> dict[str, list[Names]]:
    """Return by kind the choices that match one object alone, but no longer without one of them; shapes may be spare.

    groups: what every choice of an object's properties matches.
    """
    found: dict[str, list[Names]] = {kind: [] for kind in LOOKS}
    for names, matched in groups.items():
        fewer = (tuple(n for n in names if n != name) for name in names if name != "shape")
        if len(matched) == 1 and all(len(groups[rest]) > 1 for rest in fewer):
            found[kind_of(names)].append(names)
    return found


def kind_of(names: Names) -> str:
    """Return the kind of a sentence that names these properties alone."""
    said = [name for name in names if name != "shape"]
    return "looks" if len(said) > 1 else said[0] if said else "shape"


def by_look_part(rng: Random, view: LooksView, index: int) -> Part | None:
    """Return properties that tell an object apart, mostly without superfluous ones; None for a twin."""
    choices = [names for kind in LOOKS for names in view.needed[index][kind]]
    if not choices:
        return None
    names = rng.choice(choices)
    return known(rng, view, index, names), names


def by_place_part(rng: Random, view: LooksView, index: int) -> Part | None:
    """Return "topmost star" or "circle in the top left corner"."""
    names, group = loosely(rng, view, index)
    placed = rng.choice((at_extreme, at_region, in_ranks))(rng, view, group)
    if not placed[0].means(index):
        return None
    return placed[1].format(x=known(rng, view, index, names)), (*names, placed[2])


Placed = tuple[Reading, str, str]  # what it means, a template for the words, the kind of information


def at_extreme(rng: Random, view: LooksView, group: Group) -> Placed:
    """Read "leftmost {x}" or "{x} on the far left"."""
    side = rng.choice(list(EXTREMES))
    template = rng.choice((*EXTREMES[side], *EXTREMES[side], *FAR)).replace("{side}", side)
    return readings.outermost(view, group, side), template, "place"


def at_region(rng: Random, view: LooksView, group: Group) -> Placed:
    """Read "{x} on the left", "{x} in the upper right corner" or "{x} in the middle"."""
    form = REGIONS.one(rng)
    if form == "centre":
        return readings.central(view, group), rng.choice(CENTRES), "place"
    if form == "side":
        side = rng.choice(list(SIDES))
        return readings.at_sides(view, group, side), rng.choice(SIDES[side]), "place"
    row, column = rng.choice(list(ROWS)), rng.choice(("left", "right"))
    template = rng.choice(CORNERS).replace("{corner}", f"{rng.choice(ROWS[row])} {column}")
    return readings.at_sides(view, group, row, column), template, "place"


def in_ranks(rng: Random, view: LooksView, group: Group) -> Placed:
    """Read "second {x} from the right"."""
    rank, side = RANKED.one(rng), rng.choice(list(SIDES))
    template = rng.choice(ORDINALS).replace("{rank}", rng.choice(RANKS[rank])).replace("{side}", side)
    return readings.in_order(view, group, rank, side), template, "ordinal"


def relation(rng: Random) -> tuple[Callable[[View, Group, int], Reading], str]:
    """Return a rule that reads a relation to a landmark, and words for it."""
    name = RELATED.one(rng)
    if name in DIRECTIONS:
        return partial(readings.beside, side=name), rng.choice(DIRECTIONS[name])
    rules = {"closest": (readings.closest, CLOSEST), "front": (readings.in_front, IN_FRONT)}
    rule, words = rules.get(name, (readings.behind, BEHIND))
    return rule, rng.choice(words)


def other_than(rng: Random, view: LooksView, *indices: int) -> int:
    """Return another object."""
    return rng.choice([i for i in range(len(view.objects)) if i not in indices])


def related_part(rng: Random, view: LooksView, index: int, barred: int) -> Part | None:
    """Return "circle that is left of the star" for a landmark; nothing is said of the barred object."""
    near = other_than(rng, view, index, barred)
    names, group = loosely(rng, view, index)
    rule, words = relation(rng)
    if not rule(view, without(group, near), near).means(index):
        return None
    other = by_look_part(rng, view, near)
    if other is None:
        return None
    link = rng.choice(("that is", "that is", "which is"))
    return f"{known(rng, view, index, names)} {link} {words} the {other[0]}", (*names, *other[1], "relation")


# ---------------------------------------------------------------- sentences

# A writer draws a sentence, and returns it if it means the target without doubt, else None.
# `full`: in the long style of refcocog, not in the short one of refcoco.


def by_looks(rng: Random, view: LooksView, target: int, full: bool, kind: str) -> Told | None:
    """Write "red", "striped star", "biggest circle", "small red one" or "star that is big and red"."""
    choices = view.needed[target][kind]
    if not choices:
        return None
    names, look = rng.choice(choices), view.objects[target].look
    said = [name for name in names if name != "shape"]
    if kind == "size" and rng.random() < 0.6:
        return by_most(rng, view, target, full)
    if len(names) == 1 and said and not full and rng.random() < 0.5:
        value = getattr(look, said[0])
        return finish(rng, rng.choice(NOUNLESS.get(value, ADJECTIVES[value])), kind, names, full)
    if said and rng.random() < 0.12:
        return finish(rng, expressions.describe_after(rng, look, names), kind, names, full)
    return finish(rng, describe_look(rng, look, names), kind, names, full)


def by_most(rng: Random, view: LooksView, target: int, full: bool) -> Told | None:
    """Write "biggest star"."""
    names = rng.choice((("shape",), ("shape",), ("colour", "shape"), ("texture", "shape"), ()))
    group, look = view.groups[target][names], view.objects[target].look
    if not readings.most_of_size(view, group, look.size).means(target):
        return None
    text = rng.choice(MOST[look.size])
    if names or full or rng.random() < 0.5:
        text = f"{text} {describe_look(rng, look, names)}"
    return finish(rng, text, "size" if names in ((), ("shape",)) else "looks", ("size", *names), full)


def by_place(rng: Random, view: LooksView, target: int, full: bool) -> Told | None:
    """Write "left", "leftmost circle" or "circle in the upper right corner"."""
    if not full and rng.random() < 0.18:
        return by_place_alone(rng, view, target)
    names, group = loosely(rng, view, target)
    reading, template, kind = rng.choice((at_extreme, at_region))(rng, view, group)
    if not reading.means(target):
        return None
    text = template.format(x=known(rng, view, target, names))
    return finish(rng, text + picture(rng, full and "the" in text), "place", (*names, kind), full)


def by_place_alone(rng: Random, view: LooksView, target: int) -> Told | None:
    """Write "left", "top right corner" or "middle"."""
    group = tuple(range(len(view.objects)))
    form, side = REGIONS.one(rng), rng.choice(list(SIDES))
    if form == "centre":
        reading, text = readings.central(view, group), rng.choice(BARE_CENTRES)
    elif form == "side":
        reading = readings.outermost(view, group, side) & readings.at_sides(view, group, side)
        text = rng.choice(BARE_SIDES).format(side=side)
    else:
        row, column = rng.choice(list(ROWS)), rng.choice(("left", "right"))
        reading = readings.at_sides(view, group, row, column)
        text = rng.choice(BARE_CORNERS).format(corner=f"{rng.choice(ROWS[row])} {column}")
    return Told(text, "place", frozenset({"place"})) if reading.means(target) else None


def by_order(rng: Random, view: LooksView, target: int, full: bool) -> Told | None:
    """Write "second square from the right" or "third from left"."""
    names, group = loosely(rng, view, target)
    reading, template, kind = in_ranks(rng, view, group)
    if not reading.means(target):
        return None
    if not names and not full and rng.random() < 0.6:
        template = template.replace("{x} ", "")
    text = template.format(x=known(rng, view, target, names))
    return finish(rng, text, "ordinal", (*names, kind), full)


def by_relation(rng: Random, view: LooksView, target: int, full: bool) -> Told | None:
    """Write "circle left of the star" or "heart behind the topmost square"."""

    def part(near: int) -> Part | None:
        return (by_place_part if rng.random() < 0.3 else by_look_part)(rng, view, near)

    return by_neighbour(rng, view, target, full, "relation1", part, lambda: the(rng, full))


def by_neighbour(
    rng: Random,
    view: LooksView,
    target: int,
    full: bool,
    kind: str,
    part: Callable[[int], Part | None],
    article: Callable[[], str],
) -> Told | None:
    """Write the target's relation to another object, which `part` puts into words after an article."""
    near = other_than(rng, view, target)
    names, group = loosely(rng, view, target)
    rule, words = relation(rng)
    if not rule(view, without(group, near), near).means(target):
        return None
    other = part(near)
    if other is None:
        return None
    text = f"{known(rng, view, target, names)} {link(rng, full)}{words} {article()}{other[0]}"
    return finish(rng, text, kind, (*names, *other[1], "relation"), full)


def by_two_relations(rng: Random, view: LooksView, target: int, full: bool) -> Told | None:
    """Write "circle left of the star that is below the heart", "… left of the star and above the heart", "between"."""
    form = TWO_STEPS.one(rng)
    return form(rng, view, target, full)


def by_chain(rng: Random, view: LooksView, target: int, full: bool) -> Told | None:
    """Write "circle left of the star that is below the heart"."""

    def part(near: int) -> Part | None:
        return related_part(rng, view, near, target)

    return by_neighbour(rng, view, target, full, "relation2", part, lambda: "the ")


def by_both(rng: Random, view: LooksView, target: int, full: bool) -> Told | None:
    """Write "circle left of the star and above the heart"."""
    first = other_than(rng, view, target)
    second = other_than(rng, view, target, first)
    names, group = loosely(rng, view, target)
    group = without(group, first, second)
    one, other = relation(rng), relation(rng)
    if not (one[0](view, group, first) & other[0](view, group, second)).means(target):
        return None
    parts = by_look_part(rng, view, first), by_look_part(rng, view, second)
    if parts[0] is None or parts[1] is None:
        return None
    (x, x_names), (y, y_names) = parts[0], parts[1]
    text = f"{known(rng, view, target, names)} {link(rng, full)}{one[1]} the {x} and {other[1]} the {y}"
    return finish(rng, text, "relation2", (*names, *x_names, *y_names, "relation"), full)


def by_between(rng: Random, view: LooksView, target: int, full: bool) -> Told | None:
    """Write "circle between the star and the big heart"."""
    first = other_than(rng, view, target)
    second = other_than(rng, view, target, first)
    names, group = loosely(rng, view, target)
    if not readings.between(view, without(group, first, second), first, second).means(target):
        return None
    parts = by_look_part(rng, view, first), by_look_part(rng, view, second)
    if parts[0] is None or parts[1] is None:
        return None
    text = expressions.BETWEEN.format(x=known(rng, view, target, names), y=parts[0][0], z=parts[1][0])
    return finish(rng, text, "relation2", (*names, *parts[0][1], *parts[1][1], "relation"), full)


def by_wordy_chain(rng: Random, view: LooksView, target: int, full: bool) -> Told | None:
    """Write a chain of relations in which every object is described in full."""
    near = other_than(rng, view, target)
    far = other_than(rng, view, target, near)
    parts = [view.groups[i][ALL] for i in (target, near, far)]
    (one, words), (two, more) = relation(rng), relation(rng)
    if not (
        one(view, without(parts[0], near), near).means(target)
        and two(view, without(parts[1], far), far).means(near)
        and len(parts[2]) == 1
    ):
        return None
    x, y, z = (describe_look(rng, view.objects[i].look, ALL) for i in (target, near, far))
    text = f"{x} that is {words} the {y} that is {more} the {z}{rng.choice(expressions.IN_IMAGE)}"
    return finish(rng, text, "relation2", (*ALL, "relation"), True)


def by_negation(rng: Random, view: LooksView, target: int, full: bool, looks_only: bool = False) -> Told | None:
    """Write "star that is not striped", "circle not on the left" or "heart that is neither red nor blue"."""
    names, group = loosely(rng, view, target)
    if len(group) < 2:
        return None
    denied = (deny_look if looks_only else DENIALS.one(rng))(rng, view, target, names, group)
    if denied is None or not denied[0].denied(denied[1]).means(target):
        return None
    _, _, words, kinds = denied
    text = f"{known(rng, view, target, names)} {words}"
    return finish(rng, text, "negation", (*names, *kinds, "negation"), full)


# What is denied of a group: its reading, the group of which the sentence speaks, the words, the kinds of information.
Denied = tuple[Reading, Group, str, Names]


def deny_look(rng: Random, view: LooksView, target: int, names: Names, group: Group) -> Denied | None:
    """Deny one value of a property, or two."""
    name = rng.choice([name for name in (*PROPERTIES, "shape") if name not in names] or ["none"])
    if name == "none":
        return None
    own = getattr(view.objects[target].look, name)
    values = sorted({getattr(view.objects[i].look, name) for i in group} - {own})
    if not 1 <= len(values) <= 2:
        return None
    meant = exactly(i for i in group if getattr(view.objects[i].look, name) in values)
    article = "a " if name == "shape" else ""
    words = [article + rng.choice(ADJECTIVES.get(value, (value,))) for value in values]
    if len(words) == 2:
        text = f"neither {words[0]} nor {words[1]}"
        return meant, group, f"{rng.choice(('that is ', ''))}{text}", (name,)
    if values[0] in WITHOUT and rng.random() < 0.4:
        return meant, group, f"without {WITHOUT[values[0]]}", (name,)
    return meant, group, f"{rng.choice(('that is ', 'that is ', 'which is ', ''))}not {words[0]}", (name,)


def deny_place(rng: Random, view: LooksView, target: int, names: Names, group: Group) -> Denied | None:
    """Deny that the object is at a side or in the middle."""
    side = rng.choice((*SIDES, "middle"))
    if side == "middle":
        meant, templates = readings.central(view, group), CENTRES[1:]
    else:
        meant, templates = readings.at_sides(view, group, side), SIDES[side]
    words = rng.choice(templates).removeprefix("{x} ")
    return meant, group, f"{rng.choice(('that is ', ''))}not {words}", ("place",)


def deny_relation(rng: Random, view: LooksView, target: int, names: Names, group: Group) -> Denied | None:
    """Deny that the object is on one side of a landmark."""
    near = other_than(rng, view, target)
    other = by_look_part(rng, view, near)
    side = rng.choice(list(DIRECTIONS))
    rest = without(group, near)
    if other is None or len(rest) < 2:
        return None
    words = f"that is not {rng.choice(DIRECTIONS[side])} the {other[0]}"
    return readings.beside(view, rest, near, side), rest, words, (*other[1], "relation")


def link(rng: Random, full: bool) -> str:
    """Return words before a relation."""
    return rng.choice(("", "", "", "that is ", "which is ")) if full else ""


def the(rng: Random, full: bool) -> str:
    """Return the article before a landmark, or nothing in short sentences now and then."""
    return "the " if full or rng.random() < 0.7 else ""


def picture(rng: Random, suitable: bool) -> str:
    """Return " of the picture" now and then, if it is suitable."""
    return rng.choice(expressions.OF_IMAGE) if suitable else ""


def finish(rng: Random, text: str, kind: str, kinds: Names, full: bool) -> Told | None:
    """Return the sentence, mostly with an article if it is `full`; None if it has too many words."""
    if full or (rng.random() < 0.15 and not text.startswith("in ")):
        text = f"the {text}"
    return Told(text, kind, frozenset(kinds)) if len(text.split()) <= MAX_WORDS else None


# ---------------------------------------------------------------- draws

VAGUELY = Weighted(VAGUE)
REGIONS = Weighted({"side": 2, "corner": 2, "centre": 2})
RANKED = Weighted({0: 1, 1: 3, 2: 2, 3: 1})
RELATED = Weighted({"left": 1, "right": 1, "top": 1, "bottom": 1, "closest": 1, "front": 0.7, "behind": 0.7})
DENIALS = Weighted({deny_look: 5, deny_place: 2, deny_relation: 2})
Writer = Callable[[Random, LooksView, int, bool], Told | None]
TWO_STEPS: Weighted[Writer] = Weighted({by_chain: 3, by_both: 3, by_between: 2})
WRITERS: Mapping[str, Writer] = {
    **{kind: partial(by_looks, kind=kind) for kind in LOOKS},
    "place": by_place,
    "ordinal": by_order,
    "relation1": by_relation,
    "relation2": by_two_relations,
    "negation": by_negation,
}
# How often each kind is tried; kinds that seldom fit are tried more often, so that all come out in fair shares.
LOOKS_TRIED = {"colour": 4, "shape": 5, "texture": 4, "size": 5, "looks": 4, "negation": 1.3}
TRIED = {
    "refcoco": LOOKS_TRIED | {"place": 2, "ordinal": 2.3, "relation1": 3, "relation2": 3.5},
    "refcoco+": LOOKS_TRIED,
    "refcocog": {"looks": 2, "size": 1, "place": 0.7, "ordinal": 1.2, "relation1": 3, "relation2": 5, "negation": 1},
}
DRAWN = {dataset: Weighted(kinds) for dataset, kinds in TRIED.items()}
TRIALS = dict.fromkeys(KINDS, 12) | {"relation1": 25, "relation2": 50}


def write_sentences(rng: Random, view: LooksView, target: int, dataset: str) -> list[Told]:
    """Return up to four sentences that mean the target, now and then one twice; none if no trial succeeds."""
    told: dict[str, Told] = {}
    count = expressions.HOW_MANY[dataset].one(rng)
    for _ in range(4 * count):
        one = write(rng, view, target, dataset)
        if one:
            told.setdefault(one.text.removeprefix("the "), one)
        if len(told) == count:
            break
    sentences = [polished(rng, one) for one in told.values()]
    return [again for one in sentences for again in [one] * (1 + (rng.random() < AGAIN))][:4]


def words() -> list[str]:
    """Return every word that only these sentences hold, sorted."""
    tables = [*NOUNLESS.values(), *MOST.values(), WITHOUT.values(), FAR, BARE_SIDES, BARE_CORNERS, ORDINALS]
    lines = [line for table in tables for line in table]
    lines += [*expressions.LATER, *expressions.rare_words(), "not neither nor without"]
    said = {word for line in lines for word in line.split() if "{" not in word}
    return sorted(said - set(expressions.vocabulary()))


@cache
def spelling() -> frozenset[str]:
    """Return all words of these sentences."""
    return frozenset([*expressions.vocabulary(), *words()])


def write(rng: Random, view: LooksView, target: int, dataset: str) -> Told | None:
    """Return a sentence of a random kind, None if no trial gave one."""
    kind = DRAWN[dataset].one(rng)
    writer, full = WRITERS[kind], dataset == "refcocog"
    if kind == "negation" and dataset == "refcoco+":
        writer = partial(by_negation, looks_only=True)
    if kind == "relation2" and rng.random() < WORDY[dataset]:
        writer = by_wordy_chain
    trials = (writer(rng, view, target, full) for _ in range(TRIALS[kind]))
    return next((told for told in trials if told), None)


def polished(rng: Random, told: Told) -> Told:
    """Return a sentence with rarer words here and there, and now and then a typing error."""
    text = expressions.with_rare_words(rng, told.text, RARELY)
    if rng.random() < TYPOS:
        text = typing_errors.misspelt(rng, text, spelling())
    return Told(text, told.kind, told.kinds)
