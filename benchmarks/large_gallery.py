"""Memory and time of an evaluation of MSMT17's size, and its figures against a brute force on a sample of queries.

    python benchmarks/large_gallery.py [--dimensions 768 --threads 2 --sample 40]

11,659 queries x 82,161 gallery images of 3,060 persons in 15 cameras, synthetic float32 features, Market-1501's rule.
The whole similarity would take 3.6 GiB. Memory is the growth of the resident set's high-water mark (Linux), so it does
not contain the features themselves but everything else, the normalised copy of them included. The brute force sorts
float64 cosines of one query at a time; float32 may swap neighbours that are equal to seven digits, hence the tolerance
of 0.01 percent points. Exit code 1 when more than 1 GiB is added or a figure of the sample differs.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from utils.threads import configure_threads

configure_threads()

import numpy as np  # noqa: E402
import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from benchmarks.ranking import high_water_mark  # noqa: E402
from utils.retrieval.exclusion import Labels  # noqa: E402
from utils.retrieval.metrics import evaluate_features  # noqa: E402
from utils.retrieval.options import MetricOptions  # noqa: E402
from utils.retrieval.result import RetrievalResult  # noqa: E402

QUERIES, GALLERY, PERSONS, CAMERAS = 11_659, 82_161, 3_060, 15
SIGNAL = 0.4
LIMIT_BYTES = 1 << 30
TOLERANCE = 0.01
PART = 4096


def make_side(count: int, centres: Tensor, generator: torch.Generator) -> tuple[Tensor, np.ndarray, np.ndarray]:
    """Features (count, D), persons and cameras; every person comes about equally often."""
    people = torch.randperm(count, generator=generator) % PERSONS
    features = torch.empty(count, centres.shape[1])
    for start in range(0, count, PART):
        part = people[start : start + PART]
        features[start : start + PART] = SIGNAL * centres[part] + torch.randn(
            len(part), centres.shape[1], generator=generator
        )
    return features, people.numpy(), torch.randint(1, CAMERAS + 1, (count,), generator=generator).numpy()


def brute_force(
    query: Tensor, gallery: Tensor, persons: tuple[int, np.ndarray], cameras: tuple[int, np.ndarray]
) -> tuple[float, float, int]:
    """AP and INP in percent and the first rank of one query (D,), by sorting."""
    scores = torch.cat(
        [part.double() @ query.double() / part.double().norm(dim=1) for part in gallery.split(PART)]
    ).numpy()
    order = np.argsort(-scores, kind="stable")
    order = order[~((persons[1][order] == persons[0]) & (cameras[1][order] == cameras[0]))]
    ranks = np.flatnonzero(persons[1][order] == persons[0]) + 1
    return 100 * float(np.mean(np.arange(1, len(ranks) + 1) / ranks)), 100 * len(ranks) / int(ranks[-1]), int(ranks[0])


def differences(
    result: RetrievalResult, sides: list[tuple[Tensor, np.ndarray, np.ndarray]], sample: int
) -> dict[str, float]:
    """Largest difference of AP, INP (percent points) and first rank (relative) over a sample of queries."""
    (query, ids, cameras), (gallery, gallery_ids, gallery_cameras) = sides
    largest = {"AP": 0.0, "INP": 0.0, "first rank": 0.0}
    for row in np.random.default_rng(0).choice(len(query), sample, replace=False):
        ap, inp, first = brute_force(
            query[row], gallery, (int(ids[row]), gallery_ids), (int(cameras[row]), gallery_cameras)
        )
        found = {
            "AP": result.per_query["mAP"][row] - ap,
            "INP": result.per_query["mINP"][row] - inp,
            "first rank": 100 * (result.first_rank[row] - first) / first,
        }
        largest = {name: max(value, abs(float(found[name]))) for name, value in largest.items()}
    return largest


def main(arguments: list[str]) -> int:
    """Print what was measured; return 1 when a target is missed."""
    parser = argparse.ArgumentParser(description="Evaluation of MSMT17's size in bounded memory.")
    parser.add_argument("--dimensions", type=int, default=768)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--sample", type=int, default=40)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(PERSONS, options.dimensions, generator=generator)
    sides = [make_side(count, centres, generator) for count in (QUERIES, GALLERY)]
    labels = [Labels(ids=ids, cameras=cameras) for _, ids, cameras in sides]
    feature_bytes = sum(features.numel() * features.element_size() for features, _, _ in sides)

    before, started = high_water_mark(reset=True), time.perf_counter()
    result = evaluate_features(sides[0][0], sides[1][0], *labels, options=MetricOptions(rule="same_camera"))
    seconds, after = time.perf_counter() - started, high_water_mark(reset=False)
    added = None if before is None or after is None else after - before
    load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    print(
        f"{QUERIES:,} x {GALLERY:,} features of {options.dimensions} dimensions ({feature_bytes / (1 << 20):.0f} MiB), "
        f"{options.threads} threads{load}; torch {torch.__version__}"
    )
    print(
        f"mAP {result.mAP:.2f}, R1 {result.R1:.2f}, mINP {result.mINP:.2f}: {seconds:.1f} s, "
        f"{'memory not known' if added is None else f'{added / (1 << 20):.0f} MiB'} beside the features (limit "
        f"{LIMIT_BYTES >> 20} MiB)"
    )
    largest = differences(result, sides, options.sample)
    print(
        f"{options.sample} queries by brute force, largest difference in percent points (first rank: percent): "
        + ", ".join(f"{name} {value:.1e}" for name, value in largest.items())
    )
    failures = ["more memory than the limit"] if added is not None and added > LIMIT_BYTES else []
    failures += [f"{name} differs" for name, value in largest.items() if not value <= TOLERANCE]
    print("; ".join(failures) or "all targets reached")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
