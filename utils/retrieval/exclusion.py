"""Labels of queries and gallery items, and rules on them: which gallery items do not count for a query."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from utils.errors import UserError, nearest
from utils.retrieval.annotation_vectors import AnnotationVectors
from utils.retrieval.arrays import Array, to_numpy

UNKNOWN = -1
SYSU_QUERY_CAMERA, SYSU_DROPPED_CAMERA = 3, 2
"""Cameras 2 and 3 of SYSU-MM01 stand at the same place (official numbering, 1 to 6)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Labels:
    """Labels of one side, one per item; None = unknown for all, a negative integer = unknown for one."""

    ids: Array
    """Persons: integers or strings."""
    cameras: Array | None = None
    """Integers."""
    clothes: Array | None = None
    """Integers or strings, equal only for the same outfit of the same person."""
    items: Array | None = None
    """Integers that tell the images apart; one that stands on both sides is dropped under every rule, so that a query
    never finds itself. A negative one equals nothing. A query of several images may have a row (k,) of them.
    """
    instructions: Array | Mapping[str, AnnotationVectors] | None = None
    """For mAP@tau only: the vectors of the annotations, (n, D) or by kind."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelBlock:
    """Labels of n queries or gallery items as (n,) integer tensors on one device.

    A column that no rule asks for is all UNKNOWN; a negative entry is unknown and equals nothing.
    """

    persons: Tensor
    """Comparable between queries and gallery."""
    cameras: Tensor
    clothes: Tensor
    items: Tensor | None = None
    """None when unknown for all; (n, k) for queries of several images."""

    @classmethod
    def of(
        cls, persons: Tensor, cameras: Tensor | None = None, clothes: Tensor | None = None, items: Tensor | None = None
    ) -> LabelBlock:
        """Return a block whose missing columns are UNKNOWN."""
        unknown = torch.full((len(persons),), UNKNOWN, device=persons.device)
        return cls(
            persons=persons,
            cameras=unknown if cameras is None else cameras,
            clothes=unknown if clothes is None else clothes,
            items=items,
        )

    def _each(self, change: Callable[[Tensor], Tensor]) -> LabelBlock:
        return LabelBlock(
            persons=change(self.persons),
            cameras=change(self.cameras),
            clothes=change(self.clothes),
            items=None if self.items is None else change(self.items),
        )

    def rows(self, start: int, stop: int) -> LabelBlock:
        """Return the labels of items start to stop - 1."""
        return self._each(lambda column: column[start:stop])

    def to(self, device: torch.device) -> LabelBlock:
        """Return the labels on `device`."""
        return self._each(lambda column: column.to(device))


def _equal(query: Tensor, gallery: Tensor) -> Tensor:
    """(q,), (g,) -> (q, g): both known and equal."""
    return (query[:, None] == gallery) & (query >= 0)[:, None]


def _different(query: Tensor, gallery: Tensor) -> Tensor:
    """(q,), (g,) -> (q, g): both known and different."""
    return (query[:, None] != gallery) & (query >= 0)[:, None] & (gallery >= 0)


def _same_person(query: LabelBlock, gallery: LabelBlock) -> Tensor:
    return query.persons[:, None] == gallery.persons


def same_camera(query: LabelBlock, gallery: LabelBlock) -> Tensor:
    """Drop the same person in the same camera. Source: Market-1501."""
    return _same_person(query, gallery) & _equal(query.cameras, gallery.cameras)


def same_camera_or_clothes(query: LabelBlock, gallery: LabelBlock) -> Tensor:
    """Drop the same person in the same camera or the same clothes. Source: LTCC, cloth-changing setting."""
    same = _equal(query.cameras, gallery.cameras) | _equal(query.clothes, gallery.clothes)
    return _same_person(query, gallery) & same


def same_camera_or_other_clothes(query: LabelBlock, gallery: LabelBlock) -> Tensor:
    """Drop the same person in the same camera or in other clothes. Source: LTCC, same-clothes setting (CAL)."""
    dropped = _equal(query.cameras, gallery.cameras) | _different(query.clothes, gallery.clothes)
    return _same_person(query, gallery) & dropped


def same_clothes(query: LabelBlock, gallery: LabelBlock) -> Tensor:
    """Drop the same person in the same clothes: the cloth-changing setting where no camera is known."""
    return _same_person(query, gallery) & _equal(query.clothes, gallery.clothes)


def other_clothes(query: LabelBlock, gallery: LabelBlock) -> Tensor:
    """Drop the same person in other clothes: the same-clothes setting where no camera is known."""
    return _same_person(query, gallery) & _different(query.clothes, gallery.clothes)


def sysu(query: LabelBlock, gallery: LabelBlock) -> Tensor:
    """For a query of camera 3 drop all of camera 2, whoever it shows. Source: SYSU-MM01, official numbering."""
    return query.cameras.eq(SYSU_QUERY_CAMERA)[:, None] & gallery.cameras.eq(SYSU_DROPPED_CAMERA)


@dataclass(frozen=True, slots=True)
class ExclusionRule:
    """Which gallery items do not count for a query, beside its own image."""

    drop: Callable[[LabelBlock, LabelBlock], Tensor] | None
    """(q labels, g labels) -> (q, g) boolean, True = does not count; None = nothing is dropped."""
    needs: tuple[str, ...] = ()
    """Columns of LabelBlock that it looks at."""


RULES: dict[str, ExclusionRule] = {
    "none": ExclusionRule(None),
    "same_camera": ExclusionRule(same_camera, ("cameras",)),
    "same_camera_or_clothes": ExclusionRule(same_camera_or_clothes, ("cameras", "clothes")),
    "same_camera_or_other_clothes": ExclusionRule(same_camera_or_other_clothes, ("cameras", "clothes")),
    "same_clothes": ExclusionRule(same_clothes, ("clothes",)),
    "other_clothes": ExclusionRule(other_clothes, ("clothes",)),
    "sysu": ExclusionRule(sysu, ("cameras",)),
}


def same_item(query: LabelBlock, gallery: LabelBlock) -> Tensor | None:
    """(q, g) boolean, True where the gallery item is the query itself; None when items are unknown."""
    if query.items is None or gallery.items is None:
        return None
    own = query.items if query.items.ndim == 2 else query.items[:, None]
    return functools.reduce(torch.logical_or, [_equal(column, gallery.items) for column in own.unbind(1)])


def excluded(query: LabelBlock, gallery: LabelBlock, rule: ExclusionRule) -> Tensor:
    """(q, g) boolean, True where the gallery item does not count: it is the query itself, or the rule drops it."""
    own = same_item(query, gallery)
    if own is None:
        own = torch.zeros((len(query.persons), len(gallery.persons)), dtype=torch.bool, device=query.persons.device)
    return own if rule.drop is None else own | rule.drop(query, gallery)


def get_rule(name: str) -> ExclusionRule:
    """Return the rule of that name. Raises UserError that lists the nearest names."""
    if name not in RULES:
        raise UserError(f"unknown exclusion rule {name!r}; {nearest(name, RULES)}")
    return RULES[name]


def _label_array(values: Array) -> np.ndarray:
    labels = to_numpy(values)
    # Columns of strings from a table arrive as objects.
    return labels.astype(str) if labels.dtype == object and all(isinstance(label, str) for label in labels) else labels


def _exact(labels: np.ndarray, name: str, recode: bool) -> np.ndarray:
    """Whole numbers in a kind that two sides can share: unsigned ones of 64 bits beside signed ones would become
    rounded floats.
    """
    if labels.dtype.kind != "u" or labels.dtype.itemsize < 8:
        return labels
    if not labels.size or int(labels.max()) < 1 << 63:
        return labels.astype(np.int64)
    if not recode:
        raise UserError(f"{name}: {int(labels.max())} is too large, labels go to 2^63 - 1; number them from 0")
    return labels.astype(object)


def _label_pair(query: Array, gallery: Array, name: str, recode: bool) -> tuple[Tensor, Tensor]:
    """Two label lists as integer tensors with equal values where the labels are equal.

    recode: number the labels 0..n-1; otherwise integers keep their values, and only strings are numbered.
    """
    left, right = _label_array(query), _label_array(gallery)
    if not left.size:
        left = left.reshape(-1).astype(right.dtype)
    if left.ndim != 1 or right.ndim != 1:
        raise UserError(
            f"{name} must be flat lists, one label per item, but have shapes {left.shape} and {right.shape}"
        )
    if left.dtype.kind not in "iubU" or right.dtype.kind not in "iubU":
        raise UserError(f"{name} must be integers or strings, not {left.dtype} and {right.dtype}")
    if (left.dtype.kind in "iub") != (right.dtype.kind in "iub"):
        raise UserError(f"{name}: queries have {left.dtype} labels and the gallery {right.dtype}; they never match")
    both = np.concatenate([_exact(left, name, recode), _exact(right, name, recode)])
    if recode or both.dtype.kind == "U":
        both = np.unique(both, return_inverse=True)[1].reshape(-1).astype(np.int32)
    labels = torch.from_numpy(both.astype(np.int64) if both.dtype.kind != "i" else both)
    return labels[: len(left)], labels[len(left) :]


def comparable_labels(
    query: Labels, gallery: Labels, shape: tuple[int, int], needs: tuple[str, ...]
) -> list[LabelBlock]:
    """Return the labels of queries and gallery with comparable numbers; beside the persons the fields in `needs`, and
    items.

    shape: number of queries and of gallery items. Persons are numbered 0..n-1 over both. Raises UserError for an
    empty gallery, a missing field, a wrong length or kind.
    """
    if shape[1] == 0:
        raise UserError("the gallery is empty; give at least one gallery item")
    columns: dict[str, tuple[Tensor, Tensor]] = {
        "persons": _label_pair(query.ids, gallery.ids, "query_ids and gallery_ids", recode=True)
    }
    for name in ("cameras", "clothes", "items"):
        left, right = getattr(query, name), getattr(gallery, name)
        if name in needs and (left is None or right is None):
            raise UserError(
                f"the exclusion rule needs query_{name} and gallery_{name}; give both or choose another rule"
            )
        if name == "items" and (left is None) != (right is None):
            raise UserError("query_items and gallery_items are compared with each other; give both or neither")
        if name in needs or (name == "items" and left is not None):
            # Only a query may consist of several items.
            flat = to_numpy(left).reshape(-1) if name == "items" and np.ndim(left) == 2 else left
            ours, theirs = _label_pair(flat, right, f"query_{name} and gallery_{name}", recode=False)
            columns[name] = (ours.reshape(np.shape(left)), theirs)
    for name, pair in columns.items():
        spelled = "ids" if name == "persons" else name
        for side, labels, count in zip(("query", "gallery"), pair, shape, strict=True):
            if len(labels) != count:
                raise UserError(
                    f"{side}_{spelled} has {len(labels)} entries for {count} {side} items; give one per item"
                )
    return [LabelBlock.of(**{name: pair[side] for name, pair in columns.items()}) for side in (0, 1)]
