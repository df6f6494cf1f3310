"""What an evaluation has to compute: which sources to encode, which sets to fuse, which feature answers which query.

Bookkeeping on integers; of the images only copies are looked for. A slot numbers an encoded source; a feature row is a
slot (a single-modality query or a gallery image) or, from the number of slots on, a fused set.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from configs.vocabulary import Combination, Modality
from datasets.modalities import MODALITIES
from datasets.structures import EvalSplit, QueryList, Source
from utils.identical import crossing, identical_files, pairs_across

Integers = NDArray[np.int64]
Space = tuple[Modality, "Modality | None"]
"""Modality of a source, and of its instruction."""
UNKNOWN = -1
FUSION_ORDER = {modality: rank for rank, modality in enumerate(Modality)}


class SourceTable:
    """Distinct sources in order of first appearance; a slot is a source, with its crop, under one instruction.

    instructions: that of each slot, None = none.
    """

    def __init__(self) -> None:
        self.sources: list[Source] = []
        self.instructions: list[Source | None] = []
        self._spaces: dict[Space, dict[str | Source | tuple[Source, Source | None], int]] = {}

    def __len__(self) -> int:
        return len(self.sources)

    def add(
        self, modality: Modality, sources: Sequence[Source], instructions: Sequence[Source | None] = ()
    ) -> Integers:
        """Return the slots (n,) of `sources`, all of `modality`, adding those that are new. instructions: one each, or
        empty.
        """
        if instructions:
            return self._add_instructed(modality, sources, instructions)
        space = self._spaces.setdefault((modality, None), {})
        # A whole source is told by its value alone: hashing the rest takes most of a plan's time.
        keys = [source if source.crop else source.value for source in sources]
        found = [space.get(key, -1) for key in keys]
        for index, slot in enumerate(found):
            if slot < 0:
                found[index] = self._slot(space, keys[index], modality, sources[index], None)
        return np.asarray(found, dtype=np.int64)

    def _add_instructed(
        self, modality: Modality, sources: Sequence[Source], instructions: Sequence[Source | None]
    ) -> Integers:
        found = []
        for source, instruction in zip(sources, instructions, strict=True):
            space = self._spaces.setdefault((modality, None if instruction is None else instruction.modality), {})
            key = (source, instruction) if instruction is not None else source if source.crop else source.value
            slot = space.get(key, -1)
            found.append(slot if slot >= 0 else self._slot(space, key, modality, source, instruction))
        return np.asarray(found, dtype=np.int64)

    def _slot(
        self,
        space: dict,
        key: str | Source | tuple[Source, Source | None],
        modality: Modality,
        source: Source,
        instruction: Source | None,
    ) -> int:
        assert source.modality is modality, f"{source.record}: {source.modality} among {modality} sources"
        slot = space.setdefault(key, len(self.sources))
        if slot == len(self.sources):
            self.sources.append(source)
            self.instructions.append(instruction)
        return slot

    def by_space(self) -> dict[Space, Integers]:
        """Return the slots of each (modality, modality of the instruction or None), ascending."""
        return {
            key: np.fromiter(space.values(), dtype=np.int64, count=len(space)) for key, space in self._spaces.items()
        }

    def items(self, copies: Sequence[Sequence[str]] = ()) -> Integers:
        """Return a number (N,) for the picture of each slot, the same for one file whatever its crop, instruction and
        modality; -1 = a text. copies: files of the same bytes, which are one picture.
        """
        numbers = {path: number for number, same in enumerate(copies) for path in same}
        pictures = [source.value for source in self.sources if MODALITIES[source.modality].is_image]
        further = (path for path in dict.fromkeys(pictures) if path not in numbers)
        numbers |= {path: number for number, path in enumerate(further, start=len(copies))}
        return np.array(
            [numbers[source.value] if MODALITIES[source.modality].is_image else UNKNOWN for source in self.sources],
            dtype=np.int64,
        )

    def images(self, slots: Integers) -> list[str]:
        """Return the distinct files of the pictures among some slots, in order."""
        sources = (self.sources[slot] for slot in np.unique(slots).tolist())
        return list(dict.fromkeys(source.value for source in sources if MODALITIES[source.modality].is_image))


@dataclass(frozen=True, kw_only=True, slots=True)
class ListPlan:
    """One query list: rows (n,) into the features, members (n, size) slots; labels (n,), -1 = unknown.

    number: its place in the split. items (n, size): pictures that the queries consist of, -1 for texts. subset: indices
    into the split's gallery that are searched, None = all.
    """

    number: int
    queries: QueryList
    rows: Integers
    members: Integers
    person_ids: Integers
    camera_ids: Integers
    clothes_ids: Integers
    items: Integers
    subset: Integers | None

    @property
    def name(self) -> str:
        """The list's name."""
        return self.queries.name

    @property
    def combination(self) -> Combination:
        """The modalities of its entries."""
        return self.queries.combination


@dataclass(frozen=True, kw_only=True, slots=True)
class SplitPlan:
    """One split: gallery (G,) slots, its labels (G,), -1 = unknown, and its query lists."""

    split: EvalSplit
    gallery: Integers
    gallery_ids: Integers
    gallery_cameras: Integers
    gallery_clothes: Integers
    gallery_items: Integers
    lists: tuple[ListPlan, ...]
    copies: tuple[tuple[str, str], ...] = ()
    """(query, gallery image): other files of the same bytes, which count as one picture."""


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


def plan_evaluation(splits: Sequence[EvalSplit], instructed: bool = False) -> EvaluationPlan:
    """Number the distinct sources of all splits and the distinct sets of their mixed queries.

    instructed: the model follows instructions, so that an image has a feature for each of them; otherwise one image is
    encoded once for all tasks, modes and draws. The fusion does not depend on the order of its members, so NIR+CP and
    CP+NIR share their sets: members are sorted by modality before they are compared.
    """
    table = SourceTable()
    galleries = [
        gallery_slots(table, split.gallery, split.gallery_instructions if instructed else ()) for split in splits
    ]
    members = {
        (index, position): _member_slots(table, entry, instructed)
        for index, split in enumerate(splits)
        for position, entry in enumerate(split.query_lists)
    }
    combinations = {
        (index, position): entry.combination
        for index, split in enumerate(splits)
        for position, entry in enumerate(split.query_lists)
    }
    sets, set_rows = _distinct_sets(members, combinations, len(table))
    asked = np.concatenate([np.zeros(0, dtype=np.int64), *(slots.reshape(-1) for slots in members.values())])
    searched = np.concatenate([np.zeros(0, dtype=np.int64), *galleries])
    copies = _copies(table.images(asked), table.images(searched))
    items = table.items(copies)
    plans = []
    for index, (split, gallery) in enumerate(zip(splits, galleries)):
        lists = tuple(
            _list_plan(position, entry, members[index, position], set_rows.get((index, position)), items)
            for position, entry in enumerate(split.query_lists)
        )
        plans.append(
            SplitPlan(
                split=split,
                gallery=gallery,
                lists=lists,
                gallery_ids=np.asarray(split.gallery_ids, dtype=np.int64),
                gallery_cameras=_labels(split.gallery_camera_ids, len(gallery)),
                gallery_items=items[gallery],
                gallery_clothes=_labels(split.gallery_clothes_ids, len(gallery)),
                copies=_copied_queries(table, copies, lists, gallery),
            )
        )
    return EvaluationPlan(table=table, splits=tuple(plans), sets=sets)


def _copies(queries: list[str], gallery: list[str]) -> list[tuple[str, ...]]:
    """Return the sets of files with the same bytes that have queries and gallery images among them."""
    return identical_files([*queries, *gallery], crossing(queries, gallery))


def _copied_queries(
    table: SourceTable, copies: Sequence[tuple[str, ...]], lists: Sequence[ListPlan], gallery: Integers
) -> tuple[tuple[str, str], ...]:
    """Return (query, gallery image) of each copy that one split has on both sides."""
    if not copies:
        return ()
    asked = {path for listed in lists for path in table.images(listed.members)}
    searched = set(table.images(gallery))
    return tuple(pairs_across(copies, asked, searched))


def _list_plan(number: int, entry: QueryList, members: Integers, fused: Integers | None, items: Integers) -> ListPlan:
    count = len(entry.entries)
    return ListPlan(
        number=number,
        queries=entry,
        members=members,
        rows=members[:, 0] if fused is None else fused,
        person_ids=np.asarray(entry.person_ids, dtype=np.int64),
        camera_ids=_labels(entry.camera_ids, count),
        clothes_ids=_labels(entry.clothes_ids, count),
        items=items[members],
        subset=None if entry.gallery is None else np.asarray(entry.gallery, dtype=np.int64),
    )


def _labels(values: Sequence[int], count: int) -> Integers:
    return np.asarray(values, dtype=np.int64) if values else np.full(count, UNKNOWN, dtype=np.int64)


def gallery_slots(
    table: SourceTable, gallery: Sequence[Source], instructions: Sequence[Source | None] = ()
) -> Integers:
    """Return the slots (G,) of gallery images of any modality. instructions: one each, or empty."""
    slots = np.empty(len(gallery), dtype=np.int64)
    by_modality: dict[Modality, list[int]] = {}
    for index, source in enumerate(gallery):
        by_modality.setdefault(source.modality, []).append(index)
    for modality, indices in by_modality.items():
        slots[indices] = table.add(
            modality,
            [gallery[index] for index in indices],
            [instructions[index] for index in indices] if instructions else (),
        )
    return slots


def _member_slots(table: SourceTable, entry: QueryList, instructed: bool) -> Integers:
    columns = [
        table.add(modality, [sources[position] for sources in entry.entries], entry.instructions if instructed else ())
        for position, modality in enumerate(entry.combination)
    ]
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
