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
from datasets.loading.readers import SourceReader
from datasets.loading.samplers import Key
from datasets.loading.transforms import Box, ImageAugmentation
from datasets.modalities import MODALITIES
from datasets.structures import Batch, Record, Source
from utils.errors import UserError
from utils.seeding import stream


@dataclass(frozen=True, kw_only=True)
class CaptionMasking:
    """share of ordinary tokens chosen; mask_id of the tokenizer; keep_eot as in `mask_caption`."""

    share: float
    mask_id: int
    keep_eot: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One read record; boxes per image modality. The record itself is not in it: rows cross process borders."""

    inputs: Mapping[Modality, Tensor]
    boxes: Mapping[Modality, Box]
    person_id: int
    camera_id: int
    task: Task
    record_id: int
    instruction: Source | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """A record that could not be read, and why: exceptions do not cross process borders in one sentence."""

    record_id: int
    reason: str


DrawInstruction = Callable[[Record, int, int, int], "Source | None"]
"""(record, seed, epoch, index) -> the instruction that a training record has."""


class RecordDataset(Dataset[Row | Failure]):
    """Rows by (epoch, index). It holds no mutable state, so persistent workers and resumed runs draw the same.

    instruct: draws the instruction of each row; None = rows have none.
    """

    def __init__(
        self,
        records: Sequence[Record],
        reader: SourceReader,
        augment: ImageAugmentation,
        masking: CaptionMasking,
        seed: int,
        instruct: DrawInstruction | None = None,
    ) -> None:
        self.records, self.reader, self.augment, self.masking, self.seed = records, reader, augment, masking, seed
        self.instruct = instruct

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, key: Key) -> Row | Failure:
        epoch, index = key
        record = self.records[index]
        inputs, boxes = {}, {}
        try:
            for modality, source in self._sources(record, epoch, index).items():
                rng = stream(self.seed, epoch, index, "augment", modality.value)
                value = self.reader(source)
                if MODALITIES[modality].is_image:
                    image, boxes[modality] = self.augment(value.numpy(), rng)
                    if modality is Modality.RGB:
                        # A stream of its own: the other draws stay what they are without it.
                        image = self.augment.replace_channels(image, stream(self.seed, epoch, index, "channel"))
                    value = torch.from_numpy(image)
                elif self.masking.share > 0:
                    value = mask_caption(
                        value,
                        rng,
                        probability=self.masking.share,
                        mask_id=self.masking.mask_id,
                        keep_eot=self.masking.keep_eot,
                    )
                inputs[modality] = value
            instruction = self.instruct(record, self.seed, epoch, index) if self.instruct is not None else None
        except UserError as error:
            return Failure(record_id=index, reason=str(error))
        return Row(
            inputs=inputs,
            boxes=boxes,
            person_id=record.person_id,
            camera_id=record.camera_id,
            task=record.task,
            record_id=index,
            instruction=instruction,
        )

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
    modalities = _modalities(good)
    holders = {modality: [place for place, row in enumerate(good) if modality in row.inputs] for modality in modalities}
    boxed = [modality for modality in modalities if any(modality in row.boxes for row in good)]
    batch = Batch(
        inputs={
            modality: torch.stack([good[place].inputs[modality] for place in holders[modality]])
            for modality in modalities
        },
        erased={
            modality: torch.from_numpy(
                np.array([good[place].boxes[modality] for place in holders[modality]], dtype=np.int64)
            )
            for modality in boxed
        },
        rows={modality: torch.tensor(places) for modality, places in holders.items()},
        person_ids=torch.tensor([row.person_id for row in good]),
        camera_ids=torch.tensor([row.camera_id for row in good]),
        record_ids=torch.tensor([row.record_id for row in good]),
        tasks=tuple(row.task for row in good),
        instructions=tuple(row.instruction for row in good) if any(row.instruction is not None for row in good) else (),
    )
    return batch, failures


def _modalities(rows: Sequence[Row]) -> list[Modality]:
    """Modalities of a batch: in the order of the records where all have the same, else in that of the enumeration."""
    orders = {tuple(row.inputs) for row in rows}
    if len(orders) == 1:
        return list(orders.pop())
    return [modality for modality in Modality if any(modality in order for order in orders)]
