"""One check of one data set: read, look at everything, report."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from datasets.benchmark import exclude_listed
from datasets.catalogue import CATALOGUE, dataset_entry, read_release
from datasets.checks.contents import (
    count_findings,
    count_parts,
    coverage_findings,
    coverage_of,
    person_findings,
    repeated_findings,
)
from datasets.checks.copies import contradiction_findings, copies_of, copy_findings, pictures_of
from datasets.checks.files import file_findings, missing_findings
from datasets.checks.matches import find_unmatched, match_findings, searchable_persons, searches_of
from datasets.checks.report import Finding, Report, examples
from datasets.dataset_entry import DatasetEntry
from datasets.overlap import find_identical, grammar_of, image_values, known_overlaps
from datasets.protocols import Search
from datasets.published_counts import is_rendered
from datasets.releases.manifest import NO_SPLIT
from datasets.structures import WARNING, ReadOptions, Release
from utils.errors import UserError

NEARBY = 3
"""With more data sets below one folder, their names say nothing about a mistake."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckOptions:
    """What is checked."""

    dataset: str
    root: Path
    reading: ReadOptions = field(default_factory=ReadOptions)
    protocols: tuple[str, ...] = ()
    """Empty = all that are possible."""
    open_images: bool = True
    processes: int = 1
    """At most so many open images."""
    against: tuple[tuple[str, Path], ...] = ()
    """Other data sets, name and root."""
    exclude: str = ""
    """List of images that are left out first, empty = none."""


def run_check(options: CheckOptions) -> tuple[Report, Release]:
    """Check one data set. Raises UserError when it cannot be read at all."""
    entry = dataset_entry(options.dataset)
    # Own data may be there to be trained on, or to be searched, alone.
    reading = replace(options.reading, need_train=options.reading.need_train and not entry.own)
    release = _read(entry, options.root, reading)
    if options.exclude:
        release = exclude_listed(release, Path(options.exclude), options.root, options.reading.need_train)
    parts = count_parts(entry, release)
    searches, notes = _searches(entry, release, options.protocols)
    persons = searchable_persons(release)
    copies = copies_of(release) if options.open_images else ()
    pictures = pictures_of(copies)
    unmatched = [find_unmatched(search, persons, pictures) for search in searches]
    in_files, opened = (
        file_findings(release, options.processes, own=entry.own)
        if options.open_images
        else (missing_findings(release), None)
    )
    findings = [
        *in_files,
        *copy_findings(entry, release, copies, searches),
        *contradiction_findings(entry, release, pictures),
        *person_findings(entry, release),
        *match_findings(entry, unmatched),
        *_other_name(entry, release, options.root),
        *_from_others(entry, release, options),
        *coverage_findings(release),
        *repeated_findings(release),
        *count_findings(entry, release),
        *notes,
        *_other_trials(entry, options),
        *(_from_reader(note) for note in release.notes if note != NO_SPLIT),
    ]
    report = Report(
        dataset=entry.name,
        title=entry.title,
        root=str(release.root),
        variant=release.variant,
        parts=parts,
        searches=tuple(case.count() for case in unmatched),
        coverage=coverage_of(release),
        findings=tuple(findings),
        images_opened=opened,
        dropped=release.dropped,
        access="" if is_rendered(release) else entry.access,
    )
    return report, release


def _searches(entry: DatasetEntry, release: Release, protocols: Sequence[str]) -> tuple[list[Search], list[Finding]]:
    if not entry.own or protocols:
        return searches_of(entry, release, protocols)
    if release.parts.keys() & {"query", "gallery"}:
        return searches_of(entry, release, entry.default)
    return [], [Finding(level="note", kind="no_test_part", message="no queries and no gallery: nothing is searched")]


def _other_trials(entry: DatasetEntry, options: CheckOptions) -> list[Finding]:
    """Read the lists of the other trials of a data set that has some: a damaged one is a defect."""
    if entry.trials <= 1:
        return []
    own = options.reading.data.trial
    findings = [
        Finding(
            level="note",
            kind="trials",
            message=f"files, persons and matches are those of trial {own} (--trial); of the other {entry.trials - 1} "
            "trials the lists were read",
        )
    ]
    for trial in range(1, entry.trials + 1):
        if trial == own:
            continue
        try:
            read_release(entry, options.root, replace(options.reading, data=replace(options.reading.data, trial=trial)))
        except UserError as error:
            findings.append(Finding(level="defect", kind="trials", message=f"trial {trial}: {error}"))
    return findings


def _from_reader(note: str) -> Finding:
    warned = note.startswith(WARNING)
    return Finding(
        level="warning" if warned else "note", kind="reader", message=note.removeprefix(WARNING).replace("\n", " ")
    )


def _read(entry: DatasetEntry, root: Path, reading: ReadOptions) -> Release:
    try:
        return read_release(entry, root, reading)
    except UserError as error:
        others = list(recognised(root, entry.name)) if root.is_dir() and not entry.composed else []
        if not 1 <= len(others) <= NEARBY or _is(entry, root):
            raise
        raise UserError(f"{error}; {_looks_like(others)}") from error


def recognised(root: Path, besides: str) -> Iterator[DatasetEntry]:
    """Yield the data sets that a folder looks like, except the named one."""
    for entry in _published_entries():
        if entry.name != besides and _is(entry, root):
            yield entry


def _published_entries() -> list[DatasetEntry]:
    """The entries that names can tell: no user's own images, and no several data sets together."""
    return [entry for entry in map(dataset_entry, CATALOGUE) if not (entry.own or entry.composed)]


def _is(entry: DatasetEntry, root: Path) -> bool:
    try:
        return entry.recognise(root)
    except UserError:
        # A folder that cannot be listed looks like nothing.
        return False


def _looks_like(others: Sequence[DatasetEntry]) -> str:
    return (
        f"this looks like {' or '.join(other.title for other in others)}: use "
        f"{' or '.join(f'--dataset {other.name}' for other in others)}"
    )


def _other_name(entry: DatasetEntry, release: Release, root: Path) -> list[Finding]:
    """A warning where the folder looks like another data set and not like the named one; own data look like
    anything.
    """
    if entry.composed or (not entry.own and (_is(entry, root) or _is(entry, release.root))):
        return []
    others = list(recognised(root, entry.name)) if root.is_dir() else []
    if not 1 <= len(others) <= NEARBY:
        return []
    return [
        Finding(
            level="warning",
            kind="looks_like",
            count=len(others),
            examples=tuple(other.name for other in others),
            message=f"{root}: {_looks_like(others)}",
        )
    ]


def _patterns() -> dict[str, str]:
    return {entry.name: entry.name_pattern for entry in _published_entries()}


def _from_others(entry: DatasetEntry, release: Release, options: CheckOptions) -> list[Finding]:
    """Images that also belong to another data set: by name for own data, by origin and by bytes for the named ones."""
    mine = image_values(record for records in release.parts.values() for record in records)
    findings = []
    if entry.own:
        findings += [
            Finding(
                level="warning",
                kind="same_grammar",
                message=f"the file names have the form of {name}'s: if the images "
                f"are from it, do not use both together",
            )
            for name in grammar_of(mine, _patterns())
        ]
    findings += [
        Finding(level="warning", kind="known_overlap", message=sentence)
        for sentence in known_overlaps([entry.name, *(name for name, _ in options.against)])
    ]
    for name, root in options.against:
        other = dataset_entry(name)
        theirs = image_values(
            record
            for records in _read(other, root, ReadOptions(check_files=False, need_train=False)).parts.values()
            for record in records
        )
        findings += _identical(entry.name, mine, name, theirs)
        if entry.name != name and not entry.own and name in grammar_of(mine, _patterns()):
            findings.append(
                Finding(
                    level="warning",
                    kind="same_grammar",
                    message=f"the file names of {entry.name} have the form of {name}'s; re-encoded copies cannot be "
                    "found, so make sure that they are other images",
                )
            )
    return findings


def _identical(name: str, mine: Sequence[str], other: str, theirs: Sequence[str]) -> list[Finding]:
    same_path = sorted({os.path.abspath(path) for path in mine} & {os.path.abspath(path) for path in theirs})
    copies = find_identical({"mine": mine, "theirs": theirs})
    count = len(copies) + len(same_path)
    if not count:
        return []
    shown = [f"{path} is in both" for path in same_path] + [
        f"{copy.paths['mine'][0]} and {copy.paths['theirs'][0]}" for copy in copies
    ]
    return [
        Finding(
            level="defect",
            kind="identical_against",
            count=count,
            examples=examples(shown),
            message=f"{count:,} images of {name} are also in {other}, byte for byte; joint use needs them excluded "
            "from one (data.exclude)",
        )
    ]
