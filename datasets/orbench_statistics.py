"""Counts of what was read, beside the published ones where the data claim to be the original."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from prettytable import PrettyTable

from configs.vocabulary import Modality
from datasets.structures import EvalSplit, Record, distinct_sources

RENDERED_MARKER = "manifest.json"
"""The rendered benchmark writes its manifest beside the lists; the original has no such file."""

PUBLISHED_ORBENCH = {
    "training identities": 600,
    "training RGB": 27063,
    "training NIR": 15646,
    "training CP": 10800,
    "training SK": 10800,
    "test identities": 400,
    "gallery": 18050,
    "NIR queries": 10425,
    "CP queries": 7200,
    "SK queries": 7200,
    "TEXT queries": 18050,
}
"""Identities from the licence agreement; the rest follows from published totals and from the percentages of the
authors' result table, whose denominators they are."""


def count_orbench(train: tuple[Record, ...], splits: Mapping[str, EvalSplit]) -> dict[str, dict[str, int]]:
    """Return per split: identities and distinct items by modality, and query-list entries."""
    table: dict[str, dict[str, int]] = {}
    if train:
        partners = {id(record.partners): record.partners for record in train}.values()
        table["train"] = {
            "identities": len({record.person_id for record in train}),
            "RGB": len(train),
            **{m.name: sum(len(group[m]) for group in partners) for m in (Modality.NIR, Modality.CP, Modality.SK)},
            "TEXT": len(train),
            "query lists": 0,
            "query entries": 0,
        }
    for name, split in splits.items():
        distinct = distinct_sources(split)
        table[name] = {
            "identities": len(set(split.gallery_ids)),
            **{m.name: len(distinct.get(m, ())) for m in Modality},
            "query lists": len(split.query_lists),
            "query entries": sum(len(queries.entries) for queries in split.query_lists),
        }
    return table


def orbench_notes(root: Path, train: tuple[Record, ...], splits: Mapping[str, EvalSplit]) -> list[str]:
    """Return the statistics table and, for the original data, the comparison with the published counts."""
    counts = count_orbench(train, splits)
    columns = ["identities", *(m.name for m in Modality), "query lists", "query entries"]
    table = PrettyTable(["split", *columns])
    for name, row in counts.items():
        table.add_row([name, *(row[column] for column in columns)])
    notes = [f"ORBench at {root}\n{table}"]
    if not (root / RENDERED_MARKER).exists():
        notes.append(_against_published(counts, splits))
    return notes


def _against_published(counts: Mapping[str, Mapping[str, int]], splits: Mapping[str, EvalSplit]) -> str:
    found: dict[str, int] = {}
    if "train" in counts:
        # Validation identities are cut from the published training set.
        parts = [counts[name] for name in ("train", "val") if name in counts]
        found = {
            f"training {key}": sum(part[key] for part in parts) for key in ("identities", "RGB", "NIR", "CP", "SK")
        }
    if "test" in splits:
        lists = {queries.name: len(queries.entries) for queries in splits["test"].query_lists}
        found |= {
            "test identities": counts["test"]["identities"],
            "gallery": len(splits["test"].gallery),
            **{f"{name} queries": lists[name] for name in ("NIR", "CP", "SK", "TEXT") if name in lists},
        }
    different = [
        f"{key} {value} (published {PUBLISHED_ORBENCH[key]})"
        for key, value in found.items()
        if value != PUBLISHED_ORBENCH[key]
    ]
    if not different:
        return f"all {len(found)} counts equal the published ones of ORBench"
    return f"{len(different)} of {len(found)} counts differ from the published ones of ORBench: {', '.join(different)}"
