"""The entry by which a data set is registered: its reader, its protocols, and what is published about it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from configs.vocabulary import Task
from datasets.protocols import Protocol
from datasets.structures import ReadOptions, Release


@dataclass(frozen=True, kw_only=True, slots=True)
class Count:
    """Published size of a part: images (or captions, for a part of captions), persons; None = not published.

    confirmed: False for figures that no public source states directly.
    """

    images: int | None = None
    persons: int | None = None
    confirmed: bool = True


@dataclass(frozen=True, kw_only=True, slots=True)
class DatasetEntry:
    """A data set as this code knows it: its reader, its protocols, and what is published about it.

    read: root, options -> Release; raises UserError naming file, line and remedy. root is the folder that contains the
    data set's own folder, or that folder itself. protocols: by name; default: names of those evaluated when none is
    chosen. published: per variant ('' for data sets without variants) the counts of the parts. recognise: True for a
    folder that looks like this data set, judged by names only. name_pattern: regular expression that the image names
    match entirely. separate_ids: train and test are numbered separately; otherwise they must not share a person.
    trials: how many divisions of the same persons into train and test there are, each with a model of its own; 0 = one
    fixed division. access: how it is obtained, and under which terms.
    """

    name: str
    title: str
    task: Task
    read: Callable[[Path, ReadOptions], Release]
    protocols: Mapping[str, Protocol]
    default: tuple[str, ...]
    recognise: Callable[[Path], bool]
    published: Mapping[str, Mapping[str, Count]] = field(default_factory=dict)
    name_pattern: str = ""
    separate_ids: bool = False
    trials: int = 0
    access: str = ""
