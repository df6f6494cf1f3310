"""Processes that train together, forked from a test: gloo on this machine, one thread each."""

from __future__ import annotations

import multiprocessing
import os
import socket
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import torch

from utils.errors import UserError
from utils.processes import Joined

LONGEST = 120


def _free_port() -> int:
    with closing(socket.socket()) as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def _run(rank: int, count: int, port: int, folder: Path, work: Callable[[int], Any]) -> None:
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(count),
        LOCAL_WORLD_SIZE=str(count),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        # A pool of threads does not survive a fork: the first product of a second thread would wait for ever.
        OMP_NUM_THREADS="1",
    )
    torch.set_num_threads(1)
    try:
        found: Any = {"value": work(rank)}
    except BaseException as error:
        found = {"error": (type(error).__name__, str(error))}
    torch.save(found, folder / f"{rank}.pt")
    # Nothing of the test's own is torn down here.
    os._exit(0)


def forked(count: int, folder: Path, work: Callable[[int], Any]) -> list[Any]:
    """Return what `work(rank)` returned, or raised, in each of several processes; None of one that was killed."""
    folder.mkdir(parents=True, exist_ok=True)
    context, port = multiprocessing.get_context("fork"), _free_port()
    started = [context.Process(target=_run, args=(rank, count, port, folder, work)) for rank in range(count)]
    for process in started:
        process.start()
    for process in started:
        process.join(LONGEST)
    late = [process for process in started if process.is_alive()]
    for process in late:
        process.kill()
        process.join()
    assert not late, f"{len(late)} processes hang"
    places = [folder / f"{rank}.pt" for rank in range(count)]
    return [_answer(place) if place.exists() else None for place in places]


def _answer(place: Path) -> Any:
    found = torch.load(place, weights_only=True)
    if "error" not in found:
        return found["value"]
    name, text = found["error"]
    return UserError(text) if name == "UserError" else RuntimeError(f"{name}: {text}")


def in_processes(count: int, folder: Path, work: Callable[[Joined], Any]) -> list[Any]:
    """Return what `work` returned, or raised, in each of several processes that have been joined."""

    def joined(rank: int) -> Any:
        processes = Joined(torch.device("cpu"))
        with processes.together():
            found = work(processes)
            processes.told(None)
            return found

    return forked(count, folder, joined)
