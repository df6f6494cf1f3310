"""Colour-pencil drawings and the sketches made from them."""

from __future__ import annotations

import random

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from datasets.synthetic import nuisance, textures
from datasets.synthetic.canvas import SUPERSAMPLING, Layer
from datasets.synthetic.figure import draw_labels
from datasets.synthetic.palettes import visible_colours
from datasets.synthetic.person import Person, View
from datasets.synthetic.photographs import reduced_colours, reduced_mask
from datasets.synthetic.scenes import drawing_scene
from datasets.synthetic.wardrobe import Outfit

PAPER = 253
_PATTERN_PAIRS = (
    (Layer.UPPER, Layer.UPPER_SECOND),
    (Layer.SLEEVE, Layer.SLEEVE_SECOND),
    (Layer.LOWER, Layer.LOWER_SECOND),
)


def drawn_labels(
    person: Person, outfit: Outfit, view: View, size: tuple[int, int], rng: random.Random
) -> NDArray[np.uint8]:
    """Return the label map of a drawing; a sketch of the same stream is made from the same map."""
    return draw_labels(person, outfit, drawing_scene(person, view, rng), size, rng)


def colour_pencil(person: Person, outfit: Outfit, view: View, size: tuple[int, int], rng: random.Random) -> Image.Image:
    """Return an RGB drawing of `size` on white paper: hatched fills in shifted, paler colours, dark outlines."""
    labels = drawn_labels(person, outfit, view, size, rng)
    height, width = size
    colours = reduced_colours(labels, _pencil_colours(visible_colours(person, outfit), rng))
    cover = reduced_mask(labels).astype(np.float32) * np.float32(1 / 255)
    hatch = textures.window(textures.strokes(rng.randrange(textures.STROKE_ANGLES)), height, width, rng)
    pressure = textures.window(textures.clouds(16), height, width, rng)
    ink = np.float32(1.0 - nuisance.CP_STROKE) + np.float32(nuisance.CP_STROKE) * hatch + np.float32(0.08) * pressure
    ink = np.clip(ink - np.float32(rng.uniform(*nuisance.CP_PALENESS)), 0.0, 1.0)
    # `colours` is already weighted by the cover, hence paper for the rest of the pixel.
    picture = colours * ink[..., None] + np.float32(PAPER) * (np.float32(1.0) - cover * ink)[..., None]
    line = contours(labels)
    picture *= (np.float32(1.0) - line * np.float32(nuisance.CP_LINE * 0.9))[..., None]
    return Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8), "RGB")


def sketch(
    person: Person, outfit: Outfit, view: View, size: tuple[int, int], rng: random.Random, pen: random.Random
) -> Image.Image:
    """Return a grey (mode L) sketch of `size`: the edges and strokes of the colour-pencil drawing of the stream `rng`.

    Each pixel is divided by its surroundings, as drawing filters do: areas turn white, whatever their colour, and lines
    stay. pen: the sketch's own stream (strength and gaps of the lines).
    """
    grey = colour_pencil(person, outfit, view, size, rng).convert("L")
    around = np.asarray(grey.filter(ImageFilter.BoxBlur(nuisance.SK_SOFTNESS * size[0] / 128)), dtype=np.float32)
    line = np.clip(np.float32(1.0) - np.asarray(grey, dtype=np.float32) / around, 0.0, 1.0)
    gaps = textures.window(textures.clouds(8), *size, pen)
    line *= np.clip((gaps + np.float32(1.0 - 2.0 * nuisance.SK_GAP)) * np.float32(4.0), 0.15, 1.0)
    line *= np.float32(pen.uniform(*nuisance.SK_LINE))
    return Image.fromarray(np.clip(np.float32(PAPER) * (np.float32(1.0) - line), 0, 255).astype(np.uint8))


def contours(labels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return the lines (H, W) in 0..1 between things; the two colours of one garment are one thing."""
    plain = labels.copy()
    for first, second in _PATTERN_PAIRS:
        plain[plain == second] = first
    return _edges(plain)


def _edges(labels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return the borders of equal labels as lines about a hundredth of the height wide, reduced to the picture's
    size.
    """
    lines = np.zeros(labels.shape, dtype=np.uint8)
    lines[:, 1:] = labels[:, 1:] != labels[:, :-1]
    lines[1:] |= labels[1:] != labels[:-1]
    for _ in range(max(1, round(labels.shape[0] / 384))):
        across = lines.copy()
        across[:, 1:] |= lines[:, :-1]
        across[:, :-1] |= lines[:, 1:]
        lines = across.copy()
        lines[1:] |= across[:-1]
        lines[:-1] |= across[1:]
    lines *= np.uint8(255)
    return np.asarray(Image.fromarray(lines).reduce(SUPERSAMPLING), dtype=np.float32) * np.float32(1 / 255)


def _pencil_colours(colours: NDArray[np.uint8], rng: random.Random) -> NDArray[np.uint8]:
    """Return the layers' colours as somebody draws them: a common tint, and one error for the two layers of a thing."""
    table = colours.astype(np.float64)
    common = [rng.gauss(0.0, nuisance.CP_GLOBAL_SHIFT) for _ in range(3)]
    groups = (
        (Layer.SKIN, Layer.SKIN_FAR, Layer.LENSES),
        (Layer.HAIR, Layer.BEARD),
        (Layer.HEADWEAR, Layer.BRIM),
        (Layer.UPPER, Layer.SLEEVE, Layer.SLEEVE_FAR),
        (Layer.UPPER_SECOND, Layer.SLEEVE_SECOND),
        (Layer.INNER,),
        (Layer.LOWER, Layer.LOWER_FAR),
        (Layer.LOWER_SECOND,),
        (Layer.SHOES,),
        (Layer.BAG, Layer.STRAP),
        (Layer.SCARF,),
    )
    for group in groups:
        table[list(group)] += [shift + rng.gauss(0.0, nuisance.CP_COLOUR_SHIFT) for shift in common]
    return np.clip(np.rint(table), 0, 255).astype(np.uint8)
