"""One thread for the model: what is asked waits in a short queue, and an error of one task is that task's alone."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Result = TypeVar("Result")

MOST_WAITING = 8
"""Searches that wait or run; further ones are turned away."""


class Busy(Exception):
    """The queue is full. The message is one sentence."""


class Worker:
    """Runs one task at a time, in the order in which they came."""

    def __init__(self, most: int = MOST_WAITING) -> None:
        self.most = most
        self.stopping = threading.Event()
        """Set when the server ends; a long task looks at it."""
        self._threads = ThreadPoolExecutor(max_workers=1, thread_name_prefix="model")
        self._lock = threading.Lock()
        self.waiting = 0
        """Tasks that wait or run."""

    def submit(self, task: Callable[[], Result]) -> Future[Result]:
        """Put a task into the queue. Raises Busy when it is full, or when the server ends."""
        with self._lock:
            if self.waiting >= self.most:
                raise Busy(f"{self.waiting} searches are waiting already; ask again in a few seconds")
            if self.stopping.is_set():
                raise Busy("the server is being stopped")
            self.waiting += 1
            future = self._threads.submit(task)
        future.add_done_callback(self._done)
        return future

    def _done(self, _: Future[Result]) -> None:
        with self._lock:
            self.waiting -= 1

    def stop(self) -> None:
        """Drop what waits, and wait for what runs."""
        with self._lock:
            self.stopping.set()
        self._threads.shutdown(wait=True, cancel_futures=True)
