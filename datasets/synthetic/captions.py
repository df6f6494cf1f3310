"""Descriptions of a person from a grammar with synonyms, omissions and vague words.

The first sentence is compact and names the garments and whatever else comes to mind, in random order; the sentences
after it repeat, add detail and take their time, as people do. Some captions are longer than 77 CLIP tokens.
"""

from __future__ import annotations

import random

from datasets.synthetic import nuisance
from datasets.synthetic.person import Person, View, make_person
from datasets.synthetic.shots import Shot
from datasets.synthetic.wardrobe import Extra, Garment, Outfit, make_outfit
from utils.seeding import stream

SYNONYMS: dict[str, tuple[str, ...]] = {
    "man": ("man", "male", "guy"),
    "woman": ("woman", "female", "lady"),
    "t-shirt": ("t-shirt", "tee", "short sleeve shirt"),
    "shirt": ("shirt", "long sleeve shirt", "blouse"),
    "sweater": ("sweater", "pullover", "jumper"),
    "hoodie": ("hoodie", "hooded sweatshirt"),
    "jacket": ("jacket", "short jacket"),
    "coat": ("coat", "long coat", "overcoat"),
    "vest": ("vest", "sleeveless jacket", "gilet"),
    "dress": ("dress", "one-piece dress"),
    "trousers": ("trousers", "pants", "slacks"),
    "jeans": ("jeans", "denim pants"),
    "leggings": ("leggings", "tight pants"),
    "wide trousers": ("wide trousers", "baggy pants", "loose trousers"),
    "shorts": ("shorts", "short pants"),
    "skirt": ("skirt", "short skirt"),
    "long skirt": ("long skirt", "maxi skirt"),
    "sneakers": ("sneakers", "sports shoes", "trainers"),
    "boots": ("boots", "high boots"),
    "shoes": ("shoes", "leather shoes"),
    "backpack": ("backpack", "rucksack"),
    "shoulder bag": ("shoulder bag", "crossbody bag"),
    "handbag": ("handbag", "hand bag"),
    "suitcase": ("suitcase", "trolley case"),
    "scarf": ("scarf", "shawl"),
    "cap": ("cap", "baseball cap"),
    "beanie": ("beanie", "knitted hat"),
    "hat": ("hat", "wide-brimmed hat"),
    "headscarf": ("headscarf", "head scarf"),
    "bald": ("a bald head", "no hair"),
    "short": ("short {} hair", "cropped {} hair"),
    "curly": ("curly {} hair", "a big {} afro"),
    "bob": ("a short {} bob", "shoulder-length {} hair"),
    "long": ("long {} hair",),
    "ponytail": ("a long {} ponytail", "{} hair tied back"),
    "bun": ("a tight {} bun", "{} hair in a bun"),
    "red": ("red", "crimson", "scarlet"),
    "turquoise": ("turquoise", "teal", "cyan"),
    "purple": ("purple", "violet"),
    "grey": ("grey", "gray"),
    "blond": ("blond", "blonde", "fair"),
    "blue": ("blue",),
    "brown": ("brown", "chestnut"),
    "wide stripes": ("striped", "with broad stripes"),
    "thin stripes": ("striped", "with thin stripes"),
    "vertical stripes": ("vertically striped", "with vertical stripes"),
    "checks": ("checked", "checkered", "plaid"),
    "dots": ("dotted", "polka dot"),
    "block": ("two-tone", "colour-block"),
    "panel": ("with a broad {} panel in front", "with a broad {} stripe down the middle"),
    "sleeves": ("with {} sleeves",),
}
"""Words for a thing; `{}` stands for a colour."""

DARK = frozenset({"black", "brown", "purple", "blue", "green"})
AGES = {"young": ("young", "youthful"), "adult": ("", "middle-aged"), "older": ("older", "elderly")}
BUILDS = {"slim": ("slim", "thin", "slender"), "average": ("", "medium-built"), "heavy": ("heavy", "stout", "broad")}
VIEWS = {
    View.FRONT: ("facing the camera", "walking towards the camera"),
    View.BACK: ("seen from behind", "walking away"),
    View.SIDE: ("seen from the side", "passing by"),
}
FILLERS = (
    "The picture was taken by a surveillance camera.",
    "The person seems to be walking at a normal pace.",
    "Nothing else about the person stands out.",
    "The background is rather cluttered and not very clear.",
    "The overall look is casual and comfortable, suitable for a day outside.",
    "The posture is upright and relaxed.",
)


def make_caption(person: Person, outfit: Outfit, view: View, rng: random.Random) -> str:
    """Return a caption of one picture: several sentences of plain English; details of the face only where it shows."""
    lead = _lead(person, outfit, view, rng)
    return " ".join([lead, *_details(person, outfit, view, rng)])


def caption_of(shot: Shot, seed: int) -> str:
    """Return the caption of a picture: of the person in that outfit, seen from that side."""
    return _written(seed, "caption", shot.person, shot.outfit, shot.view, shot.index)


def description_of(seed: int, person: int, outfit: int, view: View = View.FRONT, number: int = 0) -> str:
    """Return description `number` of a person in an outfit; it belongs to no picture."""
    return _written(seed, "description", person, outfit, view, number)


def _written(seed: int, purpose: str, index: int, number: int, view: View, variant: int) -> str:
    person = make_person(seed, index)
    return make_caption(person, make_outfit(seed, person, number), view, stream(seed, purpose, index, number, variant))


def _say(key: str, rng: random.Random) -> str:
    words = SYNONYMS.get(key, (key,))
    return words[0] if rng.random() < nuisance.TEXT_CANONICAL else rng.choice(words)


def _colour(word: str, rng: random.Random) -> str:
    """Return the colour's word, a synonym, a vague word or nothing."""
    draw = rng.random()
    if draw < nuisance.TEXT_OMIT_COLOUR:
        return ""
    if draw < nuisance.TEXT_OMIT_COLOUR + nuisance.TEXT_VAGUE_COLOUR:
        return "dark" if word in DARK else "light"
    return _say(word, rng)


def _omitted(what: str, rng: random.Random) -> bool:
    return rng.random() < nuisance.TEXT_OMIT[what]


def _article(phrase: str) -> str:
    return ("an " if phrase[0] in "aeiou" else "a ") + phrase


def _garment(garment: Garment, rng: random.Random) -> str:
    """Return for instance `red and white striped sweater`."""
    first, noun = _colour(garment.words[0], rng), _say(garment.kind, rng)
    if garment.pattern == "plain" or rng.random() < nuisance.TEXT_OMIT_PATTERN:
        return f"{first} {noun}".strip()
    second, pattern = _colour(garment.words[1], rng), _say(garment.pattern, rng)
    if "{}" in pattern:
        return " ".join(f"{first} {noun} {pattern.format(second)}".split())
    colours = f"{first} and {second}" if first and second else first or second
    words = f"{colours} {noun} {pattern}" if pattern.startswith("with") else f"{colours} {pattern} {noun}"
    return " ".join(words.split())


def _lower(garment: Garment, rng: random.Random) -> str:
    phrase = _garment(garment, rng)
    return _article(phrase) if garment.kind in ("skirt", "long skirt") else phrase


def _hair(person: Person, rng: random.Random) -> str:
    phrase = _say(person.head.hair, rng)
    return phrase.format(_colour(person.head.hair_colour, rng)).replace("  ", " ")


def _thing(extra: Extra, rng: random.Random) -> str:
    return _article(f"{_colour(extra.word, rng)} {_say(extra.kind, rng)}".strip())


def _phrases(person: Person, outfit: Outfit, view: View, rng: random.Random) -> list[str]:
    """Return what comes to mind, each with its preposition; garments twice as likely to come early as the rest."""
    found: list[tuple[float, str]] = []
    if not _omitted("upper", rng):
        found.append((rng.random() * 0.6, f"in {_article(_garment(outfit.upper, rng))}"))
    if outfit.lower is not None and not _omitted("lower", rng):
        found.append((rng.random() * 0.6, f"wearing {_lower(outfit.lower, rng)}"))
    headwear = person.head.headwear
    if headwear != "none" and not _omitted("headwear", rng):
        hat = f"{_colour(person.head.headwear_colour, rng)} {_say(headwear, rng)}".strip()
        found.append((rng.random(), f"with {_article(hat)}"))
    if headwear != "headscarf" and not _omitted("hair", rng):
        found.append((rng.random(), f"with {_hair(person, rng)}"))
    if outfit.bag.kind != "none" and not _omitted("bag", rng):
        found.append((rng.random(), f"carrying {_thing(outfit.bag, rng)}"))
    if outfit.scarf.kind != "none" and not _omitted("scarf", rng):
        found.append((rng.random(), f"with {_thing(outfit.scarf, rng)}"))
    if person.head.glasses != "none" and view is not View.BACK and not _omitted("glasses", rng):
        found.append((0.3 + rng.random(), f"wearing {person.head.glasses}"))
    if person.head.beard and view is not View.BACK and not _omitted("beard", rng):
        found.append((0.3 + rng.random(), "with a beard"))
    if not _omitted("shoes", rng):
        found.append(
            (
                0.4 + rng.random(),
                f"wearing {_colour(outfit.shoes.word, rng)} {_say(outfit.shoes.kind, rng)}".replace("  ", " "),
            )
        )
    return [phrase for _, phrase in sorted(found)]


def _lead(person: Person, outfit: Outfit, view: View, rng: random.Random) -> str:
    age = rng.choice(AGES[person.age])
    build = "" if _omitted("build", rng) else rng.choice(BUILDS[person.body.build])
    words = " ".join(f"{build} {age} {_say(person.sex, rng)}".split())
    phrases = _phrases(person, outfit, view, rng)
    if len(phrases) > 2:
        phrases[-1] = f"and {phrases[-1]}"
    return " ".join([_article(words).capitalize(), *phrases]) + "."


def _details(person: Person, outfit: Outfit, view: View, rng: random.Random) -> list[str]:
    """Return the later sentences: repetitions in other words, materials, the view, and remarks that say nothing."""
    pronoun = "He" if person.sex == "man" else "She"
    sentences = [f"{pronoun} is {rng.choice(VIEWS[view])}."]
    if rng.random() < 0.75:
        sentences.append(
            f"The {_say(outfit.upper.kind, rng)} looks like it is made of {outfit.upper.material} and "
            f"{'has long sleeves' if outfit.upper.sleeve == 'long' else 'leaves the arms bare'}."
        )
    if rng.random() < 0.6:
        below = f"wears {_lower(outfit.lower, rng)}" if outfit.lower is not None else "shows the legs below the hem"
        sentences.append(
            f"On the lower part of the body the person {below} together with {_colour(outfit.shoes.word, rng)} "
            f"{_say(outfit.shoes.kind, rng)}.".replace("  ", " ")
        )
    if outfit.bag.kind == "none" and rng.random() < 0.4:
        sentences.append(f"{pronoun} does not carry any bag and both hands are free.")
    elif outfit.bag.kind != "none" and rng.random() < 0.4:
        sentences.append(f"There is also {_thing(outfit.bag, rng)} that {pronoun.lower()} takes along.")
    sentences += [sentence for sentence in rng.sample(FILLERS, 3) if rng.random() < 0.5]
    rng.shuffle(sentences)
    return sentences
