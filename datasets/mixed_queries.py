"""Query lists of several modalities: those of ORBench, and lists drawn in the same way from any records."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from configs.vocabulary import GROUP_NAMES, Combination, Modality, combination_name
from datasets.formats.query_lists import draw_query_lists
from datasets.protocols import Search
from datasets.structures import Record, Source

GALLERY_KEY = "mixed"


def mixed_search(
    key: Combination,
    query: Sequence[Record],
    gallery: Sequence[Record],
    protocol: str,
    *,
    repeated_items: bool = False,
) -> Search:
    """Return the search of queries of one combination, whose row of averages is that of their number of modalities.

    The gallery is one for all searches of a protocol. repeated_items: an image that the gallery lists twice is two
    images, as ORBench's reference counts.
    """
    return Search(
        title=combination_name(key),
        protocol=protocol,
        query=query,
        gallery=gallery,
        gallery_key=f"{GALLERY_KEY} {protocol}",
        repeated_items=repeated_items,
        combination=key,
        group=GROUP_NAMES[len(key)],
        draws=False,
    )


def query_modalities(records: Iterable[Record]) -> set[Modality]:
    """Return what records have besides visible images, as sources or as partners."""
    return {modality for record in records for modality in (*record.sources, *record.partners)} - {Modality.RGB}


def drawn_searches(
    records: Sequence[Record], protocol: str, seed: int, *, repeated_items: bool = False, smallest: int = 1
) -> list[Search]:
    """Return one search for each key of ORBench that the records' modalities allow, against their visible images.

    Partners are drawn by `draw_query_lists` from the same person's sources. Persons without a visible image are no
    queries. repeated_items: sources that several records list count as often as they are listed, as in ORBench.
    smallest: leave out the lists of fewer modalities.
    """
    items: dict[int, dict[Modality, list[Source]]] = {}
    for record in sorted(records, key=lambda record: (record.person_id, _leading(record).value)):
        own = items.setdefault(record.person_id, {})
        for modality, sources in record.partners.items():
            own.setdefault(modality, list(sources))
        for modality, source in record.sources.items():
            own.setdefault(modality, []).append(source)
    if not repeated_items:
        items = {
            person: {modality: list(dict.fromkeys(sources)) for modality, sources in own.items()}
            for person, own in items.items()
        }
    items = {person: own for person, own in items.items() if own.get(Modality.RGB)}
    names = {record.dataset for record in records}
    dataset = names.pop() if len(names) == 1 else ""
    gallery = [query_record(person, (image,), dataset) for person, own in items.items() for image in own[Modality.RGB]]
    return [
        mixed_search(
            key,
            [query_record(person, entry, dataset) for person, entry in entries],
            gallery,
            protocol,
            repeated_items=repeated_items,
        )
        for key, entries in draw_query_lists(items, seed).items()
        if entries and len(key) >= smallest
    ]


def _leading(record: Record) -> Source:
    return record.sources.get(Modality.RGB) or next(iter(record.sources.values()))


def query_record(person: int, sources: tuple[Source, ...], dataset: str) -> Record:
    """Return the record of a person's sources: those of one query, or an image of the gallery."""
    return Record(
        person_id=person,
        sources={source.modality: source for source in sources},
        dataset=dataset,
        name=sources[0].record,
    )
