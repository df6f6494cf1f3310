"""Counts of a release beside those that are published for its data set."""

from __future__ import annotations

from collections.abc import Sequence

from configs.vocabulary import Modality
from datasets.dataset_entry import Count, DatasetEntry
from datasets.modalities import MODALITIES
from datasets.structures import Record, Release, Source

RENDERED_MARKER = "manifest.json"
"""The renderer writes its manifest beside the data; no original has such a file there."""


def is_rendered(release: Release) -> bool:
    """Return whether the data were drawn by `datasets.synthetic`, whose counts are nobody's."""
    return any((folder / RENDERED_MARKER).exists() for folder in (release.root, release.root.parent))


def count_part(records: Sequence[Record]) -> Count:
    """Return images (texts, for a part without images), persons, and images of partners by modality, of a part."""
    partners: dict[Modality, set[Source]] = {}
    for record in records:
        for modality, candidates in record.partners.items():
            partners.setdefault(modality, set()).update(candidates)
    return Count(
        images=_images(records) or len(records),
        persons=len({record.person_id for record in records}),
        partners={modality: len(sources) for modality, sources in partners.items()},
    )


def _images(records: Sequence[Record]) -> int:
    return len(
        {
            (source.modality, source.value, source.crop)
            for record in records
            for source in record.sources.values()
            if MODALITIES[source.modality].is_image
        }
    )


def count_differences(entry: DatasetEntry, release: Release) -> tuple[int, list[str]]:
    """Return how many counts were compared, and one text for each that differs: `query images 2 (published 3)`.

    Parts without records were not asked for, or are not there, which the reader has said: they are not compared.
    """
    compared, different = 0, []
    for part, expected in entry.published.get(release.variant, {}).items():
        records = release.parts.get(part, ())
        if not records:
            continue
        counted = count_part(records)
        # A part of captions is published as captions.
        pictures = "images" if _images(records) else "captions"
        for what, value, wanted in (
            (pictures, counted.images, expected.images),
            ("persons", counted.persons, expected.persons),
            *(
                (f"{kind.name} images", counted.partners.get(kind, 0), wanted)
                for kind, wanted in expected.partners.items()
            ),
        ):
            if wanted is None:
                continue
            compared += 1
            if value != wanted:
                different.append(
                    f"{part} {what} {value:,} (published {wanted:,}{'' if expected.confirmed else ', unconfirmed'})"
                )
    return compared, different


def equal_counts(entry: DatasetEntry, compared: int) -> str:
    """Return the sentence for a release all of whose counts are the published ones."""
    return f"all {compared} counts equal the published ones of {entry.title}"


def differing_counts(entry: DatasetEntry, compared: int, different: Sequence[str]) -> str:
    """Return the sentence for a release with other counts, without the counts themselves."""
    return f"{len(different)} of {compared} counts differ from the published ones of {entry.title}"
