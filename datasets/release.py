"""What a reader of a data set is asked for and what it returns, before any protocol is applied."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from datasets.structures import Record


@dataclass(frozen=True, kw_only=True, slots=True)
class ReadOptions:
    """Options of the readers; each reader uses those that its data set has and refuses a value that it cannot serve.

    check_files: raise for a listed image that does not exist. need_train: False = only the parts that a test needs must
    be present. variant: `v1` / `v2` of MSMT17, `detected` / `labeled` of CUHK03-NP, empty = whichever is there.
    merge_val: MSMT17's validation list, or SYSU-MM01's validation persons, join train. trial: RegDB's, 1 to 10. crop:
    what stands for a clothes image where the release ships none, `none` or `box`. members: data sets or tasks of a
    joint test.
    """

    check_files: bool = True
    need_train: bool = True
    variant: str = ""
    merge_val: bool = True
    trial: int = 1
    crop: str = "box"
    members: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Release:
    """A data set as it lies on disk. Person ids are the data set's own; nothing is relabelled, drawn or excluded.

    root: the folder that holds the data set's files. parts: `train`, `query`, `gallery`, and whatever else a protocol
    of the data set needs (`query_changed`, `val_query`, ...), records in sorted or listed order. dropped: what was left
    out by the data set's own rules, with the number (`junk images, pid -1`: 3819). notes: findings for the log and the
    results. variant: which of the entry's `published` counts this release is compared with. shared_persons: True for a
    user's own data without a split, where train and test are the same images on purpose. trials: data set -> trial that
    was read, for data sets with several divisions of the same persons into train and test (RegDB, also as a member of a
    joint release).
    """

    name: str
    root: Path
    parts: Mapping[str, tuple[Record, ...]]
    dropped: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    variant: str = ""
    shared_persons: bool = False
    trials: Mapping[str, int] = field(default_factory=dict)
