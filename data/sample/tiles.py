"""Long sentences about all objects of a class in a scene that is seen from above, as remote sensing has them.

What follows the first part, such as ", of which one is small and two are large", adds what is true of the objects and
never changes which are meant.
"""

from __future__ import annotations

from collections import Counter
from random import Random

from data.sample.expressions import ADJECTIVES, PROPERTIES, Group, Names, View, describe_look
from data.sample.sets import NUMBERS, Description, SetPhrase, in_half

# Which properties name a class, and how often.
CLASSES: dict[Names, int] = {
    ("shape",): 6,
    ("colour", "shape"): 4,
    ("size", "shape"): 2,
    ("texture", "shape"): 2,
    ("size", "colour", "shape"): 2,
    ("colour",): 1,
}
OPENINGS = ("{x}", "{x}", "find {x}", "segment {x} in this aerial image", "the mask of {x}", "this tile shows {x}")
REGION = "in the {side} half of the image"
TOTAL = "in an image of {count} objects altogether"
# Words and commas that then fit, with [CLS], [SEP] and a full stop, into the 50 ids that RISBench's users read.
MAX_PIECES = 47


def write(rng: Random, view: View) -> SetPhrase:
    """Return a sentence that means the objects of a class, one or several, in the whole scene or in a half of it."""
    while True:
        index = rng.randrange(len(view.objects))
        names = rng.choices(list(CLASSES), list(CLASSES.values()))[0]
        known = Description(view.objects[index].look, names, view.groups[index][names])
        side = rng.choice(("left", "right", "top", "bottom")) if rng.random() < 0.3 else None
        meant = in_half(view, known.group, side) if side else known.group
        if not meant:
            continue
        place = f" {REGION.format(side=side)}" if side else ""
        first = rng.choice(OPENINGS).format(x=call(rng, known, len(meant)) + place)
        text = ", ".join([first, *additions(rng, view, known, meant)])
        if len(text.replace(",", " ,").split()) <= MAX_PIECES:
            return SetPhrase(text, meant, "class" if side is None else "class in half")


def call(rng: Random, known: Description, count: int) -> str:
    """Return "the red star", or "all red stars" for several."""
    quantifier = rng.choice(("all", "all the", "the", f"the {NUMBERS[count]}")) if count > 1 else "the"
    return f"{quantifier} {describe_look(rng, known.look, known.names, several=count > 1)}"


def additions(rng: Random, view: View, known: Description, meant: Group) -> list[str]:
    """Return up to four clauses that say more about the objects meant, about others, or about the scene."""
    unnamed = [name for name in PROPERTIES if name not in known.names]
    rng.shuffle(unnamed)
    clauses: list[str | None] = [looks(rng, view, meant, name) for name in unnamed if rng.random() < 0.5]
    clauses += [others(rng, view, known, meant)] if rng.random() < 0.4 else []
    clauses += [TOTAL.format(count=NUMBERS[len(view.objects)])] if rng.random() < 0.3 else []
    return [clause for clause in clauses if clause]


def looks(rng: Random, view: View, meant: Group, name: str) -> str:
    """Say what the objects have for a property: "of which one is small and two are large"."""
    counts = Counter(getattr(view.objects[i].look, name) for i in meant)
    words = {value: rng.choice(ADJECTIVES[value]) for value in sorted(counts)}
    if len(counts) == 1:
        return ("which is " if len(meant) == 1 else "all of which are ") + words[next(iter(counts))]
    parts = [f"{NUMBERS[n]} {'is' if n == 1 else 'are'} {words[value]}" for value, n in sorted(counts.items())]
    return "of which " + " and ".join(parts)


def others(rng: Random, view: View, known: Description, meant: Group) -> str | None:
    """Say which objects are not meant, if those drawn are none of the class: "but not the two blue crosses"."""
    index = rng.randrange(len(view.objects))
    names = rng.choice((("shape",), ("colour", "shape")))
    group = view.groups[index][names]
    if set(group) & {*meant, *known.group}:
        return None
    look = view.objects[index].look
    if len(group) == 1:
        return f"but not the {describe_look(rng, look, names)}"
    return f"but not the {NUMBERS[len(group)]} {describe_look(rng, look, names, several=True)}"


def words() -> list[str]:
    """Return the words of the fixed parts, sorted."""
    lines = [*OPENINGS, REGION, TOTAL, "but not all of which is are"]
    return sorted({word for line in lines for word in line.split() if "{" not in word})
