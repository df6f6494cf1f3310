"""Labels of queries and gallery items, and rules on them: which gallery items do not count for a query."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from utils.errors import UserError, nearest
from utils.retrieval.annotation_vectors import AnnotationVectors
from utils.retrieval.arrays import Array, to_numpy

SYSU_QUERY_CAMERA, SYSU_DROPPED_CAMERA = 3, 2
"""Cameras 2 and 3 of SYSU-MM01 stand at the same place (official numbering, 1 to 6)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Labels:
    """Labels of one side, one per item: ids (integers or strings) and, where known, the rest.

    cameras: integers. clothes: integers or strings, equal only for the same outfit of the same person. A negative
    integer is unknown. items: integers that tell the images apart; one that stands on both sides is dropped under every
    rule, so that a query never finds itself (negative = equals nothing). instructions: for mAP@tau only, the vectors of
    the annotations, (n, D) or by kind.
    """

    ids: Array
    cameras: Array | None = None
    clothes: Array | None = None
    items: Array | None = None
    instructions: Array | Mapping[str, AnnotationVectors] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelBlock:
    """Labels of n queries or gallery items as (n,) integer tensors on one device.

    cameras, clothes and items are None when unknown for all; a negative entry is unknown and equals nothing.
    """

    persons: Tensor
    cameras: Tensor | None = None
    clothes: Tensor | None = None
    items: Tensor | None = None

    def _each(self, change: Callable[[Tensor], Tensor]) -> LabelBlock:
        columns = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        return LabelBlock(**{name: None if column is None else change(column) for name, column in columns.items()})

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
    return (query.cameras == SYSU_QUERY_CAMERA)[:, None] & (gallery.cameras == SYSU_DROPPED_CAMERA)


@dataclass(frozen=True, slots=True)
class ExclusionRule:
    """drop: (q labels, g labels) -> (q, g) boolean, True = does not count; None = nothing is dropped."""

    drop: Callable[[LabelBlock, LabelBlock], Tensor] | None
    needs: tuple[str, ...] = ()


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
    return _equal(query.items, gallery.items)


def get_rule(name: str) -> ExclusionRule:
    """Return the rule of that name. Raises UserError that lists the nearest names."""
    if name not in RULES:
        raise UserError(f"unknown exclusion rule {name!r}; {nearest(name, RULES)}")
    return RULES[name]


def _label_pair(query: Array, gallery: Array, name: str, recode: bool) -> tuple[Tensor, Tensor]:
    """Two label lists as integer tensors with equal values where the labels are equal.

    recode: number the labels 0..n-1; otherwise integers keep their values, and only strings are numbered.
    """
    left, right = (to_numpy(side) for side in (query, gallery))
    # Columns of strings from a table arrive as objects.
    left, right = (
        side.astype(str) if side.dtype == object and all(isinstance(entry, str) for entry in side) else side
        for side in (left, right)
    )
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
    both = np.concatenate([left, right])
    if recode or both.dtype.kind == "U":
        both = np.unique(both, return_inverse=True)[1].reshape(-1).astype(np.int32)
    both = torch.from_numpy(both.astype(np.int64) if both.dtype.kind != "i" else both)
    return both[: len(left)], both[len(left) :]


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
        pair = getattr(query, name), getattr(gallery, name)
        if name in needs and any(side is None for side in pair):
            raise UserError(
                f"the exclusion rule needs query_{name} and gallery_{name}; give both or choose another rule"
            )
        if name == "items" and (pair[0] is None) != (pair[1] is None):
            raise UserError("query_items and gallery_items are compared with each other; give both or neither")
        if name in needs or (name == "items" and pair[0] is not None):
            columns[name] = _label_pair(*pair, f"query_{name} and gallery_{name}", recode=False)
    for name, pair in columns.items():
        spelled = "ids" if name == "persons" else name
        for side, labels, count in zip(("query", "gallery"), pair, shape, strict=True):
            if len(labels) != count:
                raise UserError(
                    f"{side}_{spelled} has {len(labels)} entries for {count} {side} items; give one per item"
                )
    return [LabelBlock(**{name: pair[side] for name, pair in columns.items()}) for side in (0, 1)]
