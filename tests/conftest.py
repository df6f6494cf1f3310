"""Threads of the test process, set before torch is imported (two busy cores must not spin against each other), and
what several files share.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from scripts import Run

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OMP_NUM_THREADS", "2")


@pytest.fixture
def keep_logging() -> Iterator[None]:
    """A run configures the root logger; give it back."""
    from scripts import global_state_kept

    with global_state_kept():
        yield


@pytest.fixture
def call_script(capfd: pytest.CaptureFixture[str]) -> Iterator[Run]:
    """A script's name and arguments -> its exit code and what it printed."""
    from scripts import global_state_kept, runner

    with global_state_kept():
        yield runner(capfd)
