"""What each layer of a figure looks like in visible light and in near infrared."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from datasets.synthetic.canvas import Layer
from datasets.synthetic.person import HAIR_COLOURS, HEADWEAR_COLOURS, RGB, SKIN_TONES, Person
from datasets.synthetic.wardrobe import Outfit

SKIN_REFLECTANCE = {"pale": 0.80, "fair": 0.78, "olive": 0.74, "tan": 0.70, "brown": 0.63, "dark": 0.55}
HAIR_REFLECTANCE = {"black": 0.22, "brown": 0.36, "blond": 0.62, "red": 0.50, "grey": 0.48, "white": 0.66}
HEADWEAR_REFLECTANCE = {"cap": 0.62, "beanie": 0.50, "hat": 0.34, "headscarf": 0.72, "none": 0.5}


def _shade(colour: RGB, factor: float) -> RGB:
    red, green, blue = (min(255, max(0, round(value * factor))) for value in colour)
    return red, green, blue


def visible_colours(person: Person, outfit: Outfit) -> NDArray[np.uint8]:
    """Return the colour of every layer, (256, 3) uint8; the background and unused values are black."""
    upper, lower, head = outfit.upper, outfit.lower or outfit.upper, person.head
    far_sleeve = upper.colours[upper.pattern == "sleeves"]
    skin, hair = SKIN_TONES[person.skin], HAIR_COLOURS[head.hair_colour]
    hat = HEADWEAR_COLOURS[head.headwear_colour]
    colours: dict[Layer, RGB] = {
        Layer.SKIN: skin,
        Layer.SKIN_FAR: _shade(skin, 0.80),
        Layer.HAIR: hair,
        Layer.EYES: (34, 26, 24),
        Layer.GLASSES: (22, 22, 26),
        Layer.LENSES: _shade(skin, 0.92),
        Layer.BEARD: hair,
        Layer.MOUTH: (164, 76, 72),
        Layer.HEADWEAR: hat,
        Layer.BRIM: _shade(hat, 0.70 if sum(hat) > 200 else 2.2),
        Layer.UPPER: upper.colours[0],
        Layer.UPPER_SECOND: upper.colours[1],
        Layer.SLEEVE: _shade(upper.colours[0], 0.90),
        Layer.SLEEVE_SECOND: _shade(upper.colours[1], 0.90),
        Layer.SLEEVE_FAR: _shade(far_sleeve, 0.72),
        Layer.INNER: outfit.inner.colour,
        Layer.LOWER: lower.colours[0],
        Layer.LOWER_SECOND: lower.colours[1],
        Layer.LOWER_FAR: _shade(lower.colours[0], 0.76),
        Layer.SHOES: outfit.shoes.colour,
        Layer.BAG: outfit.bag.colour,
        Layer.STRAP: _shade(outfit.bag.colour, 0.55),
        Layer.SCARF: outfit.scarf.colour,
    }
    table = np.zeros((256, 3), dtype=np.uint8)
    for layer, colour in colours.items():
        table[layer] = colour
    return table


def infrared_levels(person: Person, outfit: Outfit) -> NDArray[np.uint8]:
    """Return the near-infrared level of every layer, (256,) uint8: material only; the dye of cloth does not enter."""
    upper, lower, head = outfit.upper, outfit.lower or outfit.upper, person.head
    skin, hair = SKIN_REFLECTANCE[person.skin], HAIR_REFLECTANCE[head.hair_colour]
    hat = HEADWEAR_REFLECTANCE[head.headwear]
    levels: dict[Layer, float] = {
        Layer.SKIN: skin,
        Layer.SKIN_FAR: skin * 0.8,
        Layer.HAIR: hair,
        Layer.EYES: 0.10,
        Layer.GLASSES: 0.14,
        Layer.LENSES: skin * 0.85,
        Layer.BEARD: hair,
        Layer.MOUTH: skin * 0.82,
        Layer.HEADWEAR: hat,
        Layer.BRIM: hat * 0.82,
        Layer.UPPER: upper.reflectances[0],
        Layer.UPPER_SECOND: upper.reflectances[1],
        Layer.SLEEVE: upper.reflectances[0] * 0.9,
        Layer.SLEEVE_SECOND: upper.reflectances[1] * 0.9,
        Layer.SLEEVE_FAR: upper.reflectances[upper.pattern == "sleeves"] * 0.72,
        Layer.INNER: outfit.inner.reflectance,
        Layer.LOWER: lower.reflectances[0],
        Layer.LOWER_SECOND: lower.reflectances[1],
        Layer.LOWER_FAR: lower.reflectances[0] * 0.76,
        Layer.SHOES: outfit.shoes.reflectance,
        Layer.BAG: outfit.bag.reflectance,
        Layer.STRAP: outfit.bag.reflectance * 0.7,
        Layer.SCARF: outfit.scarf.reflectance,
    }
    table = np.zeros(256, dtype=np.uint8)
    for layer, level in levels.items():
        table[layer] = round(level * 255)
    return table
