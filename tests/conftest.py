"""Compute threads of the tests, set before torch is imported: two, or one in each of several processes (pytest -n);
which file goes first there; and what several files share.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from scripts import Run

LONG = (
    "training_runs documented_commands several_processes several_runs start resume retrieval config_load testing"
).split()
"""Files that take 10 to 70 s, by their process time."""
LONGEST_FIRST = {f"test_{name}": place for place, name in enumerate(LONG)}
MOST_PROCESSES = 8
"""Each imports everything (about 1 GB) and collects all tests."""


def pytest_configure(config: pytest.Config) -> None:
    """Two busy cores must not spin against each other, nothing is downloaded; what the user has set stays."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # A name that is no file is not looked for on a hub, which takes 20 s where there is no network.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    if "PYTEST_XDIST_WORKER" in os.environ:
        os.environ.setdefault("OMP_NUM_THREADS", "1")
    elif not config.getoption("tx", None):
        # Not where it starts processes, which would inherit it.
        os.environ.setdefault("OMP_NUM_THREADS", "2")
    # A process that died ends the tests with its name: xdist can wait for ever for one in its place (its issue 1378).
    if getattr(config.option, "maxworkerrestart", "") is None:
        config.option.maxworkerrestart = "0"
    gc.disable()


def pytest_collection_finish() -> None:
    """What was imported lives to the end: no collection need walk over it again, which takes half a second each."""
    gc.collect()
    gc.freeze()
    gc.enable()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """`-n auto`: one for each core that may be used."""
    from utils.threads import available_cores

    return min(MOST_PROCESSES, available_cores())


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Give `-n` whole files, whose fixtures are then made once, the long ones first."""
    from xdist.scheduler import LoadFileScheduling

    config.option.loadscopereorder = False
    return LoadFileScheduling(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Order the files for several processes; in one the order does not matter."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        items.sort(key=lambda item: LONGEST_FIRST.get(item.path.stem, len(LONGEST_FIRST)))


@pytest.fixture(scope="module", autouse=True)
def _threads(request: pytest.FixtureRequest) -> Iterator[None]:
    """A file marked with `threads(n)` has n compute threads however the tests are started."""
    mark = request.node.get_closest_marker("threads")
    if mark is None:
        yield
        return
    import torch

    before, (count,) = torch.get_num_threads(), mark.args
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", str(count))
        torch.set_num_threads(count)
        yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module", autouse=True)
def _blank_figures(request: pytest.FixtureRequest) -> Iterator[None]:
    """Runs get blank pictures of curves and bars, whose layout takes half of a tiny training, but in files marked
    with `figures`.
    """
    modules = [sys.modules.get(f"solver.reports.{name}") for name in ("figures", "error_rates")]
    with pytest.MonkeyPatch.context() as patch:
        if request.node.get_closest_marker("figures") is None:
            for module in filter(None, modules):
                patch.setattr(module, "save_figure", _save_blank)
        yield


def _save_blank(figure: object, path: Path) -> Path:
    from PIL import Image

    from utils.files import atomic_path

    with atomic_path(path) as temporary:
        Image.new("RGB", (4, 4)).save(temporary, format="PNG")
    return path


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
