"""Answers as HTML."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from data.sample.drawings import ONLY_DRAWINGS
from lib.pictures.overlay import colour_of
from lib.texts import showable
from lib.variants import MAX_TOKENS
from predict import Prediction

CAPTION_LENGTH = 60  # characters of the sentence
WELCOME = '<p class="note">Choose an image and describe an object, or take an example.</p>'
READY = '<p class="note">Now describe an object in this image.</p>'
DRAWINGS_NOTE = f'<p class="warning">{ONLY_DRAWINGS[0].upper()}{ONLY_DRAWINGS[1:]}.</p>'


def percent(score: float) -> str:
    """Return a score from 0 to 1 as text."""
    return f"{100 * score:.0f}\N{NO-BREAK SPACE}%"


def caption(text: str, score: float, weights: str) -> str:
    """Return the caption of an earlier result: truncated sentence, expected IoU and name of the weights."""
    text = showable(" ".join(text.split()))
    if len(text) > CAPTION_LENGTH:
        text = f"{text[:CAPTION_LENGTH].rpartition(' ')[0] or text[:CAPTION_LENGTH]} …"
    return f"{text}: {percent(score)} ({weights})"


def describe_prediction(text: str, prediction: Prediction, max_tokens: int = MAX_TOKENS) -> str:
    """Return the expected IoU and the sentence as HTML, with its unread end struck through.

    max_tokens: number of tokens that the network reads.
    """
    if prediction.area:
        area = (
            percent(prediction.area / prediction.mask.size)
            if prediction.area > prediction.mask.size / 100
            else f"less than {percent(0.01)}"
        )
        left, top, width, height = prediction.box
        bar = f'<span class="bar"><span style="width: {100 * prediction.score:.1f}%"></span></span>'
        verdict = f"Expected IoU {percent(prediction.score)}{bar}"
        note = f"{area} of the image, in a box of {width} × {height} pixels at ({left}, {top})."
    elif prediction.no_target:
        verdict = "Nothing here"
        note = "The network says that the sentence means nothing in this image."
    else:
        verdict = "Nothing found"
        note = "Every pixel is more likely background than object."
    lines = [f'<p class="answer">{verdict}</p>', f'<p class="sentence">{quoted(text, prediction)}</p>']
    if prediction.unread:
        limit = f"The network reads {max_tokens - 1} words or word pieces; the struck-through end was ignored."
        lines.append(f'<p class="cut">{limit}</p>')
    return "".join([*lines, f'<p class="note">{note}</p>'])


def describe_several(texts: Sequence[str], predictions: Sequence[Prediction]) -> str:
    """Return the legend of several sentences as HTML: numbers and colours as in the picture, and expected IoUs."""
    rows = []
    for number, (text, prediction) in enumerate(zip(texts, predictions, strict=True)):
        found = f"expected IoU {percent(prediction.score)}" if prediction.area else "nothing found"
        colour = "rgb({}, {}, {})".format(*colour_of(number))
        sign = f'<span class="number" style="background: {colour}">{number + 1}</span>'
        rows.append(f'<li>{sign} <span class="sentence">{quoted(text, prediction)}</span> <b>{found}</b></li>')
    n_found = sum(one.area > 0 for one in predictions)
    return f'<p class="answer">Found {n_found} of {len(texts)}</p><ul class="legend">{"".join(rows)}</ul>'


def quoted(text: str, prediction: Prediction) -> str:
    """Return a sentence as HTML, with its unread end struck through."""
    if not prediction.unread:
        return f"“{plain(text)}”"
    read = text[: len(text) - len(prediction.unread)]
    return f"“{plain(read)}<del>{plain(prediction.unread)}</del>”"


def describe_words(
    sentences: Sequence[Sequence[tuple[str, float]]], checkpoint: str, *, with_name: bool = False
) -> str:
    """Return the words of sentences as HTML, each over a shade and a number: what the score loses without it.

    sentences: of each, the words and their losses, -1 to 1. Shades are relative to the largest loss of the sentence.
    checkpoint: the name of the weights. with_name: whether it stands above the words, as there are others.
    """
    lines = [f"<h3>{plain(checkpoint)}</h3>"] if with_name else []
    for words in sentences:
        largest = max([loss for _, loss in words if loss > 0], default=1.0)
        shown = [
            f'<span class="word">{plain(word)}<span class="shade" style="opacity: {max(loss, 0) / largest:.2f}"></span>'
            f' <span class="points">{round(100 * loss):d}</span></span>'
            for word, loss in words
        ]
        lines.append(f'<p class="words">{" ".join(shown)}</p>')
    explained = (
        f"Points of expected IoU that the mask of {plain(checkpoint)} loses if the word is left out; "
        "the darkest word matters most."
    )
    return f'{"".join(lines)}<p class="note">{explained}</p>'


def describe_problem(message: str) -> str:
    """Return an error message as HTML."""
    return f'<p class="problem" role="alert"><b>That did not work:</b> {plain(message)}.</p>'


def plain(text: str) -> str:
    """Return a text escaped for HTML, including braces and dollars, which the page's templates would interpret.

    U+FFFD replaces lone surrogates.
    """
    return escape(showable(text)).translate({ord(sign): f"&#{ord(sign)};" for sign in "{}$`\\"})
