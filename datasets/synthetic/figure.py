"""Draws a person as a map of labelled layers: what is where, before any modality decides what it looks like.

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

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from datasets.synthetic.patterns import paint_pattern
from datasets.synthetic.person import Person, View
from datasets.synthetic.wardrobe import Garment, Outfit

SUPERSAMPLING = 2
FRAME_WIDTH = 0.42
Point = tuple[float, float]


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
    """Pose and framing. phase: stride, -1..1; arm: -1..1; left: a side view faces left, other views mirror the bag's
    side; scale: figure height over frame height; centre: x in frame widths; top: y in frame heights; lean: sideways
    shift of the head; pitch: enlargement of the upper body; wobble: largest error of a drawn point along x and y;
    girth: drawn over true width.
    """

    view: View
    left: bool
    phase: float
    arm: float
    scale: float
    centre: float
    top: float
    lean: float = 0.0
    pitch: float = 0.0
    wobble: float = 0.0
    girth: float = 1.0


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
    """The measures of one person in one view, in body units. forward: 1 where the face points along +x (a side view),
    else 0.
    """

    side: bool
    forward: float
    shoulder: float
    waist: float
    hip: float
    hip_y: float
    waist_y: float
    limb: float
    head: float


SHOULDER_Y = 0.190
HEAD_Y = 0.092
CHIN_Y = 0.165
ANKLE_Y = 0.955


def draw_labels(
    person: Person, outfit: Outfit, scene: Scene, size: tuple[int, int], rng: random.Random
) -> NDArray[np.uint8]:
    """Return the label map (height * SUPERSAMPLING, width * SUPERSAMPLING) uint8 of `Layer` values."""
    canvas = Canvas(scene, size, rng, person.head.zoom)
    frame = _measure(person, scene)
    _bag_behind(canvas, outfit, frame)
    _far_arm(canvas, outfit.upper, frame, scene)
    canvas.in_head = True
    _hair_behind(canvas, person, frame, scene)
    canvas.in_head = False
    _legs(canvas, person, outfit, frame, scene)
    _torso(canvas, outfit, frame, scene)
    _arms(canvas, person, outfit.upper, frame, scene)
    canvas.in_head = True
    _head(canvas, person, frame, scene)
    canvas.in_head = False
    if outfit.scarf.kind != "none":
        _scarf(canvas, frame, scene)
    _bag(canvas, outfit, frame, scene)
    labels = np.array(canvas.image)
    _patterns(labels, canvas, outfit, frame)
    return labels


def _measure(person: Person, scene: Scene) -> Frame:
    body = person.body
    side = scene.view is View.SIDE
    depth = 0.72 if side else 1.0
    leg = body.leg
    return Frame(
        side=side,
        forward=float(side),
        shoulder=0.104 * (0.62 + 0.38 * body.girth) * body.shoulders * (0.68 if side else 1.0),
        waist=0.076 * body.girth * (0.88 if side else 1.0),
        hip=0.086 * (0.45 + 0.55 * body.girth) * body.hips * (depth + 0.1 if side else 1.0),
        hip_y=1.0 - leg,
        waist_y=1.0 - leg - 0.10,
        limb=0.55 + 0.45 * body.girth,
        head=person.head.size,
    )


def _leg_joints(person: Person, frame: Frame, scene: Scene, near: int) -> list[Point]:
    """Return hip, knee and ankle of the near (+1) or far (-1) leg."""
    stride = scene.phase * (0.5 + 0.5 * person.body.swing)
    knee_y = (frame.hip_y + ANKLE_Y) / 2
    if frame.side:
        ankle = 0.105 * stride * near
        bend = 0.03 * abs(stride)
        return [(0.01 * near, frame.hip_y), (ankle * 0.5 + bend, knee_y), (ankle, ANKLE_Y - 0.02 * max(0.0, -ankle))]
    spread = frame.hip * 0.52
    foot = spread * (0.75 + 0.7 * person.body.stance)
    lift = 0.022 * max(0.0, stride * near)
    return [
        (spread * near, frame.hip_y),
        ((spread + foot) / 2 * near, knee_y - lift / 2),
        (foot * near, ANKLE_Y - lift),
    ]


LOWER_WIDTHS = {
    "trousers": (1.22, 1.22, 1.35),
    "jeans": (1.12, 1.08, 1.12),
    "leggings": (1.02, 1.0, 1.0),
    "wide trousers": (1.25, 1.42, 1.85),
    "shorts": (1.35, 1.5, 1.5),
}


def _legs(canvas: Canvas, person: Person, outfit: Outfit, frame: Frame, scene: Scene) -> None:
    thigh, knee, ankle = 0.050 * frame.limb, 0.036 * frame.limb, 0.024 * frame.limb
    lower = outfit.lower
    for near in (-1, 1):
        far = near < 0 and frame.side
        joints = _leg_joints(person, frame, scene, near)
        canvas.limb(Layer.SKIN_FAR if far else Layer.SKIN, joints, (thigh, knee, ankle))
        if lower is not None and lower.kind in LOWER_WIDTHS:
            first, second, third = LOWER_WIDTHS[lower.kind]
            layer = Layer.LOWER_FAR if far else Layer.LOWER
            if lower.kind == "shorts":
                share = 0.45 + 0.45 * lower.length
                joints_covered = [joints[0], _between(joints[0], joints[1], share)]
                canvas.limb(layer, joints_covered, (thigh * first, (thigh + knee) / 2 * second))
            else:
                end = 0.80 + 0.20 * lower.length
                covered = [joints[0], joints[1], _between(joints[1], joints[2], end)]
                canvas.limb(layer, covered, (thigh * first, knee * second, ankle * third))
        _shoe(canvas, outfit.shoes.kind, joints, frame, near)
    if lower is not None:
        _pelvis(canvas, lower, frame)


def _between(start: Point, end: Point, share: float) -> Point:
    return start[0] + (end[0] - start[0]) * share, start[1] + (end[1] - start[1]) * share


def _pelvis(canvas: Canvas, lower: Garment, frame: Frame) -> None:
    top = frame.waist_y + 0.02
    if lower.kind in ("skirt", "long skirt"):
        bottom = (0.64 + 0.10 * lower.length) if lower.kind == "skirt" else (0.80 + 0.12 * lower.length)
        flare = frame.hip * (1.15 + (bottom - frame.hip_y) * 1.6)
        canvas.polygon(
            Layer.LOWER,
            (
                (-frame.waist * 1.05, top),
                (frame.waist * 1.05, top),
                (frame.hip * 1.1, frame.hip_y),
                (flare, bottom),
                (-flare, bottom),
                (-frame.hip * 1.1, frame.hip_y),
            ),
        )
        return
    hip = frame.hip * 1.06
    canvas.polygon(
        Layer.LOWER,
        (
            (-frame.waist * 1.03, top),
            (frame.waist * 1.03, top),
            (hip, frame.hip_y),
            (hip * 0.9, frame.hip_y + 0.04),
            (-hip * 0.9, frame.hip_y + 0.04),
            (-hip, frame.hip_y),
        ),
    )


def _shoe(canvas: Canvas, kind: str, joints: list[Point], frame: Frame, near: int) -> None:
    x, y = joints[-1]
    toe = 0.062 if frame.side else 0.012 * near
    half = 0.030 * frame.limb
    if kind == "boots":
        canvas.limb(Layer.SHOES, (_between(joints[1], joints[2], 0.45), (x, y)), (half * 1.1, half))
    rise = 0.02 if kind == "shoes" else 0.03
    canvas.polygon(
        Layer.SHOES,
        (
            (x - half, y - rise),
            (x + half, y - rise),
            (x + half + max(0.0, toe), y + 0.025),
            (x + half + max(0.0, toe), y + 0.045),
            (x - half + min(0.0, toe), y + 0.045),
            (x - half + min(0.0, toe), y + 0.02),
        ),
    )


HEMS = {
    "t-shirt": (0.0, 0.05),
    "shirt": (0.0, 0.06),
    "sweater": (-0.02, 0.05),
    "hoodie": (0.0, 0.07),
    "jacket": (-0.05, 0.05),
    "vest": (-0.03, 0.05),
    "coat": (0.14, 0.34),
    "dress": (0.14, 0.40),
}
LOOSENESS = {
    "t-shirt": 1.05,
    "shirt": 1.08,
    "sweater": 1.14,
    "hoodie": 1.2,
    "jacket": 1.2,
    "vest": 1.15,
    "coat": 1.25,
    "dress": 1.0,
}


def _torso(canvas: Canvas, outfit: Outfit, frame: Frame, scene: Scene) -> None:
    upper = outfit.upper
    neck = 0.026 * frame.limb
    canvas.polygon(Layer.SKIN, ((-neck, 0.13), (neck, 0.13), (neck * 1.4, 0.195), (-neck * 1.4, 0.195)))
    low, high = HEMS[upper.kind]
    hem = frame.hip_y + low + (high - low) * upper.length
    loose = LOOSENESS[upper.kind]
    shoulder, waist, hip = frame.shoulder * (0.96 + 0.04 * loose), frame.waist * loose, frame.hip * (0.9 + 0.1 * loose)
    flare = 2.0 if upper.kind == "dress" else 0.7
    bottom = hip * (1.05 + flare * max(0.0, hem - frame.hip_y)) if hem > frame.hip_y else hip * 1.02
    right = [
        (neck * 1.1, 0.168),
        (shoulder, SHOULDER_Y + 0.006),
        (shoulder * 0.99, 0.24),
        (waist, frame.waist_y),
        (hip * 1.04, frame.hip_y - 0.005),
        (bottom, max(hem, frame.hip_y)),
    ]
    if hem < frame.hip_y:
        right = right[:4] + [(hip * 1.02, hem)]
    canvas.polygon(Layer.UPPER, right + [(-x, y) for x, y in reversed(right)])
    if outfit.open_front and scene.view is not View.BACK:
        shift = frame.waist * 0.75 if frame.side else 0.0
        half = 0.034 * frame.limb * (0.7 if frame.side else 1.0)
        canvas.polygon(
            Layer.INNER,
            (
                (shift - half * 0.7, 0.172),
                (shift + half * 0.7, 0.172),
                (shift + half, frame.waist_y),
                (shift + half * 1.25, hem),
                (shift - half * 1.25, hem),
                (shift - half, frame.waist_y),
            ),
        )
    if upper.kind == "hoodie":
        back = scene.view is View.BACK
        canvas.ellipse(Layer.SLEEVE, -0.03 * frame.forward, 0.200 if back else 0.182, 0.055, 0.040 if back else 0.018)


def _arm_joints(frame: Frame, scene: Scene, near: int, swing: float) -> list[Point]:
    wrist_y = frame.hip_y + 0.015
    elbow_y = (SHOULDER_Y + wrist_y) / 2 + 0.01
    if frame.side:
        reach = -0.12 * scene.phase * swing * near + 0.01
        return [(0.0, SHOULDER_Y + 0.015), (reach * 0.4 - 0.012, elbow_y), (reach + 0.02, wrist_y - abs(reach) * 0.25)]
    out = 0.020 + 0.030 * (0.5 + 0.5 * scene.arm)
    x = frame.shoulder - 0.012
    return [(x * near, SHOULDER_Y + 0.018), ((x + out) * near, elbow_y), ((x + out * 1.2) * near, wrist_y)]


def _arm(canvas: Canvas, upper: Garment, frame: Frame, joints: list[Point], far: bool) -> None:
    top, middle, end = 0.031 * frame.limb, 0.026 * frame.limb, 0.019 * frame.limb
    canvas.limb(Layer.SKIN_FAR if far else Layer.SKIN, joints, (top, middle, end))
    canvas.ellipse(Layer.SKIN_FAR if far else Layer.SKIN, joints[-1][0], joints[-1][1] + 0.012, end * 1.1, 0.020)
    layer = Layer.SLEEVE_FAR if far else Layer.SLEEVE
    loose = LOOSENESS[upper.kind] * 1.08
    if upper.sleeve == "short":
        canvas.limb(layer, (joints[0], _between(joints[0], joints[1], 0.85)), (top * loose, middle * loose * 1.15))
    elif upper.sleeve == "long":
        canvas.limb(layer, joints, (top * loose, middle * loose, end * loose * 1.15))
    if upper.sleeve != "none":
        canvas.ellipse(layer, *joints[0], top * loose, top * loose)


def _far_arm(canvas: Canvas, upper: Garment, frame: Frame, scene: Scene) -> None:
    if frame.side:
        _arm(canvas, upper, frame, _arm_joints(frame, scene, -1, 1.0), far=True)


def _arms(canvas: Canvas, person: Person, upper: Garment, frame: Frame, scene: Scene) -> None:
    for near in (1,) if frame.side else (-1, 1):
        _arm(canvas, upper, frame, _arm_joints(frame, scene, near, 0.5 + 0.5 * person.body.swing), far=False)


def _hair_behind(canvas: Canvas, person: Person, frame: Frame, scene: Scene) -> None:
    """Hair that the body covers when seen from the front."""
    head = person.head
    if head.headwear == "headscarf" or scene.view is View.BACK:
        return
    x, size = -0.012 * frame.forward, frame.head
    if head.hair == "long":
        canvas.polygon(
            Layer.HAIR,
            (
                (x - 0.060 * size, 0.08),
                (x + 0.060 * size * (1 - frame.side), 0.08),
                (x + 0.068 * size * (1 - frame.side), 0.275),
                (x - 0.068 * size, 0.275),
            ),
        )
    elif head.hair == "ponytail" and not frame.side:
        canvas.ellipse(Layer.HAIR, 0.055 * size, 0.13, 0.018, 0.055)


def _head(canvas: Canvas, person: Person, frame: Frame, scene: Scene) -> None:
    head, size = person.head, frame.head
    rx, ry = 0.054 * size * (1.1 if frame.side else 1.0), 0.073 * size
    back = scene.view is View.BACK
    forward = frame.forward
    _skull(canvas, head.hair, head.headwear == "headscarf", rx, ry, forward)
    if back:
        if head.hair == "bald" and head.headwear == "none":
            canvas.ellipse(Layer.SKIN, 0.0, HEAD_Y, rx, ry)
    else:
        _face(canvas, person, rx, ry, forward)
    _hair_above(canvas, head.hair, head.headwear == "headscarf", size, forward, back)
    _headwear(canvas, head.headwear, rx, ry, forward, back)


def _skull(canvas: Canvas, hair: str, covered: bool, rx: float, ry: float, forward: float) -> None:
    if hair == "bald" and not covered:
        canvas.ellipse(Layer.SKIN, 0.0, HEAD_Y, rx, ry)
        return
    layer = Layer.HEADWEAR if covered else Layer.HAIR
    if hair == "curly" and not covered:
        canvas.ellipse(layer, -0.012 * forward, HEAD_Y - 0.008, rx * 1.55, ry * 1.22)
        return
    canvas.ellipse(layer, -0.006 * forward, HEAD_Y - 0.004, rx * 1.12, ry * 1.06)
    if hair == "bob" or covered:
        front = rx * (0.15 if forward else 1.22)
        canvas.polygon(
            layer, ((-rx * 1.12, HEAD_Y - 0.01), (front * 0.9, HEAD_Y - 0.01), (front, 0.165), (-rx * 1.3, 0.165))
        )


def _face(canvas: Canvas, person: Person, rx: float, ry: float, forward: float) -> None:
    head = person.head
    shift = rx * 0.30 * forward
    covers = head.hair in ("bob", "long", "curly") or head.headwear == "headscarf"
    width = rx * (0.80 if covers else 0.94) * (0.85 if forward else 1.0)
    canvas.ellipse(Layer.SKIN, shift, HEAD_Y + ry * 0.22, width, ry * 0.82)
    if forward:
        nose = shift + width
        canvas.polygon(
            Layer.SKIN, ((nose - 0.012, HEAD_Y), (nose + 0.012, HEAD_Y + 0.022), (nose - 0.012, HEAD_Y + 0.028))
        )
    if head.beard:
        canvas.ellipse(Layer.BEARD, shift + 0.004 * forward, HEAD_Y + ry * 0.74, width * 0.86, ry * 0.36)
    eye_y = HEAD_Y + ry * 0.10
    eyes = (shift + width * 0.45,) if forward else (-width * 0.42, width * 0.42)
    for x in eyes:
        canvas.ellipse(Layer.EYES, x, eye_y, 0.0065, 0.0060)
    canvas.ellipse(Layer.MOUTH, shift + width * 0.35 * forward, HEAD_Y + ry * 0.66, width * 0.28, 0.005)
    if head.glasses != "none":
        layer = Layer.GLASSES if head.glasses == "sunglasses" else Layer.LENSES
        half = 0.0165 if head.glasses == "sunglasses" else 0.0150
        canvas.polygon(
            Layer.GLASSES,
            (
                (shift - width, eye_y - 0.004),
                (shift + width, eye_y - 0.004),
                (shift + width, eye_y + 0.003),
                (shift - width, eye_y + 0.003),
            ),
        )
        for x in eyes:
            canvas.ellipse(Layer.GLASSES, x, eye_y, half + 0.004, half + 0.002)
            canvas.ellipse(layer, x, eye_y, half - 0.002, half - 0.004)


def _hair_above(canvas: Canvas, hair: str, covered: bool, size: float, forward: float, back: bool) -> None:
    """Hair that lies over the head or, from behind, over the back."""
    if covered:
        return
    if hair == "bun":
        canvas.ellipse(Layer.HAIR, -0.045 * forward, 0.022 if not forward else 0.045, 0.030 * size, 0.028 * size)
    elif hair == "ponytail" and (back or forward):
        x = -0.060 * forward
        canvas.limb(Layer.HAIR, ((x, 0.075), (x - 0.012 * forward, 0.15), (x, 0.235)), (0.020, 0.026, 0.010))
    elif hair == "long" and back:
        canvas.polygon(
            Layer.HAIR, ((-0.058 * size, 0.08), (0.058 * size, 0.08), (0.066 * size, 0.285), (-0.066 * size, 0.285))
        )


def _headwear(canvas: Canvas, kind: str, rx: float, ry: float, forward: float, back: bool) -> None:
    top, line = HEAD_Y - ry * 1.18, HEAD_Y - ry * 0.22
    if kind in ("cap", "beanie", "hat"):
        wide = rx * 1.18
        canvas.polygon(
            Layer.HEADWEAR,
            (
                (-wide, line),
                (-wide * 0.94, top + 0.025),
                (-wide * 0.5, top),
                (wide * 0.5, top),
                (wide * 0.94, top + 0.025),
                (wide, line),
            ),
        )
    if kind == "cap" and not back:
        start, end = (rx * 0.6, rx * 2.1) if forward else (-rx * 1.0, rx * 1.0)
        canvas.polygon(
            Layer.BRIM, ((start, line - 0.012), (end, line - 0.002), (end, line + 0.012), (start, line + 0.006))
        )
    elif kind == "beanie":
        canvas.polygon(
            Layer.BRIM,
            ((-rx * 1.2, line - 0.022), (rx * 1.2, line - 0.022), (rx * 1.2, line + 0.006), (-rx * 1.2, line + 0.006)),
        )
        canvas.ellipse(Layer.BRIM, 0.0, top - 0.002, 0.016, 0.014)
    elif kind == "hat":
        canvas.ellipse(Layer.HEADWEAR, 0.0, line - 0.002, rx * 2.1, 0.016)
        canvas.polygon(
            Layer.BRIM,
            (
                (-rx * 1.17, line - 0.030),
                (rx * 1.17, line - 0.030),
                (rx * 1.18, line - 0.014),
                (-rx * 1.18, line - 0.014),
            ),
        )


def _scarf(canvas: Canvas, frame: Frame, scene: Scene) -> None:
    wide = 0.056 * (0.8 if frame.side else 1.0)
    canvas.ellipse(Layer.SCARF, 0.0, 0.172, wide, 0.026)
    if scene.view is not View.BACK:
        x = 0.03 if frame.side else 0.02
        canvas.polygon(Layer.SCARF, ((x - 0.018, 0.175), (x + 0.018, 0.175), (x + 0.022, 0.31), (x - 0.016, 0.31)))


def _bag_behind(canvas: Canvas, outfit: Outfit, frame: Frame) -> None:
    """The bags that the body covers."""
    kind = outfit.bag.kind
    if kind == "backpack" and frame.side:
        canvas.polygon(
            Layer.BAG,
            (
                (-frame.waist * 0.6, 0.20),
                (-frame.waist - 0.06, 0.21),
                (-frame.waist - 0.085, 0.30),
                (-frame.waist - 0.075, 0.41),
                (-frame.waist * 0.6, 0.41),
            ),
        )
    elif kind == "suitcase":
        x = -0.150 if frame.side else 0.145
        canvas.polygon(
            Layer.STRAP,
            (
                (x - 0.030, 0.56),
                (x + 0.030, 0.56),
                (x + 0.030, 0.72),
                (x + 0.018, 0.72),
                (x + 0.018, 0.575),
                (x - 0.018, 0.575),
                (x - 0.018, 0.72),
                (x - 0.030, 0.72),
            ),
        )
        canvas.polygon(Layer.BAG, ((x - 0.062, 0.71), (x + 0.062, 0.71), (x + 0.062, 0.975), (x - 0.062, 0.975)))


def _bag(canvas: Canvas, outfit: Outfit, frame: Frame, scene: Scene) -> None:
    kind = outfit.bag.kind
    if kind == "backpack" and not frame.side:
        x = frame.shoulder * 0.62
        if scene.view is View.BACK:
            half = 0.078
            canvas.polygon(
                Layer.BAG,
                ((-half * 0.8, 0.195), (half * 0.8, 0.195), (half, 0.23), (half, 0.42), (-half, 0.42), (-half, 0.23)),
            )
            canvas.polygon(
                Layer.STRAP, ((-half * 0.7, 0.325), (half * 0.7, 0.325), (half * 0.7, 0.335), (-half * 0.7, 0.335))
            )
        else:
            for sign in (-1, 1):
                canvas.polygon(
                    Layer.BAG,
                    (
                        (sign * (x - 0.015), 0.178),
                        (sign * (x + 0.015), 0.178),
                        (sign * (x + 0.012), 0.37),
                        (sign * (x - 0.018), 0.37),
                    ),
                )
    elif kind == "shoulder bag":
        low = frame.hip + 0.015 if not frame.side else 0.02
        start = -frame.shoulder * 0.6 if not frame.side else 0.0
        canvas.polygon(
            Layer.STRAP, ((start - 0.010, 0.178), (start + 0.012, 0.178), (low + 0.012, 0.45), (low - 0.012, 0.45))
        )
        canvas.polygon(Layer.BAG, ((low - 0.058, 0.44), (low + 0.058, 0.44), (low + 0.064, 0.57), (low - 0.064, 0.57)))
    elif kind == "handbag":
        x, y = _arm_joints(frame, scene, 1, 0.75)[-1]
        canvas.polygon(
            Layer.STRAP, ((x - 0.03, y + 0.075), (x - 0.005, y + 0.02), (x + 0.005, y + 0.02), (x + 0.03, y + 0.075))
        )
        canvas.polygon(
            Layer.BAG, ((x - 0.042, y + 0.07), (x + 0.042, y + 0.07), (x + 0.055, y + 0.175), (x - 0.055, y + 0.175))
        )


def _patterns(labels: NDArray[np.uint8], canvas: Canvas, outfit: Outfit, frame: Frame) -> None:
    """Turn parts of the garments' first layers into their second layers."""
    origin = canvas.pixel(0.0, SHOULDER_Y)
    bottom = canvas.pixel(0.0, ANKLE_Y)[1]
    unit = (bottom - origin[1]) / (ANKLE_Y - SHOULDER_Y)
    upper = outfit.upper
    layers = ((Layer.UPPER, Layer.UPPER_SECOND), (Layer.SLEEVE, Layer.SLEEVE_SECOND))
    aspect = canvas.width / (canvas.height * FRAME_WIDTH)
    paint_pattern(labels, upper.pattern, upper.scale, layers, origin, (unit * aspect, unit))
    if outfit.lower is not None:
        hip = canvas.pixel(0.0, frame.hip_y)
        paint_pattern(
            labels,
            outfit.lower.pattern,
            outfit.lower.scale,
            ((Layer.LOWER, Layer.LOWER_SECOND),),
            hip,
            (unit * aspect, unit),
        )
