"""Threads and loader processes within the cores. Imports no torch: it runs before that is."""

from __future__ import annotations

import os
from dataclasses import dataclass

from utils.processes import processes_here

SPIN_VARIABLES = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "1000"}
"""Threads that wait for work give the core up soon: under the default policy one busy core beside a run slows it 17
x.
"""


def configure_threads() -> None:
    """Set the waiting policy of OpenMP unless the user has set one; must run before torch is imported."""
    if not any(name in os.environ for name in SPIN_VARIABLES):
        os.environ.update(SPIN_VARIABLES)


def available_cores() -> int:
    """Number of cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return max(1, len(os.sched_getaffinity(0)))
    return max(1, os.cpu_count() or 1)


@dataclass(frozen=True)
class ThreadPlan:
    """Compute threads of the main process and loader processes (one thread each)."""

    threads: int
    workers: int

    def describe(self) -> str:
        """One line for the log."""
        waiting = ", ".join(f"{name}={os.environ.get(name, 'unset')}" for name in SPIN_VARIABLES)
        return (
            f"{self.threads} compute threads + {self.workers} loader processes on {available_cores()} cores; {waiting}"
        )


def busy_note() -> str:
    """Return one line where others keep the cores from this process, for whoever reads times; empty where none do or
    where the system does not say.
    """
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    if load <= available_cores() + 0.5:
        return ""
    return f"the machine is busy (load average {load:.1f} on {available_cores()} cores): times are longer than alone"


def plan_threads(device_type: str, workers: int) -> ThreadPlan:
    """Divide the cores, of which several processes on a machine get each a part. workers -1 = choose: none on two cores
    or fewer (loading runs in the main process).

    More workers than leave one core for the compute threads are cut to that number, but one is always allowed.

    A user's OMP_NUM_THREADS is an upper bound of the compute threads.
    """
    cores = max(1, available_cores() // processes_here())
    if workers < 0:
        if cores <= 2:
            workers = 0
        else:
            workers = max(1, cores // 4) if device_type == "cpu" else min(12, cores - 1)
    workers = min(workers, max(1, cores - 1))
    limit = os.environ.get("OMP_NUM_THREADS", "")
    threads = max(1, cores - workers)
    if limit.isdigit() and int(limit) > 0:
        threads = min(threads, int(limit))
    return ThreadPlan(threads=threads, workers=workers)
