"""Market-1501: {bounding_box_train,bounding_box_test,query}/0001_c1s1_000151_01.jpg.

Persons 1.. in one numbering for training and test; 0000 = distractors and -1 = junk, both in bounding_box_test.
"""

from __future__ import annotations

import itertools

from datasets.synthetic.arguments import RenderArguments
from datasets.synthetic.population import BLOCKS, bystanders, draw_ids, test_persons, train_persons
from datasets.synthetic.roll import Roll, query_and_gallery_cameras, share_cameras
from datasets.synthetic.shots import Plan
from utils.seeding import stream

FOLDER = "Market-1501-v15.09.15"
BLOCK = BLOCKS["market1501"]
LAST_PERSON = 1501
CAMERAS = (1, 2, 3, 4, 5, 6)
SEQUENCES = (1, 2, 3, 4, 5, 6)


def plan(arguments: RenderArguments) -> Plan:
    """Return the pictures. Raises UserError for more persons than Market-1501 numbers."""
    roll, seed, count = Roll(arguments.seed, "market1501"), arguments.seed, arguments.images_per_modality
    train, test = train_persons(arguments, BLOCK), test_persons(arguments, BLOCK)
    ids = draw_ids(seed, "market1501", (*train, *test), 1, LAST_PERSON)
    for person in train:
        rng = stream(seed, "market1501", "train", person)
        _take(roll, "bounding_box_train", person, f"{ids[person]:04d}", share_cameras(CAMERAS, count, rng), seed)
    for person in test:
        query, gallery = query_and_gallery_cameras(CAMERAS, count, stream(seed, "market1501", "test", person))
        _take(roll, "query", person, f"{ids[person]:04d}", query, seed)
        _take(roll, "bounding_box_test", person, f"{ids[person]:04d}", gallery, seed)
    others = bystanders(BLOCK, 2 + min(len(test), 2000))
    half = (len(others) + 1) // 2
    for label, persons in (("0000", others[:half]), ("-1", others[half:])):
        numbers = itertools.count(1)
        for person in persons:
            rng = stream(seed, "market1501", "bystander", person)
            camera, sequence = rng.choice(CAMERAS), rng.choice(SEQUENCES)
            roll.take(
                f"bounding_box_test/{label}_c{camera}s{sequence}_{next(numbers) * 25:06d}_00.jpg", person, 0, camera
            )
    return Plan(tuple(roll.shots), {})


def _take(roll: Roll, folder: str, person: int, label: str, cameras: list[int], seed: int) -> None:
    rng = stream(seed, "market1501", "frames", folder, person)
    start = rng.randrange(1, 990_000)
    for number, camera in enumerate(cameras):
        name = f"{label}_c{camera}s{rng.choice(SEQUENCES)}_{start + 5 * number:06d}_{rng.randint(0, 9):02d}.jpg"
        roll.take(f"{folder}/{name}", person, 0, camera)
