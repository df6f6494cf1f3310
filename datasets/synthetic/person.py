"""The population: who exists, what survives a change of clothes, and who may be trained on.

A person is a pure function of (seed, index). Membership is a property of the index alone and the same in every layout:
indices below VAL_START are training persons, then validation, then test. The test range is cut into blocks of
`BLOCK` persons, one block per layout, so that the test sets of two layouts share nobody.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from enum import Enum

from utils.seeding import stream

VAL_START = 10_000_000
TEST_START = 20_000_000
BLOCK = 100_000


class Membership(str, Enum):
    """The only part of a dataset in which a person may appear."""

    TRAIN = "train"
    VAL = "val"
    TEST = "test"


class View(str, Enum):
    """Side from which a person is seen; `side` may face left or right."""

    FRONT = "front"
    BACK = "back"
    SIDE = "side"


RGB = tuple[int, int, int]

SKIN_TONES: dict[str, RGB] = {
    "pale": (245, 216, 196),
    "fair": (232, 190, 160),
    "olive": (206, 160, 120),
    "tan": (176, 124, 86),
    "brown": (130, 86, 58),
    "dark": (84, 56, 42),
}
HAIR_COLOURS: dict[str, RGB] = {
    "black": (24, 20, 20),
    "brown": (92, 58, 36),
    "blond": (222, 188, 112),
    "red": (168, 70, 32),
    "grey": (148, 146, 146),
    "white": (228, 226, 222),
}
HEADWEAR_COLOURS: dict[str, RGB] = {
    "black": (28, 28, 30),
    "white": (240, 240, 238),
    "red": (200, 36, 40),
    "blue": (40, 84, 190),
    "green": (44, 130, 66),
    "yellow": (236, 200, 50),
    "pink": (236, 140, 176),
    "brown": (112, 74, 46),
}


@dataclass(frozen=True, slots=True)
class Head:
    """Hair, face and headwear. hair is 'bald', 'short', 'curly', 'bob', 'long', 'ponytail' or 'bun'; headwear is
    'none', 'cap', 'beanie', 'hat' or 'headscarf'; glasses is 'none', 'glasses' or 'sunglasses'. size scales the head;
    zoom is not the person's but the picture's: it enlarges the head together with everything in and on it."""

    hair: str
    hair_colour: str
    headwear: str
    headwear_colour: str
    glasses: str
    beard: bool
    size: float
    zoom: float = 1.0


@dataclass(frozen=True, slots=True)
class Body:
    """Proportions, all multipliers around 1 except leg (share of the height below the hip) and stance, swing, slouch
    (habits).
    """

    height: float
    girth: float
    shoulders: float
    hips: float
    leg: float
    stance: float
    swing: float
    slouch: float

    @property
    def build(self) -> str:
        """The word for the girth: 'slim', 'average' or 'heavy'."""
        return "slim" if self.girth < 0.88 else "heavy" if self.girth > 1.14 else "average"


@dataclass(frozen=True, slots=True)
class Person:
    """What survives a change of clothes."""

    index: int
    sex: str
    age: str
    skin: str
    body: Body
    head: Head

    @property
    def membership(self) -> Membership:
        """The part of every dataset to which this person belongs."""
        return membership(self.index)


def membership(index: int) -> Membership:
    """Return the part of every layout in which the person `index` may appear."""
    if index < VAL_START:
        return Membership.TRAIN
    return Membership.VAL if index < TEST_START else Membership.TEST


def person_indices(part: Membership, count: int, block: int = 0) -> range:
    """Return the first `count` persons of a part; `block` picks a layout's own test persons."""
    assert 0 <= count <= BLOCK and block >= 0
    start = {Membership.TRAIN: 0, Membership.VAL: VAL_START, Membership.TEST: TEST_START}[part]
    return range(start + block * BLOCK, start + block * BLOCK + count)


def make_person(seed: int, index: int) -> Person:
    """Return the person `index` of the population `seed`; each group of attributes has a stream of its own."""
    base = stream(seed, "person", index)
    sex = base.choice(("man", "woman"))
    age = base.choices(("young", "adult", "older"), (4, 4, 2))[0]
    skin = base.choice(tuple(SKIN_TONES))
    return Person(
        index, sex, age, skin, _body(stream(seed, "body", index), sex), _head(stream(seed, "head", index), sex, age)
    )


def _body(rng: random.Random, sex: str) -> Body:
    man = sex == "man"
    return Body(
        height=rng.uniform(0.96, 0.99) + (0.01 if man else 0.0),
        girth=rng.choice((rng.uniform(0.74, 0.86), rng.uniform(0.90, 1.10), rng.uniform(1.18, 1.42))),
        shoulders=rng.uniform(0.98, 1.16) if man else rng.uniform(0.86, 1.02),
        hips=rng.uniform(0.88, 1.02) if man else rng.uniform(1.0, 1.2),
        leg=rng.uniform(0.455, 0.525),
        stance=rng.uniform(0.0, 1.0),
        swing=rng.uniform(0.0, 1.0),
        slouch=rng.uniform(-0.02, 0.03),
    )


def _head(rng: random.Random, sex: str, age: str) -> Head:
    styles = (
        (("bald", 2), ("short", 5), ("curly", 2), ("long", 1))
        if sex == "man"
        else (("short", 1), ("curly", 2), ("bob", 3), ("long", 4), ("ponytail", 2), ("bun", 2))
    )
    colours = (
        ("grey", "white", "black", "brown") if age == "older" else ("black", "brown", "blond", "red", "black", "brown")
    )
    scarf = 2 if sex == "woman" else 0
    return Head(
        hair=rng.choices([name for name, _ in styles], [weight for _, weight in styles])[0],
        hair_colour=rng.choice(colours),
        headwear=rng.choices(("none", "cap", "beanie", "hat", "headscarf"), (12, 3, 2, 2, scarf))[0],
        headwear_colour=rng.choice(tuple(HEADWEAR_COLOURS)),
        glasses=rng.choices(("none", "glasses", "sunglasses"), (6, 2, 1))[0],
        beard=sex == "man" and rng.random() < 0.4,
        size=rng.uniform(0.94, 1.12),
    )
