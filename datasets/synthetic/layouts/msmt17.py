"""MSMT17_V1: {train,test}/0000/0000_000_01_0303morning_0015_0.jpg and list_{train,val,query,gallery}.txt.

Both numberings start at 0: the test person 5 is not the training person 5. list_val names pictures of training persons.
"""

from __future__ import annotations

from datasets.synthetic.arguments import RenderArguments
from datasets.synthetic.population import BLOCKS, draw_ids, test_persons, train_persons
from datasets.synthetic.roll import Roll, query_and_gallery_cameras, share_cameras
from datasets.synthetic.shots import Plan
from utils.seeding import stream

FOLDER = "MSMT17_V1"
BLOCK = BLOCKS["msmt17"]
LAST_PERSONS = (1040, 3059)
"""Highest number of a training and of a test person."""
CAMERAS = tuple(range(1, 16))
DAYS = ("0113", "0302", "0303", "0114")
HOURS = ("morning", "noon", "afternoon")
VALIDATION_STEP = 4
"""Every so many training persons have one picture more, in list_val."""


def plan(arguments: RenderArguments) -> Plan:
    """Return the pictures and the four lists. Raises UserError for more persons than MSMT17 numbers."""
    roll, seed, count = Roll(arguments.seed, "msmt17"), arguments.seed, arguments.images_per_modality
    train, test = train_persons(arguments, BLOCK), test_persons(arguments, BLOCK)
    lists: dict[str, list[str]] = {"train": [], "val": [], "query": [], "gallery": []}
    for person, label in draw_ids(seed, "the training part of msmt17", train, 0, LAST_PERSONS[0]).items():
        more = label % VALIDATION_STEP == 0
        cameras = share_cameras(CAMERAS, count + more, stream(seed, "msmt17", "train", person))
        lines = _take(roll, "train", person, label, cameras, seed)
        lists["train"] += lines[:count]
        lists["val"] += lines[count:]
    for person, label in draw_ids(seed, "the test part of msmt17", test, 0, LAST_PERSONS[1]).items():
        query, gallery = query_and_gallery_cameras(CAMERAS, count, stream(seed, "msmt17", "test", person))
        lines = _take(roll, "test", person, label, query + gallery, seed)
        lists["query"] += lines[: len(query)]
        lists["gallery"] += lines[len(query) :]
    return Plan(
        tuple(roll.shots),
        {},
        {f"list_{name}.txt": "".join(f"{line}\n" for line in sorted(lines)) for name, lines in lists.items()},
    )


def _take(roll: Roll, folder: str, person: int, label: int, cameras: list[int], seed: int) -> list[str]:
    """Take a person's pictures; return their lines."""
    rng = stream(seed, "msmt17", "frames", folder, person)
    lines = []
    for track, camera in enumerate(cameras):
        frame, box, extended = rng.randint(1, 3000), rng.randint(0, 3), "_ex" if rng.random() < 0.1 else ""
        moment = f"{rng.choice(DAYS)}{rng.choice(HOURS)}"
        name = f"{label:04d}_{track:03d}_{camera:02d}_{moment}_{frame:04d}_{box}{extended}.jpg"
        roll.take(f"{folder}/{label:04d}/{name}", person, 0, camera)
        lines.append(f"{label:04d}/{name} {label}")
    return lines
