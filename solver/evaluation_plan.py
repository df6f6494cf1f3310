"""What an evaluation has to compute: which sources to encode, which sets to fuse, which feature answers which query.

Pure bookkeeping on integers. A slot numbers an encoded source; a feature row is a slot (a single-modality query or a
gallery image) or, from the number of slots on, a fused set.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from configs.vocabulary import Combination, Modality
from datasets.structures import EvalSplit, QueryList, Source

Integers = NDArray[np.int64]
FUSION_ORDER = {modality: rank for rank, modality in enumerate(Modality)}


class SourceTable:
    """Distinct sources in order of first appearance; the key of a slot is (source, instruction)."""

    def __init__(self) -> None:
        self.sources: list[Source] = []
        self._spaces: dict[tuple[Modality, Source | None], dict[str, int]] = {}

    def __len__(self) -> int:
        return len(self.sources)

    def add(self, modality: Modality, sources: Sequence[Source], instruction: Source | None = None) -> Integers:
        """Return the slots (n,) of `sources`, all of `modality` and under one instruction, adding those that are new."""
        space = self._spaces.setdefault((modality, instruction), {})
        found = [space.get(source.value, -1) for source in sources]
        for index, slot in enumerate(found):
            if slot < 0:
                source = sources[index]
                assert source.modality is modality, f"{source.record}: {source.modality} among {modality} sources"
                found[index] = space.setdefault(source.value, len(self.sources))
                if found[index] == len(self.sources):
                    self.sources.append(source)
        return np.asarray(found, dtype=np.int64)

    def by_space(self) -> dict[tuple[Modality, Source | None], Integers]:
        """Return the slots of each (modality, instruction), ascending."""
        return {key: np.fromiter(space.values(), dtype=np.int64, count=len(space)) for key, space in self._spaces.items()}


@dataclass(frozen=True, kw_only=True, slots=True)
class ListPlan:
    """One query list: rows (n,) into the features, members (n, size) slots, person_ids (n,)."""

    name: str
    combination: Combination
    rows: Integers
    members: Integers
    person_ids: Integers


@dataclass(frozen=True, kw_only=True, slots=True)
class SplitPlan:
    """One split: gallery (G,) slots, gallery_ids (G,), and its query lists."""

    split: EvalSplit
    gallery: Integers
    gallery_ids: Integers
    lists: tuple[ListPlan, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationPlan:
    """Everything to compute for some splits. sets: distinct item sets by member modalities, each (U, size) slots.

    Set number i of the concatenation of `sets` has feature row num_sources + i.
    """

    table: SourceTable
    splits: tuple[SplitPlan, ...]
    sets: dict[Combination, Integers]

    @property
    def num_sets(self) -> int:
        """Number of distinct fused sets."""
        return sum(len(members) for members in self.sets.values())

    @property
    def num_entries(self) -> int:
        """Query-list entries in total."""
        return sum(len(entry.rows) for split in self.splits for entry in split.lists)

    @property
    def num_mixed_entries(self) -> int:
        """Query-list entries of more than one modality."""
        return sum(len(entry.rows) for split in self.splits for entry in split.lists if len(entry.combination) > 1)

    def needs_tokens(self) -> NDArray[np.bool_]:
        """Return which slots (N,) take part in a fusion."""
        needed = np.zeros(len(self.table), dtype=bool)
        for members in self.sets.values():
            needed[members.reshape(-1)] = True
        return needed


def plan_evaluation(splits: Sequence[EvalSplit]) -> EvaluationPlan:
    """Number the distinct sources of all splits and the distinct sets of their mixed queries.

    The fusion does not depend on the order of its members, so NIR+CP and CP+NIR share their sets: members are sorted
    by modality before they are compared.
    """
    table = SourceTable()
    galleries = [_gallery_slots(table, split) for split in splits]
    members = {(index, position): _member_slots(table, entry)
               for index, split in enumerate(splits) for position, entry in enumerate(split.query_lists)}
    combinations = {(index, position): entry.combination
                    for index, split in enumerate(splits) for position, entry in enumerate(split.query_lists)}
    sets, set_rows = _distinct_sets(members, combinations, len(table))
    plans = []
    for index, (split, gallery) in enumerate(zip(splits, galleries)):
        lists = tuple(
            ListPlan(name=entry.name, combination=entry.combination, members=members[index, position],
                     rows=set_rows.get((index, position), members[index, position][:, 0]),
                     person_ids=np.asarray(entry.person_ids, dtype=np.int64))
            for position, entry in enumerate(split.query_lists)
        )
        plans.append(SplitPlan(split=split, gallery=gallery, lists=lists,
                               gallery_ids=np.asarray(split.gallery_ids, dtype=np.int64)))
    return EvaluationPlan(table=table, splits=tuple(plans), sets=sets)


def _gallery_slots(table: SourceTable, split: EvalSplit) -> Integers:
    slots = np.empty(len(split.gallery), dtype=np.int64)
    by_modality: dict[Modality, list[int]] = {}
    for index, source in enumerate(split.gallery):
        by_modality.setdefault(source.modality, []).append(index)
    for modality, indices in by_modality.items():
        slots[indices] = table.add(modality, [split.gallery[index] for index in indices])
    return slots


def _member_slots(table: SourceTable, entry: QueryList) -> Integers:
    columns = [table.add(modality, [sources[position] for sources in entry.entries])
               for position, modality in enumerate(entry.combination)]
    return np.stack(columns, axis=1)


ListKey = tuple[int, int]
"""A query list: (number of its split, number in the split)."""


def _distinct_sets(
    members: dict[ListKey, Integers], combinations: dict[ListKey, Combination], first_row: int
) -> tuple[dict[Combination, Integers], dict[ListKey, Integers]]:
    """Return the distinct sets by canonical combination, and the feature rows of each mixed list."""
    grouped: dict[Combination, list[ListKey]] = {}
    for key, combination in combinations.items():
        if len(combination) > 1:
            grouped.setdefault(tuple(sorted(combination, key=FUSION_ORDER.__getitem__)), []).append(key)
    sets: dict[Combination, Integers] = {}
    rows: dict[ListKey, Integers] = {}
    for canonical, keys in grouped.items():
        ordered = [members[key][:, [combinations[key].index(modality) for modality in canonical]] for key in keys]
        sets[canonical], inverse = np.unique(np.concatenate(ordered), axis=0, return_inverse=True)
        bounds = np.cumsum([len(block) for block in ordered])[:-1]
        rows.update(zip(keys, np.split(inverse.reshape(-1) + first_row, bounds)))
        first_row += len(sets[canonical])
    return sets, rows
