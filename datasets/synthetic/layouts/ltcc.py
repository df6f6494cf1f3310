"""LTCC: LTCC_ReID/{train,query,test}/140_2_c5_002106.png and info/{cloth-change,cloth-unchange}_id_{train,test}.txt.

About three of five persons change clothes. Each outfit has two cameras of its own, as far as twelve go.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from datasets.synthetic.arguments import RenderArguments
from datasets.synthetic.population import BLOCKS, draw_ids, need_outfits, test_persons, train_persons
from datasets.synthetic.roll import Roll
from datasets.synthetic.shots import Plan
from utils.seeding import stream

FOLDER = "LTCC_ReID"
BLOCK = BLOCKS["ltcc"]
LAST_PERSON = 151
CAMERAS = tuple(range(1, 13))
CHANGING = (True, False, True, False, True)


def plan(arguments: RenderArguments) -> Plan:
    """Return the pictures, as many per outfit as asked for, and the four lists of persons. Raises UserError."""
    need_outfits(arguments, 2)
    roll, seed, count = Roll(arguments.seed, "ltcc"), arguments.seed, arguments.images_per_modality
    train, test = train_persons(arguments, BLOCK), test_persons(arguments, BLOCK)
    ids = draw_ids(seed, "ltcc", (*train, *test), 0, LAST_PERSON)
    changing = {
        person for persons in (test, train) for person, change in zip(persons, CHANGING * len(persons)) if change
    }
    for part, persons in (("train", train), ("test", test)):
        for person in persons:
            for outfit, pair in _wardrobe(person, arguments.outfits if person in changing else 1, seed):
                gallery = [pair[index % 2] for index in range(count)]
                _take(roll, part, person, ids[person], outfit, gallery, seed)
                if part == "test":
                    _take(roll, "query", person, ids[person], outfit, pair if count > 1 else pair[1:], seed)
    texts = {
        f"info/cloth-{word}_id_{part}.txt": "".join(
            f"{ids[person]}\n" for person in persons if (person in changing) == (word == "change")
        )
        for part, persons in (("train", train), ("test", test))
        for word in ("change", "unchange")
    }
    return Plan(tuple(roll.shots), {}, texts)


def _wardrobe(person: int, outfits: int, seed: int) -> Iterator[tuple[int, Sequence[int]]]:
    """Yield the outfits of a person, each with its two cameras."""
    order = stream(seed, "ltcc", "cameras", person).sample(CAMERAS, len(CAMERAS))
    for outfit in range(outfits):
        start = 2 * outfit % len(order)
        yield outfit, order[start : start + 2]


def _take(roll: Roll, folder: str, person: int, label: int, outfit: int, cameras: Sequence[int], seed: int) -> None:
    start = stream(seed, "ltcc", "frames", folder, person, outfit).randrange(1, 990_000)
    for number, camera in enumerate(cameras):
        roll.take(f"{folder}/{label}_{outfit + 1}_c{camera}_{start + 5 * number:06d}.png", person, outfit, camera)
