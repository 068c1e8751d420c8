"""The README that goes with a network's weights: what it is, how it scored and how it was trained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lib.options import RECIPE_NAMES

MODEL_CARD = """---
{{ card_data }}
---
# CrossVLT: {{ swin_type }} Swin encoder, {{ bert_type }} BERT encoder

Referring image segmentation: an image and a sentence go in, the mask of the object meant comes out
([paper](https://arxiv.org/abs/2408.07539)). {{ parameters }} parameters.
{% if fusion != "cross" or not alignment %}
Not the paper's network, but one that it is compared with: fusion {{ fusion }}{% if not alignment %}, without alignment\
{% endif %}.
{% endif %}
    model = SegModel.from_pretrained("FOLDER_OR_NAME")     # the network alone, from CrossVLT.py
    model = predict.load("FOLDER_OR_NAME")                 # with its vocabulary and image size, from predict.py
{% if scores %}
## Scores
{{ scores }}
{% endif %}{% if recipe %}
## Training
{{ recipe }}
{% endif %}"""


def describe_recipe(options: Mapping[str, Any]) -> str:
    """Return what of a training's options is its recipe, as a list in Markdown."""
    return "\n".join(f"- {name}: {options[name]}" for name in RECIPE_NAMES if options.get(name) is not None)
