"""Progress bars: rate and remaining time on a terminal, silence elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from tqdm import tqdm

from utils.processes import is_leader


def progress_bar(iterable: Iterable[Any] | None, total: int | None, description: str, unit: str = "it") -> tqdm:
    """Return a tqdm bar over `iterable` (or a bar to be moved by `update` when it is None), quiet when not a
    terminal.
    """
    return tqdm(
        iterable,
        total=total,
        desc=description,
        unit=unit,
        disable=not sys.stderr.isatty() or not is_leader(),
        dynamic_ncols=True,
        leave=False,
    )


@contextmanager
def line_between_bars(stream: TextIO) -> Iterator[None]:
    """Take the bars on a stream away for a line, and draw them again behind it."""
    try:
        with tqdm.external_write_mode(file=stream):
            yield
    except (OSError, ValueError):
        # A terminal that is closed or full: the handler has said what there is to say.
        return


def clock(seconds: float) -> str:
    """Return a duration as `1:02:03` or `2:03`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
