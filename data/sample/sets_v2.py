"""Sentences of version 2 that mean one object, several or none: those of `sets`, and what version 2 says besides."""

from __future__ import annotations

from random import Random

from data.sample import expressions_v2, sets
from data.sample.draws import Weighted
from data.sample.expressions import ADJECTIVES, PROPERTIES, RANKS, SIDES, describe_look
from data.sample.expressions_v2 import LooksView
from data.sample.sets import SetPhrase


def by_one(rng: Random, view: LooksView) -> SetPhrase | None:
    """Write what refcoco says of one object in version 2."""
    target = rng.randrange(len(view.objects))
    told = expressions_v2.write(rng, view, target, "refcoco")
    if told is None:
        return None
    told = expressions_v2.polished(rng, told)
    return SetPhrase(told.text, (target,), "one")


def absent_denied(rng: Random, view: LooksView) -> SetPhrase | None:
    """Write "star that is not striped" if all stars are striped."""
    index = rng.randrange(len(view.objects))
    names, group = expressions_v2.loosely(rng, view, index)
    name = rng.choice([name for name in (*PROPERTIES, "shape") if name not in names])
    values = {getattr(view.objects[i].look, name) for i in group}
    if len(values) > 1 or not names:
        return None
    (value,) = values
    word = f"a {value}" if name == "shape" else rng.choice(ADJECTIVES[value])
    x = describe_look(rng, view.objects[index].look, names)
    return SetPhrase(sets.article(rng, f"{x} that is not {word}"), (), "absent denied")


def absent_in_order(rng: Random, view: LooksView) -> SetPhrase | None:
    """Write "third star from the left" if there are two stars."""
    index, rank = rng.randrange(len(view.objects)), rng.randrange(1, len(RANKS))
    names, group = expressions_v2.loosely(rng, view, index)
    if len(group) > rank or not names:
        return None
    x = describe_look(rng, view.objects[index].look, names)
    text = f"{rng.choice(RANKS[rank])} {x} from the {rng.choice(list(SIDES))}"
    return SetPhrase(sets.article(rng, text), (), "absent in order")


WRITTEN: dict[int, Weighted[sets.Writer]] = {
    **sets.WRITTEN,
    0: Weighted({**sets.WRITERS[0], absent_denied: 3, absent_in_order: 2}),
    1: Weighted({by_one: 1}),
}
