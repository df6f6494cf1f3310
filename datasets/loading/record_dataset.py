"""One training record to one row: partners drawn, images read, augmented, captions tokenised; all from (seed, epoch,
index).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from configs.vocabulary import Modality, Task
from datasets.loading.caption_masking import mask_caption
from datasets.loading.readers import Reader
from datasets.loading.samplers import Key
from datasets.loading.transforms import Box, ImageAugmentation
from datasets.modalities import MODALITIES
from datasets.structures import Annotations, Batch, Record, Source
from utils.errors import UserError
from utils.seeding import stream


@dataclass(frozen=True, kw_only=True)
class CaptionMasking:
    """Masked caption tokens as augmentation; see `mask_caption`."""

    share: float
    """Share of ordinary tokens that are chosen."""
    mask_id: int
    ordinary_ids: range
    """Ids that may be changed and drawn; the tokenizer's, as `mask_id` is."""
    keep_eot: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class ReadAnnotation:
    """The annotation of one row: where it comes from, and as the model takes it."""

    source: Source
    value: Tensor
    """(3, h, w) uint8 or (T,) int64. Rows of one batch that share a source share this tensor."""
    instructed: bool
    """Whether the row is given it as its instruction."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One read record; boxes per image modality. The record itself is not in it: rows cross process borders."""

    inputs: Mapping[Modality, Tensor]
    boxes: Mapping[Modality, Box]
    person_id: int
    camera_id: int
    task: Task
    record_id: int
    annotation: ReadAnnotation | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """A record that could not be read, and why: exceptions do not cross process borders in one sentence."""

    record_id: int
    reason: str


@dataclass(frozen=True, slots=True)
class DrawnAnnotation:
    """What a training row is told about itself."""

    source: Source
    instructed: bool = True
    """Whether the row is given it as its instruction; otherwise only losses look at it."""


DrawAnnotation = Callable[[Record, int, int, int], "DrawnAnnotation | None"]
"""(record, seed, epoch, index) -> the annotation that a training row has; None = none."""


class RecordDataset(Dataset[Row | Failure]):
    """Rows by (epoch, index). It holds no mutable state, so persistent workers and resumed runs draw the same.

    annotate: draws the annotation of each row; None = rows have none, and none is read.
    """

    def __init__(
        self,
        records: Sequence[Record],
        reader: Reader,
        augment: ImageAugmentation,
        masking: CaptionMasking | None,
        seed: int,
        annotate: DrawAnnotation | None = None,
    ) -> None:
        self.records, self.reader, self.augment, self.masking, self.seed = records, reader, augment, masking, seed
        self.annotate = annotate

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, key: Key) -> Row | Failure:
        return self._row(key, {})

    def __getitems__(self, keys: Sequence[Key]) -> list[Row | Failure]:
        """Return the rows of a batch; an annotation that several of them share is read once."""
        read: dict[Source, Tensor] = {}
        return [self._row(key, read) for key in keys]

    def _row(self, key: Key, read: dict[Source, Tensor]) -> Row | Failure:
        epoch, index = key
        record = self.records[index]
        inputs: dict[Modality, Tensor] = {}
        boxes: dict[Modality, Box] = {}
        try:
            for modality, source in self._sources(record, epoch, index).items():
                inputs[modality] = self._input(modality, source, epoch, index, boxes)
            annotation = self._annotation(record, epoch, index, read)
        except UserError as error:
            return Failure(record_id=index, reason=str(error))
        return Row(
            inputs=inputs,
            boxes=boxes,
            person_id=record.person_id,
            camera_id=record.camera_id,
            task=record.task,
            record_id=index,
            annotation=annotation,
        )

    def _input(self, modality: Modality, source: Source, epoch: int, index: int, boxes: dict[Modality, Box]) -> Tensor:
        """Return a source as read and augmented; the box of an image goes into `boxes`."""
        rng = stream(self.seed, epoch, index, "augment", modality.value)
        value = self.reader(source)
        if MODALITIES[modality].is_image:
            # Streams of their own: the other draws stay what they are without them.
            image = self.augment.jitter(
                value.numpy(), lambda: stream(self.seed, epoch, index, "jitter", modality.value)
            )
            image, boxes[modality] = self.augment(image, rng)
            if modality is Modality.RGB:
                image = self.augment.replace_channels(image, stream(self.seed, epoch, index, "channel"))
            return torch.from_numpy(image)
        if self.masking is None or self.masking.share <= 0:
            return value
        return mask_caption(
            value,
            rng,
            probability=self.masking.share,
            mask_id=self.masking.mask_id,
            ordinary=self.masking.ordinary_ids,
            keep_eot=self.masking.keep_eot,
        )

    def _annotation(self, record: Record, epoch: int, index: int, read: dict[Source, Tensor]) -> ReadAnnotation | None:
        drawn = self.annotate(record, self.seed, epoch, index) if self.annotate is not None else None
        if drawn is None:
            return None
        if drawn.source not in read:
            read[drawn.source] = self.reader.annotation(drawn.source)
        return ReadAnnotation(source=drawn.source, value=read[drawn.source], instructed=drawn.instructed)

    def _sources(self, record: Record, epoch: int, index: int) -> dict[Modality, Source]:
        drawn = {
            modality: stream(self.seed, epoch, index, "partner", modality.value).choice(candidates)
            for modality, candidates in record.partners.items()
        }
        return {**record.sources, **drawn}


def collate(rows: Sequence[Row | Failure]) -> tuple[Batch | None, list[Failure]]:
    """Stack the rows that were read into a Batch (None when there is none) and pass the failures on."""
    failures = [row for row in rows if isinstance(row, Failure)]
    good = [row for row in rows if isinstance(row, Row)]
    if not good:
        return None, failures
    holders = {
        modality: [place for place, row in enumerate(good) if modality in row.inputs] for modality in _modalities(good)
    }
    annotations = [row.annotation for row in good]
    batch = Batch(
        inputs={
            modality: torch.stack([good[place].inputs[modality] for place in places])
            for modality, places in holders.items()
        },
        erased=_boxes(good, holders),
        rows={modality: torch.tensor(places) for modality, places in holders.items()},
        person_ids=torch.tensor([row.person_id for row in good]),
        camera_ids=torch.tensor([row.camera_id for row in good]),
        record_ids=torch.tensor([row.record_id for row in good]),
        tasks=tuple(row.task for row in good),
        annotations=distinct_annotations(annotations),
        instructed=torch.tensor([bool(annotation and annotation.instructed) for annotation in annotations]),
    )
    return batch, failures


def _boxes(rows: Sequence[Row], holders: Mapping[Modality, Sequence[int]]) -> dict[Modality, Tensor]:
    return {
        modality: torch.from_numpy(np.array([rows[place].boxes[modality] for place in places], dtype=np.int64))
        for modality, places in holders.items()
        if modality in rows[places[0]].boxes
    }


def distinct_annotations(annotations: Sequence[ReadAnnotation | None]) -> dict[Modality, Annotations]:
    """Return each distinct annotation of the rows once, by modality, and which row has which."""
    numbers: dict[Modality, dict[Source, int]] = {}
    values: dict[Modality, list[Tensor]] = {}
    for annotation in annotations:
        if annotation is not None:
            known = numbers.setdefault(annotation.source.modality, {})
            if annotation.source not in known:
                known[annotation.source] = len(known)
                values.setdefault(annotation.source.modality, []).append(annotation.value)
    return {
        modality: Annotations(
            inputs=torch.stack(values[modality]),
            rows=torch.tensor(
                [-1 if annotation is None else known.get(annotation.source, -1) for annotation in annotations]
            ),
        )
        for modality, known in sorted(numbers.items())
    }


def _modalities(rows: Sequence[Row]) -> list[Modality]:
    """Modalities of a batch: in the order of the records where all have the same, else in that of the enumeration."""
    orders = {tuple(row.inputs) for row in rows}
    if len(orders) == 1:
        return list(orders.pop())
    return [modality for modality in Modality if any(modality in order for order in orders)]
