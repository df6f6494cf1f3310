"""The result of an evaluation: per query, per query list, and averaged by group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from datasets.structures import EvalSplit, QueryList, Source
from solver.evaluation.list_result import ListResult, pooled, stamped
from solver.evaluation.plan import SplitPlan
from solver.evaluation.ranked_split import RankedSplit
from utils.errors import shortened
from utils.retrieval.exclusion import get_rule
from utils.retrieval.metrics import METRICS
from utils.retrieval.options import ApForm

TOTAL = "ALL_AVER"

TIE_RULE = "equal similarities are ordered by gallery index"
EXAMPLES = 5
"""Queries without a valid match that a note names."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SkippedSource:
    """A source that could not be read and was left out."""

    source: Source
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class AverageRow:
    """Plain mean over the query lists of one size or of one group, or over those means (ALL_AVER)."""

    task: str
    """Name of the row, with its stamp."""
    metrics: Mapping[str, float]
    """By name, NaN when no list entered."""
    lists: int
    """How many lists entered."""
    expected: int
    """How many the benchmark defines."""
    deviation: Mapping[str, float] = field(default_factory=dict)
    """Standard deviation over the lists of a group (n - 1 in the denominator), empty where there is none."""
    pooled: bool = False
    """The metrics are over all queries of the group."""
    protocol: str = ""
    """Protocols of the lists."""
    group: str = ""
    """The group, empty for sizes and ALL_AVER."""
    stamp: str = ""
    """What was done beside the plain way."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationResult:
    """Everything measured on one split."""

    name: str
    """The split's name."""
    protocol: str
    """How it is measured, in words."""
    lists: tuple[ListResult, ...]
    """All lists of the split in the plain way, then for each further stamp those that it is for."""
    missing_lists: Mapping[str, str]
    """Lists that the benchmark defines and the data lack."""
    ap_form: ApForm
    """Form of average precision."""
    precision: str
    """Arithmetic: fp32, bf16 or fp16."""
    counts: Mapping[str, object]
    """Sources, sets and entries, plain values for the result file."""
    cache: Mapping[str, object]
    """Token cache, plain values for the result file."""
    skipped: tuple[SkippedSource, ...]
    """Unreadable sources."""
    seconds: Mapping[str, float]
    """Wall time by part."""
    ranked: RankedSplit
    """For showing single queries."""
    relevance: Mapping[str, object] = field(default_factory=dict)
    """What mAP@tau compares annotations by, empty without thresholds."""
    stamps: Mapping[str, str] = field(default_factory=dict)
    """What each stamp means."""

    @property
    def plain_lists(self) -> tuple[ListResult, ...]:
        """The lists measured in the plain way, in the split's order."""
        return tuple(entry for entry in self.lists if not entry.stamp)

    @property
    def mixed(self) -> bool:
        """Whether there are queries of several modalities."""
        return any(len(listed.combination) > 1 for listed in self.lists)

    @property
    def folded(self) -> bool:
        """Whether there are lists that repeat one measurement, so that readers see their mean."""
        return any(listed.draws for listed in self.lists)

    def averages(self) -> tuple[AverageRow, ...]:
        """Return the mean of each group of lists, then ALL_AVER; the same again for each stamp.

        ALL_AVER is the mean of the group means and of the lists without a group. A list without any scored query enters
        no mean; a group without scored lists has NaN and enters no ALL_AVER.
        """
        rows: list[AverageRow] = []
        for stamp in dict.fromkeys(listed.stamp for listed in self.lists) or [""]:
            rows += self._groups([listed for listed in self.lists if listed.stamp == stamp], stamp)
        return tuple(rows)

    def _groups(self, lists: Sequence[ListResult], stamp: str) -> list[AverageRow]:
        present = {*(listed.group for listed in lists), *self.missing_lists.values()}
        order = [group for group in self.ranked.split.groups if group in present]
        groups = [
            self._group(name, [listed for listed in lists if listed.group == name], stamp)
            for name in dict.fromkeys([*order, *(listed.group for listed in lists if listed.group)])
        ]
        single = [listed.all_metrics() for listed in lists if not listed.group and listed.queries]
        total = AverageRow(
            task=stamped(TOTAL, stamp),
            metrics=_mean([*(group.metrics for group in groups if group.lists), *single]),
            lists=sum(group.lists for group in groups) + len(single),
            expected=len(lists) + len(self.missing_lists),
            stamp=stamp,
        )
        return [*groups, total]

    def _group(self, name: str, lists: Sequence[ListResult], stamp: str) -> AverageRow:
        scored = [entry for entry in lists if entry.queries]
        is_pooled = name in self.ranked.split.pooled_groups
        rows = [entry.all_metrics() for entry in scored]
        # A group of one list that bears its name would hide that list where rows are told apart by their names.
        task = f"{name} mean" if stamped(name, stamp) in {entry.task for entry in self.lists} else name
        return AverageRow(
            task=stamped(task, stamp),
            metrics=pooled(scored).all_metrics() if is_pooled and scored else _mean(rows),
            lists=len(scored),
            expected=len(lists) + list(self.missing_lists.values()).count(name),
            deviation={} if is_pooled or not all(listed.draws for listed in lists) else _deviation(rows),
            pooled=is_pooled,
            protocol="; ".join(dict.fromkeys(entry.protocol for entry in lists)),
            group=name,
            stamp=stamp,
        )

    def average(self, task: str = TOTAL, metric: str = "mAP") -> float:
        """Return one metric of one average row, in percent; NaN when there is no such row."""
        return next((row.metrics[metric] for row in self.averages() if row.task == task), float("nan"))

    def notes(self) -> tuple[str, ...]:
        """Return what a reader of the table must know: missing lists, unmatched queries, skipped sources, absent rules,
        stamps.
        """
        found: list[str] = []
        if self.missing_lists:
            found.append(
                f"{len(self.missing_lists)} query lists are missing ({', '.join(self.missing_lists)}); the averages "
                "are over the others"
            )
        found += [*unmatched_notes(self), *rule_notes(self.ranked.split), *copy_notes(self.ranked.plan)]
        found += person_notes(self.ranked.plan)
        found += threshold_notes(self)
        found += [f"rows [{stamp}]: {meaning}" for stamp, meaning in self.stamps.items()]
        if self.skipped:
            left_out = sum(len(entry.unreadable) for entry in self.plain_lists)
            found.append(
                f"{len(self.skipped)} unreadable sources were skipped; {left_out} queries were left out with them"
            )
        return tuple(found)


def person_notes(plan: SplitPlan) -> list[str]:
    """Return one line about the lists that are searched in images of one person, where every ranking is right."""
    names = []
    for listed in plan.lists:
        searched = plan.gallery_ids if listed.subset is None else plan.gallery_ids[listed.subset]
        if len(np.unique(searched)) == 1:
            names.append(listed.name)
    if not names:
        return []
    return [
        f"all images that are searched are of one person, so that every order is right and the figures say nothing: "
        f"{shortened(names, EXAMPLES)}"
    ]


def copy_notes(plan: SplitPlan) -> list[str]:
    """Return one line about gallery images that are byte copies of queries; nothing without any."""
    if not plan.copies:
        return []
    query, image = plan.copies[0]
    images = {image for _, image in plan.copies}
    return [
        f"{len(images)} gallery images are byte copies of queries, for instance {image} of {query}: a query does not "
        "find its own image, so they do not count for it"
    ]


def unmatched_notes(result: EvaluationResult) -> list[str]:
    """Return one line for each group of lists, or list, with queries that have no valid match: how many, why, and
    examples.
    """
    grouped: dict[str, list[tuple[ListResult, QueryList]]] = {}
    for entry, queries in zip(result.plain_lists, result.ranked.split.query_lists):
        grouped.setdefault(entry.group or entry.task, []).append((entry, queries))
    notes = []
    for name, members in grouped.items():
        unmatched = [(entry, queries, index) for entry, queries in members for index in entry.without_match]
        if not unmatched:
            continue
        absent = sum(bool(entry.absent is not None and entry.absent[index]) for entry, _, index in unmatched)
        reasons = [f"{absent} ask for a person who is not searched"] if absent else []
        if len(unmatched) > absent:
            rules = dict.fromkeys(queries.exclusion_rule for _, queries in members if queries.exclusion_rule != "none")
            losing = (
                f"lose all matches to the rule {', '.join(rules)}" if rules else "are the only image of their person"
            )
            reasons.append(f"{len(unmatched) - absent} {losing}")
        examples = dict.fromkeys(_query_name(queries, int(index)) for _, queries, index in unmatched)
        total = sum(len(entry.first_rank) for entry, _ in members)
        notes.append(
            f"{name}: {len(unmatched)} of {total} queries{f' in {len(members)} lists' if len(members) > 1 else ''} "
            f"have no valid match and are left out of every mean: {', '.join(reasons)}; for instance "
            f"{', '.join(list(examples)[:EXAMPLES])}"
        )
    return notes


def _query_name(queries: QueryList, index: int) -> str:
    source = queries.entries[index][0]
    return source.record or source.value


def rule_notes(split: EvalSplit) -> list[str]:
    """Return one line about the lists that no camera rule applies to.

    Lists of a protocol that mixes modalities are not named: its own sentence says what is excluded.
    """
    mixing = {queries.protocol for queries in split.query_lists if len(queries.combination) > 1}
    free = [
        queries
        for queries in split.query_lists
        if queries.protocol not in mixing and "cameras" not in get_rule(queries.exclusion_rule).needs
    ]
    unknown = [
        queries
        for queries in split.query_lists
        if "cameras" in get_rule(queries.exclusion_rule).needs and _without_cameras(split, queries)
    ]
    notes = []
    for chosen, reason in (
        (free, "no camera rule applies"),
        (unknown, "the camera rule drops nothing, because cameras are unknown"),
    ):
        # A group is named by itself only when the line is true of all its lists.
        whole = {queries.group for queries in chosen} - {
            queries.group for queries in split.query_lists if queries not in chosen
        }
        names = dict.fromkeys(
            queries.group if queries.group and queries.group in whole else queries.name for queries in chosen
        )
        if names:
            notes.append(f"{reason}: {', '.join(names)}")
    return notes


def _without_cameras(split: EvalSplit, queries: QueryList) -> bool:
    searched = range(len(split.gallery)) if queries.gallery is None else queries.gallery
    return all(camera < 0 for camera in queries.camera_ids) or all(
        split.gallery_camera_ids[item] < 0 for item in searched
    )


def threshold_notes(result: EvaluationResult) -> list[str]:
    """Return how mAP@tau was measured, the lists without it, and matches that lack an annotation; nothing without
    thresholds.
    """
    if not result.relevance:
        return []
    measured = [entry for entry in result.plain_lists if entry.thresholds]
    bare = [entry.task for entry in result.plain_lists if not entry.thresholds]
    notes = []
    if measured:
        notes.append(
            f"mAP@tau by annotations, encoded by {result.relevance['encoder']} (checksum "
            f"{str(result.relevance['checksum'])[:16]}), a query without positive: {result.relevance['no_positive']}; "
            "kept@tau is the share of matches of the person that tau keeps, 1.00 = tau says nothing"
        )
        silent = [tau for tau in measured[0].thresholds if all(part.thresholds[tau].share == 1 for part in measured)]
        if silent:
            notes.append(
                f"tau {', '.join(f'{tau:g}' for tau in silent)} keeps every match in every row (kept share 1.000), so "
                "that mAP@tau is mAP; the columns are left out of the table"
            )
    if bare:
        notes.append(f"mAP@tau is not measured where queries have no annotations: {', '.join(bare)}")
    first = [next(iter(entry.thresholds.values())) for entry in measured]
    if any(part.unannotated for part in first):
        notes.append(
            f"{sum(part.unannotated for part in first)} of {sum(part.pairs for part in first)} matches have no "
            "annotation of their query's kind; no tau keeps them"
        )
    return notes


def _mean(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: float(np.mean([row[name] for row in rows])) if rows else float("nan") for name in _common(rows)}


def _deviation(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: float(np.std([row[name] for row in rows], ddof=1)) for name in _common(rows)} if len(rows) > 1 else {}


def _common(rows: Sequence[Mapping[str, float]]) -> list[str]:
    """The columns that every row has."""
    return [name for name in (rows[0] if rows else METRICS) if all(name in row for row in rows)]
