"""PRCC: prcc/rgb/{train,val}/<pid>/A_cropped_rgb001.jpg and prcc/rgb/test/{A,B,C}/<pid>/cropped_rgb001.jpg.

Cameras A and B see the first outfit in two rooms, C sees the second. The validation pictures are of training persons.
"""

from __future__ import annotations

from datasets.synthetic.arguments import RenderArguments
from datasets.synthetic.population import BLOCKS, draw_ids, need_outfits, test_persons, train_persons
from datasets.synthetic.roll import Roll
from datasets.synthetic.shots import Plan

FOLDER = "prcc"
BLOCK = BLOCKS["prcc"]
OUTFIT_OF = {"A": 0, "B": 0, "C": 1}
NUMBER_OF = {"A": 1, "B": 2, "C": 3}


def plan(arguments: RenderArguments) -> Plan:
    """Return the pictures: in training and test as many per camera as asked for, one per camera in validation. Raises
    UserError.
    """
    need_outfits(arguments, 2)
    roll, count = Roll(arguments.seed, "prcc"), arguments.images_per_modality
    train, test = train_persons(arguments, BLOCK), test_persons(arguments, BLOCK)
    ids = draw_ids(arguments.seed, "prcc", (*train, *test), 1, 999)
    for person in train:
        for letter in OUTFIT_OF:
            for number in range(1, count + 2):
                # The last one is kept for validation.
                folder = f"rgb/{'val' if number > count else 'train'}/{ids[person]:03d}"
                _take(roll, f"{folder}/{letter}_cropped_rgb{number:03d}.jpg", person, letter)
    for person in test:
        for letter in OUTFIT_OF:
            for number in range(1, count + 1):
                _take(roll, f"rgb/test/{letter}/{ids[person]:03d}/cropped_rgb{number:03d}.jpg", person, letter)
    return Plan(tuple(roll.shots), {})


def _take(roll: Roll, path: str, person: int, letter: str) -> None:
    roll.take(path, person, OUTFIT_OF[letter], NUMBER_OF[letter])
