"""RegDB: 412 persons, ten visible and ten thermal images each, ten splits into halves ("trials").

Person ids are the labels of the trial's lists, which start at 0 in the training and in the test lists alike and name
other persons in each: train and test, and two trials, never compare. Thermal images are Modality.NIR. The release has
no cameras; as in the reference, visible images get camera 2 and thermal ones camera 1. Release.variant is the trial,
which titles every row.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from configs.vocabulary import Modality, Task
from datasets.dataset_entry import Count, DatasetEntry
from datasets.formats.image_folders import ImageFolders, looks_like, open_folders
from datasets.formats.visible_infrared import TRIALS, LabelledLine, check_labels, labelled_lines, with_both_modalities
from datasets.protocols import Protocol, Search, protocol_table
from datasets.structures import ReadOptions, Record, Release
from utils.errors import UserError

NAME, TITLE = "regdb", "RegDB"
FOLDERS = ("RegDB", "regdb", "REGDB")
MARKERS = ("Visible", "Thermal", "idx")
LAST_LABEL = 205
SIDES = {"visible": (Modality.RGB, "Visible", 2), "thermal": (Modality.NIR, "Thermal", 1)}
"""Word in the lists' names -> modality, folder, camera."""
NAME_PATTERN = re.compile(r"(?:fe)?male_(?:front|back)_([vt])_(\d+)_(\d+)\.bmp")


def read(root: Path, options: ReadOptions) -> Release:
    """Read one trial: `train`, `test_visible` and `test_infrared`. Training persons with one modality only are left out
    and listed.

    Raises UserError, also for a trial outside 1..10 and for a person in both the training and the test lists.
    """
    trial = options.data.trial
    if not 1 <= trial <= TRIALS:
        raise UserError(f"data.trial = {trial}: RegDB has the trials 1..{TRIALS}")
    images = open_folders(root, FOLDERS, MARKERS, options, dataset=NAME, title=TITLE, task=Task.VI)
    folder = images.tree.root
    lists = {
        (split, side): _read_list(folder, split, side, trial)
        for split in (("train", "test") if options.need_train else ("test",))
        for side in SIDES
    }
    _check_disjoint(lists)
    parts = {
        "test_visible": _records(images, lists["test", "visible"], "visible"),
        "test_infrared": _records(images, lists["test", "thermal"], "thermal"),
    }
    notes = [f"RegDB {_variant(trial)}: a result is the mean over the {TRIALS} trials, with one model for each"]
    dropped: dict[str, int] = {}
    if options.need_train:
        train = [record for side in SIDES for record in _records(images, lists["train", side], side)]
        parts["train"], left_out, found = with_both_modalities(train, "train", folder)
        notes += found
        dropped |= {"images of training identities that lack one modality": left_out} if left_out else {}
    return Release(
        name=NAME,
        root=folder,
        parts=parts,
        dropped=dropped,
        notes=tuple(notes),
        variant=_variant(trial),
        trials={NAME: trial},
    )


def _variant(trial: int) -> str:
    return f"trial {trial}"


def _read_list(folder: Path, split: str, side: str, trial: int) -> list[LabelledLine]:
    file = folder / "idx" / f"{split}_{side}_{trial}.txt"
    lines = list(
        labelled_lines(file, f"the {side} {split} images of trial {trial}", folder=SIDES[side][1], high=LAST_LABEL)
    )
    check_labels(lines)
    for line in lines:
        # The grammar is known from loaders only, so a name that does not have it says nothing.
        named = NAME_PATTERN.fullmatch(PurePosixPath(line.path).name)
        if named is not None and named.group(1) != side[0]:
            raise UserError(
                f"{line.where}: {line.path!r} is listed as {side}, but its name says otherwise; restore the list"
            )
    return lines


def _check_disjoint(lists: dict[tuple[str, str], list[LabelledLine]]) -> None:
    """Raise UserError for a person's folder in the training and the test list of one trial; labels cannot tell, they
    start at 0 in both.
    """
    for side in SIDES:
        trained = {PurePosixPath(line.path).parent: line for line in lists.get(("train", side), ())}
        for line in lists["test", side]:
            if PurePosixPath(line.path).parent in trained:
                known = trained[PurePosixPath(line.path).parent]
                raise UserError(
                    f"{line.where}: {PurePosixPath(line.path).parent} is a training identity as well ({known.where}); "
                    "restore both lists of the trial"
                )


def _records(images: ImageFolders, lines: Iterable[LabelledLine], side: str) -> tuple[Record, ...]:
    modality, _, camera = SIDES[side]
    return tuple(
        images.record(line.path, person_id=line.label, camera_id=camera, modality=modality, where=line.where)
        for line in lines
    )


def _direction(query: str, gallery: str) -> Protocol:
    name = f"{NAME}-{query}-to-{gallery}"
    part = {"visible": "test_visible", "thermal": "test_infrared"}

    def searches(release: Release) -> list[Search]:
        """Return the search of one modality in the other, of the trial that was read."""
        return [
            Search(
                title=f"{name} {release.variant}",
                protocol=name,
                query=release.parts[part[query]],
                gallery=release.parts[part[gallery]],
            )
        ]

    return Protocol(
        name=name,
        searches=searches,
        summary=(
            f"every {query} test image against every {gallery} one of the same trial; nothing is excluded; CMC over "
            f"images; trials 1 to {TRIALS} are separate splits with one model each"
        ),
    )


DATASET = DatasetEntry(
    name=NAME,
    title=TITLE,
    task=Task.VI,
    read=read,
    protocols=protocol_table((_direction("visible", "thermal"), _direction("thermal", "visible"))),
    default=(f"{NAME}-visible-to-thermal", f"{NAME}-thermal-to-visible"),
    recognise=looks_like(FOLDERS, MARKERS),
    published={
        _variant(trial): {
            "train": Count(images=4_120, persons=206),
            "test_visible": Count(images=2_060, persons=206),
            "test_infrared": Count(images=2_060, persons=206),
        }
        for trial in range(1, TRIALS + 1)
    },
    name_pattern=NAME_PATTERN.pattern,
    separate_ids=True,
    trials=TRIALS,
    options=frozenset({"trial"}),
    access="Copyright form of Dongguk University (dm.dongguk.edu); its terms are unconfirmed.",
)
