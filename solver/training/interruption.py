"""Signals that end a run in good order: the step in progress is finished and the run's state saved."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType

from utils.errors import Interrupted

SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1") if hasattr(signal, name))
"""What job systems send before they take a machine away, and Ctrl-C."""
IMPATIENT_SECONDS = 1.0
"""A second Ctrl-C so long after the first ends the run at once; `timeout` sends its signal twice at the same time."""


class Interruption:
    """The first signal that arrived while it is entered. Outside the main thread, which alone gets signals, it never
    has one.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._at_once = ""
        self._when = 0.0

    @property
    def number(self) -> int:
        """The number of the signal, 0 before there is one."""
        return int(self.received or 0)

    def stopped(self, saved: str, number: int = 0) -> Interrupted:
        """Return the exception that ends the run. saved: what is on the disk, and how to go on. number: of a signal
        that another process received.
        """
        received = signal.Signals(number or self.number)
        return Interrupted(f"stopped by {received.name}: {saved}", received)

    @contextlib.contextmanager
    def at_once(self, saved: str) -> Iterator[None]:
        """Let a signal end the block wherever it is: all that it works on is on the disk. Raises Interrupted."""
        self._at_once = saved
        try:
            if self.received is not None:
                raise self.stopped(saved)
            yield
        finally:
            self._at_once = ""

    def _take(self, number: int, _: FrameType | None) -> None:
        again = self.received is not None
        if again and number == signal.SIGINT and time.monotonic() - self._when > IMPATIENT_SECONDS:
            raise KeyboardInterrupt
        if not again:
            self.received, self._when = signal.Signals(number), time.monotonic()
        if self._at_once:
            raise self.stopped(self._at_once)

    @contextlib.contextmanager
    def __call__(self) -> Iterator[Interruption]:
        """Answer the signals inside the block."""
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        before = {number: signal.signal(number, self._take) for number in SIGNALS}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
