"""Scenes of version 2: larger objects that share looks, so that no single property tells most of them apart."""

from __future__ import annotations

from random import Random

from data.sample import scene
from data.sample.scene import COLOURS, SHAPES, Look, Scene

TEXTURES = (*scene.TEXTURES, "checked")
# Diameters as a fraction of the image's shorter side, times a factor by the number of objects.
SIZES = {"small": (0.32, 0.37), "large": (0.51, 0.60)}
NEARNESS = {3: 1.2, 4: 1.12, 5: 1.03, 6: 0.95, 7: 0.87, 8: 0.82}
# How many colours, shapes and textures a scene may have; each scene draws one of each line.
N_COLOURS = (1, 2, 2, 3, 3, 4, 8)
N_SHAPES = (1, 2, 2, 3, 3, 4, 7)
N_TEXTURES = (1, 2, 2, 3, 4)


def compose(rng: Random, fewest: int, most: int) -> Scene:
    """Return a scene of `fewest` to `most` objects (3 to 8) of few colours, shapes and textures."""
    width, height = scene.choose_size(rng)
    background = rng.choice(scene.BACKGROUNDS)
    count = rng.randint(fewest, most)
    while True:
        looks = choose_looks(rng, count)
        objects = scene.place(rng, looks, width, height, min(width, height) * NEARNESS[count], SIZES)
        if objects:
            return Scene(width, height, background, tuple(objects))


def choose_looks(rng: Random, count: int) -> list[Look]:
    """Return `count` looks from as many colours, shapes and textures as this scene may have."""
    colours = rng.sample(list(COLOURS), rng.choice(N_COLOURS))
    shapes = rng.sample(SHAPES, rng.choice(N_SHAPES))
    textures = rng.sample(TEXTURES, rng.choice(N_TEXTURES))
    sizes = list(SIZES)
    return [Look(*map(rng.choice, (shapes, colours, sizes, textures))) for _ in range(count)]
