"""Protocols: who is searched where, and what does not count. A protocol turns the parts of a Release into query
lists.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from configs.vocabulary import AnnotationKind, Combination, Modality, Task
from datasets.structures import EvalSplit, QueryList, Record, Release, Source

MAIN_KIND: dict[Task, AnnotationKind] = {
    Task.TRAD: AnnotationKind.SENTENCE,
    Task.CC: AnnotationKind.SENTENCE,
    Task.VI: AnnotationKind.SENTENCE,
    Task.CTCC: AnnotationKind.CLOTHES,
    Task.LI: AnnotationKind.DESCRIPTION,
    Task.T2I: AnnotationKind.DESCRIPTION,
    Task.ORB: AnnotationKind.DESCRIPTION,
}
"""What a query of each task asks for, as mAP at a threshold compares it."""

Instruct = Callable[[Record], "Source | None"]
"""The instruction that a record has at test time."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Search:
    """Queries against a gallery under one rule; queries of several modalities become one list per modality."""

    title: str
    """Name of the row."""
    protocol: str
    """Name that stamps the row."""
    query: Sequence[Record]
    gallery: Sequence[Record]
    gallery_key: str = ""
    """Searches of one split with the same key have the same gallery, which is then looked at once; empty = its own."""
    repeated_items: bool = False
    """An image that the gallery lists twice is two items; False = one."""
    combination: Combination = ()
    """What each query is made of: all its sources, mixed, in this order; empty = one source a query."""
    exclusion_rule: str = "none"
    cmc: Literal["image", "identity"] = "image"
    group: str = ""
    """Row of averages, empty = none."""
    pooled: bool = False
    """The group's average is over all queries."""
    draws: bool = True
    """See `QueryList.draws`."""
    gallery_instructions: bool = True
    """False = task-free, the gallery is images alone; annotations stay."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Protocol:
    """A way to test on a data set."""

    name: str
    """Stamps every result."""
    summary: str
    """One sentence with roles, rule, curve and draws, shown with every result."""
    searches: Callable[[Release], Iterable[Search]]
    """The searches of a release; raises UserError when a part that the protocol needs is absent."""
    groups: tuple[str, ...] = ()
    """Rows of averages in their order, where lists, and with them rows, may be missing."""


def plain_protocol(
    name: str,
    summary: str,
    *,
    query: str = "query",
    gallery: str = "gallery",
    exclusion_rule: str = "none",
    cmc: Literal["image", "identity"] = "image",
) -> Protocol:
    """Return the protocol that searches all of one part in all of another."""

    def searches(release: Release) -> list[Search]:
        """Return the search of all of one part in all of another."""
        return [
            Search(
                title=name,
                protocol=name,
                query=release.parts[query],
                gallery=release.parts[gallery],
                gallery_key=gallery,
                exclusion_rule=exclusion_rule,
                cmc=cmc,
            )
        ]

    return Protocol(name=name, summary=summary, searches=searches)


def protocol_table(protocols: Iterable[Protocol]) -> dict[str, Protocol]:
    """Return protocols by name."""
    return {protocol.name: protocol for protocol in protocols}


def query_modality(record: Record) -> Modality:
    """Return the modality with which a record is searched for: its text where it has one, else its only image."""
    if Modality.TEXT in record.sources:
        return Modality.TEXT
    assert len(record.sources) == 1, f"{record.name}: a query has one source, here {sorted(record.sources)}"
    return next(iter(record.sources))


def image_source(record: Record) -> Source:
    """Return the image of a gallery record."""
    images = [source for modality, source in record.sources.items() if modality is not Modality.TEXT]
    assert len(images) == 1, f"{record.name}: a gallery item has one image, here {len(images)}"
    return images[0]


def assemble_split(
    name: str, searches: Iterable[Search], summaries: Mapping[str, str], instruct: Instruct | None = None
) -> EvalSplit:
    """Return one split with all searches: its gallery is the union of theirs, each list names the part it is searched
    in.

    summaries: protocol name -> summary. One image in several galleries is one item as long as its labels, its
    instruction and the sentence of its task are the same; its other annotations are merged, one per kind.
    """
    searches = list(searches)
    pool = _Pool(instruct)
    subsets = [pool.add(search) for search in searches]
    lists = [
        query_list
        for search, subset in zip(searches, subsets)
        for query_list in _query_lists(search, subset if len(subset) < len(pool.records) else None, instruct)
    ]
    gallery = pool.records
    used = dict.fromkeys(search.protocol for search in searches)
    return EvalSplit(
        name=name,
        protocol="; ".join(f"{protocol}: {summaries[protocol]}" for protocol in used),
        gallery=tuple(image_source(record) for record in gallery),
        gallery_ids=tuple(record.person_id for record in gallery),
        gallery_camera_ids=tuple(record.camera_id for record in gallery),
        gallery_clothes_ids=tuple(record.clothes_id for record in gallery),
        gallery_instructions=tuple(pool.instructions) if instruct is not None else (),
        gallery_annotations=tuple(record.annotations for record in gallery)
        if any(record.annotations for record in gallery)
        else (),
        query_lists=tuple(lists),
        pooled_groups=tuple(dict.fromkeys(search.group for search in searches if search.pooled and search.group)),
    )


ItemKey = tuple[str, int, int, int, "Source | None", "Source | None", int]
"""Image, person, camera, clothes, instruction, sentence of the task, and which of several equal ones."""


class _Pool:
    """Gallery items of all searches, in order of first appearance.

    An item is an image with its labels, its instruction and the sentence of its task: protocols that label one image
    differently (its person, or the person in this outfit), give it different instructions or ask for it under two tasks
    (LTCC's cc and sc lists) have an item each. The image is encoded once per instruction all the same.
    """

    def __init__(self, instruct: Instruct | None) -> None:
        self.records: list[Record] = []
        self.instructions: list[Source | None] = []
        self._instruct = instruct
        self._positions: dict[ItemKey, int] = {}
        self._known: dict[tuple[str, bool], tuple[int, ...]] = {}

    def add(self, search: Search) -> tuple[int, ...]:
        """Return the items of the search's gallery."""
        key = search.gallery_key, search.gallery_instructions
        if search.gallery_key and key in self._known:
            return self._known[key]
        instruct = self._instruct if search.gallery_instructions else None
        seen: dict[ItemKey, int] = {}
        positions: dict[int, None] = {}
        for record in search.gallery:
            item = self._item(record, instruct)
            if search.repeated_items:
                seen[item] = seen.get(item, -1) + 1
                item = (*item[:-1], seen[item])
            positions[self._position(item, record)] = None
        self._known[key] = tuple(positions)
        return self._known[key]

    def _item(self, record: Record, instruct: Instruct | None) -> ItemKey:
        return (
            image_source(record).value,
            record.person_id,
            record.camera_id,
            record.clothes_id,
            instruct(record) if instruct is not None else None,
            record.annotations.get(AnnotationKind.SENTENCE),
            0,
        )

    def _position(self, item: ItemKey, record: Record) -> int:
        position = self._positions.setdefault(item, len(self.records))
        if position == len(self.records):
            self.records.append(record)
            self.instructions.append(item[4])
        elif record.annotations.keys() - self.records[position].annotations.keys():
            known = self.records[position]
            self.records[position] = replace(known, annotations={**record.annotations, **known.annotations})
        return position


def _query_lists(search: Search, gallery: tuple[int, ...] | None, instruct: Instruct | None) -> list[QueryList]:
    if search.combination:
        return [_query_list(search, search.combination, search.query, gallery, instruct, search.title)]
    by_modality: dict[Modality, list[Record]] = {}
    for record in search.query:
        by_modality.setdefault(query_modality(record), []).append(record)
    several = len(by_modality) > 1
    return [
        _query_list(
            search,
            (modality,),
            records,
            gallery,
            instruct,
            f"{search.title} {modality.name}" if several else search.title,
        )
        for modality, records in by_modality.items()
    ]


def _query_list(
    search: Search,
    combination: Combination,
    records: Sequence[Record],
    gallery: tuple[int, ...] | None,
    instruct: Instruct | None,
    title: str,
) -> QueryList:
    kinds = [MAIN_KIND.get(record.task) for record in records]
    annotations = tuple(
        record.annotations.get(kind) if kind is not None else None for record, kind in zip(records, kinds)
    )
    annotated = any(annotation is not None for annotation in annotations)
    return QueryList(
        combination=combination,
        entries=tuple(tuple(record.sources[modality] for modality in combination) for record in records),
        person_ids=tuple(record.person_id for record in records),
        camera_ids=tuple(record.camera_id for record in records),
        clothes_ids=tuple(record.clothes_id for record in records),
        instructions=tuple(map(instruct, records)) if instruct is not None else (),
        annotations=annotations if annotated else (),
        annotation_kinds=tuple(kinds) if annotated else (),
        title=title,
        group=search.group,
        protocol=search.protocol,
        gallery=gallery,
        exclusion_rule=search.exclusion_rule,
        cmc=search.cmc,
        draws=search.draws,
    )
