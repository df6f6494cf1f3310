"""Rank-1 of evaluated runs against chance; exit code 1 when a row is below `--least` times chance.

    python -m benchmarks.chance runs/quickstart-vi-sysu runs/quickstart-vi-regdb/trial-01 runs/quickstart-vi-llcm
    python -m benchmarks.chance runs/quickstart-irm --least 8 --lists "(?!.* target).*"

A row is a protocol, mean over its lists (its draws), or with `--lists` a query list whose name is of that form. Chance
of a list: the mean over its queries of (valid positives / valid gallery images), after the protocol's exclusion.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
from pathlib import Path

import numpy as np
from prettytable import PrettyTable

from configs.load import load_experiment
from datasets.build import build_benchmark
from datasets.structures import EvalSplit, QueryList
from utils.errors import UserError, run_script
from utils.retrieval.exclusion import Labels, comparable_labels, excluded, get_rule


def chance(split: EvalSplit, queries: QueryList) -> float:
    """Return the chance of one list in percent."""
    searched = np.arange(len(split.gallery)) if queries.gallery is None else np.asarray(queries.gallery)
    rule = get_rule(queries.exclusion_rule)
    gallery_cameras, gallery_clothes = (
        np.asarray(values)[searched] if values else None
        for values in (split.gallery_camera_ids, split.gallery_clothes_ids)
    )
    query, gallery = comparable_labels(
        Labels(ids=queries.person_ids, cameras=queries.camera_ids or None, clothes=queries.clothes_ids or None),
        Labels(ids=np.asarray(split.gallery_ids)[searched], cameras=gallery_cameras, clothes=gallery_clothes),
        (len(queries.entries), len(searched)),
        rule.needs,
    )
    dropped = excluded(query, gallery, rule).numpy()
    positive = (query.persons[:, None] == gallery.persons).numpy() & ~dropped
    matched = positive.any(axis=1)
    return 100 * float((positive.sum(axis=1) / (~dropped).sum(axis=1))[matched].mean())


def rows_of(run: Path, form: str) -> list[tuple[str, int, float, float]]:
    """Return (protocol, persons asked for, rank-1, chance) of each protocol of an evaluated run, means over its
    lists; or with `form`, a regular expression, the same of each list whose name it is. Raises UserError for results of
    another evaluation, for a run without any, and for a form that no list has.
    """
    config = load_experiment(run / "config.yaml")
    split = build_benchmark(config.data, select="test", need_train=False, instruction=config.instruction).splits["test"]
    results = run / "results.json"
    if not results.is_file():
        raise UserError(f"no {results}; evaluate the run first: python test.py --run {run}")
    measured = {row["task"]: row for row in json.loads(results.read_text(encoding="utf-8"))["rows"]}
    absent = [queries.name for queries in split.query_lists if queries.name not in measured]
    if absent:
        raise UserError(f"{run}/results.json has no row '{absent[0]}'; evaluate it again: python test.py --run {run}")
    lists: dict[str, list[QueryList]] = {}
    for queries in split.query_lists:
        if form and not re.fullmatch(form, queries.name):
            continue
        lists.setdefault(queries.name if form else queries.protocol, []).append(queries)
    if not lists:
        names = ", ".join(queries.name for queries in split.query_lists)
        raise UserError(f"--lists {form}: no list of {run} has such a name; there are {names}")
    return [
        (
            protocol,
            len({person for queries in members for person in queries.person_ids}),
            statistics.fmean(measured[queries.name]["R1"] for queries in members),
            statistics.fmean(chance(split, queries) for queries in members),
        )
        for protocol, members in lists.items()
    ]


def main() -> int:
    """Print the table of all runs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="evaluated run directories")
    parser.add_argument("--least", type=float, default=10.0, metavar="RATIO", help="wanted of every row (10)")
    parser.add_argument("--lists", default="", metavar="REGEX", help="a row for each query list of such a name")
    parsed = parser.parse_args()
    try:
        re.compile(parsed.lists)
    except re.error as error:
        raise UserError(f"--lists {parsed.lists} is no regular expression: {error}; correct it") from None
    table = PrettyTable(["run", "protocol", "persons", "rank-1", "chance", "ratio"])
    table.align["run"] = table.align["protocol"] = "l"
    lowest = float("inf")
    for run in parsed.runs:
        for protocol, persons, rank1, level in rows_of(run, parsed.lists):
            lowest = min(lowest, rank1 / level)
            table.add_row([run.name, protocol, persons, f"{rank1:.2f} %", f"{level:.2f} %", f"{rank1 / level:.1f} x"])
    print(table)
    print(f"lowest ratio {lowest:.1f} x, wanted at least {parsed.least:g} x")
    return 0 if lowest >= parsed.least else 1


if __name__ == "__main__":
    run_script(main)
