"""Drawn scenes: the positions of objects, their looks, and their visible pixels.

Coordinates are pixels, x to the right and y down; the pixel in column c and row r covers the square
[c, c+1] × [r, r+1]. Objects are listed back to front: a later one may cover part of an earlier one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from random import Random

import numpy as np
from PIL import Image, ImageDraw
from pycocotools import mask as coco_mask
from skimage.measure import find_contours

from refer.masks import compress

# Sub-pixels per pixel and axis while drawing. Odd, so that no pixel is shared half and half.
FINE = 3

SHAPES = ("circle", "square", "triangle", "diamond", "star", "cross", "heart")
TEXTURES = ("plain", "striped", "dotted")
# Diameter as a fraction of the image's shorter side; if there are few objects, they are larger, as from nearby.
SIZES = {"small": (0.20, 0.25), "large": (0.36, 0.44)}
FEW_OBJECTS = 5
NEARBY = 1.2
FROM_ABOVE = 0.65
# The colour itself and the one of its stripes or dots.
COLOURS = {
    "red": ((214, 34, 38), (255, 196, 190)),
    "orange": ((246, 136, 20), (128, 58, 0)),
    "yellow": ((250, 226, 48), (140, 112, 0)),
    "green": ((28, 150, 58), (192, 242, 192)),
    "blue": ((32, 72, 216), (186, 212, 255)),
    "purple": ((136, 42, 172), (234, 200, 248)),
    "white": ((248, 248, 248), (104, 104, 116)),
    "black": ((22, 22, 24), (184, 184, 184)),
}
BACKGROUNDS = ("flat", "gradient", "noise", "blobs")

# Colours, and shapes, that the objects of a hard scene share.
ALIKE = 3
# The fraction of an object's whole area that must be visible.
MIN_VISIBLE = 0.6
# Visible specks of fewer pixels are not outlined.
SPECK = 8.0


@dataclass(frozen=True)
class Look:
    """The look of an object, in terms of `SHAPES`, `COLOURS`, `SIZES` and `TEXTURES`."""

    shape: str
    colour: str
    size: str
    texture: str


@dataclass(frozen=True)
class Placed:
    """An object of a scene: its look, centre and radius in pixels, and the angles of shape and texture in radians."""

    look: Look
    x: float
    y: float
    radius: float
    tilt: float
    grain: float


@dataclass(frozen=True)
class Scene:
    """An image's size in pixels, the kind of its background, and its objects back to front."""

    width: int
    height: int
    background: str
    objects: tuple[Placed, ...]


@dataclass(frozen=True)
class Seen:
    """The visible part of an object.

    centre: mean x and y of its pixels. polygons: COCO outlines [x0, y0, x1, y1, ...] that do not overlap.
    bbox (x, y, width, height) and area (pixels) belong to the mask the polygons decode to.
    hidden_by: nearer objects → the fraction of this object's whole area, in (0, 1), that each covers.
    """

    look: Look
    centre: tuple[float, float]
    polygons: list[list[float]]
    bbox: list[float]
    area: float
    hidden_by: dict[int, float]


# ---------------------------------------------------------------- composing


def compose(rng: Random, fewest: int, most: int, *, alike: bool = False, tile: int | None = None) -> Scene:
    """Return a scene of `fewest` to `most` objects; its short side is 120-200 px, width / height 0.6-1.7.

    alike: the objects share few colours and shapes, so that neither singles out most of them. tile: instead, a square
    with sides of this many pixels and smaller objects, as seen from above.
    """
    width, height = (tile, tile) if tile else choose_size(rng)
    scale = FROM_ABOVE if tile else 1.0
    background = rng.choice(BACKGROUNDS)
    count = rng.randint(fewest, most)
    unit = min(width, height) * scale * (NEARBY if count <= FEW_OBJECTS else 1)
    while True:
        looks = choose_alike_looks(rng, count) if alike else choose_looks(rng, count)
        objects = place(rng, looks, width, height, unit, SIZES)
        if objects:
            return Scene(width, height, background, tuple(objects))


def choose_size(rng: Random) -> tuple[int, int]:
    """Return the width and height of a picture in pixels."""
    short = rng.randint(120, 200)
    aspect = math.exp(rng.uniform(math.log(0.6), math.log(1.7)))
    return (short, round(short / aspect)) if aspect < 1 else (round(short * aspect), short)


def choose_looks(rng: Random, count: int) -> list[Look]:
    """Return `count` looks: most have a new colour, some are similar or equal to another one."""
    looks = [random_look(rng, COLOURS)]
    while len(looks) < count:
        chance = rng.random()
        if chance < 0.05:
            looks.append(rng.choice(looks))
        elif chance < 0.2:
            looks.append(altered(rng, rng.choice(looks)))
        else:
            used = {look.colour for look in looks}
            looks.append(random_look(rng, [colour for colour in COLOURS if colour not in used]))
    rng.shuffle(looks)
    return looks


def choose_alike_looks(rng: Random, count: int) -> list[Look]:
    """Return `count` looks of a few colours and a few shapes."""
    colours, shapes = rng.sample(list(COLOURS), ALIKE), rng.sample(SHAPES, ALIKE)
    return [random_look(rng, colours, shapes) for _ in range(count)]


def random_look(rng: Random, colours: Iterable[str], shapes: Sequence[str] = SHAPES) -> Look:
    """Return a random look of these colours and shapes; plain and small are more frequent."""
    size = "small" if rng.random() < 0.55 else "large"
    texture = "plain" if rng.random() < 0.5 else rng.choice(TEXTURES[1:])
    return Look(rng.choice(shapes), rng.choice(list(colours)), size, texture)


def altered(rng: Random, look: Look) -> Look:
    """Return the look with one or two of its four properties redrawn."""
    fresh = random_look(rng, COLOURS)
    names = rng.sample(("shape", "colour", "size", "texture"), rng.randint(1, 2))
    return Look(**{**vars(look), **{name: getattr(fresh, name) for name in names}})


def place(
    rng: Random, looks: list[Look], width: int, height: int, unit: float, sizes: Mapping[str, tuple[float, float]]
) -> list[Placed] | None:
    """Return the looks at free positions, or None if there is no room for one.

    In half of the scenes objects keep apart; in the others neighbours may overlap by about a fifth. sizes: smallest and
    largest diameter by name of a size, in units of `unit` pixels.
    """
    overlap = rng.random() < 0.5
    objects: list[Placed] = []
    for look in looks:
        radius = rng.uniform(*sizes[look.size]) / 2 * unit
        position = free_position(rng, objects, radius, width, height, overlap)
        if position is None:
            return None
        objects.append(Placed(look, *position, radius, rng.uniform(-0.2, 0.2), rng.uniform(0, math.pi)))
    return objects


def free_position(
    rng: Random, objects: list[Placed], radius: float, width: int, height: int, overlap: bool
) -> tuple[float, float] | None:
    """Return a centre inside the image that keeps its distance to all objects, or None after 60 trials."""
    # The corners of a square reach a little beyond its radius.
    edge = 1.15 * radius + 1
    least = 0.8 if overlap else 1.1
    for _ in range(60):
        x, y = rng.uniform(edge, width - edge), rng.uniform(edge, height - edge)
        if overlap and objects and rng.random() < 0.5:
            x, y = overlapping_position(rng, rng.choice(objects), radius)
        inside = edge <= x <= width - edge and edge <= y <= height - edge
        if inside and all(math.dist((x, y), (o.x, o.y)) >= least * (radius + o.radius) for o in objects):
            return x, y
    return None


def overlapping_position(rng: Random, other: Placed, radius: float) -> tuple[float, float]:
    """Return a centre at which a circle of this radius covers a little of the other object."""
    reach = rng.uniform(0.8, 0.9) * (radius + other.radius)
    angle = rng.uniform(0, 2 * math.pi)
    return other.x + reach * math.cos(angle), other.y + reach * math.sin(angle)


# ---------------------------------------------------------------- drawing


@cache
def unit_outline(shape: str) -> np.ndarray:
    """Return the outline of a shape around the origin, P×2, within a circle of radius about 1."""
    if shape == "circle":
        return corners(48, 1.0) * 0.95
    if shape == "square":
        return corners(4, 1.0) * 1.12
    if shape == "triangle":
        return corners(3, 1.0, start=-0.5) * 1.12 + (0, 0.16)
    if shape == "diamond":
        return np.array([(0, -1.05), (0.72, 0), (0, 1.05), (-0.72, 0)])
    if shape == "star":
        return corners(10, 0.45, start=-0.5) * 1.1
    if shape == "cross":
        a, b = 0.34, 1.0
        quarter = np.array([(a, -a), (b, -a), (b, a)])
        turns = [(quarter @ np.array([[c, s], [-s, c]])) for c, s in ((1, 0), (0, 1), (-1, 0), (0, -1))]
        return np.concatenate(turns)
    return heart()


def corners(count: int, inner: float, start: float = -0.25) -> np.ndarray:
    """Return `count` points on the unit circle, every second one at radius `inner`; start in half turns."""
    angles = np.pi * (start + 2 * np.arange(count) / count)
    reach = np.where(np.arange(count) % 2, inner, 1.0)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1) * reach[:, None]


def heart() -> np.ndarray:
    """Return the usual heart curve, scaled to a half width of 1."""
    t = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    x = 16 * np.sin(t) ** 3
    y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))
    return np.stack([x, y - 2.5], axis=1) / 16


def outline(placed: Placed) -> np.ndarray:
    """Return the outline of an object in the image, P×2 in pixels."""
    c, s = math.cos(placed.tilt), math.sin(placed.tilt)
    turned: np.ndarray = unit_outline(placed.look.shape) @ np.array([[c, s], [-s, c]])
    return turned * placed.radius + (placed.x, placed.y)


# Each mask is used three times: for the picture, for the order of objects, and for what is hidden.
@lru_cache(maxsize=32)
def fine_mask(placed: Placed, width: int, height: int) -> tuple[tuple[int, int, int, int], np.ndarray]:
    """Return a box (x0, y0, x1, y1) around an object and, in it, its whole mask in sub-pixels (bool)."""
    points = outline(placed)
    x0, y0 = np.maximum(np.floor(points.min(axis=0)).astype(int) - 1, 0).tolist()
    x1, y1 = np.minimum(np.ceil(points.max(axis=0)).astype(int) + 1, (width, height)).tolist()
    canvas = Image.new("1", ((x1 - x0) * FINE, (y1 - y0) * FINE))
    # Pillow addresses sub-pixels by their centre.
    polygon = (points - (x0, y0)) * FINE - 0.5
    ImageDraw.Draw(canvas).polygon([tuple(point) for point in polygon.tolist()], fill=1)
    return (x0, y0, x1, y1), np.asarray(canvas)


def per_pixel(fine: np.ndarray) -> np.ndarray:
    """Return the fraction of set sub-pixels in every pixel: (FINE·H)×(FINE·W) bool → H×W float32."""
    count = np.zeros((fine.shape[0] // FINE, fine.shape[1] // FINE), np.float32)
    for row in range(FINE):
        for column in range(FINE):
            count += fine[row::FINE, column::FINE]
    return count / FINE**2


def draw_scene(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """Return the picture of a scene, H×W×3 uint8."""
    picture = draw_background(scene, rng)
    for placed in scene.objects:
        (x0, y0, x1, y1), mask = fine_mask(placed, scene.width, scene.height)
        main, second = (np.array(colour, np.float32) for colour in COLOURS[placed.look.colour])
        marked = texture(placed, x0, y0, mask.shape)
        # Blend main colour, second colour and what is behind, each weighted by its part of the pixel.
        second_alpha = per_pixel(mask & marked)[..., None]
        main_alpha = per_pixel(mask & ~marked)[..., None]
        behind = picture[y0:y1, x0:x1] * (1 - main_alpha - second_alpha)
        picture[y0:y1, x0:x1] = behind + main_alpha * main + second_alpha * second
    grain = rng.integers(-4, 5, picture.shape, dtype=np.int8)
    return np.clip(picture + grain, 0, 255).astype(np.uint8)


def texture(placed: Placed, x0: int, y0: int, shape: tuple[int, int]) -> np.ndarray:
    """Return the sub-pixels of the object's box that have its second colour (bool); none if it is plain."""
    if placed.look.texture == "plain":
        return np.zeros(shape, bool)
    y, x = np.ogrid[: shape[0], : shape[1]]
    x, y = x.astype(np.float32), y.astype(np.float32)
    x, y = x / FINE + x0 - placed.x, y / FINE + y0 - placed.y
    c, s = math.cos(placed.grain), math.sin(placed.grain)
    # One turn per stripe or dot.
    turn = 2 * math.pi / (3 + 0.25 * placed.radius)
    if placed.look.texture == "checked":
        # Squares as wide as a stripe with its gap.
        checks: np.ndarray = np.cos((x * c + y * s) * turn / 2) * np.cos((y * c - x * s) * turn / 2) > 0
        return checks
    along = np.cos((x * c + y * s) * turn)
    if placed.look.texture == "striped":
        return along > 0.25
    return along + np.cos((y * c - x * s) * turn) > 0.5


def draw_background(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """Return the scene's muted background, H×W×3 float32."""
    size = (scene.width, scene.height)
    if scene.background == "flat":
        return spread(muted(rng, 1, 1), size)
    if scene.background == "gradient":
        return spread(muted(rng, 2, 2), size)
    if scene.background == "blobs":
        return spread(muted(rng, 5, 5), size)
    fine = rng.integers(-22, 23, (scene.height // 2, scene.width // 2, 1)).astype(np.float32)
    return spread(muted(rng, 1, 1) + fine, size)


def muted(rng: np.random.Generator, rows: int, columns: int) -> np.ndarray:
    """Return rows×columns×3 greys with a slight tint, far from every colour of an object."""
    grey = rng.uniform(105, 165, (rows, columns, 1))
    return (grey + rng.uniform(-14, 14, (rows, columns, 3))).astype(np.float32)


def spread(grid: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Stretch a small grid of colours smoothly over an image of size (width, height)."""
    image = Image.fromarray(np.clip(grid, 0, 255).astype(np.uint8))
    return np.asarray(image.resize(size, Image.Resampling.BICUBIC), np.float32)


# ---------------------------------------------------------------- visible parts


def owners(scene: Scene) -> np.ndarray:
    """Return, per sub-pixel, the number of the frontmost object, counted from 1; 0 is the background."""
    front = np.zeros((scene.height * FINE, scene.width * FINE), np.uint8)
    for number, placed in enumerate(scene.objects, start=1):
        (x0, y0, x1, y1), mask = fine_mask(placed, scene.width, scene.height)
        front[y0 * FINE : y1 * FINE, x0 * FINE : x1 * FINE][mask] = number
    return front


def look_at(scene: Scene) -> list[Seen] | None:
    """Return the visible part of every object, or None if the scene is unsuitable.

    Unsuitable: an object of which more than 1 - MIN_VISIBLE is hidden, one with a hole, or overlapping polygons.
    """
    front = owners(scene)
    seen: list[Seen] = []
    for index, placed in enumerate(scene.objects):
        (x0, y0, x1, y1), whole = fine_mask(placed, scene.width, scene.height)
        box = front[y0 * FINE : y1 * FINE, x0 * FINE : x1 * FINE]
        fractions = np.bincount(box[whole], minlength=len(scene.objects) + 1)[1:] / whole.sum()
        if fractions[index] < MIN_VISIBLE:
            return None
        hidden_by = {i: round(float(fractions[i]), 6) for i in range(index + 1, len(fractions)) if fractions[i]}
        part = measure_polygons(placed.look, trace(per_pixel(box == index + 1), x0, y0), hidden_by, scene)
        if part is None:
            return None
        seen.append(part)
    return seen


def trace(visible: np.ndarray, x0: int, y0: int) -> list[list[float]]:
    """Return the COCO polygons around a visible part; none if it has a hole.

    visible: the fraction of every pixel that shows the object, in a box whose corner is at (x0, y0).
    """
    polygons = []
    for line in find_contours(np.pad(visible, 1), 0.5):
        # Rows and columns address pixel centres; one ring of padding was added.
        x, y = line[:-1, 1] - 0.5 + x0, line[:-1, 0] - 0.5 + y0
        area = (x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2
        if area < -1:
            return []
        if area > SPECK:
            polygons.append(np.round(thinned(np.stack([x, y], axis=1)), 2).ravel().tolist())
    return polygons


def thinned(points: np.ndarray) -> np.ndarray:
    """Drop points, P×2, that are within an eighth of a pixel of the line between their neighbours."""
    for _ in range(3):
        before, after = np.roll(points, 1, axis=0), np.roll(points, -1, axis=0)
        (dx, dy), (px, py) = (after - before).T, (points - before).T
        far = np.abs(dx * py - dy * px) > np.hypot(dx, dy) / 8
        # Only every second point may go, so that both neighbours of a dropped one stay.
        far[::2] = True
        points = points[far]
    return points


def measure_polygons(look: Look, polygons: list[list[float]], hidden_by: dict[int, float], scene: Scene) -> Seen | None:
    """Decode the polygons as COCO does; return the visible part, or None if there are none or they overlap."""
    if not polygons:
        return None
    parts = compress(polygons, scene.height, scene.width)
    whole = coco_mask.merge(parts)
    area = float(coco_mask.area(whole))
    if area < coco_mask.area(parts).sum():
        return None
    rows, columns = np.nonzero(coco_mask.decode(whole))
    centre = (round(float(columns.mean()) + 0.5, 2), round(float(rows.mean()) + 0.5, 2))
    return Seen(look, centre, polygons, coco_mask.toBbox(whole).tolist(), area, hidden_by)
