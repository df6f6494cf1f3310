"""SYNTH-PEDES (PLIP): training only; Part1/ to Part6/ with a folder per person, and one annotation file.

The annotation file's name is unconfirmed: the only JSON file beside the parts is taken. The form of Instruct-ReID's
authors, train_t2i.txt (`image key person clothes`) with caption_t2i.json (key -> caption), is read as well. Of an
entry's texts `captions` are used, not `attributes` or `prompt_caption`. All records are held in memory, about 0.9 KB
each (measured on 500,000 made-up ones), so the whole set of some 12 million captions takes more than 10 GB.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from configs.vocabulary import Task
from datasets.dataset_entry import Count, DatasetEntry
from datasets.formats.image_folders import looks_like
from datasets.formats.listing import ImageTree, find_folder, read_lines, to_integer
from datasets.formats.text_sets import CaptionedImage, CaptionLayout, build_release, check_captions, read_entries
from datasets.structures import ReadOptions, Release
from utils.errors import UserError
from utils.files import read_json

NAME, TITLE = "synth-pedes", "SYNTH-PEDES"
FOLDERS = ("SYNTH-PEDES", "SYNTH_PEDES", "synth-pedes", "synth_pedes", "PLIP")
MARKERS = ("Part1",)
KEYED_CAPTIONS, KEYED_LIST = "caption_t2i.json", "train_t2i.txt"
LAYOUT = CaptionLayout(name=NAME, images="", splits=False)


def read(root: Path, options: ReadOptions) -> Release:
    """Read SYNTH-PEDES: `train` only. Raises UserError, also where only a test is asked for."""
    if not options.need_train:
        raise UserError(f"{TITLE} has no test split: train on it, and test on another caption data set")
    folder = find_folder(root, FOLDERS, MARKERS, TITLE)
    keyed = (folder / KEYED_LIST).is_file() and (folder / KEYED_CAPTIONS).is_file()
    entries = _keyed_entries(folder) if keyed else read_entries(_annotation_file(folder), LAYOUT)
    return build_release(LAYOUT, ImageTree(folder, options.check_files), entries, True)


def _annotation_file(folder: Path) -> Path:
    files = sorted(path for path in folder.glob("*.json") if not path.name.startswith("."))
    if len(files) != 1:
        found = ", ".join(path.name for path in files) or "none"
        raise UserError(
            f"{folder}: expected one JSON file with the captions, found {found}; leave only the release's annotation "
            "file there"
        )
    return files[0]


def _keyed_entries(folder: Path) -> Iterator[CaptionedImage]:
    captions = read_json(folder / KEYED_CAPTIONS, "the captions by key")
    if not isinstance(captions, dict):
        raise UserError(
            f"{folder / KEYED_CAPTIONS}: must map keys to captions, found {type(captions).__name__}; copy it again"
        )
    for number, line in read_lines(folder / KEYED_LIST, "the training images"):
        where = f"{KEYED_LIST} line {number}"
        fields = line.split()
        if len(fields) not in (4, 5):
            raise UserError(
                f"{where}: expected image, key, person, clothes and perhaps camera, found {len(fields)} fields; "
                "restore the list"
            )
        if fields[1] not in captions:
            raise UserError(f"{where}: {KEYED_CAPTIONS} has no key {fields[1]!r}; both files must be of one version")
        yield CaptionedImage(
            person=to_integer(fields[2], where, "person", low=0),
            split="train",
            path=fields[0],
            captions=check_captions([captions[fields[1]]], where),
            where=where,
        )


DATASET = DatasetEntry(
    name=NAME,
    title=TITLE,
    task=Task.T2I,
    read=read,
    protocols={},
    default=(),
    recognise=looks_like(FOLDERS, MARKERS),
    published={"": {"train": Count(images=4_791_771, persons=312_321)}},
    name_pattern=r"\d+\.jpg",
    access="The PLIP repository; research only; captions are machine-made, and that the images come from web video is "
    "unconfirmed.",
)
