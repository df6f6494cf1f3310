"""What the layouts with captions share: several descriptions of one picture, and the words of them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from datasets.synthetic.arguments import RenderArguments
from datasets.synthetic.captions import caption_of, description_of
from datasets.synthetic.population import BLOCKS, test_persons, train_persons, val_persons
from datasets.synthetic.shots import Shot
from utils.seeding import stream

MOST_CAPTIONS = 10


def captions_of(shot: Shot, seed: int, count: int) -> list[str]:
    """Return `count` captions of a picture, as if by so many writers."""
    assert 1 <= count <= MOST_CAPTIONS
    others = (
        description_of(seed, shot.person, shot.outfit, shot.view, shot.index * MOST_CAPTIONS + number)
        for number in range(1, count)
    )
    return [caption_of(shot, seed), *others]


def processed_tokens(captions: Sequence[str]) -> list[list[str]]:
    """Return the lower-case words of each caption."""
    return [re.findall(r"[a-z0-9']+", caption.lower()) for caption in captions]


def split_persons(arguments: RenderArguments, layout: str, validation: bool = True) -> dict[str, tuple[int, ...]]:
    """Return the persons of train, val and test, each part in an order drawn for the layout; val has as many as
    test.
    """
    block = BLOCKS[layout]
    parts = {"train": train_persons(arguments, block)}
    if validation:
        parts["val"] = val_persons(block, arguments.test_identities)
    parts["test"] = test_persons(arguments, block)
    return {
        part: tuple(stream(arguments.seed, layout, "order", part).sample(persons, len(persons)))
        for part, persons in parts.items()
    }


def contiguous_ids(parts: Mapping[str, Sequence[int]], first: int) -> dict[int, int]:
    """Return the ids of persons, counted through the parts in their order; a person of two parts keeps the first id."""
    return {
        person: number
        for number, person in enumerate(
            dict.fromkeys(person for part in parts.values() for person in part), start=first
        )
    }


def annotation(person_id: int, split: str, captions: Sequence[str], image: str) -> dict[str, Any]:
    """Return the entry of a picture in the form of CUHK-PEDES. image: its path as the entries write it."""
    return {
        "split": split,
        "captions": list(captions),
        "file_path": image,
        "processed_tokens": processed_tokens(captions),
        "id": person_id,
    }
