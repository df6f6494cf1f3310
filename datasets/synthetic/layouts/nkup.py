"""NKUP: {bounding_box_train,bounding_box_test,query}/0005_D0912_C03S01_00151.jpg.

The queries were taken on another day than the same person's gallery pictures, in other clothes; -1 = not labelled.
"""

from __future__ import annotations

from datasets.synthetic.arguments import RenderArguments
from datasets.synthetic.population import BLOCKS, bystanders, draw_ids, need_outfits, test_persons, train_persons
from datasets.synthetic.roll import Roll, query_and_gallery_cameras, share_cameras
from datasets.synthetic.shots import Plan
from utils.seeding import stream

FOLDER = "NKUP"
BLOCK = BLOCKS["nkup"]
CAMERAS = tuple(range(1, 16))
DAYS = ("0910", "0912", "0917", "0925", "1008", "1016", "1102", "1113", "1120", "1204", "1211", "1225")


def plan(arguments: RenderArguments) -> Plan:
    """Return the pictures, as many per outfit as asked for; the last outfit is that of the queries. Raises
    UserError.
    """
    need_outfits(arguments, 2)
    roll, seed, count = Roll(arguments.seed, "nkup"), arguments.seed, arguments.images_per_modality
    train, test = train_persons(arguments, BLOCK), test_persons(arguments, BLOCK)
    ids = draw_ids(seed, "nkup", (*train, *test), 0, 9999)
    last = arguments.outfits - 1
    for person in train:
        for outfit in range(arguments.outfits):
            cameras = share_cameras(CAMERAS, count, stream(seed, "nkup", "train", person, outfit))
            _take(roll, "bounding_box_train", person, ids[person], outfit, cameras, seed)
    for person in test:
        for outfit in range(last):
            query, gallery = query_and_gallery_cameras(CAMERAS, count, stream(seed, "nkup", "test", person, outfit))
            _take(roll, "bounding_box_test", person, ids[person], outfit, gallery, seed)
            if outfit == 0:
                _take(roll, "query", person, ids[person], last, query, seed)
    for number, person in enumerate(bystanders(BLOCK, 2)):
        roll.take(f"bounding_box_test/-1_D0910_C01S01_{number + 1:05d}.jpg", person, 0, 1)
    return Plan(tuple(roll.shots), {})


def _take(roll: Roll, folder: str, person: int, label: int, outfit: int, cameras: list[int], seed: int) -> None:
    # One day per outfit and person, shared by every eleventh outfit; the day of the queries is theirs alone.
    days = stream(seed, "nkup", "days", person).sample(DAYS, len(DAYS))
    day = days[-1] if folder == "query" else days[outfit % (len(DAYS) - 1)]
    start = stream(seed, "nkup", "frames", folder, person, outfit).randrange(1, 90_000)
    for number, camera in enumerate(cameras):
        roll.take(f"{folder}/{label:04d}_D{day}_C{camera:02d}S01_{start + 5 * number:05d}.jpg", person, outfit, camera)
