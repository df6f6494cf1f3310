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
    "black": (30, 30, 33), "white": (238, 238, 236), "grey": (136, 138, 142), "red": (198, 36, 42),
    "orange": (234, 124, 34), "yellow": (238, 206, 60), "green": (46, 140, 70), "blue": (38, 88, 196),
    "navy": (28, 38, 88), "purple": (118, 58, 150), "pink": (238, 142, 178), "brown": (114, 74, 48),
    "beige": (214, 194, 158), "turquoise": (56, 180, 184),
}

REFLECTANCE = {"linen": 0.86, "cotton": 0.74, "fleece": 0.66, "wool": 0.58, "polyester": 0.50, "denim": 0.42,
               "nylon": 0.32, "leather": 0.18}
"""Share of the lamp's near infrared that a material sends back, whatever its dye."""

DYES = {"denim": ("blue", "navy", "black", "grey"), "leather": ("black", "brown", "red"),
        "linen": ("white", "beige", "grey", "blue", "green", "pink", "yellow")}
"""Colours of the materials that do not come in every colour."""

UPPER_MATERIALS = {"t-shirt": ("cotton", "polyester", "linen"), "shirt": ("cotton", "linen"), "sweater": ("wool", "cotton"),
                   "hoodie": ("fleece", "cotton"), "jacket": ("leather", "denim", "nylon"), "coat": ("wool", "nylon"),
                   "vest": ("nylon", "wool"), "dress": ("cotton", "linen", "polyester")}
LOWER_MATERIALS = {"trousers": ("cotton", "wool", "polyester"), "jeans": ("denim",), "leggings": ("polyester",),
                   "wide trousers": ("linen", "cotton"), "shorts": ("cotton", "nylon"), "skirt": ("cotton", "leather", "denim"),
                   "long skirt": ("linen", "wool")}
PATTERNS = ("plain", "wide stripes", "thin stripes", "vertical stripes", "checks", "dots", "block", "panel", "sleeves")


@dataclass(frozen=True, slots=True)
class Garment:
    """One garment. length in 0 (shortest cut of its kind) .. 1; sleeve 'none', 'short' or 'long' (upper only); scale of the
    pattern around 1; colours as drawn, with the catalogue's words; reflectances in near infrared."""

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
    upper = _garment(rng, kind, rng.choice(UPPER_MATERIALS[kind]), rng.choices(PATTERNS, (4, 2, 1, 1, 1, 1, 2, 2, 2))[0])
    below = ("trousers", "jeans", "shorts", "wide trousers") + (("leggings", "skirt", "long skirt") if woman else ())
    kind = rng.choice(below)
    pattern = rng.choices(("plain", "checks", "vertical stripes", "panel"), (8, 1, 1, 1))[0]
    lower = _garment(rng, kind, rng.choice(LOWER_MATERIALS[kind]), pattern)
    return Outfit(
        upper=upper,
        lower=None if upper.kind == "dress" else lower,
        open_front=upper.kind in ("jacket", "coat", "vest") and rng.random() < 0.5,
        inner=_extra(rng, "shirt", ("white", "black", "grey", "red", "yellow", "blue"), 0.7),
        shoes=_extra(rng, rng.choice(("sneakers", "boots", "shoes")), ("black", "white", "brown", "red", "blue", "grey"), 0.4),
        bag=_extra(rng, rng.choices(("none", "backpack", "shoulder bag", "handbag", "suitcase"), (9, 4, 3, 2, 2))[0],
                   ("black", "red", "blue", "brown", "green", "yellow", "pink"), 0.35),
        scarf=_extra(rng, "scarf" if rng.random() < 0.14 else "none", ("red", "white", "blue", "yellow", "green", "purple"), 0.6),
    )


def _garment(rng: random.Random, kind: str, material: str, pattern: str) -> Garment:
    dyes = DYES.get(material, tuple(COLOURS))
    first = rng.choice(dyes)
    second = rng.choice([name for name in COLOURS if _distance(name, first) > 150])
    sleeve = {"t-shirt": "short", "vest": "none", "dress": rng.choice(("none", "short", "long"))}.get(kind, "long")
    if sleeve == "none" and pattern == "sleeves":
        pattern = "block"
    base = REFLECTANCE[material] + rng.uniform(-NIR_REFLECTANCE_SPREAD, NIR_REFLECTANCE_SPREAD)
    # A dye hardly absorbs near infrared: what is left of a pattern is a small step of random sign.
    other = base + rng.choice((-1, 1)) * NIR_PATTERN_CONTRAST * rng.uniform(0.2, 1.0) * 0.6
    return Garment(kind, rng.random(), sleeve, pattern, rng.uniform(0.8, 1.3), material, (first, second),
                   (_vary(rng, COLOURS[first]), _vary(rng, COLOURS[second])), (_unit(base), _unit(other)))


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
