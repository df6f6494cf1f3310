"""A tiny model, its objective and a batch of every family, and batches cut into shares."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from irm_batches import CAPTIONS, MIXED, batch_of, context_of
from tiny_irm import tiny_irm
from tiny_reid5o import tiny_reid5o_config
from torch import Tensor

from configs.schema.irm import IrmObjectiveConfig
from configs.schema.irmpp import IrmppObjectiveConfig
from configs.schema.reid5o import Reid5oObjectiveConfig
from configs.schema.vireid import VireidConfig, VireidObjectiveConfig
from configs.vocabulary import Family, Modality
from datasets.structures import Annotations, Batch
from model.build import build_model, initialise
from model.interface import RetrievalModel
from solver.objectives.base import Objective
from solver.objectives.irm import IrmObjective
from solver.objectives.irmpp import IrmppObjective
from solver.objectives.reid5o import Reid5oObjective
from solver.objectives.vireid import VireidObjective

RGB, NIR, CP, SK, TEXT = Modality.RGB, Modality.NIR, Modality.CP, Modality.SK, Modality.TEXT
LABELS = (2, 0, 2, 1, 3, 0, 1, 3, 2, 4, 0)


@dataclass(frozen=True, kw_only=True)
class Case:
    """What one step is made of."""

    model: RetrievalModel
    objective: Objective[Any]
    batch: Batch


@contextmanager
def in_double() -> Iterator[None]:
    """Everything in float64, what the code keeps in float32 as well."""
    kept = torch.Tensor.float
    torch.set_default_dtype(torch.float64)
    torch.Tensor.float = torch.Tensor.double  # type: ignore[method-assign]
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)
        torch.Tensor.float = kept  # type: ignore[method-assign]


def part_of(batch: Batch, rows: Sequence[int]) -> Batch:
    """Some rows of a batch, as a loader would have made them: what no row has is not in it."""
    chosen = torch.tensor(list(rows), dtype=torch.int64)
    inputs, erased, held = {}, {}, {}
    for modality, numbers in batch.rows.items():
        places = [place for place, number in enumerate(numbers.tolist()) if number in set(rows)]
        if places:
            inputs[modality] = batch.inputs[modality][places]
            held[modality] = torch.tensor([list(rows).index(int(numbers[place])) for place in places])
            if modality in batch.erased:
                erased[modality] = batch.erased[modality][places]
    assert batch.camera_ids is not None and batch.instructed is not None
    return dataclasses.replace(
        batch,
        inputs=inputs,
        erased=erased,
        rows=held,
        person_ids=batch.person_ids[chosen],
        record_ids=batch.record_ids[chosen],
        camera_ids=batch.camera_ids[chosen],
        tasks=tuple(batch.tasks[row] for row in rows) if batch.tasks else (),
        annotations={
            kind: cut for kind, found in batch.annotations.items() if (cut := _cut(found, chosen)) is not None
        },
        instructed=batch.instructed[chosen],
    )


def _cut(found: Annotations, rows: Tensor) -> Annotations | None:
    numbers = found.rows[rows]
    distinct = sorted({int(number) for number in numbers if number >= 0})
    if not distinct:
        return None
    places = [distinct.index(int(number)) if number >= 0 else -1 for number in numbers]
    return Annotations(inputs=found.inputs[distinct], rows=torch.tensor(places))


def shares_of(batch: Batch, count: int) -> list[Batch]:
    """Consecutive rows, as few or one more in each share."""
    total = len(batch.person_ids)
    bounds = [total * number // count for number in range(count + 1)]
    return [part_of(batch, range(start, stop)) for start, stop in zip(bounds, bounds[1:])]


def reid5o_case() -> Case:
    """Eleven rows, of which not all have every modality; three combinations are drawn."""
    config = tiny_reid5o_config()
    torch.manual_seed(0)
    model = build_model(Family.REID5O, config, 5)
    initialise(Family.REID5O, model, config)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "lora" in name:
                torch.nn.init.normal_(value, std=0.1)
    generator = torch.Generator().manual_seed(1)
    rows = {
        RGB: torch.arange(11),
        NIR: torch.tensor([0, 1, 2, 5, 6, 8, 9, 10]),
        CP: torch.tensor([0, 1, 4, 7, 8]),
        SK: torch.tensor([0, 1, 2, 3, 7, 8]),
        TEXT: torch.tensor([0, 1, 2, 3, 4, 5, 7, 8, 10]),
    }
    inputs = {
        kind: torch.randint(1, 50, (len(held), 7), generator=generator)
        if kind is TEXT
        else torch.randint(0, 256, (len(held), 3, 32, 16), generator=generator, dtype=torch.uint8)
        for kind, held in rows.items()
    }
    batch = Batch(inputs=inputs, erased={}, person_ids=torch.tensor(LABELS), record_ids=torch.arange(11), rows=rows)
    losses = {"itc": 0.5, "sdm": 2.0, "mm_itc": 1.0, "mm_sdm": 0.25, "mm_supitc": 1.5, "mm_cmpm": 0.75, "id": 3.0}
    objective = Reid5oObjective(Reid5oObjectiveConfig(losses=losses, temperature=0.3, combinations_per_step=5), seed=3)
    return Case(model=model, objective=objective, batch=batch)


def vireid_case() -> Case:
    """Ten rows of two identities and both modalities, one identity and modality after the other."""
    config = VireidConfig(
        depth=18,
        blocks=(1, 1, 1, 1),
        width=4,
        conv_bias=False,
        image_size=(32, 16),
        head_width=8,
        init="random",
        stem="two_stream",
    )
    torch.manual_seed(0)
    model = build_model(Family.VIREID, config, 5)
    initialise(Family.VIREID, model, config)
    generator = torch.Generator().manual_seed(2)
    rows = {NIR: torch.tensor([0, 1, 4, 5, 8, 9]), RGB: torch.tensor([2, 3, 6, 7])}
    inputs = {
        kind: torch.randint(0, 256, (len(held), 3, 32, 16), generator=generator, dtype=torch.uint8)
        for kind, held in rows.items()
    }
    batch = Batch(
        inputs=inputs,
        erased={},
        person_ids=torch.tensor([0, 0, 0, 0, 3, 3, 3, 3, 0, 3]),
        record_ids=torch.arange(10),
        rows=rows,
    )
    losses = dict.fromkeys(("id", "modality_id", "imitation", "triplet", "weighted_triplet"), 1.0)
    return Case(model=model, objective=VireidObjective(VireidObjectiveConfig(losses=losses)), batch=batch)


def irm_case(**options: Any) -> Case:
    """All tasks and all losses, with a queue; nothing is drawn by the layers."""
    model = tiny_irm(gates_at=0.7, dropout=0.0, drop_path=0.0)
    losses = dict.fromkeys(("id", "id_out", "triplet", "triplet_out"), 1.0) | CAPTIONS
    config = IrmObjectiveConfig(losses=losses, queue=7, momentum=0.9, **options)
    return Case(model=model, objective=IrmObjective(config, context_of(model)), batch=batch_of())


def irmpp_case() -> Case:
    """All tasks, both banks and the losses of captions."""
    model = tiny_irm(editing="none", heads_shared=True, dropout=0.0, drop_path=0.0)
    config = IrmppObjectiveConfig(
        losses={"id": 1.0, "soft": 1.0, "hard": 5.0, "contrast": 1.0, "match": 1.0}, unwritten="random"
    )
    return Case(model=model, objective=IrmppObjective(config, context_of(model)), batch=batch_of())


CASES = {"reid5o": reid5o_case, "vireid": vireid_case, "irm": irm_case, "irmpp": irmpp_case}
assert len(MIXED) == 15
