"""The page of an evaluation: its table, and the best, the worst and some random queries with what they found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from solver.evaluation.result import TIE_RULE, EvaluationResult
from solver.reports.html_page import html_picture, html_table, write_page
from solver.reports.results import Provenance, published_notes, shown_columns, shown_rows
from solver.run_directory import REPORT_FILE
from solver.search.queries import listed_query
from solver.search.ranked import RankedImage, RankedQuery, Verdict
from utils.seeding import stream_seed

QUERIES_PER_SECTION = 10
RESULTS_PER_QUERY = 10

Entry = tuple[int, int]
"""A query: (number of its list, number in the list)."""


def write_report(
    directory: str | Path,
    result: EvaluationResult,
    provenance: Provenance,
    seed: int = 0,
    combinations: Path | None = None,
) -> Path:
    """Write report.html into `directory`, atomically; return the file. seed: of the random queries and of ties.

    combinations: the picture of the query combinations, which becomes part of the page.
    """
    path = Path(directory) / REPORT_FILE
    sections = {
        f"{heading} queries": [_ranked(result, entry) for entry in entries]
        for heading, entries in choose_queries(result, seed).items()
        if entries
    }
    facts = {
        "Split": result.name,
        "Protocol": f"{result.protocol}; {result.ranked.comparison.name}",
        "Ties": TIE_RULE,
        "Weights": f"{provenance.checkpoint} ({provenance.checkpoint_fingerprint})",
        "Checkpoint selected on": provenance.selected_on or "unknown",
        "Data": f"{provenance.dataset} ({provenance.data_fingerprint})",
        "Arithmetic": result.precision,
        "Queries shown": "by average precision, at most one of each person in a section; random and ties by seed "
        f"{seed}",
    }
    notes = *provenance.notes, *result.notes(), *published_notes(result, provenance.published)
    facts |= {f"Note {number}": note for number, note in enumerate(notes, start=1)}
    shown = shown_rows(result, provenance.published)
    columns = shown_columns(*shown)
    rows, averages = ([[row.get(name) for name in columns] for row in part] for part in shown)
    table = html_table(columns, rows, averages)
    if combinations is not None:
        table += html_picture(combinations, "mAP and rank-1 of the query combinations")
    write_page(path, f"Evaluation: {provenance.dataset} {result.name}", facts, sections, table)
    return path


def choose_queries(result: EvaluationResult, seed: int) -> dict[str, list[Entry]]:
    """Return the best, worst and random queries among those with a match, at most one of each person in each group.

    All are as measured in the plain way.
    """
    lists = [np.flatnonzero(entry.first_rank > 0) for entry in result.plain_lists]
    numbers = np.repeat(np.arange(len(lists)), [len(kept) for kept in lists])
    entries = np.concatenate(lists) if lists else np.empty(0, dtype=np.int64)
    precision = (
        np.concatenate([listed.per_query["mAP"][kept] for listed, kept in zip(result.plain_lists, lists)])
        if lists
        else np.empty(0)
    )
    persons = np.asarray(
        [result.ranked.split.query_lists[number].person_ids[entry] for number, entry in zip(numbers, entries)],
        dtype=np.int64,
    )
    shuffled = np.random.default_rng(stream_seed(seed, "report")).permutation(len(entries))
    by_precision = shuffled[np.argsort(precision[shuffled], kind="stable")]
    orders = {"Best": by_precision[::-1], "Worst": by_precision, "Random": shuffled}
    return {
        heading: [(int(numbers[place]), int(entries[place])) for place in _one_per_person(order, persons)]
        for heading, order in orders.items()
    }


def _one_per_person(order: NDArray[np.int64], persons: NDArray[np.int64]) -> Sequence[int]:
    """Return the first places of `order` that belong to different persons."""
    _, first = np.unique(persons[order], return_index=True)
    return order[np.sort(first)[:QUERIES_PER_SECTION]].tolist()


def _ranked(result: EvaluationResult, entry: Entry) -> RankedQuery:
    number, index = entry
    listed, queries, split = result.plain_lists[number], result.ranked.split.query_lists[number], result.ranked.split
    person = queries.person_ids[index]
    counted = result.ranked.gallery[result.ranked.candidates(listed.task, index)]
    matches = sum(split.gallery_ids[place] == person for place in counted)
    # The rank of a CMC by identity counts persons; the list that is shown counts images.
    by_image = queries.cmc == "image"
    depth = max(RESULTS_PER_QUERY, int(listed.first_rank[index])) if by_image else len(counted)
    places, similarities = result.ranked.search(listed.task, index, depth)
    hits = [split.gallery_ids[place] == person for place in places]
    first_match = int(listed.first_rank[index]) if by_image else hits.index(True) + 1
    images = [
        RankedImage(
            rank=rank,
            index=int(place),
            path=split.gallery[place].value,
            similarity=float(similarity),
            person_id=split.person(split.gallery_ids[place]),
            verdict=Verdict.MATCH if hit else Verdict.OTHER,
        )
        for rank, (place, similarity, hit) in enumerate(zip(places, similarities, hits), start=1)
        if rank <= RESULTS_PER_QUERY or rank == first_match
    ]
    return RankedQuery(
        query=replace(
            listed_query(split, queries, index, told=result.ranked.instructed), name=f"{listed.task} entry {index}"
        ),
        results=tuple(images[:RESULTS_PER_QUERY]),
        missed=images[-1] if first_match > RESULTS_PER_QUERY else None,
        matches=matches,
        first_match=first_match,
        note=f"average precision {listed.per_query['mAP'][index]:.1f} %",
    )
