"""Draws a person as a map of labelled layers: what is where, before any modality decides what it looks like."""

from __future__ import annotations

import random

import numpy as np
from numpy.typing import NDArray

from datasets.synthetic.canvas import (
    ANKLE_Y,
    FRAME_WIDTH,
    SHOULDER_Y,
    Canvas,
    Frame,
    Layer,
    Point,
    Scene,
)
from datasets.synthetic.head import draw_hair_behind, draw_head
from datasets.synthetic.patterns import paint_pattern
from datasets.synthetic.person import Person, View
from datasets.synthetic.wardrobe import Garment, Outfit


def draw_labels(
    person: Person, outfit: Outfit, scene: Scene, size: tuple[int, int], rng: random.Random
) -> NDArray[np.uint8]:
    """Return the label map (height * SUPERSAMPLING, width * SUPERSAMPLING) uint8 of `Layer` values."""
    canvas = Canvas(scene, size, rng, person.head.zoom)
    frame = _measure(person, scene)
    _bag_behind(canvas, outfit, frame)
    _far_arm(canvas, outfit.upper, frame, scene)
    canvas.in_head = True
    draw_hair_behind(canvas, person, frame, scene)
    canvas.in_head = False
    _legs(canvas, person, outfit, frame, scene)
    _torso(canvas, outfit, frame, scene)
    _arms(canvas, person, outfit.upper, frame, scene)
    canvas.in_head = True
    draw_head(canvas, person, frame, scene)
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
