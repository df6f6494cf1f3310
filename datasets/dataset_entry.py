"""The entry by which a data set is registered: its reader, its protocols, and what is published about it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from configs.schema.data import DataConfig
from configs.vocabulary import Modality, Task
from datasets.protocols import Protocol, Search
from datasets.structures import ReadOptions, Record, Release
from utils.errors import UserError

Validation = Callable[[Sequence[Record]], "tuple[Sequence[Search], str]"]
"""Held-out training records -> the searches that validate on them, and what these are in words."""

OPTIONS: Mapping[str, Callable[[DataConfig], str]] = {
    "variant": lambda data: data.variant,
    "merge_val": lambda data: "" if data.merge_val else "false",
    "trial": lambda data: "" if data.trial == 1 else str(data.trial),
    "members": lambda data: str(list(data.members)) if data.members else "",
}
"""Options of section `data` that single data sets have -> what was asked for, empty = nothing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Count:
    """Published size of a part; None = not published."""

    images: int | None = None
    """Images, or captions for a part of captions."""
    persons: int | None = None
    partners: Mapping[Modality, int] = field(default_factory=dict)
    """Images that stand beside the part's own, by modality."""
    confirmed: bool = True
    """False for figures that no public source states directly."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DatasetEntry:
    """A data set as this code knows it: its reader, its protocols, and what is published about it."""

    name: str
    title: str
    task: Task
    read: Callable[[Path, ReadOptions], Release]
    """root, options -> release; raises UserError naming file, line and remedy. root is the folder that contains the
    data set's own folder, or that folder itself."""
    protocols: Mapping[str, Protocol]
    default: tuple[str, ...]
    """Names of the protocols that are evaluated when none is chosen."""
    recognise: Callable[[Path], bool]
    """True for a folder that looks like this data set, judged by names only."""
    published: Mapping[str, Mapping[str, Count]] = field(default_factory=dict)
    """Per variant ('' for data sets without variants) the counts of the parts."""
    name_pattern: str = ""
    """Regular expression that the image names match entirely."""
    separate_ids: bool = False
    """Train and test are numbered separately; otherwise they must not share a person."""
    options: frozenset[str] = frozenset()
    """Which of OPTIONS it has."""
    variants: tuple[str, ...] = ()
    """Values of data.variant that it knows."""
    trials: int = 0
    """How many divisions of the same persons into train and test there are, each with a model of its own; 0 = one fixed
    division."""
    own: bool = False
    """A user's own images: no name tells them, and they may be there to be trained on, or to be searched, alone."""
    composed: bool = False
    """Made of other data sets: no folder is recognised as it."""
    descriptions: str = ""
    """File of descriptions, relative to the data set's folder, that a model which follows them needs; empty = any."""
    validation: Validation | None = None
    """How held-out training records are searched; None = as datasets.validation does."""
    access: str = ""
    """How it is obtained, and under which terms."""


def refuse_options(entry: DatasetEntry, data: DataConfig, owners: Callable[[str], Iterable[str]]) -> None:
    """Raise UserError for an option that belongs to other data sets. owners: option -> the data sets that have it."""
    for option, asked in OPTIONS.items():
        value = asked(data)
        if value and option not in entry.options:
            having = ", ".join(owners(option))
            raise UserError(
                f"data.{option}={value} does not belong to {entry.name}: only {having} know it; remove the option"
            )
    if data.variant and data.variant not in entry.variants:
        raise UserError(
            f"data.variant={data.variant} does not belong to {entry.name}: its variants are "
            f"{', '.join(entry.variants)}; remove the option"
        )
