"""Progress bars: rate and remaining time on a terminal, silence elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TextIO

from tqdm import tqdm

from utils.processes import is_leader

Watcher = Callable[[str, int, int], None]
"""Called with what is done, how much of it, and of how much."""
_watcher: ContextVar[Watcher | None] = ContextVar("watcher", default=None)


@contextmanager
def watched(watcher: Watcher) -> Iterator[None]:
    """Tell `watcher` of the bars that are moved by `update` within, in this thread, whether they are shown or not."""
    token = _watcher.set(watcher)
    try:
        yield
    finally:
        _watcher.reset(token)


class _Bar(tqdm):
    """A bar that tells a watcher; tqdm's own counts nothing where it is quiet."""

    tell: Callable[[int], None] | None = None
    moved = 0

    def update(self, n: float | None = 1) -> bool | None:
        """Move the bar."""
        self.moved += int(n or 0)
        if self.tell is not None:
            self.tell(self.moved)
        return super().update(n)


def progress_bar(iterable: Iterable[Any] | None, total: int | None, description: str, unit: str = "it") -> tqdm:
    """Return a tqdm bar over `iterable` (or a bar to be moved by `update` when it is None), quiet when not a
    terminal.
    """
    bar = _Bar(
        iterable,
        total=total,
        desc=description,
        unit=unit,
        disable=not sys.stderr.isatty() or not is_leader(),
        dynamic_ncols=True,
        leave=False,
    )
    watcher = _watcher.get()
    if watcher is not None:
        bar.tell = lambda moved: watcher(description, moved, total or 0)
    return bar


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
