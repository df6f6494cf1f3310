"""Time and memory of the ranking metrics against the reference's plan and a stable sort, on one similarity matrix.

    python benchmarks/ranking.py [--queries 2000 --gallery 18050 --matches 45 --threads 1 2 --repeats 3]

Compared with the same threads on the same scores:
  reference  the public code's plan: int64 argsort of all rows at once, then a Python loop over the queries and one over
             the gallery's columns (written anew from its description)
  stable     a stable argsort of 64 rows at a time, metrics without loops; ties by gallery index, as ours
  ours       utils.retrieval.metrics.evaluate
Timings of the methods alternate; the best of the repeats counts. Memory is the growth of the resident set's
high-water mark in a process of its own (Linux; elsewhere absent). Exit code 1 when ours differs from the stable sort by
more than 1e-9 percent, or is less than 10 times as fast as the reference or 5 times as fast as the stable sort.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from utils.threads import configure_threads

configure_threads()

import numpy as np  # noqa: E402
import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from utils.retrieval.metrics import evaluate  # noqa: E402
from utils.tables import format_table  # noqa: E402

NAMES = ("R1", "R5", "R10", "mAP", "mINP")
TARGETS = {"reference": 10.0, "stable": 5.0}
STABLE_ROWS = 64
EXACT = 1e-9


def reference_plan(similarity: Tensor, query_ids: Tensor, gallery_ids: Tensor) -> dict[str, float]:
    """Sort everything, then loop over queries (last match) and over columns (precision at each rank)."""
    order = torch.argsort(similarity, dim=1, descending=True)
    matches = gallery_ids[order] == query_ids[:, None]
    hits = matches.cumsum(1)
    curve = (hits[:, :10] > 0).float().mean(0) * 100
    inp = []
    for row in range(len(matches)):
        last = matches[row].nonzero()[-1]
        inp.append(hits[row][last] / (matches[row].nonzero()[-1] + 1.0))
    precision = torch.stack([hits[:, column] / (column + 1.0) for column in range(hits.shape[1])], dim=1)
    ap = (precision * matches).sum(1) / matches.sum(1)
    return {
        "R1": float(curve[0]),
        "R5": float(curve[4]),
        "R10": float(curve[9]),
        "mAP": 100 * float(ap.mean()),
        "mINP": 100 * float(torch.cat(inp).mean()),
    }


def stable_plan(similarity: Tensor, query_ids: Tensor, gallery_ids: Tensor) -> dict[str, float]:
    """Stable argsort in blocks of rows; the ranks of the matches are the places where the sorted ids agree."""
    first, precision, penalty = [], [], []
    for start in range(0, len(similarity), STABLE_ROWS):
        order = torch.argsort(similarity[start : start + STABLE_ROWS], dim=1, descending=True, stable=True)
        rows, ranks = (gallery_ids[order] == query_ids[start : start + STABLE_ROWS, None]).nonzero(as_tuple=True)
        ranks = ranks.double() + 1
        counts = torch.bincount(rows, minlength=len(order))
        ends = counts.cumsum(0)
        place = torch.arange(1, len(rows) + 1) - (ends - counts)[rows]
        sums = torch.zeros(len(order), dtype=torch.float64).index_add_(0, rows, place / ranks)
        precision.append(sums / counts)
        penalty.append(counts / ranks[ends - 1])
        first.append(ranks[ends - counts])
    best = torch.cat(first)
    shares = {f"R{rank}": 100 * float((best <= rank).double().mean()) for rank in (1, 5, 10)}
    return {**shares, "mAP": 100 * float(torch.cat(precision).mean()), "mINP": 100 * float(torch.cat(penalty).mean())}


def our_plan(similarity: Tensor, query_ids: Tensor, gallery_ids: Tensor) -> dict[str, float]:
    """Count the ranks of the matches."""
    result = evaluate(similarity, query_ids, gallery_ids)
    return {name: result[name] for name in NAMES}


METHODS: dict[str, Callable[[Tensor, Tensor, Tensor], dict[str, float]]] = {
    "reference": reference_plan,
    "stable": stable_plan,
    "ours": our_plan,
}


def make_problem(options: argparse.Namespace, kind: str) -> tuple[Tensor, Tensor, Tensor]:
    """Normal scores, higher by `signal` for matches; `bf16` rounds them, which ties most with another."""
    generator = torch.Generator().manual_seed(0)
    people = -(-options.gallery // options.matches)
    gallery_ids = torch.arange(options.gallery) // options.matches
    gallery_ids = gallery_ids[torch.randperm(options.gallery, generator=generator)]
    # The last person may have fewer items; nobody asks for it.
    query_ids = torch.randint(0, max(people - 1, 1), (options.queries,), generator=generator)
    similarity = torch.randn(options.queries, options.gallery, generator=generator)
    for row in range(options.queries):
        similarity[row, gallery_ids == query_ids[row]] += options.signal
    return (similarity.bfloat16().float() if kind == "bf16" else similarity), query_ids, gallery_ids


def measure_times(options: argparse.Namespace, kind: str, threads: int) -> dict[str, tuple[float, dict[str, float]]]:
    """Best wall time in seconds and metrics of each method; the methods take turns."""
    torch.set_num_threads(threads)
    problem = make_problem(options, kind)
    best: dict[str, tuple[float, dict[str, float]]] = {}
    our_plan(problem[0][:STABLE_ROWS], problem[1][:STABLE_ROWS], problem[2])
    for _ in range(options.repeats):
        for name, method in METHODS.items():
            started = time.perf_counter()
            metrics = method(*problem)
            seconds = time.perf_counter() - started
            best[name] = min(best.get(name, (float("inf"), metrics)), (seconds, metrics), key=lambda entry: entry[0])
    return best


def high_water_mark(reset: bool) -> int | None:
    """Peak resident bytes of this process since the last reset; None where the system does not tell."""
    try:
        if reset:
            Path("/proc/self/clear_refs").write_text("5")
        status = Path("/proc/self/status").read_text()
    except OSError:
        return None
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))


def measure_memory(options: argparse.Namespace, method: str) -> int | None:
    """Bytes that one run of a method adds to the resident set."""
    torch.set_num_threads(options.threads[0])
    problem = make_problem(options, "fp32")
    before = high_water_mark(reset=True)
    METHODS[method](*problem)
    after = high_water_mark(reset=False)
    return None if before is None or after is None else after - before


def memory_in_a_process(arguments: list[str], method: str) -> float | None:
    """MiB added by one method, measured in a fresh process."""
    command = [sys.executable, __file__, *arguments, "--memory-of", method]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    value = json.loads(output)
    return None if value is None else value / (1 << 20)


def parse(arguments: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Ranking metrics: ours, the reference's plan and a stable sort.")
    parser.add_argument("--queries", type=int, default=2000)
    parser.add_argument("--gallery", type=int, default=18050)
    parser.add_argument("--matches", type=int, default=45, help="gallery items of each person")
    parser.add_argument(
        "--signal", type=float, default=1.5, help="how much higher matches score, in standard deviations"
    )
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--memory-of", choices=METHODS, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    """Print the table; return 1 when a target is missed."""
    options = parse(arguments)
    if options.memory_of:
        print(json.dumps(measure_memory(options, options.memory_of)))
        return 0
    print(
        f"{options.queries} queries x {options.gallery} gallery, {options.matches} matches each, signal "
        f"{options.signal}; torch {torch.__version__}, numpy {np.__version__}, "
        f"{torch.backends.cpu.get_cpu_capability()}"
    )
    memory = {method: memory_in_a_process(arguments, method) for method in METHODS}
    rows, failures = [], []
    for kind in ("fp32", "bf16"):
        for threads in options.threads:
            best = measure_times(options, kind, threads)
            ours, metrics = best["ours"]
            error = max(abs(metrics[name] - best["stable"][1][name]) for name in NAMES)
            failures += [f"{kind}: differs from the stable sort by {error}"] if error > EXACT else []
            for method, (seconds, _) in best.items():
                ratio = seconds / ours
                rows.append(
                    {
                        "scores": kind,
                        "threads": threads,
                        "method": method,
                        "seconds": seconds,
                        "ms per query": 1000 * seconds / options.queries,
                        "time / ours": ratio,
                        "added MiB": memory[method],
                        "ours - stable": f"{error:.1e}" if method == "ours" else None,
                    }
                )
                if ratio < TARGETS.get(method, 0.0):
                    failures.append(
                        f"{kind}, {threads} threads: {ratio:.1f} x the {method}, wanted {TARGETS[method]:.0f} x"
                    )
    print(format_table(rows))
    print("\n".join(failures) or "all targets reached")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
