"""Image files: present, decodable, and not the same in train and test."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor

from datasets.checks.contents import by_side
from datasets.checks.report import Finding, examples
from datasets.loading.readers import open_image
from datasets.overlap import find_identical, image_values
from datasets.structures import Record, Release
from utils.errors import UserError
from utils.progress import progress_bar

CHUNK = 64
WORTH_PROCESSES = 20_000
"""Fewer images are opened sooner than the processes have imported what they need."""


def file_findings(release: Release, processes: int) -> tuple[list[Finding], int]:
    """Open and decode every image; return findings and the number opened. processes: at most so many."""
    records = [record for part in release.parts.values() for record in part]
    paths = sorted(image_values(records))
    findings, readable = _missing(paths, records)
    broken = {path: error for path, error in zip(readable, _errors(readable, processes)) if error}
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
    return [*findings, *_identical(release)], len(readable)


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


def _errors(paths: Sequence[str], processes: int) -> Iterator[str]:
    """The error of each image in order, empty for a whole one."""
    with progress_bar(None, len(paths), "opening images", "image") as bar:
        if processes <= 1 or len(paths) < WORTH_PROCESSES:
            for path in paths:
                yield image_error(path)
                bar.update()
            return
        # Spawned, not forked: torch's threads do not survive a fork.
        with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
            for error in pool.map(image_error, paths, chunksize=CHUNK):
                yield error
                bar.update()


def image_error(path: str) -> str:
    """Return why an image cannot be read, empty when it can."""
    try:
        open_image(path)
    except UserError as error:
        return str(error)
    return ""


def _identical(release: Release) -> list[Finding]:
    sides = by_side(release)
    if release.shared_persons or not {"train", "test"} <= set(sides):
        return []
    found = find_identical({side: image_values(sides[side], annotations=False) for side in ("train", "test")})
    if not found:
        return []
    shown = (f"{entry.paths['train'][0]} and {entry.paths['test'][0]}" for entry in found)
    return [
        Finding(
            level="defect",
            kind="identical_images",
            count=len(found),
            examples=examples(shown),
            message=f"{len(found):,} images of train are also in test, byte for byte; leave them out of one "
            "(data.exclude)",
        )
    ]
