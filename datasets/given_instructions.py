"""What happens to a test when queries get no instruction, or that of somebody else (`instruction.given`), or when its
gallery gets none (`instruction.gallery`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from configs.vocabulary import AnnotationKind, Modality
from datasets.fitting import told_gallery
from datasets.formats.listing import wearer
from datasets.structures import EvalSplit, QueryList, Source
from utils.errors import UserError
from utils.seeding import stream

STAMPS = {"shuffled": "instructions shuffled", "none": "no instructions"}
"""instruction.given -> what rows and protocols are marked with."""
MEANINGS = {
    "shuffled": "every query has the instruction of a query of another person, drawn once",
    "none": "queries have no instruction",
}
GALLERY_STAMP = "gallery alone"


def with_given(split: EvalSplit, given: str) -> EvalSplit:
    """Return the split with what `instruction.given` says in place of the right instructions of its queries.

    Only what a model is given changes: annotations, and with them what is relevant, stay, and so do the instructions of
    the gallery, which say what its images show. Lists without instructions stay as they are. Titles, protocols and rows
    of averages of the others are marked. Raises UserError for shuffling among queries of one person.
    """
    if given == "right":
        return split
    told = [any(queries.instructions) for queries in split.query_lists]
    changed = [
        _changed(queries, given) if is_told else queries
        for queries, is_told in zip(split.query_lists, told, strict=True)
    ]
    return _marked_split(replace(split, query_lists=tuple(changed)), told, STAMPS[given], MEANINGS[given])


def with_gallery_alone(split: EvalSplit) -> EvalSplit:
    """Return the split without the instructions of its gallery images; annotations, and with them what is relevant,
    stay. Titles, protocols and rows of averages of lists whose gallery had some are marked.
    """
    told = [told_gallery(split, queries) for queries in split.query_lists]
    alone = replace(split, gallery_instructions=())
    return _marked_split(alone, told, GALLERY_STAMP, "gallery images have no instruction") if any(told) else split


def _marked_split(split: EvalSplit, chosen: Sequence[bool], stamp: str, meaning: str) -> EvalSplit:
    """Mark the chosen lists of a split with what was changed."""
    told = [queries for queries, is_told in zip(split.query_lists, chosen, strict=True) if is_told]
    groups = {queries.group for queries in told} - {""}
    definitions = [
        f"{_marked(protocol, stamp)}: {protocol} in which {meaning}"
        for protocol in dict.fromkeys(queries.protocol for queries in told)
    ]
    lists = [
        _stamped(queries, stamp) if is_told else queries
        for queries, is_told in zip(split.query_lists, chosen, strict=True)
    ]

    def row(group: str) -> str:
        return _marked(group, stamp) if group in groups else group

    return replace(
        split,
        protocol="; ".join([split.protocol, *definitions]),
        query_lists=tuple(replace(queries, group=row(queries.group)) for queries in lists),
        groups=tuple(map(row, split.groups)),
        pooled_groups=tuple(map(row, split.pooled_groups)),
    )


def _marked(name: str, stamp: str) -> str:
    return f"{name} [{stamp}]"


def _stamped(queries: QueryList, stamp: str) -> QueryList:
    return replace(queries, title=_marked(queries.name, stamp), protocol=_marked(queries.protocol, stamp))


def _changed(queries: QueryList, given: str) -> QueryList:
    return replace(queries, instructions=_shuffled(queries) if given == "shuffled" else ())


def _shuffled(queries: QueryList) -> tuple[Source | None, ...]:
    """Return one instruction per query, each of another person's query of the same kind.

    Persons stand in a ring, in an order drawn with a fixed seed, and each has the instructions of the next, query by
    query, from the first again where the next has fewer.
    """
    found = list(queries.instructions)
    for entries in _of_one_kind(queries):
        owned: dict[int, list[int]] = {}
        for entry in entries:
            owned.setdefault(_person(queries, entry), []).append(entry)
        ring = stream("instruction.given", queries.name).sample(sorted(owned), len(owned))
        if len(ring) < 2:
            raise UserError(
                f"instruction.given=shuffled: all queries of {queries.name} with an instruction are of one person, so "
                "that nobody else's can be given; choose other data.protocols, or instruction.given=none"
            )
        for person, other in zip(ring, (*ring[1:], ring[0])):
            for place, entry in enumerate(owned[person]):
                found[entry] = queries.instructions[owned[other][place % len(owned[other])]]
    return tuple(found)


def _of_one_kind(queries: QueryList) -> Iterable[list[int]]:
    """Yield the entries that have instructions, those of one kind of annotation and one modality together."""
    kinds: dict[tuple[AnnotationKind | None, Modality], list[int]] = {}
    for entry, source in enumerate(queries.instructions):
        if source is not None:
            kind = queries.annotation_kinds[entry] if queries.annotation_kinds else None
            kinds.setdefault((kind, source.modality), []).append(entry)
    return kinds.values()


def _person(queries: QueryList, entry: int) -> int:
    """Return the person of a query, also where an identity is a person in one outfit."""
    clothes = queries.clothes_ids[entry] if queries.clothes_ids else -1
    return wearer(clothes) if clothes >= 0 else queries.person_ids[entry]
