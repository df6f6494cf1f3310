"""What the visible-infrared data sets share: labelled lists, galleries drawn per trial, persons that lack one
modality.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TypeVar

from configs.vocabulary import Modality
from datasets.formats.listing import read_lines, to_integer
from datasets.protocols import Protocol, Search, image_source
from datasets.structures import Record, Release
from utils.errors import UserError

Item = TypeVar("Item")
Groups = Mapping[tuple[int, int], Sequence[Item]]
"""(person, camera) -> images in the order of their file names."""
Sides = tuple[Sequence[Record], Sequence[Record]]
"""Queries and gallery."""
Prepare = Callable[[Release], Callable[[int], Sides]]

TRIALS = 10


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelledLine:
    """One line `path label` of a list. where: file and line for messages and record names."""

    path: str
    label: int
    where: str


def labelled_lines(file: Path, what: str, *, folder: str, high: int) -> Iterator[LabelledLine]:
    """Yield the lines of a list whose paths start with `folder` and whose labels are 0..high. Raises UserError."""
    for number, line in read_lines(file, what):
        where = f"{file.parent.name}/{file.name} line {number}"
        fields = line.split()
        if len(fields) != 2:
            raise UserError(
                f"{where}: expected a path and a label, found {len(fields)} fields; restore the list from the original "
                "release"
            )
        if PurePosixPath(fields[0]).parts[:1] != (folder,):
            raise UserError(
                f"{where}: {fields[0]!r} must lie in {folder}/; the lists may have been exchanged, restore them"
            )
        yield LabelledLine(path=fields[0], label=to_integer(fields[1], where, "label", low=0, high=high), where=where)


def check_labels(lines: Iterable[LabelledLine]) -> None:
    """Raise UserError when the images of one folder, that is of one person, have two labels."""
    first: dict[str, LabelledLine] = {}
    for line in lines:
        known = first.setdefault(str(PurePosixPath(line.path).parent), line)
        if known.label != line.label:
            raise UserError(
                f"{line.where}: {PurePosixPath(line.path).parent} has label {line.label} here and {known.label} in "
                f"{known.where}; restore the list from the original release"
            )


def by_person_and_camera(records: Iterable[Record]) -> dict[tuple[int, int], list[Record]]:
    """Return the records by (person, camera), each group in the order of its file names."""
    groups: dict[tuple[int, int], list[Record]] = {}
    for record in records:
        groups.setdefault((record.person_id, record.camera_id), []).append(record)
    return {key: sorted(group, key=lambda record: image_source(record).value) for key, group in sorted(groups.items())}


def seeded_draw(groups: Groups[Item], cameras: Sequence[int], trial: int, shots: int = 1) -> list[Item]:
    """Return the gallery of a trial: per person, ascending, and camera, in the given order, `shots` of its images, or
    all it has.

    Python's generator is seeded with the trial. One image is drawn by `choice`, several by `sample`.
    Source: one image: AGW and LLCM's public code. Several: ours, in the same order; no public code defines it.
    """
    generator = random.Random(trial)
    drawn: list[Item] = []
    for person in sorted({person for person, _ in groups}):
        for camera in cameras:
            images = groups.get((person, camera), ())
            if images:
                drawn += (
                    [generator.choice(images)]
                    if shots == 1
                    else generator.sample(list(images), min(shots, len(images)))
                )
    return drawn


def drawn_protocol(
    name: str, summary: str, prepare: Prepare, *, exclusion_rule: str, numbers: Sequence[int] = range(TRIALS)
) -> Protocol:
    """Return a protocol with one search per draw; CMC counts identities, the draws share a row of averages.

    prepare: release -> (number of the draw -> queries and gallery).
    """

    def searches(release: Release) -> list[Search]:
        """Return a search for each draw of the gallery."""
        draw = prepare(release)
        sides = ((number, *draw(number)) for number in numbers)
        return [
            Search(
                title=f"{name} draw {number}",
                protocol=name,
                query=query,
                gallery=gallery,
                exclusion_rule=exclusion_rule,
                cmc="identity",
                group=name,
            )
            for number, query, gallery in sides
        ]

    return Protocol(name=name, summary=summary, searches=searches)


def with_both_modalities(
    records: Sequence[Record], part: str, folder: Path
) -> tuple[tuple[Record, ...], int, list[str]]:
    """Return the records of the persons with visible and infrared images, the number of the others', and notes that
    list those.

    Raises UserError when no person has both.
    """
    notes = []
    kept = {record.person_id for record in records}
    for modality, word in ((Modality.RGB, "visible"), (Modality.NIR, "infrared")):
        having = {record.person_id for record in records if modality in record.sources}
        lacking = sorted({record.person_id for record in records} - having)
        if lacking:
            notes.append(
                f"{part}: {len(lacking)} identities without any {word} image left out: {', '.join(map(str, lacking))}"
            )
        kept &= having
    if not kept:
        raise UserError(
            f"{folder}: no identity of {part} has both visible and infrared images; restore the files of the original "
            "release"
        )
    whole = tuple(record for record in records if record.person_id in kept)
    return whole, len(records) - len(whole), notes
