"""What is behind a person: the place of a camera, with things that differ from picture to picture."""

from __future__ import annotations

import functools
import random

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from datasets.synthetic import nuisance, textures
from datasets.synthetic.person import RGB

# A background is drawn at this height and enlarged: out of focus, and cheap.
DRAWN_HEIGHT = 32


@functools.lru_cache(maxsize=256)
def _style(place: int) -> tuple[RGB, RGB, float, tuple[RGB, ...]]:
    """Return wall colour, floor colour, horizon (0..1) and the colours of the things of a place."""
    rng = random.Random(place)
    plain, colourful = nuisance.BACKGROUND_TINT
    wall, floor = _muted(rng, 90, 215, plain), _muted(rng, 70, 190, plain)
    things = tuple(_muted(rng, 50, 220, colourful) for _ in range(5))
    return wall, floor, rng.uniform(0.45, 0.8), things


def _muted(rng: random.Random, low: int, high: int, tint: int) -> RGB:
    level = rng.randint(low, high)
    red, green, blue = (min(255, max(0, level + rng.randint(-tint, tint))) for _ in range(3))
    return red, green, blue


def draw_background(place: int, size: tuple[int, int], rng: random.Random) -> NDArray[np.uint8]:
    """Return a background (height, width, 3) uint8 of a place; the things in it are drawn anew each time."""
    wall, floor, horizon, things = _style(place)
    rows, columns = DRAWN_HEIGHT, max(8, DRAWN_HEIGHT * size[1] // size[0])
    image = Image.new("RGB", (columns, rows), wall)
    draw = ImageDraw.Draw(image)
    edge = rows * (horizon + rng.uniform(-0.06, 0.06))
    draw.polygon(((0, edge), (columns, edge + rng.uniform(-3, 3)), (columns, rows), (0, rows)), fill=floor)
    for _ in range(rng.randint(2, 5)):
        left, top = rng.uniform(-4, columns), rng.uniform(-4, rows * 0.8)
        wide, high = rng.uniform(2, columns * 0.5), rng.uniform(3, rows * 0.6)
        box = (left, top, left + wide, top + high)
        if rng.random() < 0.3:
            draw.ellipse(box, fill=rng.choice(things))
        else:
            draw.rectangle(box, fill=rng.choice(things))
    picture = np.array(image.resize((size[1], size[0]), Image.Resampling.BILINEAR), dtype=np.int16)
    picture += textures.window(textures.grain(), size[0], size[1], rng)[..., None] // 8
    return np.clip(picture, 0, 255).astype(np.uint8)


def draw_occluder(image: Image.Image, share: float, rng: random.Random) -> None:
    """Cover `share` of the width (a pillar, a passer-by) or of the height (a car, a counter) of an RGB or L picture, in
    place.
    """
    width, height = image.size
    draw = ImageDraw.Draw(image)
    colour = _muted(rng, 30, 210, 40)
    fill: RGB | int = colour if image.mode == "RGB" else sum(colour) // 3
    kind = rng.choice(("pillar", "counter", "person"))
    if kind == "counter":
        draw.rectangle((0, height * (1.0 - share), width, height), fill=fill)
        return
    left = rng.choice((-0.02, 1.02 - share)) * width
    right = left + share * width
    if kind == "pillar":
        draw.rectangle((left, 0, right, height), fill=fill)
    else:
        draw.rounded_rectangle((left, height * 0.22, right, height * 1.1), radius=share * width * 0.4, fill=fill)
        draw.ellipse((left + share * width * 0.2, height * 0.08, right - share * width * 0.2, height * 0.24), fill=fill)
