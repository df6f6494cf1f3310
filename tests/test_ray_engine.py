"""Covers: solver/gallery/ray_engine, solver/gallery/jobs, solver/gallery/commands. Parts that Ray shares out: the files
of any other worker, what a worker refuses, a cluster's shares, and Ray itself where it is installed.
"""

import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from plain_gallery import STATE, encode, photo

from solver.gallery.adding import Encode
from solver.gallery.arguments import parse_arguments
from solver.gallery.commands import add
from solver.gallery.jobs import Job, begun, finished, run_job
from solver.gallery.ray_engine import PartEncoder, _shares, _start_options, encode_with_ray
from utils.errors import UserError

SUPPORT = Path(__file__).parent / "support"


@pytest.fixture
def job(tmp_path: Path) -> Job:
    images = [photo(tmp_path, name, "damaged" if name == "c" else "") for name in "abcdefghij"]
    return Job(folder=tmp_path / "one", state=STATE, images=images, shards=4, model="R")


def opened(job: Job, folder: Path) -> tuple[Job, Encode]:
    return Job(folder=folder, state=job.state, images=job.images, shards=job.shards, model=job.model), encode


def tree(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def by_ray(job: Job, folder: Path) -> str:
    make = partial(opened, job, folder)
    own = make()[0]
    assert begun(own) == ""
    return finished(own, encode_with_ray(make, own.shards, "cpu"))


class Rows:
    """A data set of Ray that does at once what it is asked for."""

    def __init__(self, rows: Sequence[Mapping[str, Any]]) -> None:
        self.rows = rows

    def map_batches(self, worker: Callable[..., Any], *, batch_size: int, fn_constructor_args: Any, **more: Any) -> Any:
        assert batch_size == 1 and more == {"compute": 2, "num_cpus": 1}
        call, found = worker(*fn_constructor_args), []
        for row in self.rows[::-1]:
            answer = call({name: np.array([value]) for name, value in row.items()})
            found.append({name: value for name, (value,) in answer.items()})
        return Rows(found)

    def iter_rows(self) -> Iterator[Mapping[str, Any]]:
        return iter(self.rows)


@pytest.fixture
def stand(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module, data = ModuleType("ray"), ModuleType("ray.data")
    context = SimpleNamespace(get_current=SimpleNamespace)
    vars(data).update(
        DataContext=context,
        ActorPoolStrategy=lambda size: size,
        from_items=lambda rows, override_num_blocks: Rows(rows),
    )
    vars(module).update(
        data=data,
        ended=[],
        init=lambda **options: None,
        shutdown=lambda: vars(module)["ended"].append(True),
        nodes=lambda: [{}],
        cluster_resources=lambda: {"CPU": 2.0},
        exceptions=SimpleNamespace(RayError=type("RayError", (Exception,), {})),
    )
    monkeypatch.setitem(sys.modules, "ray", module)
    monkeypatch.setitem(sys.modules, "ray.data", data)
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        # A worker sets them for its own process, and goes to the folder of the command.
        monkeypatch.setenv(name, "1")
    monkeypatch.chdir(Path.cwd())
    return module


def test_parts_in_any_order_are_those_of_one_process(tmp_path: Path, job: Job, stand: ModuleType) -> None:
    run_job(job, encode, 0, 1)
    said = by_ray(job, tmp_path / "ray")
    assert said == f"ray, 2 workers: 4 parts encoded; {tmp_path / 'ray'}: 9 images in all, 1 of this job unreadable"
    assert tree(tmp_path / "one") == tree(tmp_path / "ray") and len(stand.ended) == 1
    assert "were added before" in begun(opened(job, tmp_path / "ray")[0])


def test_what_a_worker_refuses_is_said_as_it_is(tmp_path: Path, job: Job, stand: ModuleType) -> None:
    place = tmp_path / "ray"
    part = place / job.part_name(2)
    part.mkdir(parents=True)
    (part / "done.json").write_text("{}")
    with pytest.raises(UserError, match=r"00002.done\.json is damaged"):
        by_ray(job, place)
    # The others were done, in whatever order, and are not done again.
    (part / "done.json").unlink()
    assert by_ray(job, place).startswith("ray, 2 workers: 1 parts encoded; ")
    assert PartEncoder(partial(opened, job, place), str(tmp_path), {})({"id": np.array([1])})["made"] == [False]


def test_a_failure_of_ray_keeps_what_is_done(tmp_path: Path, job: Job, stand: ModuleType) -> None:
    def fails(**options: Any) -> None:
        raise stand.exceptions.RayError("the store is full\nmore")

    vars(stand)["init"] = fails
    with pytest.raises(UserError, match=r"Ray stopped the work .the store is full.; the parts that are done are kept"):
        by_ray(job, tmp_path / "ray")
    assert stand.ended == [True]


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    words = ["add", "--index", str(tmp_path / "i"), "--run", "r", "--shards", "2", "--engine", "ray", "photos"]
    handlers = list(logging.getLogger().handlers)
    try:
        with pytest.raises(
            UserError, match="not installed; pip install -r requirements-ray.txt, or start the workers by"
        ):
            add(parse_arguments(words))
    finally:
        logging.captureWarnings(False)
        logging.getLogger().handlers[:] = handlers


def test_the_shares_of_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _shares({"CPU": 2.0}, 1, 8, "auto") == ({"num_cpus": 1}, 2, 2)
    assert _shares({"CPU": 64.0, "GPU": 8.0}, 2, 100, "auto") == ({"num_cpus": 8, "num_gpus": 1}, 8, 4)
    assert _shares({"CPU": 64.0, "GPU": 8.0}, 2, 3, "cpu") == ({"num_cpus": 1}, 3, 2)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("PYTHONPATH", "mine")
    here = _start_options()
    assert here["object_store_memory"] == 100 << 20 and not here["include_dashboard"]
    assert here["runtime_env"]["env_vars"]["PYTHONPATH"].split(os.pathsep) == [str(Path(__file__).parents[1]), "mine"]
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert "num_cpus" not in _start_options()


def test_ray_itself(tmp_path: Path, job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray.data", reason="Ray Data is not installed (requirements-ray.txt)")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    # Its workers import this file and what it imports.
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(SUPPORT), str(SUPPORT.parent)]))
    run_job(job, encode, 0, 1)
    assert "4 parts encoded" in by_ray(job, tmp_path / "ray")
    assert tree(tmp_path / "one") == tree(tmp_path / "ray")
