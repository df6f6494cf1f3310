"""A map of labelled layers in the making: the layers, pose and framing of a person, shapes in body units.

Coordinates are body units: y = 0 at the top of the head and 1 at the soles; x in the same unit around the body's axis,
on a frame of FRAME_WIDTH heights (a person crop is resized to the frame, whatever its shape).
The map is drawn at twice the picture's resolution; the pictures are reduced from it, which smooths the edges.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

from PIL import Image, ImageDraw

from datasets.synthetic.person import View

SUPERSAMPLING = 2
FRAME_WIDTH = 0.42
Point = tuple[float, float]
SHOULDER_Y = 0.190
HEAD_Y = 0.092
CHIN_Y = 0.165
ANKLE_Y = 0.955


class Layer(IntEnum):
    """Values of a label map. The second layer of a garment follows the first; LOWER_FAR is the leg in shadow."""

    BACKGROUND = 0
    SKIN = 1
    HAIR = 2
    EYES = 3
    GLASSES = 4
    BEARD = 5
    MOUTH = 6
    HEADWEAR = 7
    BRIM = 8
    UPPER = 9
    UPPER_SECOND = 10
    SLEEVE = 11
    SLEEVE_SECOND = 12
    INNER = 13
    LOWER = 14
    LOWER_SECOND = 15
    LOWER_FAR = 16
    SHOES = 17
    BAG = 18
    STRAP = 19
    SCARF = 20
    SKIN_FAR = 21
    SLEEVE_FAR = 22
    LENSES = 23


@dataclass(frozen=True, slots=True)
class Scene:
    """Pose and framing."""

    view: View
    left: bool
    """A side view faces left; other views mirror the bag's side."""
    phase: float
    """Stride, -1..1."""
    arm: float
    """Distance of the arms from the body, -1..1."""
    scale: float
    """Height of the figure over that of the frame."""
    centre: float
    """x of the body's axis, in frame widths."""
    top: float
    """y of the top of the head, in frame heights."""
    lean: float = 0.0
    """Sideways shift of the head."""
    pitch: float = 0.0
    """Enlargement of the upper body."""
    wobble: float = 0.0
    """Largest error of a drawn point along x and y."""
    girth: float = 1.0
    """Drawn over true width."""


class Canvas:
    """A label map in the making; draws shapes given in body units."""

    def __init__(self, scene: Scene, size: tuple[int, int], rng: random.Random, zoom: float = 1.0) -> None:
        """size: (height, width) of the picture. rng: source of the wobble. zoom: factor on what is drawn `in_head`."""
        self.height, self.width = size[0] * SUPERSAMPLING, size[1] * SUPERSAMPLING
        self.image = Image.new("L", (self.width, self.height), 0)
        self._draw = ImageDraw.Draw(self.image)
        self._scene = scene
        self._sign = -1.0 if scene.left else 1.0
        self._x_scale = scene.scale / FRAME_WIDTH * self.width * scene.girth
        self._random = rng.random if scene.wobble else None
        self._zoom = zoom
        self.in_head = False

    def pixel(self, x: float, y: float) -> Point:
        """Return the pixel of a point in body units."""
        scene = self._scene
        if self._random is not None:
            x, y = x + (self._random() - 0.5) * 2 * scene.wobble, y + (self._random() - 0.5) * 2 * scene.wobble
        if self._zoom != 1.0:
            # The head grows from the chin; then the whole figure shrinks to its former height.
            if self.in_head:
                x, y = x * self._zoom, CHIN_Y + (y - CHIN_Y) * self._zoom
            added = CHIN_Y * (self._zoom - 1.0)
            x, y = x / (1.0 + added), (y + added) / (1.0 + added)
        x *= self._sign * (1.0 + scene.pitch * (0.5 - y))
        y -= scene.pitch * 0.25 * y * (1.0 - y)
        column = scene.centre * self.width + (x + scene.lean * (1.0 - y)) * self._x_scale
        return column, (scene.top + y * scene.scale) * self.height

    def polygon(self, layer: Layer, points: Sequence[Point]) -> None:
        """Fill a polygon."""
        self._draw.polygon([self.pixel(x, y) for x, y in points], fill=int(layer))

    def ellipse(self, layer: Layer, x: float, y: float, half_width: float, half_height: float) -> None:
        """Fill an upright ellipse."""
        left, top = self.pixel(x - half_width, y - half_height)
        right, bottom = self.pixel(x + half_width, y + half_height)
        self._draw.ellipse((min(left, right), min(top, bottom), max(left, right), max(top, bottom)), fill=int(layer))

    def limb(self, layer: Layer, joints: Sequence[Point], halves: Sequence[float]) -> None:
        """Fill a chain of tapered segments with round joints; halves: half widths at the joints."""
        for (start, end), (first, last) in zip(zip(joints, joints[1:]), zip(halves, halves[1:])):
            dx, dy = end[0] - start[0], end[1] - start[1]
            length = math.hypot(dx, dy) or 1.0
            nx, ny = -dy / length, dx / length
            self.polygon(
                layer,
                (
                    (start[0] + nx * first, start[1] + ny * first),
                    (end[0] + nx * last, end[1] + ny * last),
                    (end[0] - nx * last, end[1] - ny * last),
                    (start[0] - nx * first, start[1] - ny * first),
                ),
            )
        for joint, half in zip(joints[1:-1], halves[1:-1]):
            self.ellipse(layer, *joint, half, half)


@dataclass(frozen=True, slots=True)
class Frame:
    """The measures of one person in one view, in body units."""

    side: bool
    forward: float
    """1 where the face points along +x (a side view), else 0."""
    shoulder: float
    waist: float
    hip: float
    hip_y: float
    waist_y: float
    limb: float
    head: float
