"""Draws the 32 mixed-query lists of an ORBench test or validation split from the items of each person."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

from configs.vocabulary import ORBENCH_KEYS, Combination, Modality, combination_name
from utils.seeding import stream

Item = TypeVar("Item")


def draw_query_lists(
    items: Mapping[int, Mapping[Modality, Sequence[Item]]], seed: int
) -> dict[Combination, list[tuple[int, tuple[Item, ...]]]]:
    """Return, for every key in ORBENCH_KEYS, its queries as (person_id, items in the key's order).

    Every item of the anchor (the key's first modality) leads one query, persons in ascending order and items in the
    given order; each partner is drawn uniformly from the same person's items of its modality. The draws depend on
    (seed, key, person_id) and that person's items only. A person without items of one member has no query in that list.
    """
    return {
        key: [query for person_id in sorted(items) for query in _queries(key, person_id, items[person_id], seed)]
        for key in ORBENCH_KEYS
    }


def _queries(
    key: Combination, person_id: int, items: Mapping[Modality, Sequence[Item]], seed: int
) -> list[tuple[int, tuple[Item, ...]]]:
    if not all(items.get(modality) for modality in key):
        return []
    rng = stream(seed, "queries", combination_name(key), person_id)
    return [(person_id, (anchor, *(rng.choice(items[modality]) for modality in key[1:]))) for anchor in items[key[0]]]
