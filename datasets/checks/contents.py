"""Counts beside the published ones, persons in several splits, captions and modalities."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from configs.vocabulary import Modality
from datasets.checks.report import Coverage, Finding, Level, PartCount, examples
from datasets.dataset_entry import Count, DatasetEntry
from datasets.modalities import MODALITIES
from datasets.overlap import image_values
from datasets.published_counts import count_differences, differing_counts, equal_counts, is_rendered
from datasets.releases.manifest import NO_SPLIT
from datasets.structures import Record, Release, Source


def side_of(part: str) -> str:
    """Return `train`, `val` or `test` for the name of a part, `<member>/<part>` included."""
    first = part.rpartition("/")[2].split("_")[0]
    return first if first in ("train", "val") else "test"


def own_parts(release: Release) -> dict[str, tuple[Record, ...]]:
    """Return the parts without the `train` that is all of `<member>/train` of several data sets once more."""
    composed = any("/" in part for part in release.parts)
    return {part: records for part, records in release.parts.items() if not (composed and part == "train")}


def by_side(release: Release) -> dict[str, list[Record]]:
    """Return the records of all parts by side, in the order train, val, test."""
    sides: dict[str, list[Record]] = {"train": [], "val": [], "test": []}
    for part, records in own_parts(release).items():
        sides[side_of(part)].extend(records)
    return {side: records for side, records in sides.items() if records}


def by_member_and_side(release: Release) -> dict[str, list[Record]]:
    """Return the records by side, and where several data sets are read together by `<member> <side>`: each covers its
    own.
    """
    found: dict[str, list[Record]] = {}
    members = {part.rpartition("/")[0] for part in release.parts} - {""}
    for member in sorted(members) or [""]:
        parts = {part: records for part, records in release.parts.items() if part.rpartition("/")[0] == member}
        for side, records in by_side(replace(release, parts=parts)).items():
            found[f"{member} {side}".strip()] = records
    return found


def count_parts(entry: DatasetEntry, release: Release) -> tuple[PartCount, ...]:
    """Return the size of each part, with what is published about it."""
    published = entry.published.get(release.variant, {})
    return tuple(
        _count(part, records, published.get(part, Count()))
        for part, records in release.parts.items()
        if records or part in published
    )


def _count(part: str, records: Sequence[Record], published: Count) -> PartCount:
    sources = [source for record in records for source in record.sources.values()]
    texts = sum(source.modality is Modality.TEXT for source in sources)
    images = len({source.value for source in sources if MODALITIES[source.modality].is_image})
    return PartCount(
        part=part,
        records=len(records),
        images=images,
        captions=texts,
        persons=len({record.person_id for record in records}),
        cameras=len({record.camera_id for record in records if record.camera_id >= 0}),
        published_images=published.images,
        published_persons=published.persons,
        confirmed=published.confirmed,
    )


def count_findings(entry: DatasetEntry, release: Release) -> list[Finding]:
    """Return one finding: the counts that differ from the published ones. Rendered data, by their marker, are expected
    to.
    """
    compared, different = count_differences(entry, release)
    if not compared:
        return []
    if not different:
        return [Finding(level="note", kind="counts_equal", count=compared, message=equal_counts(entry, compared))]
    message = differing_counts(entry, compared, different)
    if is_rendered(release):
        return [
            Finding(
                level="note", kind="counts_differ", count=len(different), message=f"{message}: the data are rendered"
            )
        ]
    return [
        Finding(
            level="warning",
            kind="counts_differ",
            count=len(different),
            examples=tuple(different),
            message=f"{message}: a partial or changed copy, or another version",
        )
    ]


def compared_sides(entry: DatasetEntry) -> list[tuple[str, str, Level]]:
    """Return the sides that must not share a person or an image, and what it is when they do. Some data sets validate
    on train; that is no finding, except in a user's own data.
    """
    pairs: list[tuple[str, str, Level]] = [("train", "test", "defect"), ("val", "test", "warning")]
    return [*pairs, ("train", "val", "warning")] if entry.own else pairs


def person_findings(entry: DatasetEntry, release: Release) -> list[Finding]:
    """Return persons and images that are on two sides which must not share them: train and test, val and test.

    Where train and test are numbered separately only images can be compared.
    """
    if release.shared_persons:
        return [Finding(level="warning", kind="no_split", message=NO_SPLIT)]
    sides = by_side(release)
    findings = []
    for left, right, level in compared_sides(entry):
        one, other = sides.get(left, []), sides.get(right, [])
        if not entry.separate_ids:
            findings += _shared_persons(release, one, other, f"{left} and {right}", level)
        shared = set(image_values(one, annotations=False)) & set(image_values(other, annotations=False))
        if shared:
            findings.append(
                Finding(
                    level=level,
                    kind="image_overlap",
                    count=len(shared),
                    examples=examples(sorted(shared)),
                    message=f"{len(shared):,} images are in {left} and in {right}; correct the lists",
                )
            )
    return findings


def _shared_persons(
    release: Release, one: Iterable[Record], other: Iterable[Record], what: str, level: Level
) -> list[Finding]:
    first: dict[int, Record] = {}
    for record in other:
        first.setdefault(record.person_id, record)
    shared: dict[int, Record] = {}
    for record in one:
        if record.person_id in first:
            shared.setdefault(record.person_id, record)
    if not shared:
        return []
    shown = (
        f"person {release.person(person)}: {record.name} and {first[person].name}"
        for person, record in sorted(shared.items())
    )
    return [
        Finding(
            level=level,
            kind="identity_overlap",
            count=len(shared),
            examples=examples(shown),
            message=f"{len(shared):,} persons are in {what}; the sides must not share a person, correct the lists or "
            "folders",
        )
    ]


def repeated_findings(release: Release) -> list[Finding]:
    """Return a warning for each part that lists a record twice: the same images, texts, annotations and labels."""
    findings = []
    for part, records in own_parts(release).items():
        seen: set[tuple[object, ...]] = set()
        again = []
        for record in records:
            key = (
                record.person_id,
                record.clothes_id,
                record.camera_id,
                *((modality.value, source.value) for modality, source in record.sources.items()),
                *((kind.value, source.value) for kind, source in record.annotations.items()),
            )
            if key in seen:
                again.append(record.name)
            seen.add(key)
        if again:
            findings.append(
                Finding(
                    level="warning",
                    kind="listed_twice",
                    count=len(again),
                    examples=examples(again),
                    message=f"{part}: {len(again):,} of {len(records):,} records are listed before, word for word; "
                    "take them out",
                )
            )
    return findings


def coverage_of(release: Release) -> tuple[Coverage, ...]:
    """Return captions and modalities of each side; partners of a record count as its person's."""
    return tuple(_coverage(side, records) for side, records in by_member_and_side(release).items())


def _coverage(side: str, records: Sequence[Record]) -> Coverage:
    having = persons_by_modality(records)
    items: dict[Modality, set[str]] = {}
    images: set[str] = set()
    captioned: set[str] = set()
    for record in records:
        for source in _all_sources(record):
            items.setdefault(source.modality, set()).add(source.value)
        values = {source.value for source in record.sources.values() if MODALITIES[source.modality].is_image}
        images |= values
        # A query of several modalities says nothing of its images.
        captioned |= values if Modality.TEXT in record.sources and _trained(side) else set()
    return Coverage(
        side=side,
        persons=len({record.person_id for record in records}),
        images=len(images),
        captioned_images=len(captioned),
        modalities={
            modality.name: {"persons": len(having[modality]), "items": len(items[modality])}
            for modality in Modality
            if modality in having
        },
    )


def _trained(side: str) -> bool:
    return side.split(" ")[-1] == "train"


def _all_sources(record: Record) -> list[Source]:
    return [*record.sources.values(), *(source for group in record.partners.values() for source in group)]


def persons_by_modality(records: Iterable[Record]) -> dict[Modality, set[int]]:
    """Return for each modality the persons who have an item of it."""
    having: dict[Modality, set[int]] = {}
    for record in records:
        for modality in (*record.sources, *(modality for modality, group in record.partners.items() if group)):
            having.setdefault(modality, set()).add(record.person_id)
    return having


def coverage_findings(release: Release) -> list[Finding]:
    """Return persons who lack a modality that others of their side have, images without a caption, and empty
    captions.
    """
    findings = []
    for side, records in by_member_and_side(release).items():
        having = persons_by_modality(records)
        persons = set().union(*having.values())
        for modality in [modality for modality in Modality if modality in having and modality is not Modality.TEXT]:
            lacking = sorted(persons - having[modality])
            if lacking:
                findings.append(
                    Finding(
                        level="warning" if _trained(side) else "note",
                        kind="modality_missing",
                        count=len(lacking),
                        examples=examples(_called(release, lacking)),
                        message=f"{side}: {len(lacking):,} of {len(persons):,} persons have no {modality.name} image",
                    )
                )
        findings += _caption_findings(release, side, records, persons, having)
    return findings


def _called(release: Release, persons: Iterable[int]) -> list[str]:
    return [f"person {release.person(person)}" for person in persons]


def _caption_findings(
    release: Release,
    side: str,
    records: Sequence[Record],
    persons: set[int],
    having: Mapping[Modality, set[int]],
) -> list[Finding]:
    if Modality.TEXT not in having:
        return []
    findings = []
    empty = [
        record.name
        for record in records
        if Modality.TEXT in record.sources and not record.sources[Modality.TEXT].value.strip()
    ]
    if empty:
        findings.append(
            Finding(
                level="warning",
                kind="caption_empty",
                count=len(empty),
                examples=examples(empty),
                message=f"{side}: {len(empty):,} captions are empty; write them or take the records out",
            )
        )
    if _trained(side):
        bare = [record.name for record in records if Modality.TEXT not in record.sources]
        if bare:
            findings.append(
                Finding(
                    level="warning",
                    kind="caption_missing",
                    count=len(bare),
                    examples=examples(bare),
                    message=f"{side}: {len(bare):,} of {len(records):,} records have no caption while others do",
                )
            )
    else:
        lacking = sorted(persons - having[Modality.TEXT])
        if lacking:
            findings.append(
                Finding(
                    level="note",
                    kind="caption_missing",
                    count=len(lacking),
                    examples=examples(_called(release, lacking)),
                    message=f"{side}: {len(lacking):,} of {len(persons):,} persons are looked for by no caption",
                )
            )
    return findings
