"""LaST: last/train/<pid>/<pid>_..._<clothes>.jpg, last/{val,test}/query/*.jpg, last/{val,test}/gallery/<pid>/*.jpg.

No cameras in the names, clothes only in those of the training pictures. The validation persons are nobody else's.
"""

from __future__ import annotations

from datasets.synthetic.arguments import RenderArguments
from datasets.synthetic.population import BLOCKS, draw_ids, need_outfits, test_persons, train_persons, val_persons
from datasets.synthetic.roll import Roll
from datasets.synthetic.shots import Plan
from utils.seeding import stream

FOLDER = "last"
BLOCK = BLOCKS["last"]
SCENES = 200
"""Places in which films were shot."""


def plan(arguments: RenderArguments) -> Plan:
    """Return the pictures: per outfit as many as asked for, and one query per outfit. Raises UserError."""
    need_outfits(arguments, 2)
    roll, seed = Roll(arguments.seed, "last"), arguments.seed
    train, test = train_persons(arguments, BLOCK), test_persons(arguments, BLOCK)
    val = val_persons(BLOCK, max(2, len(test) // 10))
    ids = draw_ids(seed, "last", (*train, *val, *test), 0, 999_999)
    for person in train:
        for outfit in range(arguments.outfits):
            _take(
                roll,
                f"train/{ids[person]:06d}",
                person,
                outfit,
                ids[person],
                (seed, arguments.images_per_modality, f"_{outfit}"),
            )
    for part, persons in (("val", val), ("test", test)):
        for person in persons:
            for outfit in range(arguments.outfits):
                _take(roll, f"{part}/query", person, outfit, ids[person], (seed, 1, ""))
                _take(
                    roll,
                    f"{part}/gallery/{ids[person]:06d}",
                    person,
                    outfit,
                    ids[person],
                    (seed, arguments.images_per_modality, ""),
                )
    return Plan(tuple(roll.shots), {})


def _take(roll: Roll, folder: str, person: int, outfit: int, label: int, how: tuple[int, int, str]) -> None:
    """how: seed, number of pictures, end of their names."""
    seed, count, ending = how
    rng = stream(seed, "last", "film", folder, person, outfit)
    for number in range(count):
        scene = rng.randint(1, SCENES)
        roll.take(f"{folder}/{label:06d}_m{scene:03d}_{outfit * 1000 + number:06d}{ending}.jpg", person, outfit, scene)
