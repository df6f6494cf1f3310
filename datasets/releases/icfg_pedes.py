"""ICFG-PEDES: one caption per image, in ICFG-PEDES.json. Ids start at 0.

imgs/train and imgs/test are folders of MSMT17, which the images come from, and not the split: only the JSON's `split`
counts.
"""

from __future__ import annotations

from pathlib import Path

from configs.vocabulary import Task
from datasets.dataset_entry import Count, DatasetEntry
from datasets.formats.image_folders import looks_like
from datasets.formats.listing import ImageTree, find_folder
from datasets.formats.text_sets import CaptionLayout, build_release, caption_protocol, read_entries
from datasets.protocols import protocol_table
from datasets.releases.msmt17 import PATTERN as MSMT17_PATTERN
from datasets.structures import ReadOptions, Release

NAME, TITLE = "icfg-pedes", "ICFG-PEDES"
FOLDERS = ("ICFG-PEDES", "ICFG_PEDES", "icfg-pedes", "icfg_pedes")
ANNOTATIONS = ("ICFG-PEDES.json", "ICFG_PEDES.json")
"""The authors' code and their instructions spell it differently."""
LAYOUT = CaptionLayout(name=NAME)


def read(root: Path, options: ReadOptions) -> Release:
    """Read ICFG-PEDES: `train`, `query`, `gallery`; it has no validation split. Raises UserError."""
    folder = find_folder(root, FOLDERS, ("imgs",), TITLE)
    path = next((folder / name for name in ANNOTATIONS if (folder / name).exists()), folder / ANNOTATIONS[0])
    return build_release(LAYOUT, ImageTree(folder, options.check_files), read_entries(path, LAYOUT), options.need_train)


DATASET = DatasetEntry(
    name=NAME,
    title=TITLE,
    task=Task.T2I,
    read=read,
    protocols=protocol_table((caption_protocol(NAME),)),
    default=(NAME,),
    recognise=lambda root: any(looks_like(FOLDERS, ("imgs", name))(root) for name in ANNOTATIONS),
    published={
        "": {
            "train": Count(images=34_674, persons=3_102),
            "query": Count(images=19_848, persons=1_000),
            "gallery": Count(images=19_848, persons=1_000),
        }
    },
    name_pattern=MSMT17_PATTERN.pattern,
    access="E-mail request to the authors; the terms of MSMT17, whose images these are.",
)
