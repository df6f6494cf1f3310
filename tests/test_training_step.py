"""Covers: solver/training/engine, solver/evaluation/encoding, model/build. One real step of each family from files to
weights: its mode, its norms, what a poisoned loss leaves behind, what the seed decides; and an evaluation that leaves
no trace.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from instructed_family import write_captioned, write_data
from official_trees import sysu
from tiny_orbench import write_orbench
from torch import nn

from configs.load import load_experiment
from solver.objectives.base import Objective, StepOutput
from solver.objectives.rows import WHOLE, Rows, Spread
from solver.training.engine import Trainer, assemble, evaluate_job
from solver.training.gradients import Gradients
from solver.training.job import TrainingJob
from utils.checkpoint_io import load_checkpoint
from utils.errors import UserError

pytestmark = pytest.mark.threads(2)

ROOT = Path(__file__).resolve().parent.parent
CPU = torch.device("cpu")
FAMILIES = ("reid5o", "vireid", "irm", "irmpp")
NO_NORMS = {"reid5o"}
"""Families whose norms have no running statistics."""

Make = Callable[..., TrainingJob]


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    roots = {name: tmp_path_factory.mktemp(name) for name in FAMILIES}
    write_orbench(roots["reid5o"])
    sysu(roots["vireid"])
    write_captioned(write_data(roots["irm"]))
    roots["irmpp"] = roots["irm"]
    return roots


@pytest.fixture
def make(roots: dict[str, Path], keep_logging: None) -> Make:
    """Family and overrides -> a job over a small tree."""

    def job(family: str, *overrides: str) -> TrainingJob:
        words = [f"model.tokenizer=bert:{roots[family] / 'words'}", "model.vocab_size=200"]
        own = {
            "reid5o": ["train.batch_size=4"],
            "vireid": ["train.batch_size=4", "train.instances=1"],
            "irm": ["train.batch_size=16", *words, "data.protocols=[lists]"],
            "irmpp": ["train.batch_size=16", *words, "data.protocols=[task-free]"],
        }[family]
        where = [f"data.root={roots[family]}", "data.workers=0"]
        return assemble(load_experiment(ROOT / "configs" / family / "smoke.yaml", [*where, *own, *overrides]), CPU)

    return job


def statistics_of(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.named_buffers() if "running" in name}


def first_batch(job: TrainingJob) -> Any:
    return next(iter(job.loader.epoch(0)))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_step_runs_in_training_mode_and_moves_weights_and_norms(
    family: str, make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make(family, "train.epochs=1", "train.max_steps=2", "train.select=test")
    modes: list[bool] = []
    step = job.objective.step

    def seen(model: Any, batch: Any, number: int) -> StepOutput:
        modes.append(all(module.training for module in model.modules()))
        return step(model, batch, number)

    monkeypatch.setattr(job.objective, "step", seen)
    job.model.eval()
    before = {name: value.detach().clone() for name, value in job.model.named_parameters() if value.requires_grad}
    statistics = statistics_of(job.model)
    Trainer(job, tmp_path).fit()
    assert modes == [True, True]
    after = dict(job.model.named_parameters())
    still = [name for name, value in before.items() if torch.equal(after[name], value)]
    # Experts' factors of modalities of which the two batches had none, and what their zero partners shield.
    assert not [name for name in still if "lora" not in name and "embedding" not in name], still
    moved = [name for name, value in statistics_of(job.model).items() if not torch.equal(value, statistics[name])]
    assert moved == list(statistics) and (family in NO_NORMS) == (not statistics)


class Poisoned(Objective[Any]):
    """Another objective's losses, the first of which is not a number, nor is its gradient."""

    def __init__(self, inner: Objective[Any]) -> None:
        super().__init__()
        self.inner = inner

    def encode(self, model: Any, batch: Any, step: int) -> Rows:
        return self.inner.encode(model, batch, step)

    def terms(self, model: Any, rows: Rows, step: int, spread: Spread = WHOLE) -> StepOutput:
        output = self.inner.terms(model, rows, step, spread)
        name = next(iter(output.losses))
        return dataclasses.replace(output, losses={**output.losses, name: output.losses[name] * math.nan})


@pytest.mark.parametrize("family", FAMILIES)
def test_a_loss_that_is_no_number_leaves_every_weight_bit_for_bit(family: str, make: Make, tmp_path: Path) -> None:
    job = make(family, "train.select=last")
    trainer = Trainer(job, tmp_path)
    job.model.train()
    trainer.train_step([first_batch(job)])
    before = {name: value.detach().clone() for name, value in job.model.named_parameters()}
    poisoned = dataclasses.replace(job, objective=Poisoned(job.objective))
    trainer.gradients = Gradients(poisoned, trainer.scaler, job.processes)
    with pytest.raises(UserError, match="is nan at step 2"):
        trainer.train_step([first_batch(job)])
    gradients = [value.grad for value in job.model.parameters() if value.grad is not None]
    assert any(bool(torch.isnan(gradient).any()) for gradient in gradients), "the term depends on the weights"
    assert all(torch.equal(value, before[name]) for name, value in job.model.named_parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_the_seed_decides_the_first_weights(family: str, make: Make) -> None:
    first, again, other = (make(family, f"seed={seed}", "train.select=last").model.state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(value, again[name]) for name, value in first.items())
    drawn = [
        name for name, value in first.items() if value.is_floating_point() and value.numel() > 1 and value.std() > 0
    ]
    assert drawn and not [name for name in drawn if torch.equal(first[name], other[name])]


@pytest.mark.parametrize("family", FAMILIES)
def test_products_are_exact_in_training(family: str, make: Make) -> None:
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = True
    make(family, "train.select=last")
    assert torch.get_float32_matmul_precision() == "highest" and not torch.backends.cudnn.allow_tf32


def test_an_evaluation_leaves_norms_and_mode_alone_and_does_not_depend_on_batches(make: Make, tmp_path: Path) -> None:
    job = make("vireid", "train.select=test", "eval.batch_size=2")
    assert job.split is not None
    job.model.train()
    Trainer(job, tmp_path).train_step([first_batch(job)])
    before = statistics_of(job.model)
    found = evaluate_job(job, job.split)
    assert all(torch.equal(value, before[name]) for name, value in statistics_of(job.model).items())
    assert all(module.training for module in job.model.modules()), "training goes on"
    job.model.eval()
    config = dataclasses.replace(job.config, eval=dataclasses.replace(job.config.eval, batch_size=7))
    plain = evaluate_job(dataclasses.replace(job, config=config), job.split)
    torch.testing.assert_close(found.ranked.features, plain.ranked.features, rtol=1e-5, atol=1e-6)
    assert [row.metrics for row in found.averages()] == [row.metrics for row in plain.averages()]


def test_what_an_objective_remembers_lies_in_last_alone_and_goes_on_from_there(make: Make, tmp_path: Path) -> None:
    quiet = ("model.dropout=0", "model.drop_path=0", "train.epochs=1", "train.max_steps=2")
    job, other = make("irm", *quiet), make("irm", *quiet, "seed=9")
    Trainer(job, tmp_path).fit()
    last, best = load_checkpoint(tmp_path / "last.pth"), load_checkpoint(tmp_path / "best.pth")
    assert "objective" in last and "objective" not in best
    queued = last["objective"]["captions.queue.person_ids"].tolist()
    assert 0 < sum(person >= 0 for person in queued) < len(queued)
    other.model.load_state_dict(last["model"])
    other.objective.load_state_dict(last["objective"])
    batch, terms = first_batch(job), []
    for model, objective in (
        (job.model, job.objective),
        (other.model, other.objective),
        (other.model, make("irm").objective),
    ):
        model.train()
        with torch.no_grad():
            terms.append(objective.step(model, batch, 2).losses["contrast"].item())
    assert terms[0] == terms[1] != terms[2]


def test_the_mark_of_this_file_gives_it_two_threads() -> None:
    assert torch.get_num_threads() == 2 and os.environ["OMP_NUM_THREADS"] == "2"
