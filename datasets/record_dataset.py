"""One training record to one row: partners drawn, images read, augmented, captions tokenised; all from (seed, epoch, index)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from configs.vocabulary import Modality
from datasets.caption_masking import mask_caption
from datasets.modalities import MODALITIES
from datasets.readers import SourceReader
from datasets.samplers import Key
from datasets.structures import Batch, Record, Source
from datasets.transforms import Box, ImageAugmentation
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
    """One read record; boxes per image modality."""

    inputs: Mapping[Modality, Tensor]
    boxes: Mapping[Modality, Box]
    person_id: int
    record_id: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """A record that could not be read, and why: exceptions do not cross process borders in one sentence."""

    record_id: int
    reason: str


class RecordDataset(Dataset[Row | Failure]):
    """Rows by (epoch, index). It holds no mutable state, so persistent workers and resumed runs draw the same."""

    def __init__(self, records: Sequence[Record], reader: SourceReader, augment: ImageAugmentation,
                 masking: CaptionMasking, seed: int) -> None:
        self.records, self.reader, self.augment, self.masking, self.seed = records, reader, augment, masking, seed

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
                    value = torch.from_numpy(image)
                elif self.masking.share > 0:
                    value = mask_caption(value, rng, probability=self.masking.share, mask_id=self.masking.mask_id,
                                         keep_eot=self.masking.keep_eot)
                inputs[modality] = value
        except UserError as error:
            return Failure(record_id=index, reason=str(error))
        return Row(inputs=inputs, boxes=boxes, person_id=record.person_id, record_id=index)

    def _sources(self, record: Record, epoch: int, index: int) -> dict[Modality, Source]:
        drawn = {modality: stream(self.seed, epoch, index, "partner", modality.value).choice(candidates)
                 for modality, candidates in record.partners.items()}
        return {**record.sources, **drawn}


def collate(rows: Sequence[Row | Failure]) -> tuple[Batch | None, list[Failure]]:
    """Stack the rows that were read into a Batch (None when there is none) and pass the failures on."""
    failures = [row for row in rows if isinstance(row, Failure)]
    good = [row for row in rows if isinstance(row, Row)]
    if not good:
        return None, failures
    batch = Batch(
        inputs={modality: torch.stack([row.inputs[modality] for row in good]) for modality in good[0].inputs},
        erased={modality: torch.from_numpy(np.array([row.boxes[modality] for row in good], dtype=np.int64))
                for modality in good[0].boxes},
        person_ids=torch.tensor([row.person_id for row in good]),
        record_ids=torch.tensor([row.record_id for row in good]),
    )
    return batch, failures
