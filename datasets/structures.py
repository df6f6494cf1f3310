"""The nouns of the data layer: immutable, keyword-only, with shapes."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from configs.vocabulary import Combination, Modality, Task, combination_name


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """One thing that can be encoded: an image file or a text.

    value: absolute path of the image, or the text itself; the modality decides which, never the characters.
    record: where the source was listed, for error messages (`train_annos.json entry 12`).
    """

    modality: Modality
    value: str
    record: str = field(default="", compare=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """One training example.

    person_id: label 0..n-1, sorted. sources: what is listed for this record. partners: for a modality without a
    listed source, the candidates out of which one is drawn per (seed, epoch, index), sorted. annotations: by kind
    ('clothes', 'description'), from which an instruction is made.
    """

    person_id: int
    sources: Mapping[Modality, Source]
    partners: Mapping[Modality, tuple[Source, ...]] = field(default_factory=dict)
    camera_id: int = -1
    clothes_id: int = -1
    dataset: str = ""
    task: Task = Task.ORB
    annotations: Mapping[str, str] = field(default_factory=dict)
    name: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class QueryList:
    """Queries of one combination; entry i is the tuple of its sources, in the combination's order.

    person_ids: raw ids, comparable with the gallery's only.
    """

    combination: Combination
    entries: tuple[tuple[Source, ...], ...]
    person_ids: tuple[int, ...]

    @property
    def name(self) -> str:
        """The combination's name, for instance NIR+TEXT."""
        return combination_name(self.combination)


@dataclass(frozen=True, kw_only=True, slots=True)
class EvalSplit:
    """A gallery, the query lists searched in it, and the protocol that names the result."""

    name: str
    protocol: str
    gallery: tuple[Source, ...]
    gallery_ids: tuple[int, ...]
    query_lists: tuple[QueryList, ...]
    missing_lists: tuple[str, ...] = ()
    exclusion_rule: str = "none"


@dataclass(frozen=True, kw_only=True, slots=True)
class Benchmark:
    """What a dataset's reader returns. train and splits may be empty when only the other was asked for.

    num_identities: number of training labels. fingerprint: digest of every listed source and id. notes: findings for
    the log and the results (a missing query list, counts that differ from the published ones, skipped files).
    """

    name: str
    train: tuple[Record, ...]
    num_identities: int
    splits: Mapping[str, EvalSplit]
    fingerprint: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """Rows of one training step; row i of every input belongs to person_ids[i].

    inputs: images (B, 3, H, W) uint8 or token ids (B, T) int64. erased: per image modality boxes (B, 4) int64 as
    top, left, height, width, zero area = none. person_ids (B,) int64, record_ids (B,) int64: index into the training records.
    """

    inputs: Mapping[Modality, Tensor]
    erased: Mapping[Modality, Tensor]
    person_ids: Tensor
    record_ids: Tensor

    def __post_init__(self) -> None:
        rows = {len(tensor) for tensor in (*self.inputs.values(), *self.erased.values(), self.person_ids, self.record_ids)}
        assert len(rows) == 1, f"rows of a batch disagree: {sorted(rows)}"

    def to(self, device: torch.device) -> Batch:
        """Return the batch on `device`."""
        move = {"device": device, "non_blocking": True}
        return Batch(
            inputs={name: tensor.to(**move) for name, tensor in self.inputs.items()},
            erased={name: tensor.to(**move) for name, tensor in self.erased.items()},
            person_ids=self.person_ids.to(**move),
            record_ids=self.record_ids,
        )


def distinct_sources(split: EvalSplit) -> dict[Modality, tuple[Source, ...]]:
    """Return every distinct source of a split by modality, gallery first, in order of first appearance."""
    found: dict[Modality, dict[Source, None]] = {}
    groups = (split.gallery, *(entry for query_list in split.query_lists for entry in query_list.entries))
    for source in itertools.chain.from_iterable(groups):
        found.setdefault(source.modality, {})[source] = None
    return {modality: tuple(sources) for modality, sources in found.items()}
