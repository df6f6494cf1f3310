"""Image files: present, decodable, and what their stored pixels do not say."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

from datasets.checks.report import Finding, examples
from datasets.loading.readers import show_image
from datasets.overlap import image_values
from datasets.structures import Record, Release
from utils.errors import UserError
from utils.progress import progress_bar

CHUNK = 64
WORTH_PROCESSES = 20_000
"""Fewer images are opened sooner than the processes have imported what they need."""


@dataclass(frozen=True, slots=True)
class Opened:
    """What opening an image said."""

    error: str = ""
    """Why it cannot be read, empty when it can."""
    turned: bool = False
    """Its EXIF orientation turns it."""
    transparent: bool = False
    """A part of it is transparent."""


def file_findings(release: Release, processes: int, *, own: bool) -> tuple[list[Finding], int]:
    """Open and decode every image; return findings and the number opened. processes: at most so many. own: these are a
    user's own images, which no reference code reads.
    """
    records = [record for part in release.parts.values() for record in part]
    paths = sorted(image_values(records))
    findings, readable = _missing(paths, records)
    opened = dict(zip(readable, _opened(readable, processes)))
    broken = {path: found.error for path, found in opened.items() if found.error}
    if broken:
        findings = [
            *findings,
            Finding(
                level="defect",
                kind="unreadable_images",
                count=len(broken),
                examples=examples(broken.values()),
                message=f"{len(broken):,} of {len(paths):,} images cannot be read; copy them again, or leave them out "
                "(data.exclude)",
            ),
        ]
    return [*findings, *_shown_otherwise(opened, own)], len(readable)


def _shown_otherwise(opened: Mapping[str, Opened], own: bool) -> list[Finding]:
    """Images that are read as a viewer shows them, which their stored pixels alone are not."""
    findings = []
    for kind, paths, what in (
        ("turned_images", [path for path, found in opened.items() if found.turned], "turned by their EXIF orientation"),
        (
            "transparent_images",
            [path for path, found in opened.items() if found.transparent],
            "transparent, and white there",
        ),
    ):
        if paths:
            compared = (
                "" if own else "; reference code takes the stored pixels, so that its figures are of other images"
            )
            findings.append(
                Finding(
                    level="note" if own else "warning",
                    kind=kind,
                    count=len(paths),
                    examples=examples(paths),
                    message=f"{len(paths):,} of {len(opened):,} images are {what}{compared}",
                )
            )
    return findings


def missing_findings(release: Release) -> list[Finding]:
    """Return listed images that do not exist, without opening the others."""
    records = [record for part in release.parts.values() for record in part]
    return _missing(sorted(image_values(records)), records)[0]


def _missing(paths: Sequence[str], records: Sequence[Record]) -> tuple[list[Finding], list[str]]:
    """Findings, and the paths that exist."""
    absent = [
        path for path in progress_bar(paths, len(paths), "looking for images", "file") if not os.path.isfile(path)
    ]
    if not absent:
        return [], list(paths)
    gone = set(absent)
    places = {
        source.value: source.record for record in records for source in record.sources.values() if source.value in gone
    }
    shown = (f"{path} ({places.get(path, 'a partner or clothes image')})" for path in absent)
    return [
        Finding(
            level="defect",
            kind="missing_images",
            count=len(absent),
            examples=examples(shown),
            message=f"{len(absent):,} of {len(paths):,} listed images do not exist; restore them, or take them out of "
            "the lists",
        )
    ], [path for path in paths if path not in gone]


def _opened(paths: Sequence[str], processes: int) -> Iterator[Opened]:
    """What each image says, in order."""
    with progress_bar(None, len(paths), "opening images", "image") as bar:
        if processes <= 1 or len(paths) < WORTH_PROCESSES:
            for path in paths:
                yield opened_image(path)
                bar.update()
            return
        # Spawned, not forked: torch's threads do not survive a fork.
        with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
            for found in pool.map(opened_image, paths, chunksize=CHUNK):
                yield found
                bar.update()


def opened_image(path: str) -> Opened:
    """Open and decode one image."""
    try:
        shown = show_image(path)
    except UserError as error:
        return Opened(error=str(error))
    return Opened(turned=shown.turned, transparent=shown.transparent)
