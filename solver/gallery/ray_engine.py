"""Optional: Ray Data shares the parts of a job out, over the cores or GPUs of this machine or of a cluster.

A row of its data set is the number of a part. What is encoded, how, and what is kept of it is `solver.gallery.jobs`, so
that the files are those of any other worker, and a part that was done stays done whatever becomes of Ray: its own
checkpoints would hold the ids of all rows in memory. Ray starts a worker anew that has died. Images are read by the
worker that encodes them (by loader processes, `data.workers`), so that no picture goes through Ray's store.

ray is imported here and nowhere else, and reports nothing to anybody.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from solver.gallery.adding import Encode
from solver.gallery.jobs import Job, encode_part
from utils.errors import UserError, first_line
from utils.threads import SPIN_VARIABLES, available_cores

logger = logging.getLogger(__name__)

ROOT = Path(__file__).resolve().parents[2]
STORE_BYTES = 100 << 20
"""Of Ray's object store on this machine, which holds numbers of parts: near the least that it takes."""


def load_ray() -> Any:
    """Return ray. Raises UserError when it is not installed."""
    # Read when ray is imported, or when it starts.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Every pool of workers with arguments is an error to Ray's own log on the terminal.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise UserError(
            "--engine ray takes Ray Data, which is not installed; pip install -r requirements-ray.txt, or start the "
            "workers by torchrun or as a job array, without --engine"
        ) from error
    return ray


class PartEncoder:
    """A worker of Ray, with a model of its own."""

    def __init__(self, make: Callable[[], tuple[Job, Encode]], folder: str, environment: Mapping[str, str]) -> None:
        """folder: that paths are relative to. environment: of this worker."""
        os.environ.update(environment)
        os.chdir(folder)
        self.job, self.encode = make()

    def __call__(self, batch: Mapping[str, np.ndarray]) -> dict[str, list[Any]]:
        """Encode the part of the one row of a batch, unless it is done or another process is at work on it."""
        (number,) = batch["id"].tolist()
        try:
            return {"part": [number], "made": [encode_part(self.job, number, self.encode)], "error": [""]}
        except UserError as error:
            # As an exception it would reach the command as one of Ray's.
            return {"part": [number], "made": [False], "error": [str(error)]}


def encode_with_ray(make: Callable[[], tuple[Job, Encode]], shards: int, device: str) -> str:
    """Encode the parts of a job, which has begun, by as many workers as there are cores, or GPUs; return what was done.

    make: opens the job and its model in a worker. device: as the command line names it; `cpu` leaves GPUs alone. Raises
    UserError for what a worker refuses, and when Ray itself fails.
    """
    ray = load_ray()
    made = 0
    try:
        ray.init(**_start_options())
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = context.print_on_execution_start = False
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        needs, workers, here = _shares(ray.cluster_resources(), len(ray.nodes()), shards, device)
        environment = {"WORLD_SIZE": str(here), "LOCAL_WORLD_SIZE": str(here)}
        logger.info("ray: %d workers, each with %s", workers, needs)
        # Items, not a range: a range is read by tasks, which wait for a core that the workers hold.
        items = [{"id": number} for number in range(shards)]
        parts = ray.data.from_items(items, override_num_blocks=shards).map_batches(
            PartEncoder,
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=workers),
            fn_constructor_args=(make, str(Path.cwd()), environment),
            **needs,
        )
        for row in parts.iter_rows():
            if row["error"]:
                raise UserError(row["error"])
            made += bool(row["made"])
            logger.info("part %d of %d: %s", row["part"], shards, "encoded" if row["made"] else "was done")
    except ray.exceptions.RayError as error:
        raise UserError(
            f"Ray stopped the work ({first_line(error)}); the parts that are done are kept: start the same command "
            "again, or without --engine"
        ) from error
    finally:
        ray.shutdown()
    return f"ray, {workers} workers: {made} parts encoded"


def _start_options() -> dict[str, Any]:
    """Return how Ray is started, or joined where RAY_ADDRESS names a cluster."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    variables = {"PYTHONPATH": path, "RAY_USAGE_STATS_ENABLED": "0", **SPIN_VARIABLES}
    options: dict[str, Any] = {"runtime_env": {"env_vars": variables}}
    options |= {"logging_level": logging.ERROR, "log_to_driver": False}
    if "RAY_ADDRESS" not in os.environ:
        options |= {"num_cpus": available_cores(), "object_store_memory": STORE_BYTES, "include_dashboard": False}
    return options


def _shares(
    resources: Mapping[str, float], machines: int, shards: int, device: str
) -> tuple[dict[str, float], int, int]:
    """Return what each worker takes, how many there are, and how many of them on a machine."""
    cores = max(int(resources.get("CPU", 1)), 1)
    cards = 0 if device == "cpu" else int(resources.get("GPU", 0))
    workers = max(min(shards, cards or cores), 1)
    needs: dict[str, float] = {"num_cpus": max(cores // cards, 1), "num_gpus": 1} if cards else {"num_cpus": 1}
    return needs, workers, -(-workers // max(machines, 1))
