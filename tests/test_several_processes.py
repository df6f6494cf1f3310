"""Covers: solver/training/gathering, utils/processes, model/norms, datasets/loading/shares. Several processes train as
one does.
"""

from __future__ import annotations

import dataclasses
import os
import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from linear_training import linear_job
from several import forked, in_processes
from shares import CASES, Case, in_double, part_of, shares_of
from torch import Tensor, nn
from torch.distributed import TCPStore

from datasets.loading import shares
from datasets.structures import Batch
from model.norms import GlobalBatchNorm2d, share_norms
from solver.training.gradients import Gradients
from utils.errors import Interrupted, UserError
from utils.processes import ALONE, Joined, Processes, agree, heard_by_others

pytestmark = pytest.mark.threads(2)

STEPS = {2: 20, 3: 5}
"""Three processes take fewer: a test machine has two cores."""


def trained(case: Case, batches: list[Batch], processes: Processes, steps: int) -> dict[str, Any]:
    """Losses and gradients of the first step, and what model and objective are after some."""
    case.model.train()
    job = dataclasses.replace(
        linear_job((8,), {"accumulate": len(batches)}), model=case.model, objective=case.objective
    )
    optimizer = torch.optim.AdamW(case.model.parameters(), lr=3e-4, eps=1e-5)
    gradients = Gradients(job, torch.amp.GradScaler("cpu", enabled=False), processes)
    losses, first = [], {}
    for step in range(steps):
        optimizer.zero_grad(set_to_none=True)
        found = gradients(batches, step)
        losses.append(dict(zip(found.losses, found.means())))
        if not step:
            first = {
                name: value.grad.clone() for name, value in case.model.named_parameters() if value.grad is not None
            }
        optimizer.step()
    states = (case.model.state_dict(), case.objective.state_dict())
    return {"losses": losses, "first": first, "model": states[0], "objective": states[1]}


def share_of(batch: Batch, rank: int, count: int) -> Batch:
    """The rows of one process, with an empty input of what only others have."""
    parts = shares_of(batch, count)
    own = parts[rank]
    return shares.completed(own, [shares.part_of(part) for part in parts])


def shared(case: Case, processes: Joined, steps: int, count: int = 1) -> dict[str, Any]:
    """What becomes of a case whose batch, in micro-batches, is shared out."""
    share_norms(case.model, torch.device("cpu"), processes.norm_group)
    batches = shares_of(case.batch, count)
    return trained(case, [share_of(batch, processes.rank, processes.count) for batch in batches], processes, steps)


def in_one(make: Callable[[], Case], steps: int) -> dict[str, Any]:
    case = make()
    return trained(case, [case.batch], ALONE, steps)


def all_families(count: int, work: Callable[[Callable[[], Case], int], dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """By kind of number and family, what `work(case, steps)` gives. In float32 rounding soon decides which rows a loss
    compares, otherwise on every machine, so that some steps after another tell nothing.
    """
    with in_double():
        double = {family: work(make, STEPS[count]) for family, make in CASES.items()}
    return {"float64": double, "float32": {family: work(make, 1) for family, make in CASES.items()}}


@pytest.fixture(scope="module", params=STEPS)
def trainings(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, dict[str, Any]], list[Any]]:
    """What one process makes of all families, and what each of several does."""

    def work(processes: Joined) -> dict[str, dict[str, Any]]:
        return all_families(processes.count, lambda make, steps: shared(make(), processes, steps))

    found = in_processes(request.param, tmp_path_factory.mktemp("several"), work)
    return all_families(request.param, in_one), found


def distance(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> float:
    """Of all tensors together, relative."""
    assert found.keys() == wanted.keys()
    size = torch.stack([value.double().norm() for value in wanted.values()]).norm()
    return float(torch.stack([(found[name].double() - wanted[name].double()).norm() for name in wanted]).norm() / size)


def assert_same_training(found: dict[str, Any], wanted: dict[str, Any], kind: str = "float64") -> None:
    """The first losses and gradients, and in float64 every tensor afterwards."""
    tolerance = {"float64": 1e-9, "float32": 1e-5}[kind]
    for name, value in wanted["losses"][0].items():
        assert found["losses"][0][name] == pytest.approx(value, rel=tolerance, abs=tolerance / 10), name
    assert distance(found["first"], wanted["first"]) < tolerance
    for part in ("model", "objective"):
        assert found[part].keys() == wanted[part].keys()
        for name, value in wanted[part].items() if kind == "float64" else ():
            error = float((found[part][name].double() - value.double()).norm())
            assert error < tolerance * float(value.double().norm()) + tolerance / 10, name


@pytest.mark.parametrize("family", list(CASES))
def test_losses_gradients_and_weights_are_those_of_one_process(
    family: str, trainings: tuple[dict[str, dict[str, Any]], list[Any]]
) -> None:
    alone, together = trainings
    for kind, wanted in alone.items():
        for process in together:
            assert_same_training(process[kind][family], wanted[family], kind)
        for part in ("model", "objective"):
            for name, value in together[0][kind][family][part].items():
                assert all(torch.equal(process[kind][family][part][name], value) for process in together), name


def test_micro_batches_of_several_processes_and_processes_without_a_row(tmp_path: Path) -> None:
    """Eleven rows of ReID5o: three micro-batches in two processes, and two rows in three."""

    def made(rows: Sequence[int] = range(11)) -> Case:
        case = CASES["reid5o"]()
        return dataclasses.replace(case, batch=part_of(case.batch, rows))

    def work(processes: Joined) -> dict[str, Any]:
        with in_double():
            case = made() if processes.count == 2 else made([0, 1])
            return shared(case, processes, 3, count=3 if processes.count == 2 else 1)

    with in_double():
        wanted, wanted_few = in_one(made, 3), in_one(lambda: made([0, 1]), 3)
    for found in in_processes(2, tmp_path / "micro", work):
        assert_same_training(found, wanted)
    for found in in_processes(3, tmp_path / "few", work):
        assert_same_training(found, wanted_few)


def test_what_one_process_says_stops_the_others(tmp_path: Path) -> None:
    def work(processes: Joined) -> None:
        processes.told(None)
        if processes.rank == 1:
            raise UserError("the disk of this machine is full")
        processes.told("more")

    first, second = in_processes(2, tmp_path, work)
    assert isinstance(first, UserError) and isinstance(second, UserError)
    assert str(first) == "stopped because process 1 of 2 did: the disk of this machine is full"
    assert str(second) == "the disk of this machine is full"


def test_a_process_that_dies_or_is_interrupted_ends_the_others(tmp_path: Path) -> None:
    def dies(processes: Joined) -> None:
        processes.told(None)
        if processes.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        processes.told("more")

    def stops(rank: int) -> tuple[str, int]:
        processes = Joined(torch.device("cpu"))
        try:
            with processes.together():
                if rank == 1:
                    raise Interrupted("stopped by SIGTERM: all is saved", signal.SIGTERM)
                processes.told("more")
        except Interrupted as error:
            return str(error), int(error.signal)
        raise AssertionError("it went on")

    first, second = in_processes(2, tmp_path / "dies", dies)
    assert second is None and isinstance(first, UserError)
    assert str(first).startswith("stopped because process 1 of 2 died without a word")
    assert forked(2, tmp_path / "stops", stops) == 2 * [("stopped by SIGTERM: all is saved", signal.SIGTERM)]


def test_an_error_before_all_have_come_is_heard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of another machine, whose torchrun would not end this one's processes."""
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    port = 0

    def starts(rank: int, error: BaseException | None) -> None:
        os.environ["MASTER_PORT"] = str(port)
        with heard_by_others():
            if rank == 1 and error is not None:
                raise error
            if rank == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            Joined(torch.device("cpu"))

    said: list[str] = []
    for error in (UserError("unknown key"), SystemExit(2), ZeroDivisionError("by zero"), None):
        # The longer time is not waited for where an error is heard.
        monkeypatch.setattr("utils.processes.JOIN_SECONDS", 60.0 if error is not None else 0.5)
        # As torchrun does, one store for all.
        store = TCPStore("127.0.0.1", 0, is_master=True)
        port = store.port
        said.append(str(forked(2, tmp_path / str(len(said)), partial(starts, error=error))[0]))
    assert said == [
        "stopped because process 1 of 2 did: unknown key",
        "stopped because process 1 of 2 did: its command line was refused (exit code 2)",
        "stopped because process 1 of 2 did: ZeroDivisionError: by zero",
        "process 1 of 2 has not come within 0 s; look what it said, and start all together",
    ]


def test_a_process_that_is_asked_to_end_while_it_fails_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torchrun sends SIGTERM to those that are left, which rest a little before they end: long enough here for a busy
    machine.
    """
    monkeypatch.setattr("utils.processes.REST_SECONDS", 1.0)

    def work(processes: Joined) -> None:
        processes.told(None)
        threading.Timer(0.4, os.kill, (os.getpid(), signal.SIGTERM)).start()
        raise UserError("the disk of this machine is full")

    assert {str(error) for error in in_processes(2, tmp_path, work)} == {"the disk of this machine is full"}


def test_an_error_of_ones_own_stays_what_it_is(tmp_path: Path) -> None:
    def work(processes: Joined) -> None:
        agree(processes, {"data fingerprint": "same"})
        agree(processes, {"data fingerprint": f"of {processes.rank}"})

    for found in in_processes(2, tmp_path, work):
        assert str(found) == (
            "process 1 of 2 has another data fingerprint than process 0 (of 1, not of 0): give all the same files and "
            "options"
        )


def test_norms_over_all_processes_are_those_of_all_rows(tmp_path: Path) -> None:
    """Statistics, output and gradient of the rows 0..2 and of none of them against torch's norm over all five."""
    images = torch.randn(5, 3, 4, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    weights = torch.randn(5, 3, 4, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def passed(norm: nn.Module, rows: slice) -> dict[str, Tensor]:
        given = images[rows].clone().requires_grad_()
        output = norm(given)
        (output * weights[rows]).sum().backward()
        assert given.grad is not None
        return {"output": output.detach(), "gradient": given.grad, **norm.state_dict()}

    def work(processes: Joined) -> dict[str, Tensor]:
        model = nn.Sequential(nn.BatchNorm2d(3).double())
        share_norms(model, torch.device("cpu"), processes.norm_group)
        assert isinstance(model[0], GlobalBatchNorm2d)
        return passed(model[0], (slice(0, 3), slice(3, 3), slice(3, 5))[processes.rank])

    found = in_processes(3, tmp_path, work)
    wanted = passed(nn.BatchNorm2d(3).double(), slice(0, 5))
    for name in ("output", "gradient"):
        torch.testing.assert_close(torch.cat([process[name] for process in found]), wanted[name])
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        assert all(torch.equal(process[name], found[0][name]) for process in found)
        torch.testing.assert_close(found[0][name], wanted[name])
