"""What data sets share: identical files, sources known to overlap, alike file names; and the exclusion of listed
images.

Identical bytes can be found; that the names of one data set have the form of another's is a hint; a crop that was
encoded again cannot be found.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from datasets.formats.listing import read_lines
from datasets.modalities import MODALITIES
from datasets.structures import Record, Release, Source
from utils.errors import UserError, nearest
from utils.identical import identical_files

KNOWN: tuple[tuple[str, str, str], ...] = (
    ("icfg-pedes", "msmt17", "ICFG-PEDES consists of images of MSMT17"),
    ("rstpreid", "msmt17", "RSTPReid consists of images of MSMT17"),
    ("icfg-pedes", "rstpreid", "ICFG-PEDES and RSTPReid both consist of images of MSMT17"),
    ("orbench", "sysu", "ORBench's photographs are images of SYSU-MM01 and LLCM"),
    ("orbench", "llcm", "ORBench's photographs are images of SYSU-MM01 and LLCM"),
    ("cuhk-pedes", "market1501", "CUHK-PEDES reuses images of Market-1501 (which ones is unconfirmed)"),
    ("cuhk-pedes", "cuhk03", "CUHK-PEDES reuses images of CUHK03 (which ones is unconfirmed)"),
    *(
        ("omnireid", name, "OmniReID's lists name images of this data set")
        for name in (
            "market1501",
            "msmt17",
            "cuhk03",
            "prcc",
            "vc-clothes",
            "ltcc",
            "llcm",
            "cocas",
            "cuhk-pedes",
            "synth-pedes",
        )
    ),
)
"""Two data sets, and what they share by origin."""

TELLING = frozenset({"market1501", "msmt17", "cuhk03", "vc-clothes", "ltcc", "nkup", "llcm", "regdb"})
"""Data sets whose file names say where they come from; the others' are plain numbers."""

GRAMMAR_SHARE = 0.9


@dataclass(frozen=True, kw_only=True, slots=True)
class IdenticalFiles:
    """Files of the same bytes in different groups."""

    paths: Mapping[str, tuple[str, ...]]
    """By group, sorted."""


def find_identical(groups: Mapping[str, Iterable[str | os.PathLike[str]]]) -> list[IdenticalFiles]:
    """Return every set of files with the same bytes that lies in two groups or more, sorted by its first path.

    Sizes are compared first, then SHA-256. One path in several groups is one file and no finding by itself; files that
    cannot be read are left to whoever reads them.
    """
    owners: dict[str, list[str]] = {}
    for group, paths in groups.items():
        for path in dict.fromkeys(os.path.abspath(path) for path in paths):
            owners.setdefault(path, []).append(group)

    def crosses(paths: Sequence[str]) -> bool:
        return len({group for path in paths for group in owners[path]}) > 1

    found = []
    for same in identical_files(owners, crosses):
        shared = {group: tuple(sorted(path for path in same if group in owners[path])) for group in groups}
        found.append(IdenticalFiles(paths={group: paths for group, paths in shared.items() if paths}))
    return sorted(found, key=lambda entry: min(path for paths in entry.paths.values() for path in paths))


def known_overlaps(names: Iterable[str]) -> list[str]:
    """Return a sentence for every two of the named data sets that are known to share images."""
    present = dict.fromkeys(names)
    return [
        f"{left} and {right}: {why}; exclude the shared images (data.exclude), or use one of the two"
        for left, right, why in KNOWN
        if left in present and right in present
    ]


def grammar_of(paths: Sequence[str], patterns: Mapping[str, str]) -> list[str]:
    """Return the data sets whose pattern nine of ten file names match entirely. patterns: data set -> regular
    expression.
    """
    names = [os.path.basename(path) for path in paths]
    found = []
    for dataset, pattern in patterns.items():
        if names and pattern and dataset in TELLING:
            compiled = re.compile(pattern)
            if sum(compiled.fullmatch(name) is not None for name in names) >= GRAMMAR_SHARE * len(names):
                found.append(dataset)
    return found


def image_values(records: Iterable[Record], *, annotations: bool = True) -> list[str]:
    """Return the distinct image files of records: listed ones, partners and (unless left out) annotations, in listed
    order.
    """
    values: dict[str, None] = {}
    for record in records:
        groups = [tuple(record.sources.values()), tuple(record.annotations.values()) if annotations else ()]
        groups += record.partners.values()
        values.update(
            (source.value, None) for group in groups for source in group if MODALITIES[source.modality].is_image
        )
    return list(values)


def load_exclusions(path: Path, root: Path) -> dict[str, str]:
    """Return {absolute image path: `file line N`} of a list with one path per line. Lines that begin with # are
    comments.

    The paths are relative to `root`: data.root, or the folder of a manifest. Raises UserError naming the line.
    """
    if not Path(path).exists():
        raise UserError(
            f"no such file: {path} (the list of images to leave out); correct data.exclude (--exclude of the check)"
        )
    base = root if root.is_dir() else root.parent
    found: dict[str, str] = {}
    for number, line in read_lines(Path(path), "the list of images to leave out"):
        if line.startswith("#"):
            continue
        where = f"{path} line {number}"
        if "\0" in line:
            raise UserError(f"{where}: {line!r} is not a path; correct it")
        found.setdefault(os.path.abspath(base / line), where)
    return found


def apply_exclusions(release: Release, excluded: Mapping[str, str]) -> Release:
    """Return the release without the records, partners and annotations of excluded images.

    A caption query has no image and stays. Raises UserError for a listed path that is no image of the release, for a
    part that would become empty, and for a training record whose partners of one modality would all go.
    """
    known = {os.path.abspath(value): value for records in release.parts.values() for value in image_values(records)}
    for path, where in excluded.items():
        if path not in known:
            close = (
                nearest(os.path.basename(path), {os.path.basename(value) for value in known})
                if len(known) < 10_000
                else ""
            )
            hint = f" ({close})" if close.startswith("did you mean") else ""
            raise UserError(f"{where}: {path} is no image of {release.name}{hint}; paths count from data.root")
    dropped = {known[path] for path in excluded}
    parts, count = {}, 0
    for part, records in release.parts.items():
        kept = tuple(_without(record, dropped) for record in records if not _shown(record, dropped))
        if records and not kept:
            raise UserError(
                f"{next(iter(excluded.values()), 'data.exclude')}: the list leaves nothing of the part {part}; shorten "
                "it"
            )
        _require_partners(kept, next(iter(excluded.values()), "data.exclude"))
        count += len(records) - len(kept)
        parts[part] = kept
    return replace(release, parts=parts, dropped={**release.dropped, "records excluded by list": count})


def _require_partners(records: Iterable[Record], where: str) -> None:
    for record in records:
        for modality, candidates in record.partners.items():
            if not candidates:
                raise UserError(
                    f"{where}: the list leaves {record.name} without {modality.name} partners; keep one of them, or "
                    "list the training images of that person too"
                )


def _shown(record: Record, dropped: set[str]) -> bool:
    return any(_is_dropped(source, dropped) for source in record.sources.values())


def _is_dropped(source: Source, dropped: set[str]) -> bool:
    return MODALITIES[source.modality].is_image and source.value in dropped


def _without(record: Record, dropped: set[str]) -> Record:
    if not any(
        _is_dropped(source, dropped)
        for sources in (record.annotations.values(), *record.partners.values())
        for source in sources
    ):
        return record
    return replace(
        record,
        annotations={kind: source for kind, source in record.annotations.items() if not _is_dropped(source, dropped)},
        partners={
            modality: tuple(source for source in sources if not _is_dropped(source, dropped))
            for modality, sources in record.partners.items()
        },
    )
