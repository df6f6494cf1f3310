"""RSTPReid: images in imgs/, two captions each in data_captions.json, whose paths stand under `img_path`. Ids start at
0.
"""

from __future__ import annotations

from pathlib import Path

from configs.vocabulary import Task
from datasets.dataset_entry import Count, DatasetEntry
from datasets.formats.image_folders import looks_like
from datasets.formats.listing import ImageTree, find_folder
from datasets.formats.text_sets import CaptionLayout, build_release, caption_protocol, read_entries
from datasets.protocols import protocol_table
from datasets.structures import ReadOptions, Release

NAME, TITLE = "rstpreid", "RSTPReid"
FOLDERS = ("RSTPReid", "rstpreid", "RSTPReid-Dataset")
ANNOTATIONS = "data_captions.json"
LAYOUT = CaptionLayout(name=NAME, path_key="img_path")


def read(root: Path, options: ReadOptions) -> Release:
    """Read RSTPReid: `train`, `val_query`, `val_gallery`, `query`, `gallery`. Raises UserError."""
    folder = find_folder(root, FOLDERS, ("imgs",), TITLE)
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
    recognise=looks_like(FOLDERS, ("imgs", ANNOTATIONS)),
    published={
        "": {
            "train": Count(images=18_505, persons=3_701),
            "val_query": Count(images=2_000, persons=200),
            "val_gallery": Count(images=1_000, persons=200),
            "query": Count(images=2_000, persons=200),
            "gallery": Count(images=1_000, persons=200),
        }
    },
    access="The authors' repository; its licence file is MIT, but the images are MSMT17's: the terms of MSMT17.",
)
