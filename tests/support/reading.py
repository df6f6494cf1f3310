"""Options of readers, as flat words."""

from __future__ import annotations

from typing import Any

from configs.schema.data import DataConfig
from datasets.dataset_entry import OPTIONS
from datasets.structures import ReadOptions


def read_options(**options: Any) -> ReadOptions:
    """Return the options of a reader: those of single data sets go into the section `data`."""
    data = {name: options.pop(name) for name in OPTIONS if name in options}
    return ReadOptions(data=DataConfig(**data), **options)
