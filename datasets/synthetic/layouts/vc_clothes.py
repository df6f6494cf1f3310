"""VC-Clothes: {train,query,gallery}/0001-01-01-01.jpg = person, camera, clothes (counted per person), number.

Cameras 2 and 3 see the first outfit, cameras 1 and 4 the second, and the third where there is one.
"""

from __future__ import annotations

from collections import Counter

from datasets.synthetic.arguments import RenderArguments
from datasets.synthetic.population import BLOCKS, draw_ids, need_outfits, test_persons, train_persons
from datasets.synthetic.roll import Roll
from datasets.synthetic.shots import Plan

FOLDER = "VC-Clothes"
BLOCK = BLOCKS["vc-clothes"]
CAMERAS = (1, 2, 3, 4)
MAXIMUM_OUTFITS = 3


def plan(arguments: RenderArguments) -> Plan:
    """Return the pictures: per camera and outfit one query and as many others as asked for. Raises UserError."""
    need_outfits(arguments, 2)
    later = range(1, min(arguments.outfits, MAXIMUM_OUTFITS))
    worn = [(camera, clothes) for camera in CAMERAS for clothes in (later if camera in (1, 4) else (0,))]
    roll, numbers = Roll(arguments.seed, "vc-clothes"), Counter[tuple[int, int]]()
    train, test = train_persons(arguments, BLOCK), test_persons(arguments, BLOCK)
    ids = draw_ids(arguments.seed, "vc-clothes", (*train, *test), 1, 9999)
    for folder, persons, count in (
        ("train", train, arguments.images_per_modality),
        ("query", test, 1),
        ("gallery", test, arguments.images_per_modality),
    ):
        for person in persons:
            for camera, clothes in worn * count:
                numbers[person, camera] += 1
                name = f"{ids[person]:04d}-{camera:02d}-{clothes + 1:02d}-{numbers[person, camera]:02d}.jpg"
                roll.take(f"{folder}/{name}", person, clothes, camera)
    return Plan(tuple(roll.shots), {})
