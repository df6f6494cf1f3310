"""The nouns of the data layer: immutable, keyword-only, with shapes."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from configs.schema.data import DataConfig
from configs.vocabulary import BOX, AnnotationKind, Combination, Modality, Task, combination_name

if TYPE_CHECKING:
    # Sources and persons are asked for before anything heavy is imported; see Batch.
    import torch
    from PIL.Image import Image
    from torch import Tensor

Person = int | str
"""A person as users know them: the data set's own number, or the user's own name."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """One thing that can be encoded: an image file or a text."""

    modality: Modality
    value: str
    """Absolute path of the image, or the text itself; the modality decides which, never the characters."""
    record: str = field(default="", compare=False)
    """Where the source was listed, for error messages (`train_annos.json entry 12`)."""
    crop: str = ""
    """Part of the image that is meant, `box` = the upper-body box of `datasets.instructions`; empty = all of it."""
    picture: Image | bytes | None = field(default=None, compare=False, repr=False)
    """The image itself, or the bytes of its file, where it is in memory: `value` is then only its name, which is no
    other's. None = it is a file, or a text."""

    def __hash__(self) -> int:
        # Tables of sources are asked millions of times: the value tells nearly all apart, and a text keeps its hash.
        return hash(self.value)


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """One listed example: a training example, a query or a gallery item."""

    person_id: int
    """In a Benchmark's train a label 0..n-1, sorted; in a Release the data set's own id."""
    sources: Mapping[Modality, Source]
    """What is listed for this record."""
    partners: Mapping[Modality, tuple[Source, ...]] = field(default_factory=dict)
    """For a modality without a listed source, the candidates out of which one is drawn per (seed, epoch, index),
    sorted."""
    camera_id: int = -1
    """The data set's own number, -1 unknown."""
    clothes_id: int = -1
    """Equal only for the same outfit of the same person, -1 unknown."""
    dataset: str = ""
    task: Task = Task.ORB
    annotations: Mapping[AnnotationKind, Source] = field(default_factory=dict)
    """By kind, from which an instruction is made."""
    name: str = ""
    """Where the record was listed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ReadOptions:
    """What a reader is asked for."""

    data: DataConfig = DataConfig()
    """Section `data`: a reader looks at the options that its entry names, and at no other."""
    check_files: bool = True
    """Raise for a listed image that does not exist."""
    need_train: bool = True
    """False = only the parts that a test needs must be present."""
    crop: str = BOX
    """What stands for a clothes image where the release ships none: `none` or `box`."""


class Named:
    """What holds persons whom users may have given names."""

    __slots__ = ()
    person_names: Mapping[int, str]

    def person(self, number: int) -> Person:
        """Return how a person is called in everything that users read or write."""
        return self.person_names.get(number, number)


WARNING = "warning: "
"""How a note of a release begins that a check counts as a warning."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Release(Named):
    """A data set as it lies on disk. Person ids are the data set's own; nothing is relabelled, drawn or excluded."""

    name: str
    root: Path
    """The folder that holds the data set's files."""
    parts: Mapping[str, tuple[Record, ...]]
    """`train`, `query`, `gallery`, and whatever else a protocol of the data set needs (`query_changed`, `val_query`,
    ...); records in sorted or listed order."""
    dropped: Mapping[str, int] = field(default_factory=dict)
    """What was left out by the data set's own rules, with the number (`junk images, pid -1`: 3819)."""
    notes: tuple[str, ...] = ()
    """Findings for the log and the results."""
    variant: str = ""
    """Which of the entry's `published` counts this release is compared with."""
    shared_persons: bool = False
    """True for a user's own data without a split, where train and test are the same images on purpose."""
    trials: Mapping[str, int] = field(default_factory=dict)
    """Data set -> trial that was read, for data sets with several divisions of the same persons into train and test
    (RegDB, also as a member of a joint release)."""
    person_names: Mapping[int, str] = field(default_factory=dict)
    """Person -> the user's own name for them; empty where the data set's number is the name."""
    missing: Mapping[str, str] = field(default_factory=dict)
    """Query lists that the data set defines and this copy lacks: name -> row of averages."""


@dataclass(frozen=True, kw_only=True, slots=True)
class QueryList:
    """Queries of one combination, and how they are searched. What is known per entry is empty or has one per entry."""

    combination: Combination
    entries: tuple[tuple[Source, ...], ...]
    """Entry i is the tuple of its sources, in the combination's order."""
    person_ids: tuple[int, ...]
    """Raw ids, comparable with the gallery's only."""
    camera_ids: tuple[int, ...] = ()
    """Empty = unknown."""
    clothes_ids: tuple[int, ...] = ()
    """Empty = unknown."""
    instructions: tuple[Source | None, ...] = ()
    """What a model that follows instructions gets with each entry."""
    annotations: tuple[Source | None, ...] = ()
    """What the entry asks for, compared with the gallery's annotation of the same kind by mAP at a threshold only; it
    never depends on `instructions`."""
    annotation_kinds: tuple[AnnotationKind | None, ...] = ()
    """Kind of each annotation."""
    title: str = ""
    """Name of the row, empty = the combination."""
    group: str = ""
    """Row of averages that the list belongs to, empty = none."""
    protocol: str = ""
    """Name that stamps the row."""
    gallery: tuple[int, ...] | None = None
    """Indices into the split's gallery that are searched, None = all."""
    exclusion_rule: str = "none"
    """Name in utils.retrieval.exclusion."""
    cmc: Literal["image", "identity"] = "image"
    """See utils.retrieval.metrics.MetricOptions."""
    draws: bool = True
    """The lists of its group repeat one measurement (draws of a gallery), so that readers see their mean; False = they
    are different measurements, and each is shown."""

    @property
    def name(self) -> str:
        """The title, else the combination's name, for instance NIR+TEXT."""
        return self.title or combination_name(self.combination)


@dataclass(frozen=True, kw_only=True, slots=True)
class EvalSplit(Named):
    """A gallery and the query lists searched in it, or in parts of it. What is known per item is empty or has one per
    gallery item."""

    name: str
    """`test` or `val`."""
    protocol: str
    """How it is measured, in words."""
    gallery: tuple[Source, ...]
    gallery_ids: tuple[int, ...]
    """Person of each item."""
    query_lists: tuple[QueryList, ...]
    missing_lists: Mapping[str, str] = field(default_factory=dict)
    """Lists that the data set defines and this copy lacks: name -> row of averages."""
    groups: tuple[str, ...] = ()
    """Rows of averages in their order, as far as the protocols fix it; the others follow as they come."""
    gallery_camera_ids: tuple[int, ...] = ()
    """Empty = unknown."""
    gallery_clothes_ids: tuple[int, ...] = ()
    """Empty = unknown."""
    gallery_instructions: tuple[Source | None, ...] = ()
    """What a model that follows instructions gets with each item."""
    gallery_annotations: tuple[Mapping[AnnotationKind, Source], ...] = ()
    """Per item by kind, for mAP at a threshold."""
    pooled_groups: tuple[str, ...] = ()
    """Groups of lists whose average is over all queries instead of over the lists."""
    person_names: Mapping[int, str] = field(default_factory=dict)
    """Person -> the user's own name for them; empty where the data set's number is the name."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Benchmark:
    """What a data set is trained and tested by. train and splits may be empty when only the other was asked for."""

    name: str
    train: tuple[Record, ...]
    num_identities: int
    """Number of training labels."""
    splits: Mapping[str, EvalSplit]
    """By name, `test` and `val`."""
    fingerprint: str
    """Digest of every listed source and id, see datasets.benchmark.digest."""
    notes: tuple[str, ...] = ()
    """Findings for the log and the results (a missing query list, counts that differ from the published ones, skipped
    files)."""
    trials: Mapping[str, int] = field(default_factory=dict)
    """Data set -> trial, for data sets with several divisions of the same persons: a model of one trial may have been
    trained on the test persons of another."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Annotations:
    """What is known of the rows of a batch in one modality: each distinct annotation once."""

    inputs: Tensor
    """(U, T) int64 token ids, or clothes pictures (U, 3, h, w) uint8, cut as their sources say."""
    rows: Tensor
    """(B,) int64: which of the U each row of the batch has, -1 = none of this modality."""

    def to(self, device: torch.device) -> Annotations:
        """Return the annotations on `device`."""
        return Annotations(
            inputs=self.inputs.to(device, non_blocking=True), rows=self.rows.to(device, non_blocking=True)
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """Rows of one training step: B records. Nothing may rely on the order of the rows."""

    inputs: Mapping[Modality, Tensor]
    """By modality images (b, 3, H, W) uint8 or token ids (b, T) int64 of the rows that have it."""
    erased: Mapping[Modality, Tensor]
    """Per image modality boxes (b, 4) int64 as top, left, height, width; zero area = none."""
    person_ids: Tensor
    """(B,) int64."""
    record_ids: Tensor
    """(B,) int64: index into the training records."""
    rows: Mapping[Modality, Tensor] = field(default_factory=dict)
    """By modality (b,) int64, ascending: the rows of the batch that the input's entries are; left out = all rows."""
    camera_ids: Tensor | None = None
    """(B,) int64, -1 unknown; left out = all unknown."""
    tasks: tuple[Task, ...] = ()
    """One per row, or empty."""
    annotations: Mapping[Modality, Annotations] = field(default_factory=dict)
    """By modality what is known of the rows, read; empty for models that do not ask."""
    instructed: Tensor | None = None
    """(B,) bool: which rows are given their annotation as instruction; left out = none."""

    def __post_init__(self) -> None:
        import torch

        count, device = len(self.person_ids), self.person_ids.device
        if not self.rows:
            object.__setattr__(self, "rows", dict.fromkeys(self.inputs, torch.arange(count, device=device)))
        if self.camera_ids is None:
            object.__setattr__(self, "camera_ids", torch.full((count,), -1, device=device))
        if self.instructed is None:
            object.__setattr__(self, "instructed", torch.zeros(count, dtype=torch.bool, device=device))
        assert self.camera_ids is not None and self.instructed is not None
        columns = {len(self.record_ids), len(self.camera_ids), len(self.instructed), len(self.tasks) or count}
        columns |= {len(annotation.rows) for annotation in self.annotations.values()}
        assert columns <= {count}, f"columns of a batch disagree: {sorted({count, *columns})}"
        assert set(self.rows) == set(self.inputs), (
            f"rows are given for {sorted(self.rows)}, inputs for {sorted(self.inputs)}"
        )
        for modality, boxes in (*self.inputs.items(), *self.erased.items()):
            assert len(boxes) == len(self.rows[modality]), (
                f"{modality.name}: {len(boxes)} entries for {len(self.rows[modality])} rows"
            )

    def to(self, device: torch.device) -> Batch:
        """Return the batch on `device`."""
        assert self.instructed is not None
        # One tensor stands for all inputs that have every row; it is moved once.
        rows = {tensor: tensor.to(device, non_blocking=True) for tensor in self.rows.values()}
        return Batch(
            inputs={name: tensor.to(device, non_blocking=True) for name, tensor in self.inputs.items()},
            erased={name: tensor.to(device, non_blocking=True) for name, tensor in self.erased.items()},
            person_ids=self.person_ids.to(device, non_blocking=True),
            record_ids=self.record_ids,
            camera_ids=self.camera_ids,
            rows={name: rows[tensor] for name, tensor in self.rows.items()},
            tasks=self.tasks,
            annotations={name: annotations.to(device) for name, annotations in self.annotations.items()},
            instructed=self.instructed.to(device, non_blocking=True),
        )


def distinct_sources(split: EvalSplit) -> dict[Modality, tuple[Source, ...]]:
    """Return every distinct source of a split by modality, gallery first, in order of first appearance."""
    distinct: dict[Modality, dict[Source, None]] = {}
    groups = (split.gallery, *(entry for query_list in split.query_lists for entry in query_list.entries))
    for source in itertools.chain.from_iterable(groups):
        distinct.setdefault(source.modality, {})[source] = None
    return {modality: tuple(sources) for modality, sources in distinct.items()}
