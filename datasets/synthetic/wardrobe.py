"""Clothes: garments with kind, length, pattern, two colours and a material that decides how they look in near infrared.

Outfit `number` of a person is a pure function of (seed, person, number); a person owns as many as a layout asks for.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from datasets.synthetic.nuisance import NIR_PATTERN_CONTRAST, NIR_REFLECTANCE_SPREAD
from datasets.synthetic.person import RGB, Person
from utils.seeding import stream

COLOURS: dict[str, RGB] = {
    "black": (28, 28, 31),
    "white": (240, 240, 238),
    "grey": (140, 142, 146),
    "red": (200, 34, 40),
    "orange": (238, 128, 30),
    "yellow": (240, 212, 62),
    "green": (40, 136, 62),
    "blue": (36, 82, 200),
    "purple": (118, 52, 156),
    "pink": (240, 144, 184),
    "brown": (112, 70, 44),
    "turquoise": (52, 186, 190),
}

REFLECTANCE = {
    "linen": 0.92,
    "cotton": 0.80,
    "fleece": 0.68,
    "wool": 0.57,
    "polyester": 0.47,
    "denim": 0.36,
    "nylon": 0.25,
    "leather": 0.14,
}
"""Share of the lamp's near infrared that a material sends back, whatever its dye."""

DYES = {
    "linen": ("white", "yellow", "turquoise"),
    "cotton": ("white", "yellow", "pink"),
    "fleece": ("orange", "pink", "grey"),
    "wool": ("grey", "red", "green", "brown"),
    "polyester": ("red", "turquoise", "blue", "orange"),
    "denim": ("blue", "grey", "black"),
    "nylon": ("black", "purple", "green", "blue"),
    "leather": ("black", "brown", "purple"),
}
"""Colours in which a material comes: all that near infrared tells about a colour is that some belong to some
materials.
"""

UPPER_MATERIALS = {
    "t-shirt": ("cotton", "polyester", "linen", "nylon"),
    "shirt": ("cotton", "linen", "denim", "polyester"),
    "sweater": ("wool", "cotton", "fleece"),
    "hoodie": ("fleece", "cotton", "nylon"),
    "jacket": ("leather", "denim", "nylon", "polyester"),
    "coat": ("wool", "nylon", "leather", "fleece"),
    "vest": ("nylon", "wool", "fleece", "leather"),
    "dress": ("cotton", "linen", "polyester", "wool"),
}
LOWER_MATERIALS = {
    "trousers": ("cotton", "wool", "polyester", "leather"),
    "jeans": ("denim",),
    "leggings": ("polyester", "leather", "nylon"),
    "wide trousers": ("linen", "cotton", "wool"),
    "shorts": ("cotton", "nylon", "polyester"),
    "skirt": ("cotton", "leather", "denim"),
    "long skirt": ("linen", "wool", "nylon"),
}
PATTERNS = ("plain", "wide stripes", "thin stripes", "vertical stripes", "checks", "dots", "block", "panel", "sleeves")


@dataclass(frozen=True, slots=True)
class Garment:
    """One garment. length in 0 (shortest cut of its kind) .. 1; sleeve 'none', 'short' or 'long' (upper only); scale of
    the pattern around 1; colours as drawn, with the catalogue's words; reflectances in near infrared."""

    kind: str
    length: float
    sleeve: str
    pattern: str
    scale: float
    material: str
    words: tuple[str, str]
    colours: tuple[RGB, RGB]
    reflectances: tuple[float, float]


@dataclass(frozen=True, slots=True)
class Extra:
    """Shoes, a bag or a scarf: kind ('none' when absent), colour word, colour as drawn and reflectance."""

    kind: str
    word: str
    colour: RGB
    reflectance: float


@dataclass(frozen=True, slots=True)
class Outfit:
    """What a person wears. inner is the colour under an open jacket; with a dress there is no lower garment."""

    upper: Garment
    lower: Garment | None
    open_front: bool
    inner: Extra
    shoes: Extra
    bag: Extra
    scarf: Extra


def make_outfit(seed: int, person: Person, number: int) -> Outfit:
    """Return outfit `number` of a person."""
    rng = stream(seed, "outfit", person.index, number)
    woman = person.sex == "woman"
    kinds = ("t-shirt", "shirt", "sweater", "hoodie", "jacket", "coat", "vest") + (("dress",) if woman else ())
    kind = rng.choice(kinds)
    upper = _garment(
        rng, kind, rng.choice(UPPER_MATERIALS[kind]), rng.choices(PATTERNS, (4, 2, 1, 1, 1, 1, 2, 2, 2))[0]
    )
    below = ("trousers", "jeans", "shorts", "wide trousers") + (("leggings", "skirt", "long skirt") if woman else ())
    kind = rng.choice(below)
    pattern = rng.choices(("plain", "checks", "vertical stripes", "panel"), (8, 1, 1, 1))[0]
    lower = _garment(rng, kind, rng.choice(LOWER_MATERIALS[kind]), pattern)
    return Outfit(
        upper=upper,
        lower=None if upper.kind == "dress" else lower,
        open_front=upper.kind in ("jacket", "coat", "vest") and rng.random() < 0.5,
        inner=_extra(rng, "shirt", ("white", "black", "grey", "red", "yellow", "blue"), 0.7),
        shoes=_extra(
            rng, rng.choice(("sneakers", "boots", "shoes")), ("black", "white", "brown", "red", "blue", "grey"), 0.4
        ),
        bag=_extra(
            rng,
            rng.choices(("none", "backpack", "shoulder bag", "handbag", "suitcase"), (9, 4, 3, 2, 2))[0],
            ("black", "red", "blue", "brown", "green", "yellow", "pink"),
            0.35,
        ),
        scarf=_extra(
            rng, "scarf" if rng.random() < 0.14 else "none", ("red", "white", "blue", "yellow", "green", "purple"), 0.6
        ),
    )


def _garment(rng: random.Random, kind: str, material: str, pattern: str) -> Garment:
    first = rng.choice(DYES[material])
    second = rng.choice([name for name in (*DYES[material], "white", "black") if _distance(name, first) > 120])
    sleeve = {"t-shirt": "short", "vest": "none", "dress": rng.choice(("none", "short", "long"))}.get(kind, "long")
    if sleeve == "none" and pattern == "sleeves":
        pattern = "block"
    base = REFLECTANCE[material] + rng.uniform(-NIR_REFLECTANCE_SPREAD, NIR_REFLECTANCE_SPREAD)
    # A dye hardly absorbs near infrared: what is left of a pattern is a small step of random sign.
    other = base + rng.choice((-1, 1)) * NIR_PATTERN_CONTRAST * rng.uniform(0.2, 1.0)
    return Garment(
        kind,
        rng.random(),
        sleeve,
        pattern,
        rng.uniform(0.8, 1.3),
        material,
        (first, second),
        (_vary(rng, COLOURS[first]), _vary(rng, COLOURS[second])),
        (_unit(base), _unit(other)),
    )


def _extra(rng: random.Random, kind: str, words: tuple[str, ...], reflectance: float) -> Extra:
    word = rng.choice(words)
    return Extra(kind, word, _vary(rng, COLOURS[word]), _unit(reflectance + rng.uniform(-0.15, 0.15)))


def _distance(one: str, two: str) -> int:
    return sum(abs(a - b) for a, b in zip(COLOURS[one], COLOURS[two]))


def _vary(rng: random.Random, colour: RGB, spread: int = 16) -> RGB:
    red, green, blue = (min(255, max(0, value + rng.randint(-spread, spread))) for value in colour)
    return red, green, blue


def _unit(value: float) -> float:
    return min(1.0, max(0.05, value))
