"""Kinds of sentences, by the words in them: what a sentence uses to tell its object from others."""

from __future__ import annotations

import re
from collections.abc import Sequence

# A sentence may be of several kinds, or of none.
KIND_WORDS = {
    "place": "left leftmost right rightmost top topmost highest lowest bottom middle center "
    "centre upper lower corner far near closest closer back front edge side north south east west",
    "colour": "red orange yellow green blue purple pink brown black white grey gray dark light tan beige silver gold "
    "blonde blond maroon teal",
    "size": "big bigger biggest large larger largest small smaller smallest little tiny tall taller tallest short "
    "shorter shortest long longest wide thin thick fat huge",
    "order": "first second third fourth fifth last 1st 2nd 3rd 4th 5th",
    "relation": "behind beside between next under above below over with holding wearing on in by against near inside "
    "around facing",
    "number": "two three four five six both all every everyone each pair",
    "negation": "no not without nothing nobody",
}
_KINDS = {kind: frozenset(words.split()) for kind, words in KIND_WORDS.items()}


def kinds_of(text: str) -> list[str]:
    """Return the kinds of a sentence."""
    words = set(re.findall(r"[\w']+", text.lower()))
    return [kind for kind, own in _KINDS.items() if words & own]


def of_kind(texts: Sequence[str]) -> dict[str, list[bool]]:
    """Return for every kind which sentences are of it."""
    found = [kinds_of(text) for text in texts]
    return {kind: [kind in own for own in found] for kind in KIND_WORDS}
