"""CUHK-PEDES: imgs/{cam_a,cam_b,CUHK01,CUHK03,Market,test_query,train_query}/* and reid_raw.json.

The folders are where the images were collected, not the split: test_query and train_query hold people of every split.
Ids start at 1 and count through train, val and test. Two captions each, now and then more. There are as many validation
persons as test persons. The file names of the folders are not published; these follow the collections that the folders
are named after.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from datasets.synthetic.arguments import RenderArguments
from datasets.synthetic.layouts.caption_sets import annotation, captions_of, contiguous_ids, split_persons
from datasets.synthetic.roll import Roll
from datasets.synthetic.shots import Plan
from utils.seeding import stream

FOLDER = "CUHK-PEDES"
MORE_CAPTIONS_RATE = 0.02

NAMES: dict[str, Callable[[int, int, random.Random], str]] = {
    "cam_a": lambda number, index, _: f"{number:03d}_{45 + index}.bmp",
    "cam_b": lambda number, index, _: f"{number:03d}_{90 + index}.bmp",
    "CUHK01": lambda number, index, _: f"{number:04d}{index:03d}.png",
    "CUHK03": lambda number, index, _: f"{number:04d}_{index}.jpg",
    "Market": lambda number, index, rng: f"{number:04d}_c{rng.randint(1, 6)}s1_{25 * index:06d}_01.jpg",
    "test_query": lambda number, index, rng: f"p{number}_s{rng.randint(1, 99) * 1000 + index}.jpg",
    "train_query": lambda number, index, rng: f"p{number}_s{rng.randint(1, 99) * 1000 + index}.jpg",
}
"""Folder -> name of image `index` (from 1) of the person `number`."""


def plan(arguments: RenderArguments) -> Plan:
    """Return the pictures and the captions."""
    roll, seed = Roll(arguments.seed, "cuhk-pedes"), arguments.seed
    parts = split_persons(arguments, "cuhk-pedes")
    ids = contiguous_ids(parts, 1)
    entries = []
    for split, persons in parts.items():
        for person in persons:
            rng = stream(seed, "cuhk-pedes", split, person)
            folder = rng.choice(tuple(NAMES))
            # Shared persons have pictures of their own in either part.
            first = arguments.images_per_modality * (split == "test") + 1
            for index in range(first, first + arguments.images_per_modality):
                name = f"{folder}/{NAMES[folder](ids[person], index, rng)}"
                shot = roll.take(f"imgs/{name}", person, 0, rng.randint(1, 6))
                count = rng.randint(3, 5) if rng.random() < MORE_CAPTIONS_RATE else 2
                entries.append(annotation(ids[person], split, captions_of(shot, seed, count), name))
    return Plan(tuple(roll.shots), {"reid_raw.json": entries})
