"""Batches of the six tasks for a tiny IRM, and an objective for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from tiny_irm import IDENTITIES, IMAGE_SIZE, INSTRUCTION_SIZE, TEXT_LENGTH
from torch import Tensor

from configs.schema.irm import IrmObjectiveConfig
from configs.vocabulary import Modality, Task
from datasets.loading.transforms import model_input
from datasets.structures import Annotations, Batch, Record, Source
from model.interface import Instruction
from model.irm import IRM
from solver.objectives.base import ObjectiveContext
from solver.objectives.irm import IrmObjective

RGB, NIR, TEXT = Modality.RGB, Modality.NIR, Modality.TEXT
ALL = {name: 1.0 for name in ("id", "id_out", "triplet", "triplet_out")}
CAPTIONS = {name: 1.0 for name in ("contrast", "match", "masked_language", "replaced")}


class Pieces:
    """Stands for a tokenizer whose ids 0, 1 and 2 are padding, mask and start."""

    vocab_size, pad_id, mask_id, start_id, end_id, ordinary_ids = 100, 0, 1, 2, None, range(3, 100)

    def encode(self, text: str) -> list[int]:
        raise AssertionError("batches hold ids")

    def __call__(self, text: str, length: int) -> Tensor:
        raise AssertionError("batches hold ids")


Row = tuple[Task, Modality, int, int, bool]
"""Task, modality of the image, person, annotation (pictures of clothes from 100 on, -1 = none), instructed."""

MIXED: tuple[Row, ...] = (
    (Task.TRAD, RGB, 0, 0, True),
    (Task.CTCC, RGB, 2, 100, True),
    (Task.VI, NIR, 4, 1, True),
    (Task.TRAD, RGB, 0, 1, True),
    (Task.T2I, RGB, 5, 2, False),
    (Task.CTCC, RGB, 2, 101, True),
    (Task.VI, RGB, 4, 1, True),
    (Task.TRAD, RGB, 1, 0, True),
    (Task.TRAD, RGB, 1, 1, False),
    (Task.CTCC, RGB, 3, 101, True),
    (Task.VI, NIR, 5, 0, True),
    (Task.T2I, RGB, 6, 3, False),
    (Task.CTCC, RGB, 3, 102, False),
    (Task.VI, RGB, 5, 1, False),
    (Task.T2I, RGB, 5, 4, False),
)


def batch_of(rows: Sequence[Row] = MIXED, seed: int = 0) -> Batch:
    """A batch of these rows; texts and pictures are distinct, images all differ."""
    generator = torch.Generator().manual_seed(seed)
    kinds = [kind for kind in (NIR, RGB) if any(row[1] is kind for row in rows)]
    index = {kind: torch.tensor([place for place, row in enumerate(rows) if row[1] is kind]) for kind in kinds}
    pixels = torch.randint(0, 256, (len(rows), 3, *IMAGE_SIZE), generator=generator, dtype=torch.uint8)
    told = {
        TEXT: torch.tensor([row[3] if row[3] < 100 else -1 for row in rows]),
        RGB: torch.tensor([row[3] - 100 if row[3] >= 100 else -1 for row in rows]),
    }
    # Whatever the number of rows, the same is said.
    generator = torch.Generator().manual_seed(1000 + seed)
    texts = torch.randint(3, 100, (5, TEXT_LENGTH), generator=generator)
    texts[:, 0] = 2
    texts[1, 6:] = 0
    pictures = torch.randint(0, 256, (3, 3, *INSTRUCTION_SIZE), generator=generator, dtype=torch.uint8)
    return Batch(
        inputs={kind: pixels[index[kind]] for kind in kinds},
        erased={},
        person_ids=torch.tensor([row[2] for row in rows]),
        record_ids=torch.arange(len(rows)),
        rows=index,
        tasks=tuple(row[0] for row in rows),
        annotations={
            kind: Annotations(inputs={TEXT: texts, RGB: pictures}[kind], rows=numbers)
            for kind, numbers in told.items()
            if bool((numbers >= 0).any())
        },
        instructed=torch.tensor([row[4] for row in rows]),
    )


def records_of(rows: Sequence[Row] = MIXED) -> list[Record]:
    """The records that these rows are of; a T2I record has its caption."""
    records = []
    for task, modality, person, _, _ in rows:
        sources = {modality: Source(modality=modality, value="x.png")}
        if task is Task.T2I:
            sources[TEXT] = Source(modality=TEXT, value="a person")
        records.append(Record(person_id=person, sources=sources, task=task))
    return records


def context_of(model: IRM, seed: int = 0, rows: Sequence[Row] = MIXED) -> ObjectiveContext:
    assert model.num_identities == IDENTITIES
    return ObjectiveContext(seed=seed, model=model, records=records_of(rows), tokenizer=Pieces())


def objective_of(model: IRM, losses: dict[str, float], seed: int = 0, **options: Any) -> IrmObjective:
    return IrmObjective(IrmObjectiveConfig(losses=losses, **options), context_of(model, seed))


def encoded(model: IRM, batch: Batch, place: int) -> Tensor:
    """The pooled feature (D,) of one row by itself, through the model's own door for retrieval."""
    kind, number = MIXED[place][1], int((batch.rows[MIXED[place][1]] == place).nonzero())
    image = model_input(kind, batch.inputs[kind][number : number + 1], None, "imagenet")
    instructions = []
    if MIXED[place][4]:
        for modality, known in batch.annotations.items():
            if int(known.rows[place]) >= 0:
                inputs = model_input(modality, known.inputs, statistics="imagenet")
                row = known.rows[place : place + 1]
                instructions.append(Instruction(modality=modality, inputs=inputs, rows=row))
    return model.encode(kind, image, instructions).pooled[0]


def annotation(model: IRM, batch: Batch, place: int) -> Tensor:
    for modality, known in batch.annotations.items():
        number = int(known.rows[place])
        if number >= 0:
            inputs = model_input(modality, known.inputs[number : number + 1], statistics="imagenet")
            return model.encode_instructions(modality, inputs).cls[0]
    raise AssertionError("every row has an annotation")
