"""CUHK03 with the new protocol (767/700), in market format; its images may be detected or hand-labeled boxes.

The original keeps the images inside cuhk-03.mat. `python -m datasets.releases.cuhk03 --mat DIR --output DIR` writes
them once as files in market format, with the split of cuhk03_new_protocol_config_{labeled,detected}.mat.
"""

from __future__ import annotations

import argparse
import re
from dataclasses import replace
from pathlib import Path

from configs.vocabulary import Task
from datasets.dataset_entry import Count, DatasetEntry
from datasets.formats.image_folders import FolderLayout, ImageFolders, looks_like
from datasets.formats.listing import locate, to_integer
from datasets.protocols import plain_protocol, protocol_table
from datasets.releases.cuhk03_mat import FOLDERS as PARTS
from datasets.releases.cuhk03_mat import LAST_PERSON, OFFICIAL, VARIANTS, extract, find_mat
from datasets.structures import ReadOptions, Record, Release
from utils.errors import UserError, run_script

NAME, TITLE = "cuhk03", "CUHK03-NP"
FOLDERS = (OFFICIAL, "CUHK03-NP", "cuhk03_np", "cuhk03", "CUHK03", f"cuhk03/{OFFICIAL}", f"CUHK03/{OFFICIAL}")
PATTERN = re.compile(r"(\d{4})_c([12])(?!\d).*\.png", re.ASCII)
"""pid_c{camera}_....png"""


def read(root: Path, options: ReadOptions) -> Release:
    """Return parts train, query, gallery, cameras 1 and 2. Raises UserError naming the folder and the file.

    Without options.data.variant `labeled` is taken where both are there. Where only the .mat is there, the error says
    which command extracts it.
    """
    present = [variant for variant in VARIANTS if locate(root, FOLDERS, [f"{variant}/{PARTS['query']}"])]
    variant = options.data.variant or (present or VARIANTS)[0]
    if variant not in present:
        _refuse_mat(root, variant)
    release = _layout(variant).read(root, options)
    notes: tuple[str, ...] = ()
    if not options.data.variant and len(present) > 1:
        notes = (f"{release.root} holds both variants: labeled is taken (data.variant=detected: the other)",)
    return replace(release, notes=notes, variant=variant)


def _layout(variant: str) -> FolderLayout:
    return FolderLayout(
        name=NAME,
        title=f"{TITLE} ({variant})",
        task=Task.TRAD,
        folders=FOLDERS,
        places={part: f"{variant}/{folder}" for part, folder in PARTS.items()},
        pattern=PATTERN,
        record_of=_record,
    )


def _record(images: ImageFolders, path: str, fields: re.Match[str]) -> Record:
    person = to_integer(fields[1], str(images.tree.root / path), "pid", low=1, high=LAST_PERSON)
    return images.record(path, person_id=person, camera_id=int(fields[2]))


def _refuse_mat(root: Path, variant: str) -> None:
    """Raise UserError with the command that extracts the originals, where these are all there is."""
    mat = find_mat(root)
    if mat is not None:
        raise UserError(
            f"{mat} holds the images of CUHK03 inside one file; write them once with `python -m "
            f"datasets.releases.cuhk03 --mat {root} --output {root} --variant {variant}`"
        )


def recognise(root: Path) -> bool:
    """Return whether the folder, or one of the usual names below it, has a variant's folders and image names, or the
    .mat.
    """
    places = ((f"{variant}/{PARTS['query']}", f"{variant}/{PARTS['gallery']}") for variant in VARIANTS)
    return (
        any(looks_like(FOLDERS, markers, PATTERN, sample=markers[0])(root) for markers in places)
        or find_mat(root) is not None
    )


DATASET = DatasetEntry(
    name=NAME,
    title=TITLE,
    task=Task.TRAD,
    read=read,
    recognise=recognise,
    name_pattern=PATTERN.pattern,
    protocols=protocol_table(
        [
            plain_protocol(
                NAME,
                "new protocol 767/700, query against bounding_box_test; the same person in the same camera does not "
                "count; rank-k per image",
                exclusion_rule="same_camera",
            )
        ]
    ),
    default=(NAME,),
    published={
        "labeled": {
            "train": Count(images=7368, persons=767),
            "query": Count(images=1400, persons=700),
            "gallery": Count(images=5328, persons=700),
        },
        "detected": {
            "train": Count(images=7365, persons=767),
            "query": Count(images=1400, persons=700),
            "gallery": Count(images=5332, persons=700),
        },
    },
    options=frozenset({"variant"}),
    variants=VARIANTS,
    access="From CUHK under its regulations; research only, the images are privacy-sensitive.",
)


def main() -> None:
    """Write the images of the .mat originals in market format, or say that they are there already."""
    parser = argparse.ArgumentParser(
        prog="python -m datasets.releases.cuhk03", description="Extract the .mat originals of CUHK03."
    )
    parser.add_argument(
        "--mat",
        required=True,
        metavar="DIR",
        help="folder that holds cuhk03_release/cuhk-03.mat and the two configurations",
    )
    parser.add_argument("--output", required=True, metavar="DIR", help=f"folder below which {OFFICIAL}/ is made")
    parser.add_argument("--variant", choices=VARIANTS, action="append", help="extract this one only (default: both)")
    options = parser.parse_args()
    for variant in options.variant or VARIANTS:
        result = extract(Path(options.mat), Path(options.output), variant)
        if result.reused:
            print(f"{result.folder}: is there already, nothing to do")
        else:
            print(f"{result.folder}: " + ", ".join(f"{part} {count} images" for part, count in result.counts.items()))


if __name__ == "__main__":
    run_script(main)
