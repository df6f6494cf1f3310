"""RSTPReid: imgs/0000_c14_0031.jpg and data_captions.json with `img_path` and two captions per image.

Ids start at 0 and count through train, val and test. The original has five images of each person, from fifteen cameras;
here there are as many as asked for. There are as many validation persons as test persons.
"""

from __future__ import annotations

from datasets.synthetic.arguments import RenderArguments
from datasets.synthetic.layouts.caption_sets import captions_of, contiguous_ids, split_persons
from datasets.synthetic.roll import Roll, share_cameras
from datasets.synthetic.shots import Plan
from utils.errors import UserError
from utils.seeding import stream

FOLDER = "RSTPReid"
MAXIMUM_PERSONS = 9999
CAMERAS = tuple(range(1, 16))
CAPTIONS = 2


def plan(arguments: RenderArguments) -> Plan:
    """Return the pictures and the captions. Raises UserError for more persons than file names can hold."""
    roll, seed, count = Roll(arguments.seed, "rstpreid"), arguments.seed, arguments.images_per_modality
    parts = split_persons(arguments, "rstpreid")
    ids = contiguous_ids(parts, 0)
    if len(ids) > MAXIMUM_PERSONS:
        raise UserError(
            f"{len(ids)} identities are too many for RSTPReid: its file names have four digits, {MAXIMUM_PERSONS} "
            "training, validation and test persons at most"
        )
    entries = []
    for split, persons in parts.items():
        for person in persons:
            rng = stream(seed, "rstpreid", split, person)
            # Shared persons have pictures of their own in either part.
            start = rng.randint(0, 500) + (split == "test") * 5000
            for number, camera in enumerate(share_cameras(CAMERAS, count, rng)):
                name = f"{ids[person]:04d}_c{camera}_{start + 3 * number:04d}.jpg"
                shot = roll.take(f"imgs/{name}", person, 0, camera)
                entries.append(
                    {"id": ids[person], "img_path": name, "captions": captions_of(shot, seed, CAPTIONS), "split": split}
                )
    return Plan(tuple(roll.shots), {"data_captions.json": entries})
