"""One picture under several names, and one picture or caption under two persons: told by content."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from datasets.checks.contents import by_member_and_side, by_side, compared_sides, own_parts
from datasets.checks.report import Finding, examples
from datasets.dataset_entry import DatasetEntry
from datasets.modalities import MODALITIES
from datasets.overlap import image_values
from datasets.protocols import Search
from datasets.structures import Record, Release, Source
from utils.identical import identical_files, pairs_across

Copies = tuple[tuple[str, ...], ...]
"""Sets of files with the same bytes."""


def copies_of(release: Release) -> Copies:
    """Return every set of image files of a release that have the same bytes, annotations left out."""
    records = (record for part in release.parts.values() for record in part)
    return tuple(identical_files(sorted(image_values(records, annotations=False))))


def pictures_of(copies: Copies) -> dict[str, str]:
    """Return file -> the first file of the same bytes, for the files that have copies."""
    return {path: same[0] for same in copies for path in same}


def copy_findings(entry: DatasetEntry, release: Release, copies: Copies, searches: Sequence[Search]) -> list[Finding]:
    """Return copies that are on two sides, that a query has in its gallery, and that one part lists twice."""
    return [*_across(entry, release, copies), *_of_queries(searches, copies), *_within(entry, release, copies)]


def _across(entry: DatasetEntry, release: Release, copies: Copies) -> list[Finding]:
    """Copies in train and test spoil a result."""
    if release.shared_persons:
        return []
    sides = {side: set(image_values(records, annotations=False)) for side, records in by_side(release).items()}
    findings = []
    for left, right, level in compared_sides(entry):
        shared = [
            (ours[0], theirs[0])
            for same in copies
            if (ours := [path for path in same if path in sides.get(left, ())])
            and (theirs := [path for path in same if path in sides.get(right, ()) and path != ours[0]])
        ]
        if shared:
            findings.append(
                Finding(
                    level=level,
                    kind="identical_images",
                    count=len(shared),
                    examples=examples(f"{one} and {other}" for one, other in shared),
                    message=f"{len(shared):,} images of {left} are also in {right}, byte for byte; leave them out of "
                    "one (data.exclude)",
                )
            )
    return findings


def _of_queries(searches: Sequence[Search], copies: Copies) -> list[Finding]:
    """Gallery images that are copies of queries: the usual way to make queries, and a rank-1 of 100 % on noise."""
    found: dict[tuple[str, str], None] = {}
    for search in searches if copies else ():
        queries, gallery = (set(image_values(side, annotations=False)) for side in (search.query, search.gallery))
        found |= dict.fromkeys(pairs_across(copies, queries, gallery))
    if not found:
        return []
    count = len({image for _, image in found})
    return [
        Finding(
            level="warning",
            kind="query_copy_in_gallery",
            count=count,
            examples=examples(f"{query} and {image}" for query, image in found),
            message=f"{count:,} gallery images are byte copies of queries; a query does not find its own image, so "
            "they do not count for it: give other images, or take them out",
        )
    ]


def _within(entry: DatasetEntry, release: Release, copies: Copies) -> list[Finding]:
    findings = []
    for part, records in own_parts(release).items():
        listed = set(image_values(records, annotations=False))
        together = [[path for path in same if path in listed] for same in copies]
        repeated = [same for same in together if len(same) > 1]
        if repeated:
            count = sum(len(same) - 1 for same in repeated)
            findings.append(
                Finding(
                    level="warning" if entry.own else "note",
                    kind="copies_within",
                    count=count,
                    examples=examples(f"{same[0]} and {same[1]}" for same in repeated),
                    message=f"{part}: {count:,} of {len(listed):,} images are byte copies of another one; keep one of "
                    "each",
                )
            )
    return findings


def contradiction_findings(entry: DatasetEntry, release: Release, pictures: Mapping[str, str]) -> list[Finding]:
    """Return pictures, and captions, that one side lists under two persons: at most one of them can be right.

    pictures: see `pictures_of`. Two persons may be described alike, so that a caption is a defect of no data set.
    """
    findings = []
    for side, records in by_member_and_side(release).items():
        shown = _owners((pictures.get(source.value, source.value), record) for source, record in _images(records))
        if shown:
            findings.append(
                Finding(
                    level="defect" if entry.own else "warning",
                    kind="picture_of_two_persons",
                    count=len(shown),
                    examples=examples(_pair(release, shown)),
                    message=f"{side}: {len(shown):,} pictures are listed under two persons, as one file or byte for "
                    "byte; one of the two labels is wrong",
                )
            )
        said = _owners((_plain(source.value), record) for source, record in _captions(records))
        if said:
            findings.append(
                Finding(
                    level="warning" if entry.own else "note",
                    kind="caption_of_two_persons",
                    count=len(said),
                    examples=examples(_pair(release, said)),
                    message=f"{side}: {len(said):,} captions are those of two persons, word for word; the text cannot "
                    "tell them apart",
                )
            )
    return findings


def _images(records: Iterable[Record]) -> Iterable[tuple[Source, Record]]:
    for record in records:
        for source in (*record.sources.values(), *(source for group in record.partners.values() for source in group)):
            if MODALITIES[source.modality].is_image:
                yield source, record


def _captions(records: Iterable[Record]) -> Iterable[tuple[Source, Record]]:
    for record in records:
        for source in record.sources.values():
            if not MODALITIES[source.modality].is_image and source.value.strip():
                yield source, record


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())


def _owners(listed: Iterable[tuple[str, Record]]) -> dict[str, dict[int, Record]]:
    """Return what is listed under two persons or more, with a record of each."""
    found: dict[str, dict[int, Record]] = {}
    for value, record in listed:
        found.setdefault(value, {}).setdefault(record.person_id, record)
    return {value: owners for value, owners in found.items() if len(owners) > 1}


def _pair(release: Release, found: Mapping[str, Mapping[int, Record]]) -> Iterable[str]:
    """Name both records of each, or what they share where the record's name says no more."""
    for value, owners in found.items():
        first, second = list(owners.items())[:2]
        yield (
            f"{value[:80]}: person {release.person(first[0])} ({first[1].name or 'listed'}) and person "
            f"{release.person(second[0])} ({second[1].name or 'listed'})"
        )
