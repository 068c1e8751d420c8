"""The model card of a network's weights: description, scores and training options."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lib.options import RECIPE_NAMES

MODEL_CARD = """---
{{ card_data }}
---
# CrossVLT: {{ swin_type }} Swin encoder, {{ bert_type }} BERT encoder

Referring image segmentation: given an image and a referring expression, this network predicts the mask of the object
that the expression describes ([paper](https://arxiv.org/abs/2408.07539)). {{ parameters }} parameters.
{% if fusion != "cross" or not alignment %}
This is not the network of the paper, but a variant: fusion {{ fusion }}{% if not alignment %}, without alignment\
{% endif %}.
{% endif %}{% if align_bias %}
Not the paper's network: each stage's alignment map has a bias.
{% endif %}{% if no_target_head %}
Not the paper's network: a head says whether the sentence means anything in the image.
{% endif %}
    model = SegModel.from_pretrained("FOLDER_OR_NAME")     # only the network, from CrossVLT.py
    model = predict.load("FOLDER_OR_NAME")                 # with vocabulary and image size, from predict.py
{% if scores %}
## Scores
{{ scores }}
{% endif %}{% if recipe %}
## Training
{{ recipe }}
{% endif %}"""


def describe_recipe(options: Mapping[str, Any]) -> str:
    """Return the options that define a training as a Markdown list."""
    return "\n".join(f"- {name}: {options[name]}" for name in RECIPE_NAMES if options.get(name) is not None)
