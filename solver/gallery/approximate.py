"""Optional: faiss's IVF-PQ names candidates of an index too large to be read for every query. Nothing that it computes
is shown: candidates are scored exactly from what is stored, and sorted by our rule.

    approximate/ivfpq.faiss      lists of coarse centres, and a code of a few bytes for each image, under its id
    approximate/ivfpq.json       what it was made of, and how many of the best it finds, by nprobe

Shapes: Q queries, N rows of the index, D embed_dim, k candidates of a query.

faiss is imported here and nowhere else: its wheel brings an OpenMP and a BLAS of its own beside torch's, so that torch
comes first and faiss gets torch's number of threads. Its files are read whole: mapped ones have crashed. It pads with
-1 what it does not find, and gives equal scores in descending order of ids; neither leaves this module.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from solver.gallery.index import GalleryIndex, Integers
from solver.gallery.writing import COPIED_ROWS
from utils.errors import UserError
from utils.files import atomic_path, read_json, sha256_of, write_json
from utils.foreign import foreign_file
from utils.retrieval.exact import FeatureRows, best_rows, exact_scores
from utils.retrieval.ranking import unit_length

logger = logging.getLogger(__name__)

FOLDER = "approximate"
CODES_FILE, FACTS_FILE = "ivfpq.faiss", "ivfpq.json"
BITS = 8
TRAINING_PER_LIST = 64
"""Rows that a coarse centre is trained on; faiss asks for 39 at least."""
LEAST_ROWS = 1 << BITS
"""A centre of each of the 256 codes of a part needs a row."""
SAMPLED_QUERIES = 100
RECALL_AT = 10
CANDIDATES_PER_RESULT = 20
LEAST_CANDIDATES = 200
MEASURED_NPROBES = (1, 8, 64)
NOISE = 0.5
"""Length of the noise that is added to a row of length 1 for a query like it: a cosine of about 0.9."""
OTHERWISE = (
    "codes are for features that are compared by the cosine of all their columns, and this model compares otherwise; "
    "search exactly"
)
AGAIN = "make it again with python -m solver.gallery approximate"


def load_faiss() -> Any:
    """Return faiss with torch's number of threads. Raises UserError when it is not installed."""
    try:
        import faiss
    except ImportError as error:
        raise UserError(
            "an approximate search takes faiss, which is not installed; pip install -r requirements-search.txt, or "
            "search without --nprobe"
        ) from error
    faiss.omp_set_num_threads(torch.get_num_threads())
    return faiss


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """How well candidates at one nprobe are those that the exact search finds."""

    nprobe: int
    recall: float
    """Share of the exact search's best 10 that are found, over queries that resemble a row each."""
    speedup: float
    """Time of the exact search of one query over that of candidates and their exact scores."""


@dataclass(frozen=True, kw_only=True)
class Candidates:
    """Codes of an index, loaded."""

    codes: Any
    """A faiss index."""
    measured: tuple[Measured, ...]

    def rows(self, queries: Tensor, index: GalleryIndex, top_k: int, nprobe: int) -> list[Integers]:
        """Return, for each of the queries (Q, D) of length 1, the rows (k,) of its candidates, ascending; removed ones
        are left out.
        """
        faiss = load_faiss()
        wanted = max(CANDIDATES_PER_RESULT * top_k, LEAST_CANDIDATES)
        parameters = faiss.SearchParametersIVF(nprobe=min(nprobe, self.codes.nlist))
        _, ids = self.codes.search(queries.float().cpu().numpy(), min(wanted, self.codes.ntotal), params=parameters)
        known = np.concatenate([np.zeros(0, dtype=np.int64), *(shard.ids for shard in index.shards)])
        found = []
        for line in ids:
            line = np.unique(line[line >= 0])
            place = np.minimum(np.searchsorted(known, line), max(len(known) - 1, 0))
            rows = place[known[place] == line] if len(known) else place[:0]
            found.append(rows[~np.isin(known[rows], index.removed)])
        return found


def make(index: GalleryIndex, lists: int, code_bytes: int) -> list[Measured]:
    """Make codes for the images of an index, and measure them against the exact search. lists: coarse centres, 0 = four
    times the root of the number of images.

    Raises UserError for an index that is too small, bytes that the dimension is no multiple of, and features that are
    not compared by the cosine of all their columns: an index keeps only those at length 1.
    """
    faiss = load_faiss()
    rows, width = index.features(), index.state.dimension
    if rows.spread is None:
        raise UserError(f"{index.folder}: {OTHERWISE}")
    if index.count < LEAST_ROWS:
        raise UserError(f"{index.folder} has {index.count} images, codes take at least {LEAST_ROWS}; search exactly")
    if width % code_bytes:
        raise UserError(f"--code-bytes {code_bytes}: must divide the dimension of the features, {width}")
    lists = min(lists or 4 * math.isqrt(index.count), max(index.count // TRAINING_PER_LIST, 1))
    quantizer = faiss.IndexFlatIP(width)
    codes = faiss.IndexIVFPQ(quantizer, width, lists, code_bytes, BITS, faiss.METRIC_INNER_PRODUCT)
    generator = np.random.default_rng(0)
    alive = np.concatenate([np.zeros(0, dtype=np.int64), *_alive(rows)])
    sample = np.sort(generator.choice(alive, min(len(alive), max(TRAINING_PER_LIST * lists, 40 * LEAST_ROWS)), False))
    codes.train(_unit(rows.gather(sample)))
    for start in range(0, len(alive), COPIED_ROWS):
        chosen = alive[start : start + COPIED_ROWS]
        # With ids of our own: faiss's count from 0 in every part.
        codes.add_with_ids(_unit(rows.gather(chosen)), index.ids(chosen))
    measured = _measured(Candidates(codes=codes, measured=()), index, rows.gather(sample), generator)
    folder = index.folder / FOLDER
    with atomic_path(folder / CODES_FILE) as temporary:
        faiss.write_index(codes, str(temporary))
    facts = {
        "next_id": index.state.next_id,
        "images": index.count,
        "lists": lists,
        "code_bytes": code_bytes,
        "sha256": sha256_of(folder / CODES_FILE),
        "recall_at": RECALL_AT,
        "measured": [[one.nprobe, one.recall, one.speedup] for one in measured],
    }
    write_json(folder / FACTS_FILE, facts)
    return measured


def _alive(rows: FeatureRows) -> list[Integers]:
    masks = rows.kept or (None,) * len(rows.parts)
    return [
        np.arange(len(part)) + start if mask is None else np.flatnonzero(mask) + start
        for start, part, mask in zip(rows.starts.tolist(), rows.parts, masks)
    ]


def _unit(features: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(unit_length(torch.from_numpy(features)).numpy())


def _measured(candidates: Candidates, index: GalleryIndex, rows: np.ndarray, generator: Any) -> list[Measured]:
    """Return the recall at each nprobe, for queries near rows (n, D)."""
    near = _unit(rows[generator.choice(len(rows), min(SAMPLED_QUERIES, len(rows)), replace=False)])
    noise = generator.standard_normal(near.shape).astype(np.float32)
    queries = torch.from_numpy(_unit(near + NOISE * noise / np.linalg.norm(noise, axis=1, keepdims=True)))
    start = time.perf_counter()
    for query in queries[:RECALL_AT]:
        best_rows(query[None], index.features(), RECALL_AT)
    exact_seconds = (time.perf_counter() - start) / len(queries[:RECALL_AT])
    expected = best_rows(queries, index.features(), RECALL_AT).rows
    found = []
    for nprobe in MEASURED_NPROBES:
        hits, start = 0, time.perf_counter()
        for query, wanted in zip(queries, expected, strict=True):
            (chosen,) = candidates.rows(query[None], index, RECALL_AT, nprobe)
            rows_found, _ = best_of(query, index.features(), chosen, RECALL_AT)
            hits += len(np.intersect1d(rows_found, wanted))
        seconds = (time.perf_counter() - start) / len(queries)
        found.append(Measured(nprobe=nprobe, recall=hits / expected.size, speedup=exact_seconds / seconds))
    return found


def best_of(query: Tensor, rows: FeatureRows, chosen: Integers, top_k: int) -> tuple[Integers, np.ndarray]:
    """Return the best rows (K,) of candidates (k,) and their similarities, as the exact search would order them."""
    scores = exact_scores(query.expand(len(chosen), -1), rows, chosen, similarity="cosine")
    order = np.lexsort((chosen, -scores))[:top_k]
    return chosen[order], scores[order]


def load(index: GalleryIndex) -> Candidates:
    """Return the codes of an index. Raises UserError when there are none, when they are damaged, and when images were
    added since they were made.
    """
    folder = index.folder / FOLDER
    if not (folder / FACTS_FILE).is_file():
        raise UserError(f"{index.folder} has no codes for --nprobe; {AGAIN.replace('again ', '')}, or search exactly")
    facts = read_json(folder / FACTS_FILE, "the facts of an approximate search")
    faiss = load_faiss()
    with foreign_file(f"{folder} is damaged", AGAIN):
        if facts["next_id"] != index.state.next_id:
            raise UserError(f"images were added to {index.folder} since its codes for --nprobe were made; {AGAIN}")
        if sha256_of(folder / CODES_FILE) != facts["sha256"]:
            raise ValueError(f"{CODES_FILE} is not what was written")
        codes = faiss.read_index(str(folder / CODES_FILE))
        measured = tuple(_read(one) for one in facts["measured"])
    return Candidates(codes=codes, measured=measured)


def _read(values: Sequence[Any]) -> Measured:
    nprobe, recall, speedup = values
    return Measured(nprobe=int(nprobe), recall=float(recall), speedup=float(speedup))


def told(measured: Sequence[Measured]) -> str:
    """Return what was measured, in a line."""
    return "; ".join(
        f"nprobe {one.nprobe}: recall@{RECALL_AT} {one.recall:.3f}, {one.speedup:.1f} times as fast as exactly"
        for one in measured
    )
