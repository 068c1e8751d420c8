"""What a description may mean in a drawn scene: the objects it surely means, and those a person might think of.

Positions are fractions of the image's width or height, and distances between objects are in units of its shorter side.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise

from data.sample.expressions import Group, View, along, offset


@dataclass(frozen=True)
class Reading:
    """Objects, as indices into a view: `sure` are meant without doubt, `maybe` are these and doubtful ones."""

    sure: frozenset[int]
    maybe: frozenset[int]

    def __and__(self, other: Reading) -> Reading:
        """Return what both descriptions mean."""
        return Reading(self.sure & other.sure, self.maybe & other.maybe)

    def denied(self, group: Iterable[int]) -> Reading:
        """Return what of a group is not meant."""
        whole = frozenset(group)
        return Reading(whole - self.maybe, whole - self.sure)

    def means(self, index: int) -> bool:
        """Say whether exactly this object is meant, without doubt."""
        return self.sure == self.maybe == {index}


def exactly(group: Iterable[int]) -> Reading:
    """Return a reading without doubt."""
    whole = frozenset(group)
    return Reading(whole, whole)


def judged(group: Group, sure: Callable[[int], bool], maybe: Callable[[int], bool]) -> Reading:
    """Return a reading by what is said of each object alone; what is sure is possible, too."""
    possible = frozenset(i for i in group if maybe(i))
    return Reading(frozenset(i for i in possible if sure(i)), possible)


def outermost(view: View, group: Group, side: str) -> Reading:
    """Read "leftmost": the next object is at least 0.08 farther; a single object must be within 0.4 of the side."""
    if len(group) < 2:
        return judged(group, lambda i: along(view, i, side) < 0.4, lambda _: True)
    order = sorted(group, key=lambda i: along(view, i, side))
    nearest = along(view, order[0], side)
    near = frozenset(i for i in order if along(view, i, side) < nearest + 0.08)
    return Reading(near if len(near) == 1 else frozenset(), near)


def at_sides(view: View, group: Group, *sides: str) -> Reading:
    """Read "on the left" or "in the top left corner": surely within 0.33 of all sides, maybe within 0.5."""
    reach = {i: max(along(view, i, side) for side in sides) for i in group}
    return judged(group, lambda i: reach[i] < 0.33, lambda i: reach[i] <= 0.5)


def central(view: View, group: Group) -> Reading:
    """Read "in the middle": surely within 0.17 of the image's centre, maybe within 0.3."""
    off = {i: math.dist((along(view, i, "left"), along(view, i, "top")), (0.5, 0.5)) for i in group}
    return judged(group, lambda i: off[i] < 0.17, lambda i: off[i] <= 0.3)


def in_order(view: View, group: Group, rank: int, side: str) -> Reading:
    """Read "second from the left": the rank-th of three or more (from 0) but not the last, all at least 0.05 apart."""
    order = sorted(group, key=lambda i: along(view, i, side))
    if len(order) < 3 or rank > len(order) - 2:
        return exactly(())
    clear = all(along(view, b, side) - along(view, a, side) >= 0.05 for a, b in pairwise(order))
    return exactly((order[rank],)) if clear else Reading(frozenset(), frozenset(order))


def most_of_size(view: View, group: Group, size: str) -> Reading:
    """Read "biggest": the only large object among small ones of its shape, with 1.3 times the visible area of each.

    "Smallest" is the same the other way round.
    """
    of_size = [i for i in group if view.objects[i].look.size == size]
    others = [view.objects[i].area for i in group if i not in of_size]
    if len(of_size) != 1 or not others or len({view.objects[i].look.shape for i in group}) > 1:
        return Reading(frozenset(), frozenset(group))
    area = view.objects[of_size[0]].area
    clear = area >= 1.3 * max(others) if size == "large" else 1.3 * area <= min(others)
    return exactly(of_size) if clear else Reading(frozenset(), frozenset(group))


def beside(view: View, group: Group, landmark: int, side: str) -> Reading:
    """Read "left of": surely at least 0.15 in that direction and at most 0.6 times that across, maybe up to 1.6."""
    way = {i: offset(view, i, landmark, side) for i in group}
    return judged(
        group,
        lambda i: way[i][0] >= 0.15 and way[i][1] <= 0.6 * way[i][0],
        lambda i: way[i][0] > 0 and way[i][1] <= 1.6 * way[i][0],
    )


def closest(view: View, group: Group, landmark: int) -> Reading:
    """Read "closest to": within 0.5 of the landmark, and the next object is at least 0.12 farther."""
    here = view.objects[landmark].centre
    distance = {i: math.dist(view.objects[i].centre, here) / view.short for i in group}
    if len(group) < 2:
        return Reading(frozenset(), frozenset(group))
    least = min(distance.values())
    near = frozenset(i for i in group if distance[i] < least + 0.12)
    return Reading(near if len(near) == 1 and least <= 0.5 else frozenset(), near)


def in_front(view: View, group: Group, landmark: int) -> Reading:
    """Read "in front of": covering at least 0.05 of the landmark's area, maybe less."""
    covers = view.objects[landmark].hidden_by
    return judged(group, lambda i: covers.get(i, 0) >= 0.05, lambda i: i in covers)


def behind(view: View, group: Group, landmark: int) -> Reading:
    """Read "behind": the landmark covers at least 0.05 of the object's area, maybe less."""
    covered = {i: view.objects[i].hidden_by.get(landmark, 0) for i in group}
    return judged(group, lambda i: covered[i] >= 0.05, lambda i: covered[i] > 0)


def between(view: View, group: Group, start: int, end: int) -> Reading:
    """Read "between": surely in the middle half of the line and within 0.15 of its length from it, maybe 0.4.

    The two landmarks are at least 0.4 apart; objects are possible up to 0.15 of its length beyond both.
    """
    (ax, ay), (bx, by) = view.objects[start].centre, view.objects[end].centre
    length = math.hypot(bx - ax, by - ay)
    if length < 0.4 * view.short:
        return Reading(frozenset(), frozenset(group))
    place = {}  # along the line and across, in units of its length
    for i in group:
        x, y = view.objects[i].centre
        ahead = ((x - ax) * (bx - ax) + (y - ay) * (by - ay)) / length**2
        place[i] = (ahead, abs((x - ax) * (by - ay) - (y - ay) * (bx - ax)) / length**2)
    return judged(
        group,
        lambda i: 0.25 <= place[i][0] <= 0.75 and place[i][1] <= 0.15,
        lambda i: -0.15 <= place[i][0] <= 1.15 and place[i][1] <= 0.4,
    )
