"""ORBench as an entry, for the check alone: its own reader, seen as parts and searches."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from configs.vocabulary import Modality, Task
from datasets.dataset_entry import Count, DatasetEntry
from datasets.formats.image_folders import refuse_options
from datasets.orbench_statistics import PUBLISHED_ORBENCH
from datasets.protocols import Protocol, Search, protocol_table
from datasets.releases.orbench import FOLDER, TEST_FILE, load_orbench
from datasets.structures import QueryList, ReadOptions, Record, Release

NAME = "orbench"


def read(root: Path, options: ReadOptions) -> Release:
    """Return parts train, gallery, and one per query list, named as the list. Raises UserError as the reader of
    ORBench.
    """
    refuse_options(options, NAME)
    benchmark = load_orbench(root, need_train=options.need_train, check_files=options.check_files)
    split = benchmark.splits["test"]
    gallery = tuple(
        Record(person_id=person, sources={source.modality: source}, dataset=NAME, name=source.record)
        for person, source in zip(split.gallery_ids, split.gallery)
    )
    parts = {
        "train": benchmark.train,
        "gallery": gallery,
        **{queries.name: _records(queries) for queries in split.query_lists},
    }
    # The reader's table of counts is the check's own business.
    notes = tuple(note for note in benchmark.notes if "\n" not in note and "published" not in note)
    folder = Path(root) if (Path(root) / TEST_FILE).is_file() else Path(root) / FOLDER
    return Release(
        name=NAME, root=folder, parts={part: records for part, records in parts.items() if records}, notes=notes
    )


def _records(queries: QueryList) -> tuple[Record, ...]:
    return tuple(
        Record(
            person_id=person, sources={source.modality: source for source in entry}, dataset=NAME, name=entry[0].record
        )
        for person, entry in zip(queries.person_ids, queries.entries)
    )


def _searches(release: Release) -> Iterable[Search]:
    return [
        Search(title=part, protocol=NAME, query=records, gallery=release.parts["gallery"])
        for part, records in release.parts.items()
        if part not in ("train", "gallery")
    ]


def _recognise(root: Path) -> bool:
    return any((folder / TEST_FILE).is_file() for folder in (root, root / FOLDER))


def _published() -> dict[str, Count]:
    counts = PUBLISHED_ORBENCH
    found = {
        "train": Count(persons=counts["training identities"]),
        "gallery": Count(images=counts["gallery"], persons=counts["test identities"], confirmed=False),
    }
    return found | {
        m.name: Count(images=counts[f"{m.name} queries"], confirmed=False)
        for m in (Modality.NIR, Modality.CP, Modality.SK)
    }


ORBENCH = DatasetEntry(
    name=NAME,
    title="ORBench",
    task=Task.ORB,
    read=read,
    protocols=protocol_table([Protocol(name=NAME, summary="RGB gallery, no exclusion", searches=_searches)]),
    default=(NAME,),
    recognise=_recognise,
    published={"": _published()},
    separate_ids=True,
    access="Signed agreement to HUST; academic use only, no forwarding.",
)
