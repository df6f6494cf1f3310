"""Labels of queries and gallery as the ranking compares them; the one place that knows what a query is excluded by.

Shapes: n queries of lists that are compared together, G images of a split's gallery.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from solver.evaluation.plan import UNKNOWN, Integers, ListPlan, SplitPlan
from utils.retrieval.exclusion import Labels, comparable_labels, excluded, get_rule


@dataclass(frozen=True, kw_only=True, slots=True)
class QueryColumns:
    """Queries of one list, or of several one after the other, each column (n,)."""

    rows: Integers
    """Rows of the features."""
    person_ids: Integers
    camera_ids: Integers
    clothes_ids: Integers
    items: Integers
    """Pictures that the queries consist of, (n, size of the largest); -1 for texts and where there is no further one.
    """

    @classmethod
    def of(cls, lists: Sequence[ListPlan], chosen: Sequence[Integers]) -> QueryColumns:
        """Join the chosen entries of lists."""

        def joined(columns: Sequence[Integers]) -> Integers:
            return np.concatenate([column[entries] for column, entries in zip(columns, chosen)])

        return cls(
            rows=joined([listed.rows for listed in lists]),
            person_ids=joined([listed.person_ids for listed in lists]),
            camera_ids=joined([listed.camera_ids for listed in lists]),
            clothes_ids=joined([listed.clothes_ids for listed in lists]),
            items=joined([_widened(listed.items, max(listed.items.shape[1] for listed in lists)) for listed in lists]),
        )

    def take(self, entries: Integers) -> QueryColumns:
        """Return the queries with these indices, in that order."""
        return QueryColumns(
            rows=self.rows[entries],
            person_ids=self.person_ids[entries],
            camera_ids=self.camera_ids[entries],
            clothes_ids=self.clothes_ids[entries],
            items=self.items[entries],
        )

    def compared(self, rule: str) -> list[Integers]:
        """Return the columns in which queries must differ to be ranked differently under an exclusion rule."""
        needs = get_rule(rule).needs
        labels = [self.camera_ids] * ("cameras" in needs) + [self.clothes_ids] * ("clothes" in needs)
        return [self.rows, self.person_ids, *labels]


def _widened(items: Integers, width: int) -> Integers:
    return np.pad(items, ((0, 0), (0, width - items.shape[1])), constant_values=UNKNOWN)


def labels_of(split: SplitPlan, query: QueryColumns, gallery: Integers) -> tuple[Labels, Labels]:
    """Return the labels of queries and of the images `gallery` (indices into the split's) that they are ranked in."""
    items = split.gallery_items[gallery]
    # Without a query that is in its own gallery there is nothing to compare.
    finds_itself = bool(np.isin(query.items[query.items >= 0], items).any())
    return (
        Labels(
            ids=query.person_ids,
            cameras=query.camera_ids,
            clothes=query.clothes_ids,
            items=query.items if finds_itself else None,
        ),
        Labels(
            ids=split.gallery_ids[gallery],
            cameras=split.gallery_cameras[gallery],
            clothes=split.gallery_clothes[gallery],
            items=items if finds_itself else None,
        ),
    )


def counted(split: SplitPlan, listed: ListPlan, entry: int, gallery: Integers) -> NDArray[np.bool_]:
    """Return which of the images `gallery` (indices into the split's) count for one entry of a list."""
    if not len(gallery):
        return np.zeros(0, dtype=bool)
    rule = get_rule(listed.queries.exclusion_rule)
    sides = labels_of(split, QueryColumns.of([listed], [np.array([entry])]), gallery)
    query, images = comparable_labels(*sides, (1, len(gallery)), rule.needs)
    within = np.ones(len(gallery), dtype=bool) if listed.subset is None else np.isin(gallery, listed.subset)
    return within & ~excluded(query, images, rule)[0].numpy()
