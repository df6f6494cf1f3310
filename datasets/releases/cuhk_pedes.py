"""CUHK-PEDES: images in imgs/, captions and splits in reid_raw.json. Ids start at 1."""

from __future__ import annotations

from pathlib import Path

from configs.vocabulary import Task
from datasets.dataset_entry import Count, DatasetEntry
from datasets.formats.image_folders import looks_like
from datasets.formats.listing import ImageTree, find_folder
from datasets.formats.text_sets import CaptionLayout, build_release, caption_protocol, read_entries
from datasets.protocols import protocol_table
from datasets.structures import ReadOptions, Release
from utils.errors import UserError

NAME, TITLE = "cuhk-pedes", "CUHK-PEDES"
FOLDERS = ("CUHK-PEDES", "CUHK_PEDES", "cuhk-pedes", "cuhk_pedes")
ANNOTATIONS, WITHOUT_SPLITS = "reid_raw.json", "caption_all.json"
MARKERS = ("imgs", ANNOTATIONS)
LAYOUT = CaptionLayout(name=NAME)


def read(root: Path, options: ReadOptions) -> Release:
    """Read CUHK-PEDES: `train`, `val_query`, `val_gallery`, `query`, `gallery`. Raises UserError."""
    folder = find_folder(root, FOLDERS, ("imgs",), TITLE)
    if not (folder / ANNOTATIONS).exists() and (folder / WITHOUT_SPLITS).exists():
        raise UserError(
            f"{folder} has {WITHOUT_SPLITS}, which names no splits, and no {ANNOTATIONS}; put {ANNOTATIONS} of the "
            "original release there"
        )
    return build_release(
        LAYOUT, ImageTree(folder, options.check_files), read_entries(folder / ANNOTATIONS, LAYOUT), options.need_train
    )


DATASET = DatasetEntry(
    name=NAME,
    title=TITLE,
    task=Task.T2I,
    read=read,
    protocols=protocol_table((caption_protocol(NAME),)),
    default=(NAME,),
    recognise=looks_like(FOLDERS, MARKERS),
    published={
        "": {
            "train": Count(images=34_054, persons=11_003),
            "val_query": Count(images=6_158, persons=1_000),
            "val_gallery": Count(images=3_078, persons=1_000),
            "query": Count(images=6_156, persons=1_000),
            "gallery": Count(images=3_074, persons=1_000),
        }
    },
    access="Request to the authors; research only (unconfirmed).",
)
