"""Covers: solver/objectives/irmpp, configs/schema/irmpp. IRM++'s objective: both types of rows, the banks and when they
are written, every term against one composed by hand, what is refused.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from irm_batches import MIXED, RGB, annotation, batch_of, context_of, encoded
from tiny_irm import tiny_irm
from torch import Tensor
from torch.nn import functional

from configs.load import build_experiment
from configs.schema.irmpp import IrmppObjectiveConfig
from configs.vocabulary import Modality, Task
from model.irm import IRM
from solver.losses.triplet import batch_hard_triplet_loss
from solver.objectives.irmpp import IrmppObjective
from utils.errors import UserError

BANKED = {"soft": 1.0, "hard": 5.0}
LABELS = torch.tensor([row[2] for row in MIXED])
CAPTIONED = torch.tensor([row[0] is Task.T2I for row in MIXED])


def model_of(**options: Any) -> IRM:
    return tiny_irm(editing="none", heads_shared=True, **options)


def objective_of(model: IRM, losses: dict[str, float], **options: Any) -> IrmppObjective:
    return IrmppObjective(IrmppObjectiveConfig(losses=losses, **options), context_of(model))


def image_order() -> list[int]:
    """The rows of the batch in the order in which banks are written: by modality."""
    batch = batch_of()
    return [place for modality in Modality if modality in batch.rows for place in batch.rows[modality].tolist()]


def features_of(model: IRM, seed: int = 0) -> Tensor:
    """What retrieval compares, row by row: instructed rows with their instruction, the others alone."""
    batch = batch_of(seed=seed)
    return torch.stack([encoded(model, batch, place)[:16] for place in range(len(MIXED))])


def annotations_of(model: IRM, seed: int = 0) -> Tensor:
    batch = batch_of(seed=seed)
    return torch.stack([annotation(model, batch, place) for place in range(len(MIXED))])


def last_of_each(values: Tensor) -> dict[int, Tensor]:
    return {int(LABELS[place]): values[place] for place in image_order()}


def by_hand(
    model: IRM, temperature: float, target_temperature: float, seeds: tuple[int, int] = (0, 1)
) -> tuple[Tensor, Tensor]:
    """Soft and hard of each row of the second batch against what the first one wrote: all seven persons but none."""
    slots, told = last_of_each(features_of(model, seeds[0])), last_of_each(annotations_of(model, seeds[0]))
    persons = sorted(slots)
    bank, told_bank = torch.stack([slots[person] for person in persons]), torch.stack([told[p] for p in persons])
    rows, asked = features_of(model, seeds[1]), annotations_of(model, seeds[1])
    cosines = functional.cosine_similarity(rows[:, None], bank[None], dim=2)
    log_q = (cosines / temperature).log_softmax(dim=1)
    p = (functional.cosine_similarity(asked[:, None], told_bank[None], dim=2) / target_temperature).softmax(dim=1)
    own = torch.tensor([persons.index(int(label)) for label in LABELS])
    return (p * (p.log() - log_q)).sum(dim=1), functional.nll_loss(log_q, own, reduction="none")


@torch.no_grad()
def test_banks_are_compared_as_they_were_and_written_after_the_loss() -> None:
    model = model_of()
    objective = objective_of(model, BANKED, temperature=0.3, target_temperature=0.7)
    first = objective.step(model, batch_of(), 0)
    assert {name: value.item() for name, value in first.losses.items()} == {"soft": 0.0, "hard": 0.0}
    assert objective.features is not None and objective.annotations is not None
    slots, told = last_of_each(features_of(model)), last_of_each(annotations_of(model))
    for person in range(7):
        assert bool(objective.features.written[person]) == (person in slots)
        torch.testing.assert_close(objective.features.rows[person], slots[person], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(objective.annotations.rows[person], told[person], rtol=1e-4, atol=1e-4)
    second = objective.step(model, batch_of(seed=1), 1)
    soft, hard = by_hand(model, 0.3, 0.7)
    assert second.losses["soft"].item() == pytest.approx(soft.mean().item(), rel=1e-3)
    assert second.losses["hard"].item() == pytest.approx(5 * hard.mean().item(), rel=1e-3)
    assert second.diagnostics["bank_written"].item() == 100
    assert second.diagnostics["instructed"].item() == pytest.approx(100 * sum(row[4] for row in MIXED) / len(MIXED))


@torch.no_grad()
def test_options_of_the_banks() -> None:
    """The printed sign, the tasks whose annotations vary, and random slots that count from the first step."""
    model = model_of()
    soft, hard = by_hand(model, 0.05, 0.05)
    varied = torch.tensor([row[0] in (Task.CTCC, Task.LI, Task.T2I) for row in MIXED])
    for options, expected in (
        ({"sign": "printed"}, (-soft.mean(), -hard.mean())),
        ({"soft_tasks": "varied"}, (soft[varied].mean(), hard.mean())),
    ):
        objective = objective_of(model, {"soft": 1.0, "hard": 1.0}, **options)
        objective.step(model, batch_of(), 0)
        found = objective.step(model, batch_of(seed=1), 1).losses
        assert found["soft"].item() == pytest.approx(expected[0].item(), rel=1e-3), options
        assert found["hard"].item() == pytest.approx(expected[1].item(), rel=1e-3), options
    printed = objective_of(model, BANKED, unwritten="random").step(model, batch_of(), 0).losses
    assert printed["soft"].item() > 0 and printed["hard"].item() > 0


@torch.no_grad()
def test_a_row_whose_own_slot_is_unwritten_takes_no_part() -> None:
    model = model_of()
    objective = objective_of(model, {"hard": 1.0})
    objective.step(model, batch_of([row for row in MIXED if row[2] < 2]), 0)
    assert objective.features is not None and objective.annotations is None
    assert objective.features.written.tolist() == [True, True, *[False] * 5]
    bank = objective.features.rows[:2].clone()
    found = objective.step(model, batch_of(), 1).losses["hard"].item()
    rows = features_of(model)[LABELS < 2]
    scores = functional.cosine_similarity(rows[:, None], bank[None], dim=2) / 0.05
    assert found == pytest.approx(functional.cross_entropy(scores, LABELS[LABELS < 2]).item(), rel=1e-3)


@torch.no_grad()
def test_both_types_share_neck_and_classifier() -> None:
    model = model_of()
    found = objective_of(model, {"id": 2.0}).step(model, batch_of(), 0).losses["id"].item()
    logits = model.classifier(model.neck(features_of(model)))
    assert found == pytest.approx(2 * functional.cross_entropy(logits, LABELS).item(), rel=1e-3)


@torch.no_grad()
def test_the_feature_behind_the_neck() -> None:
    model = model_of(feature="neck")
    objective = objective_of(model, {"hard": 1.0})
    objective.step(model, batch_of(), 0)
    assert objective.features is not None
    slots = last_of_each(features_of(model))
    torch.testing.assert_close(objective.features.rows, torch.stack([slots[p] for p in range(7)]), rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_irm_star_has_a_triplet_of_the_retrieval_feature_without_captioned_rows() -> None:
    model = model_of()
    objective = objective_of(model, {"triplet": 3.0}, triplet="plain", margin=0.5)
    assert objective.features is None and not objective.state_dict()
    output = objective.step(model, batch_of(), 0)
    features, total = features_of(model), 0.0
    for task in (Task.TRAD, Task.CTCC, Task.VI):
        places = [place for place, row in enumerate(MIXED) if row[0] is task]
        total += len(places) * batch_hard_triplet_loss(features[places], LABELS[places], margin=0.5).item()
    assert output.losses["triplet"].item() == pytest.approx(3 * total / int((~CAPTIONED).sum()), rel=1e-3)
    captions = objective.step(model, batch_of([row for row in MIXED if row[0] is Task.T2I]), 0)
    assert captions.losses["triplet"].item() == 0


def test_gradients_reach_the_network_through_the_rows_alone() -> None:
    model = model_of().train()
    objective = objective_of(model, BANKED | {"id": 1.0, "contrast": 1.0})
    objective.step(model, batch_of(), 0)
    objective.step(model, batch_of(seed=1), 1).total.backward()
    for name in ("image.embed.proj.weight", "attention.blocks.0.attn.qkv.weight", "classifier.weight"):
        assert model.get_parameter(name).grad is not None, name
    assert not any(value.requires_grad for value in objective.buffers())
    assert set(objective.state_dict()) == {
        f"{bank}.{part}" for bank in ("features", "annotations") for part in ("rows", "written")
    }


def test_rows_without_an_annotation_are_refused_by_soft_alone() -> None:
    model = model_of()
    bare = batch_of([*MIXED, (Task.CC, RGB, 0, -1, False)])
    with pytest.raises(UserError, match="soft compares annotations, and a row of task cc has none"):
        objective_of(model, BANKED).step(model, bare, 0)
    objective_of(model, {"hard": 1.0}).step(model, bare, 0)


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"model": {"heads_shared": False}}, "model.heads_shared"),
        ({"model": {"heads_shared": True, "attention": "none"}}, "model.attention"),
        ({"instruction": {"typing": "all"}}, "instruction.typing = 'all': must be coin"),
        ({"instruction": {"typing": "lists"}}, "instruction.typing = 'lists': must be coin"),
        ({"objective": {"losses": {"triplet": 1.0}}, "train": {"instances": 1}}, "train.instances"),
        (
            {"objective": {"losses": {"triplet": 1.0}}, "train": {"sampler": "tasks", "task_instances": {"cc": 1}}},
            "train.task_instances",
        ),
        ({"objective": {"losses": {"triplet": 1.0}}, "train": {"sampler": "random"}}, "train.sampler"),
        ({"objective": {"temperature": 0.0}}, "objective.temperature"),
        ({"objective": {"target_temperature": -1.0}}, "objective.target_temperature"),
        ({"objective": {"xi": -1.0}}, "objective.xi"),
        ({"objective": {"margin": -1.0}}, "objective.margin"),
        ({"objective": {"losses": {}}}, "objective.losses"),
    ],
)
def test_sections_that_cannot_be_are_refused_by_their_key(changes: dict[str, Any], key: str) -> None:
    least = {"family": "irmpp", "model": {"heads_shared": True}, "instruction": {"typing": "coin"}}
    sections: dict[str, Any] = {**least, "train": {"sampler": "identity"}}
    for name, values in changes.items():
        sections[name] = {**sections.get(name, {}), **values}
    with pytest.raises(UserError, match=key):
        build_experiment([("table", sections)])
    build_experiment([("table", least)])


def test_the_defaults_are_the_papers() -> None:
    """Eq. 14 with beta 5; not as printed are sign, temperature, one-hot and unwritten slots."""
    config = IrmppObjectiveConfig()
    assert config.losses == {"id": 1.0, "soft": 1.0, "hard": 5.0, "contrast": 1.0}
    assert (config.soft_tasks, config.centre, config.target_temperature) == ("all", False, None)
    assert (config.sign, config.temperature, config.hard_target, config.unwritten) == (
        "divergence", 0.05, "one-hot", "masked",
    )  # fmt: skip
