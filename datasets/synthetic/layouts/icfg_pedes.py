"""ICFG-PEDES: imgs/{train,test}/<id4>/*.jpg in MSMT17's names and ICFG-PEDES.json, one caption per image.

As in the original, imgs/train and imgs/test are folders of another data set and not the split, which stands in the JSON
only: people of either split lie in both. Folder numbers start at 0 in each of the two; ids start at 0 and count through
train and test.
"""

from __future__ import annotations

from datasets.synthetic.arguments import RenderArguments
from datasets.synthetic.layouts.caption_sets import annotation, captions_of, contiguous_ids, split_persons
from datasets.synthetic.roll import Roll, share_cameras
from datasets.synthetic.shots import Plan
from utils.errors import UserError
from utils.seeding import stream

FOLDER = "ICFG-PEDES"
MAXIMUM_PERSONS = 9999
CAMERAS = tuple(range(1, 16))
DAYS = ("0113", "0302", "0303", "0114")
HOURS = ("morning", "noon", "afternoon")


def plan(arguments: RenderArguments) -> Plan:
    """Return the pictures and the captions. Raises UserError for more persons than folder names can hold."""
    roll, seed, count = Roll(arguments.seed, "icfg-pedes"), arguments.seed, arguments.images_per_modality
    parts = split_persons(arguments, "icfg-pedes", validation=False)
    ids = contiguous_ids(parts, 0)
    if len(ids) > MAXIMUM_PERSONS:
        raise UserError(
            f"{len(ids)} identities are too many for ICFG-PEDES: its folder names have four digits, {MAXIMUM_PERSONS} "
            "persons at most"
        )
    entries, numbers = [], {"train": 0, "test": 0}
    for split, persons in parts.items():
        for person in persons:
            rng = stream(seed, "icfg-pedes", split, person)
            folder = rng.choice(tuple(numbers))
            number, numbers[folder] = numbers[folder], numbers[folder] + 1
            for track, camera in enumerate(share_cameras(CAMERAS, count, rng)):
                name = (
                    f"{folder}/{number:04d}/{number:04d}_{track:03d}_{camera:02d}_{rng.choice(DAYS)}{rng.choice(HOURS)}"
                    f"_{rng.randint(1, 3000):04d}_{rng.randint(0, 3)}.jpg"
                )
                shot = roll.take(f"imgs/{name}", person, 0, camera)
                entries.append(annotation(ids[person], split, captions_of(shot, seed, 1), name))
    return Plan(tuple(roll.shots), {"ICFG-PEDES.json": entries})
