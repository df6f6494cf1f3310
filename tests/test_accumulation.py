"""Covers: solver/training/gradients, solver/objectives/rows. The gradient of micro-batches is that of one batch."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from linear_training import IdentityObjective, linear_job
from shares import CASES, Case, irm_case, shares_of
from torch import Tensor, nn

from configs.schema.train import TrainConfig
from configs.schema.vireid import VireidObjectiveConfig
from datasets.structures import Batch
from solver.objectives.rows import WHOLE, Rows, joined
from solver.training.engine import Trainer
from solver.training.gradients import Gradients, InTurns, StepValues, part_gradients
from solver.training.job import accumulation_notes
from utils.errors import UserError

pytestmark = pytest.mark.threads(2)


def gradients_of(case: Case, batches: list[Batch], step: int = 2, **options: Any) -> StepValues:
    """The pass of a trainer that has a case's model and objective; gradients lie in the model."""
    job = linear_job((8,), {"accumulate": len(batches), **options})
    job = dataclasses.replace(job, model=case.model, objective=case.objective)
    return Gradients(job, torch.amp.GradScaler("cpu", enabled=False))(batches, step)


def found_in(model: nn.Module) -> dict[str, Tensor | None]:
    return {name: None if value.grad is None else value.grad.clone() for name, value in model.named_parameters()}


def norms_at_rest(case: Case) -> Case:
    """Norms that features pass take part with the statistics that they have."""
    for module in case.model.train().modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    return case


@pytest.mark.parametrize("family", list(CASES))
@pytest.mark.parametrize("count", [2, 3])
def test_micro_batches_have_the_losses_and_the_gradient_of_one_batch(family: str, count: int) -> None:
    one, many = norms_at_rest(CASES[family]()), norms_at_rest(CASES[family]())
    expected = one.objective.step(one.model, one.batch, 2)
    expected.total.backward()
    found = gradients_of(many, shares_of(many.batch, count))
    assert found.losses == list(expected.losses) and found.diagnostics == list(expected.diagnostics)
    for name, number, wanted in zip(found.losses, found.values[0], expected.losses.values()):
        assert number == pytest.approx(wanted.item(), rel=1e-5, abs=1e-6), name
    wanted_gradients = found_in(one.model)
    size = torch.stack([value.norm() for value in wanted_gradients.values() if value is not None]).norm()
    for name, gradient in found_in(many.model).items():
        wanted_one = wanted_gradients[name]
        assert (gradient is None) == (wanted_one is None), name
        if gradient is not None and wanted_one is not None:
            assert float((gradient - wanted_one).norm() / size) < 1e-5, name
    # Queues, banks, copies and the statistics of necks move once, as they do for one batch.
    for module, other in ((one.objective, many.objective), (one.model, many.model)):
        buffers = dict(other.named_buffers()) | dict(other.named_parameters())
        for name, value in {**dict(module.named_buffers()), **dict(module.named_parameters())}.items():
            torch.testing.assert_close(buffers[name], value, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("count", [1, 2])
def test_the_weight_of_a_loss_rises_in_a_line(count: int) -> None:
    """Batches at once and in shares: halfway between the two steps it is half, before 0, after them whole."""
    found = {}
    for rise, step in (((0, 0), 2), ((4, 8), 6), ((4, 8), 4), ((4, 8), 3), ((4, 8), 8), ((4, 8), 9)):
        case = norms_at_rest(CASES["vireid"]())
        job = linear_job((8,), {"accumulate": count})
        config = dataclasses.replace(
            job.config,
            objective=VireidObjectiveConfig(losses={"id": 1.0, "triplet": 1.0}, ramps={"triplet": rise}),
        )
        job = dataclasses.replace(job, config=config, model=case.model, objective=case.objective)
        batches = shares_of(case.batch, count) if count > 1 else [case.batch]
        values = Gradients(job, torch.amp.GradScaler("cpu", enabled=False))(batches, step)
        found[rise, step] = dict(zip(values.losses, values.values[0]))
    whole = found[(0, 0), 2]
    assert whole["triplet"] > 0.1
    for step, share in ((3, 0.0), (4, 0.0), (6, 0.5), (8, 1.0), (9, 1.0)):
        losses = found[(4, 8), step]
        assert losses["triplet"] == pytest.approx(share * whole["triplet"]) and losses["id"] == whole["id"]


def test_without_features_it_is_the_mean_of_the_micro_batches() -> None:
    parts, gradients = shares_of(CASES["reid5o"]().batch, 2), []
    for part in parts:
        alone = CASES["reid5o"]()
        (alone.objective.step(alone.model.train(), part, 2).total * len(part.person_ids) / 11).backward()
        gradients.append(found_in(alone.model)["classifier.weight"])
    case = CASES["reid5o"]()
    case.model.train()
    found = gradients_of(case, parts, accumulate_features=False)
    first, second = gradients
    assert first is not None and second is not None
    torch.testing.assert_close(case.model.get_parameter("classifier.weight").grad, first + second)
    assert len(found.values) == 2 and sum(found.shares) == 1


def test_norms_below_the_features_see_micro_batches_and_count_each_once() -> None:
    one, many = CASES["vireid"](), CASES["vireid"]()
    parts = shares_of(one.batch, 2)
    for part in parts:
        one.objective.encode(one.model.train(), part, 0)
    many.model.train()
    gradients_of(many, parts)
    own = dict(many.model.named_buffers())
    counted = {name: value for name, value in one.model.named_buffers() if name.startswith("backbone")}
    assert len(counted) > 9
    for name, value in counted.items():
        torch.testing.assert_close(own[name], value, msg=name)


def test_the_second_pass_draws_what_the_first_drew_and_the_next_step_draws_on() -> None:
    """Dropout of the layers: the gradient is that of the features that the losses saw."""
    case = irm_case()
    for module in case.model.train().modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.4
    parts, encode, seen = shares_of(case.batch, 2), case.objective.encode, list[dict[str, Tensor]]()
    states: list[Tensor] = []

    def watched(model: Any, batch: Batch, step: int) -> Rows:
        states.append(torch.get_rng_state())
        rows = encode(model, batch, step)
        seen.append({name: value.detach().clone() for name, value in rows.columns().items()})
        return rows

    object.__setattr__(case.objective, "encode", watched)
    gradients_of(case, parts)
    after = torch.rand(3)
    assert len(seen) == 4
    for first, again in zip(seen[:2], seen[2:], strict=True):
        assert all(torch.equal(again[name], value) for name, value in first.items()) and first
    torch.set_rng_state(states[0])
    with torch.no_grad():
        for part, before in zip(parts, seen):
            drawn = encode(case.model, part, 2).features
            assert all(torch.equal(value, before[name]) for name, value in drawn.items())
    assert torch.equal(torch.rand(3), after)
    with torch.no_grad():
        assert not torch.equal(encode(case.model, parts[0], 2).features["caption text"], seen[0]["caption text"])


def test_an_expensive_term_is_computed_in_turns() -> None:
    weight, rows = torch.randn(3, 3, requires_grad=True), torch.randn(7, 3)
    asked: list[tuple[int, int]] = []

    def compute(part: slice) -> Tensor:
        asked.append((part.start, part.stop))
        return (rows[part] @ weight).tanh()

    plain = WHOLE.rows(7, compute)
    (expected,) = torch.autograd.grad(plain.square().sum(), weight)
    assert asked == [(0, 7)]
    asked.clear()
    found = InTurns(3).rows(7, compute)
    torch.testing.assert_close(found, plain)
    (gradient,) = torch.autograd.grad(found.square().sum(), weight)
    torch.testing.assert_close(gradient, expected)
    assert sorted(asked) == [(0, 2), (0, 2), (2, 4), (2, 4), (4, 7), (4, 7)], "again in the backward pass"
    assert InTurns(4).rows(2, compute).shape == (2, 3) and InTurns(2).rows(0, compute).shape == (0, 3)


def test_shares_are_joined_and_what_refers_to_rows_counts_on() -> None:
    first = Rows(
        features={"a": torch.ones(2, 3), "b": torch.zeros(1)},
        facts={"which": torch.tensor([1, -1])},
        refers={"which": "a"},
    )
    second = Rows(features={"a": torch.zeros(1, 3)}, facts={"which": torch.tensor([0, 0])}, refers={"which": "a"})
    whole = joined([first, second, first])
    assert whole.features["a"][:, 0].tolist() == [1, 1, 0, 1, 1] and whole.count("b") == 2 and whole.count("c") == 0
    assert whole.facts["which"].tolist() == [1, -1, 2, 2, 4, -1]


def test_what_the_losses_see_is_said() -> None:
    network, linear = CASES["vireid"]().model, nn.Linear(1, 1)
    assert accumulation_notes(TrainConfig(), network) == []
    (said,) = accumulation_notes(TrainConfig(accumulate=3), network)
    assert "all 3 micro-batches of a step together; " in said and "batch norms below the features" in said
    assert accumulation_notes(TrainConfig(accumulate=3), linear)[0].endswith("together")
    (plain,) = accumulation_notes(TrainConfig(accumulate=3, accumulate_features=False), network)
    assert plain == "the losses see one micro-batch at a time (train.accumulate_features=false)"


def test_a_loss_that_is_no_number_names_the_records_of_all_micro_batches(tmp_path: Path) -> None:
    job = linear_job((4, 4), {"accumulate": 2}, IdentityObjective(lambda step: float("nan")))
    with pytest.raises(UserError, match="picture-0, .* and 3 more"):
        Trainer(job, tmp_path).fit()


def test_gradients_that_torch_lets_share_memory_are_parted() -> None:
    """A token and its position over a batch of one: torch's own sum of two backward passes is three times the first."""
    token, position, rest = (nn.Parameter(torch.zeros(1, size, 2)) for size in (1, 1, 3))
    model = nn.ParameterList([token, position, rest])

    def backward() -> None:
        tokens = torch.cat([token.expand(1, -1, -1), torch.ones(1, 3, 2)], dim=1)
        (tokens + torch.cat([position, rest], dim=1)).mul(torch.tensor([1.0, 2.0])).sum().backward()
        part_gradients(model)

    backward()
    backward()
    for parameter in (token, position):
        assert parameter.grad is not None and parameter.grad.tolist() == [[[2.0, 4.0]]]
