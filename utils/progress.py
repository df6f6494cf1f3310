"""Progress bars: rate and remaining time on a terminal, silence elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm


def progress_bar(iterable: Iterable[Any] | None, total: int | None, description: str, unit: str = "it") -> tqdm:
    """Return a tqdm bar over `iterable` (or a bar to be moved by `update` when it is None), quiet when not a
    terminal.
    """
    return tqdm(
        iterable,
        total=total,
        desc=description,
        unit=unit,
        disable=not sys.stderr.isatty(),
        dynamic_ncols=True,
        leave=False,
    )
