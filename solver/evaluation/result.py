"""The result of an evaluation: per query, per query list, and averaged by group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from configs.vocabulary import GROUP_NAMES, Combination, parse_combination
from datasets.modalities import MODALITIES
from datasets.structures import EvalSplit, QueryList, Source
from utils.retrieval.exclusion import LabelBlock, get_rule
from utils.retrieval.metrics import threshold_name

METRICS = ("R1", "R5", "R10", "mAP", "mINP")
"""Columns of the reference's table, in percent."""
DEPTHS = (1, 5, 10)
FURTHER_DEPTH = 20
TOTAL = "ALL_AVER"

TIE_RULE = "equal similarities are ordered by gallery index"
EXAMPLES = 5
"""Queries without a valid match that a note names."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SkippedSource:
    """A source that could not be read and was left out, with the reason."""

    source: Source
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class ThresholdResult:
    """mAP@tau of one list. values (n,) in percent, NaN where the query has no positive at tau.

    mean, queries: over the queries that the policy of eval.no_positive counts, and how many those are. kept, pairs:
    identity matches that tau keeps, and all of them; unannotated: those whose item has no annotation of the query's
    kind, which no tau keeps.
    """

    values: NDArray[np.float64]
    mean: float
    queries: int
    kept: int
    pairs: int
    unannotated: int = 0

    @property
    def share(self) -> float:
        """Share of the identity matches that tau keeps; 1 = the column says nothing. NaN without any."""
        return self.kept / self.pairs if self.pairs else float("nan")


@dataclass(frozen=True, kw_only=True, slots=True)
class ListResult:
    """One query list of n entries, measured in one way.

    first_rank (n,) int64: rank of the first match from 1 (place of the person under a CMC by identity), 0 = no valid
    match, -1 = not ranked because a source was unreadable. average_precision, inverse_penalty (n,) float64 in percent,
    NaN where first_rank < 1 (and where a cut left no positive under eval.no_positive=skip). absent (n,): the person is
    not searched at all, for entries without a match; None = unknown.
    protocol: name of the protocol, empty for ORBench. group: row of averages. stamp: what was done beside the plain way
    (`flip`, `re-ranked`, `ap_topk=500`), empty = the plain way. thresholds: by tau.
    """

    task: str
    combination: Combination
    gallery: int
    first_rank: NDArray[np.int64]
    average_precision: NDArray[np.float64]
    inverse_penalty: NDArray[np.float64]
    absent: NDArray[np.bool_] | None = None
    protocol: str = ""
    group: str = ""
    stamp: str = ""
    thresholds: Mapping[float, ThresholdResult] = field(default_factory=dict)

    @property
    def queries(self) -> int:
        """Entries with a match: those that the means are over."""
        return int((self.first_rank > 0).sum())

    @property
    def without_match(self) -> NDArray[np.int64]:
        """Indices of entries without any valid match in the gallery."""
        return np.flatnonzero(self.first_rank == 0)

    @property
    def unreadable(self) -> NDArray[np.int64]:
        """Indices of entries left out because a source could not be read."""
        return np.flatnonzero(self.first_rank < 0)

    def metrics(self) -> dict[str, float]:
        """Return the metrics in percent; NaN when no entry has a match."""
        matched = self.first_rank > 0
        if not matched.any():
            return dict.fromkeys(METRICS, float("nan"))
        shares = {f"R{depth}": self.rank_share(depth) for depth in DEPTHS}
        return shares | {
            "mAP": _mean_known(self.average_precision[matched]),
            "mINP": float(self.inverse_penalty[matched].mean()),
        }

    def rank_share(self, depth: int) -> float:
        """Return the percentage of matched entries whose first match has a rank up to `depth`; NaN without any."""
        ranks = self.first_rank[self.first_rank > 0]
        return 100.0 * float((ranks <= depth).mean()) if len(ranks) else float("nan")

    def further_metrics(self) -> dict[str, float]:
        """Return what rows of protocols have beside the table's columns: R20, and for each tau mAP@tau and the share it
        keeps.
        """
        found = {f"R{FURTHER_DEPTH}": self.rank_share(FURTHER_DEPTH)} if self.protocol else {}
        for tau, measured in self.thresholds.items():
            found |= {threshold_name(tau): measured.mean, share_name(tau): measured.share}
        return found


def _mean_known(values: NDArray[np.float64]) -> float:
    """Mean without NaN: average precisions that a cut and eval.no_positive=skip leave out."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")


def share_name(tau: float) -> str:
    """Return the column of the share of matches that a threshold keeps, for instance kept@0.25."""
    return f"kept@{tau:g}"


def pooled(lists: Sequence[ListResult]) -> ListResult:
    """Return lists of one group and stamp as one list: every query counts once, whatever list it is in."""
    return replace(
        lists[0],
        task=lists[0].group,
        gallery=max(entry.gallery for entry in lists),
        absent=None,
        first_rank=np.concatenate([entry.first_rank for entry in lists]),
        average_precision=np.concatenate([entry.average_precision for entry in lists]),
        inverse_penalty=np.concatenate([entry.inverse_penalty for entry in lists]),
        thresholds={
            tau: _pooled_threshold([entry.thresholds[tau] for entry in lists])
            for tau in lists[0].thresholds
            if all(tau in entry.thresholds for entry in lists)
        },
    )


def _pooled_threshold(parts: Sequence[ThresholdResult]) -> ThresholdResult:
    queries = sum(part.queries for part in parts)
    total = sum(part.mean * part.queries for part in parts if part.queries)
    return ThresholdResult(
        values=np.concatenate([part.values for part in parts]),
        mean=total / queries if queries else float("nan"),
        queries=queries,
        kept=sum(part.kept for part in parts),
        pairs=sum(part.pairs for part in parts),
        unannotated=sum(part.unannotated for part in parts),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class AverageRow:
    """Plain mean over the query lists of one size or of one group, or over those means (ALL_AVER).

    lists: how many lists entered; expected: how many the benchmark defines. deviation: standard deviation over the
    lists of a group (n - 1 in the denominator), empty where there is none. pooled: the mean is over all queries of the
    group.
    """

    task: str
    metrics: Mapping[str, float]
    lists: int
    expected: int
    deviation: Mapping[str, float] = field(default_factory=dict)
    pooled: bool = False
    protocol: str = ""
    group: str = ""
    stamp: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class RankedSplit:
    """Features behind a result, for showing single queries. gallery: indices into the split's gallery that were ranked.

    rows: by list name, row of each entry in the features.
    """

    split: EvalSplit
    features: Tensor
    gallery_features: Tensor
    gallery: NDArray[np.int64]
    rows: Mapping[str, NDArray[np.int64]]

    def candidates(self, task: str, entry: int) -> NDArray[np.int64]:
        """Return the places in `gallery` that count for one entry of a list: in its part of the gallery, not
        excluded.
        """
        queries = next(queries for queries in self.split.query_lists if queries.name == task)
        counts = np.ones(len(self.gallery), dtype=bool)
        if queries.gallery is not None:
            counts &= np.isin(self.gallery, queries.gallery)
        if len(queries.combination) == 1 and MODALITIES[queries.combination[0]].is_image:
            own = queries.entries[entry][0]
            counts &= np.array(
                [
                    self.split.gallery[index].value != own.value
                    or self.split.gallery[index].modality is not own.modality
                    for index in self.gallery
                ],
                dtype=bool,
            )
        rule = get_rule(queries.exclusion_rule)
        if rule.drop is not None:
            sides = (
                (queries.person_ids, queries.camera_ids, queries.clothes_ids, np.array([entry])),
                (self.split.gallery_ids, self.split.gallery_camera_ids, self.split.gallery_clothes_ids, self.gallery),
            )
            counts &= ~rule.drop(*(_label_block(*side) for side in sides))[0].numpy()
        return np.flatnonzero(counts)

    def search(self, task: str, entry: int, top_k: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return gallery indices and cosine similarities of the `top_k` best images for one entry of a list."""
        places = torch.from_numpy(self.candidates(task, entry)).to(self.gallery_features.device)
        query = F.normalize(self.features[int(self.rows[task][entry])], dim=0)
        similarity = F.normalize(self.gallery_features[places], dim=1) @ query
        order = torch.argsort(similarity, descending=True, stable=True)[:top_k]
        return self.gallery[places[order].cpu().numpy()], similarity[order].cpu().numpy()


def _label_block(
    persons: Sequence[int], cameras: Sequence[int], clothes: Sequence[int], chosen: NDArray[np.int64]
) -> LabelBlock:
    columns = [
        torch.from_numpy(np.asarray(values, dtype=np.int64)[chosen]) if values else torch.full((len(chosen),), -1)
        for values in (persons, cameras, clothes)
    ]
    return LabelBlock(persons=columns[0], cameras=columns[1], clothes=columns[2])


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationResult:
    """Everything measured on one split. counts and cache are plain values for the result file.

    lists: all lists of the split in the plain way, then all of them again for each further stamp. relevance: what
    mAP@tau compares annotations by, empty without thresholds. stamps: what each stamp means.
    """

    name: str
    protocol: str
    lists: tuple[ListResult, ...]
    missing_lists: tuple[str, ...]
    ap_form: str
    precision: str
    counts: Mapping[str, object]
    cache: Mapping[str, object]
    skipped: tuple[SkippedSource, ...]
    seconds: Mapping[str, float]
    ranked: RankedSplit
    relevance: Mapping[str, object] = field(default_factory=dict)
    stamps: Mapping[str, str] = field(default_factory=dict)

    @property
    def plain_lists(self) -> tuple[ListResult, ...]:
        """The lists measured in the plain way, in the split's order."""
        return tuple(entry for entry in self.lists if not entry.stamp)

    @property
    def of_combinations(self) -> bool:
        """Whether the lists are ORBench's combinations of modalities, averaged by their size."""
        return not any(entry.protocol or entry.group for entry in self.lists)

    def averages(self) -> tuple[AverageRow, ...]:
        """Return the mean of each group of lists, then ALL_AVER; the same again for each stamp.

        Combinations of modalities are grouped by their size. Lists of protocols are grouped by their group; ALL_AVER is
        the mean of the group means and of the lists without a group. A list without any scored query enters no mean; a
        group without scored lists has NaN and enters no ALL_AVER.
        """
        rows: list[AverageRow] = []
        for stamp in dict.fromkeys(entry.stamp for entry in self.lists) or [""]:
            lists = [entry for entry in self.lists if entry.stamp == stamp]
            rows += self._sizes(lists, stamp) if self.of_combinations else self._groups(lists, stamp)
        return tuple(rows)

    def _sizes(self, lists: Sequence[ListResult], stamp: str) -> list[AverageRow]:
        sizes = [len(entry.combination) for entry in lists] + [
            len(parse_combination(name)) for name in self.missing_lists
        ]
        scored = {
            size: [_metrics(entry) for entry in lists if len(entry.combination) == size and entry.queries]
            for size in sorted(set(sizes))
        }
        groups = [
            AverageRow(
                task=stamped(GROUP_NAMES[size], stamp),
                metrics=_mean(rows),
                lists=len(rows),
                expected=sizes.count(size),
                stamp=stamp,
            )
            for size, rows in scored.items()
        ]
        total = AverageRow(
            task=stamped(TOTAL, stamp),
            metrics=_mean([group.metrics for group in groups if group.lists]),
            lists=sum(group.lists for group in groups),
            expected=len(sizes),
            stamp=stamp,
        )
        return [*groups, total]

    def _groups(self, lists: Sequence[ListResult], stamp: str) -> list[AverageRow]:
        groups = [
            self._group(name, [entry for entry in lists if entry.group == name], stamp)
            for name in dict.fromkeys(entry.group for entry in lists if entry.group)
        ]
        single = [_metrics(entry) for entry in lists if not entry.group and entry.queries]
        total = AverageRow(
            task=stamped(TOTAL, stamp),
            metrics=_mean([*(group.metrics for group in groups if group.lists), *single]),
            lists=sum(group.lists for group in groups) + len(single),
            expected=len(lists),
            stamp=stamp,
        )
        return [*groups, total]

    def _group(self, name: str, lists: Sequence[ListResult], stamp: str) -> AverageRow:
        scored = [entry for entry in lists if entry.queries]
        is_pooled = name in self.ranked.split.pooled_groups
        rows = [_metrics(entry) for entry in scored]
        # A group of one list that bears its name would hide that list where rows are told apart by their names.
        task = f"{name} mean" if stamped(name, stamp) in {entry.task for entry in self.lists} else name
        return AverageRow(
            task=stamped(task, stamp),
            metrics=_metrics(pooled(scored)) if is_pooled and scored else _mean(rows),
            lists=len(scored),
            expected=len(lists),
            deviation=_deviation(rows) if not is_pooled else {},
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
        if self.of_combinations:
            unmatched = sum(len(entry.without_match) for entry in self.plain_lists)
            if unmatched:
                found.append(f"{unmatched} queries have no match in the gallery and are left out of every mean")
        else:
            found += [*unmatched_notes(self), *rule_notes(self.ranked.split)]
        found += threshold_notes(self)
        found += [f"rows [{stamp}]: {meaning}" for stamp, meaning in self.stamps.items()]
        if self.skipped:
            left_out = sum(len(entry.unreadable) for entry in self.plain_lists)
            found.append(
                f"{len(self.skipped)} unreadable sources were skipped; {left_out} queries were left out with them"
            )
        return tuple(found)


def stamped(name: str, stamp: str) -> str:
    """Return the name with a stamp behind it: `NIR [flip]`."""
    return f"{name} [{stamp}]" if stamp else name


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
            rules = ", ".join(dict.fromkeys(queries.exclusion_rule for _, queries in members))
            reasons.append(f"{len(unmatched) - absent} lose all matches to the rule {rules}")
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
    """Return one line about the lists that no camera rule applies to."""
    free = [queries for queries in split.query_lists if "cameras" not in get_rule(queries.exclusion_rule).needs]
    unknown = [queries for queries in split.query_lists if queries not in free and _without_cameras(split, queries)]
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
    if bare:
        notes.append(f"mAP@tau is not measured where queries have no annotations: {', '.join(bare)}")
    first = [next(iter(entry.thresholds.values())) for entry in measured]
    if any(part.unannotated for part in first):
        notes.append(
            f"{sum(part.unannotated for part in first)} of {sum(part.pairs for part in first)} matches have no "
            "annotation of their query's kind; no tau keeps them"
        )
    return notes


def _metrics(entry: ListResult) -> dict[str, float]:
    return entry.metrics() | entry.further_metrics()


def _mean(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: float(np.mean([row[name] for row in rows])) if rows else float("nan") for name in _common(rows)}


def _deviation(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: float(np.std([row[name] for row in rows], ddof=1)) for name in _common(rows)} if len(rows) > 1 else {}


def _common(rows: Sequence[Mapping[str, float]]) -> list[str]:
    """The columns that every row has."""
    return [name for name in (rows[0] if rows else METRICS) if all(name in row for row in rows)]
