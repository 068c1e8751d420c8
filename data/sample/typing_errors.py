"""Typing errors that leave no doubt about the word."""

from __future__ import annotations

from functools import cache
from random import Random
from string import ascii_lowercase, digits

SHORTEST = 4  # letters of a word that may be misspelt
CHARACTERS = ascii_lowercase + digits  # "wth" may be meant to be "with", but also "4th"


def misspelt(rng: Random, text: str, known: frozenset[str]) -> str:
    """Return the text with one of its words misspelt, if it has one that is long enough.

    known: all words that may be meant; the error is one edit away from a single one of them.
    """
    words = text.split()
    places = [i for i, word in enumerate(words) if len(word) >= SHORTEST and misspellings(word, known)]
    if not places:
        return text
    place = rng.choice(places)
    words[place] = rng.choice(misspellings(words[place], known))
    return " ".join(words)


@cache
def misspellings(word: str, known: frozenset[str]) -> tuple[str, ...]:
    """Return the word with a letter left out, typed twice, or swapped with the next one; the first letter stays."""
    inner = range(1, len(word))
    left_out = (word[:i] + word[i + 1 :] for i in inner)
    twice = (word[:i] + word[i] + word[i:] for i in inner)
    swapped = (word[:i] + word[i + 1] + word[i] + word[i + 2 :] for i in range(1, len(word) - 1))
    errors = sorted({*left_out, *twice, *swapped} - known)
    return tuple(error for error in errors if one_edit(error) & known == {word})


def one_edit(word: str) -> set[str]:
    """Return all words that differ by a letter left out, added, replaced or swapped with the next."""
    halves = [(word[:i], word[i:]) for i in range(len(word) + 1)]
    left_out = {a + b[1:] for a, b in halves if b}
    swapped = {a + b[1] + b[0] + b[2:] for a, b in halves if len(b) > 1}
    replaced = {a + c + b[1:] for a, b in halves if b for c in CHARACTERS}
    return left_out | swapped | replaced | {a + c + b for a, b in halves for c in CHARACTERS}
