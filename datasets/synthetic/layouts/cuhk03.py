"""CUHK03 in the form of the new protocol:
cuhk03-np/{labeled,detected}/{bounding_box_train,bounding_box_test,query}/0001_c1_1.png.

Two cameras. The two variants hold the same persons in different pictures; the detected one has a training picture less.
"""

from __future__ import annotations

from datasets.synthetic.arguments import RenderArguments
from datasets.synthetic.population import BLOCKS, draw_ids, test_persons, train_persons
from datasets.synthetic.roll import Roll, query_and_gallery_cameras, share_cameras
from datasets.synthetic.shots import Plan
from utils.seeding import stream

FOLDER = "cuhk03-np"
BLOCK = BLOCKS["cuhk03"]
LAST_PERSON = 1467
CAMERAS = (1, 2)
VARIANTS = ("labeled", "detected")


def plan(arguments: RenderArguments) -> Plan:
    """Return the pictures. Raises UserError for more persons than CUHK03 numbers."""
    roll, seed, count = Roll(arguments.seed, "cuhk03"), arguments.seed, arguments.images_per_modality
    train, test = train_persons(arguments, BLOCK), test_persons(arguments, BLOCK)
    ids = draw_ids(seed, "cuhk03", (*train, *test), 1, LAST_PERSON)
    for variant in VARIANTS:
        for person in train:
            missed = variant == "detected" and count > 1 and person == train[0]
            cameras = share_cameras(CAMERAS, count - missed, stream(seed, "cuhk03", "train", person))
            _take(roll, f"{variant}/bounding_box_train", person, ids[person], cameras)
        for person in test:
            query, gallery = query_and_gallery_cameras(CAMERAS, count, stream(seed, "cuhk03", "test", person))
            _take(roll, f"{variant}/query", person, ids[person], query)
            _take(roll, f"{variant}/bounding_box_test", person, ids[person], gallery, len(query))
    return Plan(tuple(roll.shots), {})


def _take(roll: Roll, folder: str, person: int, label: int, cameras: list[int], taken: int = 0) -> None:
    for number, camera in enumerate(cameras, start=taken + 1):
        roll.take(f"{folder}/{label:04d}_c{camera}_{number}.png", person, 0, camera)
