"""LLCM: nine cameras, visible and near-infrared images of 713 training and 351 test persons.

Person ids of `train` are the labels of idx/train_vis.txt and idx/train_nir.txt (0..712); those of the test parts are
the numbers of the folders, another numbering. The test parts are read from the folders test_vis/cam*/ and
test_nir/cam*/, as the authors do.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from configs.vocabulary import Modality, Task
from datasets.dataset_entry import Count, DatasetEntry
from datasets.formats.image_folders import ImageFolders, looks_like, open_folders
from datasets.formats.listing import parse_name, read_id_list, require_some
from datasets.formats.visible_infrared import (
    TRIALS,
    Sides,
    by_person_and_camera,
    check_labels,
    drawn_protocol,
    labelled_lines,
    seeded_draw,
    with_both_modalities,
)
from datasets.protocols import Protocol, image_source, protocol_table
from datasets.structures import ReadOptions, Record, Release
from utils.errors import UserError

NAME, TITLE = "llcm", "LLCM"
FOLDERS = ("LLCM", "llcm")
MODALITY_OF = {"vis": Modality.RGB, "nir": Modality.NIR}
"""Word in names, folders and lists -> modality."""
TEST_PARTS = {"vis": "test_visible", "nir": "test_infrared"}
TEST_MARKERS = ("idx", "test_vis", "test_nir")
LAST_LABEL = 712
CAMERAS = range(1, 10)
CAMERA_PATTERN = re.compile(r"cam([1-9])")
NAME_PATTERN = re.compile(r"(\d{4})_c(\d{2})_s(\d+)_f(\d+)_(vis|nir)\.jpg")


def read(root: Path, options: ReadOptions) -> Release:
    """Read LLCM: `train`, `test_visible`, `test_infrared`. Training persons with one modality only are left out and
    listed.

    Raises UserError, also for a file whose name contradicts its folder or list.
    """
    markers = (*TEST_MARKERS, *(MODALITY_OF if options.need_train else ()))
    images = open_folders(root, FOLDERS, markers, options, dataset=NAME, title=TITLE, task=Task.VI)
    folder = images.tree.root
    test_ids = sorted(set(read_id_list(folder / "idx" / "test_id.txt", "the test identities")))
    notes: list[str] = []
    parts = {TEST_PARTS[word]: _read_test(images, word, test_ids, notes) for word in MODALITY_OF}
    dropped: dict[str, int] = {}
    if options.need_train:
        train = _read_train(images)
        shared = {PurePosixPath(image_source(record).value).parent.name for record in train} & {
            f"{person:04d}" for person in test_ids
        }
        if shared:
            notes.append(
                f"{len(shared)} folder numbers stand in both train and test: either the release numbers them "
                f"separately or these persons are trained on: {', '.join(sorted(shared))}"
            )
        parts["train"], left_out, found = with_both_modalities(train, "train", folder)
        notes += found
        dropped |= {"images of training identities that lack one modality": left_out} if left_out else {}
    return Release(name=NAME, root=folder, parts=parts, dropped=dropped, notes=tuple(notes))


def _read_train(images: ImageFolders) -> list[Record]:
    lists = {
        word: list(
            labelled_lines(
                images.tree.root / "idx" / f"train_{word}.txt",
                f"the {word} training images",
                folder=word,
                high=LAST_LABEL,
            )
        )
        for word in MODALITY_OF
    }
    for lines in lists.values():
        check_labels(lines)
    records = []
    for word, lines in lists.items():
        for line in lines:
            # The grammar is known from loaders only: a name without it leaves the camera unknown.
            named = NAME_PATTERN.fullmatch(PurePosixPath(line.path).name)
            if named is not None and named.group(5) != word:
                raise UserError(
                    f"{line.where}: {line.path!r} is listed as {word}, but its name says {named.group(5)}; restore the "
                    "list"
                )
            records.append(
                images.record(
                    line.path,
                    person_id=line.label,
                    camera_id=int(named.group(2)) if named else -1,
                    modality=MODALITY_OF[word],
                    where=line.where,
                )
            )
    return records


def _read_test(images: ImageFolders, word: str, test_ids: list[int], notes: list[str]) -> tuple[Record, ...]:
    """Images of the test persons by person, camera and file name."""
    top = f"test_{word}"
    cameras = sorted(
        int(parse_name(CAMERA_PATTERN, name, str(images.tree.root / top)).group(1)) for name in images.tree.folders(top)
    )
    present = {camera: frozenset(images.tree.folders(f"{top}/cam{camera}")) for camera in cameras}
    names = {f"{person:04d}" for person in test_ids}
    others = set().union(*present.values()) - names
    if others:
        notes.append(f"{top}: {len(others)} identities that idx/test_id.txt does not list left out")
    records = []
    for person in test_ids:
        for camera in cameras:
            if f"{person:04d}" not in present[camera]:
                continue
            folder = f"{top}/cam{camera}/{person:04d}"
            for name in images.tree.names(folder):
                _check_name(name, str(images.tree.root / folder), (person, camera, word))
                records.append(
                    images.record(f"{folder}/{name}", person_id=person, camera_id=camera, modality=MODALITY_OF[word])
                )
    require_some(records, images.tree.root / top, "image of an identity of idx/test_id.txt")
    return tuple(records)


def _check_name(name: str, where: str, expected: tuple[int, int, str]) -> None:
    named = NAME_PATTERN.fullmatch(name)
    if named is not None and (int(named.group(1)), int(named.group(2)), named.group(5)) != expected:
        raise UserError(
            f"{where}/{name}: the name contradicts the folder, which says person {expected[0]}, camera {expected[1]}, "
            f"{expected[2]}; move the file back"
        )


def _sampled(query: str, gallery: str, swapped: bool) -> Callable[[Release], Callable[[int], Sides]]:
    """Draws of one gallery image per person and camera. swapped: the drawn images search all images of the other
    modality.
    """

    def prepare(release: Release) -> Callable[[int], Sides]:
        """Return the function that draws trial `number` of a release."""
        everything, groups = release.parts[TEST_PARTS[query]], by_person_and_camera(release.parts[TEST_PARTS[gallery]])

        def draw(number: int) -> Sides:
            drawn = seeded_draw(groups, CAMERAS, number)
            return (drawn, everything) if swapped else (everything, drawn)

        return draw

    return prepare


def _protocol(name: str, query: str, gallery: str, roles: str, swapped: bool = False) -> Protocol:
    return drawn_protocol(
        f"{NAME}-{name}",
        (
            f"{roles}; one drawn image per person and camera, draws 0 to {TRIALS - 1} by Python's generator seeded "
            "with the draw; the same person in the same camera is dropped; CMC over identities"
        ),
        _sampled(query, gallery, swapped),
        exclusion_rule="same_camera",
    )


DATASET = DatasetEntry(
    name=NAME,
    title=TITLE,
    task=Task.VI,
    read=read,
    protocols=protocol_table(
        (
            _protocol(
                "ir-to-vis", "nir", "vis", "roles straight: every infrared test image against drawn visible ones"
            ),
            _protocol(
                "vis-to-ir", "vis", "nir", "roles straight: every visible test image against drawn infrared ones"
            ),
            _protocol(
                "vis-to-ir-swapped",
                "vis",
                "nir",
                "roles swapped, as in the authors' script for visible to infrared: the drawn infrared images are the "
                "queries, every visible test image is the gallery",
                swapped=True,
            ),
        )
    ),
    default=(f"{NAME}-ir-to-vis", f"{NAME}-vis-to-ir"),
    recognise=looks_like(FOLDERS, TEST_MARKERS),
    published={
        "": {
            "train": Count(images=30_921, persons=713),
            "test_visible": Count(images=8_680, persons=351),
            "test_infrared": Count(images=7_166, persons=351),
        }
    },
    name_pattern=NAME_PATTERN.pattern,
    separate_ids=True,
    access="Signed agreement to zhangyk@stu.xmu.edu.cn; research only, no redistribution.",
)
