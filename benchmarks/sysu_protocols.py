"""Time of all SYSU-MM01 protocols against a per-query evaluation, both from one similarity matrix.

    python benchmarks/sysu_protocols.py [--draws 10 --threads 1 --repeats 2]

SYSU-MM01's size: 3,803 infrared queries of cameras 3 and 6; 6,775 visible test images of 96 persons, of which a gallery
draw takes 1 or 10 of each person and camera: 301 and 3,010 for all-search, 112 and 1,120 for indoor-search. Ten draws
of each. Features are synthetic, similarities float64. Compared with the same threads:
  per query  the widely used AGW evaluation, written anew from its description: an argsort of the whole matrix, then a
  Python loop
             over the queries with the distinct persons of each ranking and the precisions in a list comprehension
  ours       utils.retrieval.metrics.evaluate with the rule `sysu` and the curve over identities
Exit code 1 when a figure differs by more than 1e-9 (fractions) or ours is less than 10 times as fast over all
protocols.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from utils.threads import configure_threads

configure_threads()

import numpy as np  # noqa: E402
import torch  # noqa: E402

from utils.retrieval.metrics import evaluate  # noqa: E402
from utils.tables import format_table  # noqa: E402

TARGET = 10.0
EXACT = 1e-9
MAX_RANK = 20
# Test images and persons of each camera, as the official split files count them.
IMAGES = {1: 1374, 2: 1565, 3: 1883, 4: 1918, 5: 1918, 6: 1920}
PERSONS = {1: 56, 2: 56, 3: 93, 4: 94, 5: 95, 6: 96}
INFRARED = (3, 6)
MODES = {"all": (1, 2, 4, 5), "indoor": (1, 2)}
SHOTS = (1, 10)
DIMENSIONS, SIGNAL = 64, 0.6


@dataclass(frozen=True)
class Problem:
    """similarity (Q, V) float64; person and camera of queries and of all visible images."""

    similarity: np.ndarray
    query_ids: np.ndarray
    query_cameras: np.ndarray
    ids: np.ndarray
    cameras: np.ndarray


def make_problem() -> Problem:
    """Features around one centre per person; persons of a camera are the first ones, images spread evenly over them."""
    random = np.random.default_rng(0)
    centres = random.standard_normal((max(PERSONS.values()), DIMENSIONS))
    ids = {camera: np.arange(count) % PERSONS[camera] for camera, count in IMAGES.items()}
    features = {
        camera: SIGNAL * centres[people] + random.standard_normal((len(people), DIMENSIONS))
        for camera, people in ids.items()
    }
    sides = []
    for cameras in (INFRARED, MODES["all"]):
        rows = np.concatenate([features[camera] for camera in cameras])
        sides.append(
            (
                rows / np.linalg.norm(rows, axis=1, keepdims=True),
                np.concatenate([ids[camera] for camera in cameras]),
                np.concatenate([np.full(IMAGES[camera], camera) for camera in cameras]),
            )
        )
    (query, query_ids, query_cameras), (gallery, gallery_ids, gallery_cameras) = sides
    return Problem(query @ gallery.T, query_ids, query_cameras, gallery_ids, gallery_cameras)


def draw_gallery(problem: Problem, mode: str, shots: int, draw: int) -> np.ndarray:
    """Columns of a gallery: `shots` images of each person and camera of the mode."""
    random = np.random.default_rng(draw)
    chosen = []
    for camera in MODES[mode]:
        for person in range(PERSONS[camera]):
            images = np.flatnonzero((problem.cameras == camera) & (problem.ids == person))
            chosen.append(np.sort(random.permutation(images)[:shots]))
    return np.concatenate(chosen)


def restrict(problem: Problem, columns: np.ndarray) -> Problem:
    """The problem with these gallery images only. It is not part of what is timed."""
    return replace(
        problem,
        similarity=np.take(problem.similarity, columns, axis=1),
        ids=problem.ids[columns],
        cameras=problem.cameras[columns],
    )


def per_query(problem: Problem) -> dict[str, float]:
    """CMC over distinct persons, mAP and mINP, one query after the other."""
    ids, cameras = problem.ids, problem.cameras
    order = np.argsort(-problem.similarity, axis=1)
    curves, precisions, penalties = [], [], []
    for row, ranking in enumerate(order):
        kept = ranking[~((problem.query_cameras[row] == 3) & (cameras[ranking] == 2))]
        matches = (ids[kept] == problem.query_ids[row]).astype(np.int64)
        if not matches.any():
            continue
        people = [ids[kept][place] for place in sorted(np.unique(ids[kept], return_index=True)[1])]
        curves.append((np.array(people) == problem.query_ids[row]).cumsum()[:MAX_RANK])
        hits = matches.cumsum()
        last = np.flatnonzero(matches).max()
        penalties.append(hits[last] / (last + 1))
        precision = np.array([count / (place + 1) for place, count in enumerate(hits)]) * matches
        precisions.append(precision.sum() / matches.sum())
    shortest = min(map(len, curves))
    curve = np.mean([found[:shortest] for found in curves], axis=0)
    return {
        "R1": curve[0],
        "R10": curve[9],
        f"R{MAX_RANK}": curve[MAX_RANK - 1],
        "mAP": np.mean(precisions),
        "mINP": np.mean(penalties),
    }


def ours(problem: Problem) -> dict[str, float]:
    """The same figures from counted ranks."""
    result = evaluate(
        problem.similarity,
        problem.query_ids,
        problem.ids,
        query_cameras=problem.query_cameras,
        gallery_cameras=problem.cameras,
        rule="sysu",
        cmc="identity",
        max_rank=MAX_RANK,
    )
    return {name: result[name] / 100 for name in ("R1", "R10", f"R{MAX_RANK}", "mAP", "mINP")}


METHODS = {"per query": per_query, "ours": ours}


def parse(arguments: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="All SYSU-MM01 protocols: ours and a per-query evaluation.")
    parser.add_argument("--draws", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=2)
    return parser.parse_args(arguments)


def measure(problem: Problem, mode: str, shots: int, options: argparse.Namespace) -> dict[str, object]:
    """Seconds of each method for all draws of a protocol, the best of the repeats for each, and the largest difference
    of a figure.
    """
    seconds = dict.fromkeys(METHODS, 0.0)
    figures: dict[str, list[dict[str, float]]] = {name: [] for name in METHODS}
    for draw in range(options.draws):
        columns = draw_gallery(problem, mode, shots, draw)
        drawn = restrict(problem, columns)
        for name, method in METHODS.items():
            best = float("inf")
            for _ in range(options.repeats):
                started = time.perf_counter()
                found = method(drawn)
                best = min(best, time.perf_counter() - started)
            figures[name].append(found)
            seconds[name] += best
    error = max(abs(one[name] - other[name]) for one, other in zip(*figures.values(), strict=True) for name in one)
    mean = {name: 100 * float(np.mean([found[name] for found in figures["ours"]])) for name in ("R1", "mAP", "mINP")}
    return {
        "mode": mode,
        "shots": shots,
        "gallery": len(columns),
        **mean,
        "per query s": seconds["per query"],
        "ours s": seconds["ours"],
        "ratio": seconds["per query"] / seconds["ours"],
        "difference": error,
    }


def main(arguments: list[str]) -> int:
    """Print the table; return 1 when a target is missed."""
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    problem = make_problem()
    load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    print(
        f"{len(problem.query_ids)} queries, {options.draws} draws of each protocol, {options.threads} threads{load}; "
        f"torch {torch.__version__}, numpy {np.__version__}"
    )
    rows = [measure(problem, mode, shots, options) for mode in MODES for shots in SHOTS]
    total = {name: sum(float(str(row[name])) for row in rows) for name in ("per query s", "ours s")}
    ratio, error = total["per query s"] / total["ours s"], max(float(str(row["difference"])) for row in rows)
    print(format_table([{**row, "difference": f"{row['difference']:.1e}"} for row in rows]))
    print(
        f"all protocols: {total['per query s']:.1f} s per query, {total['ours s']:.1f} s ours, {ratio:.1f} times as "
        f"fast; largest difference {error:.1e}"
    )
    failures = [f"wanted {TARGET:.0f} times as fast"] if ratio < TARGET else []
    failures += [f"figures differ by more than {EXACT}"] if not error <= EXACT else []
    print("; ".join(failures) or "all targets reached")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
