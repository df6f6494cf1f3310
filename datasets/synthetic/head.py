"""Draws a person's head on the canvas: hair, face, glasses, headwear."""

from __future__ import annotations

from datasets.synthetic.canvas import HEAD_Y, Canvas, Frame, Layer, Scene
from datasets.synthetic.person import Person, View


def draw_hair_behind(canvas: Canvas, person: Person, frame: Frame, scene: Scene) -> None:
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


def draw_head(canvas: Canvas, person: Person, frame: Frame, scene: Scene) -> None:
    """Skull, face, hair that lies over them, and what the head wears."""
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
