"""Clothes templates: an outfit alone, as a shop shows it."""

from __future__ import annotations

import dataclasses
import random

import numpy as np
from PIL import Image

from datasets.synthetic.canvas import Layer, Scene
from datasets.synthetic.figure import draw_labels
from datasets.synthetic.palettes import visible_colours
from datasets.synthetic.person import Person, View
from datasets.synthetic.photographs import reduced_colours, reduced_mask
from datasets.synthetic.wardrobe import Outfit

GROUND = 244.0
SCALE, TOP = 1.14, -0.165
"""The clothes, from the neck to the soles, fill the square."""
CLOTHES = (
    Layer.UPPER,
    Layer.UPPER_SECOND,
    Layer.SLEEVE,
    Layer.SLEEVE_SECOND,
    Layer.SLEEVE_FAR,
    Layer.INNER,
    Layer.LOWER,
    Layer.LOWER_SECOND,
    Layer.LOWER_FAR,
    Layer.SHOES,
    Layer.SCARF,
)


def clothes_template(person: Person, outfit: Outfit, side: int, rng: random.Random) -> Image.Image:
    """Return an RGB picture (side, side): garments, scarf and shoes from the front, cut for the person, on a light
    ground.
    """
    worn = dataclasses.replace(outfit, bag=dataclasses.replace(outfit.bag, kind="none"))
    scene = Scene(View.FRONT, left=False, phase=0.0, arm=0.6, scale=SCALE, centre=0.5, top=TOP)
    size = (side, side // 2)
    labels = draw_labels(person, worn, scene, size, rng)
    labels[~np.isin(labels, CLOTHES)] = Layer.BACKGROUND
    bare = np.float32(1.0) - reduced_mask(labels).astype(np.float32) * np.float32(1 / 255)
    picture = reduced_colours(labels, visible_colours(person, worn)) + bare[..., None] * np.float32(GROUND)
    image = Image.new("RGB", (side, side), (round(GROUND),) * 3)
    image.paste(Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8), "RGB"), ((side - size[1]) // 2, 0))
    return image
