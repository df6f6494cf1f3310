"""Covers: solver/training/engine. A step of training, computed by hand: gradients, logged terms, rates, clipping; what
stops a run, which is best.
"""

import dataclasses
import errno
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pytest
import torch
from linear_training import (
    RECORDS,
    IdentityObjective,
    ListLoader,
    expected_weights,
    features_and_labels,
    linear_job,
    lines_of,
    same,
)
from torch import nn

from solver.run_directory import state_files
from solver.training.checkpoint import Progress
from solver.training.engine import Trainer, grouped
from solver.training.job import TrainingJob
from solver.training.state import newest_state
from utils.checkpoint_io import load_checkpoint
from utils.errors import UserError

pytestmark = pytest.mark.usefixtures("keep_logging")


@pytest.mark.parametrize("sizes", [(8,), (4, 4), (6, 2), (2, 2, 2, 2)])
@pytest.mark.parametrize("together", [True, False])
def test_micro_batches_give_the_gradient_of_the_whole_batch(
    tmp_path: Path, sizes: tuple[int, ...], together: bool
) -> None:
    job = linear_job(sizes, {"accumulate": len(sizes), "epochs": 2, "accumulate_features": together})
    Trainer(job, tmp_path).fit()
    state = job.model.state_dict()
    for name, value in expected_weights(steps=2).items():
        torch.testing.assert_close(state[name], value, rtol=1e-5, atol=1e-6)
    times = 1 if together else len(sizes)
    assert job.objective.steps == [0] * times + [1] * times, "all micro-batches belong to one optimiser step"


def test_logged_terms_are_means_over_rows_and_total_is_their_sum(tmp_path: Path) -> None:
    features, labels = features_and_labels()
    job = linear_job((6, 2), {"accumulate": 2}, IdentityObjective(lambda step: 0.25))
    layer = job.model.classifier
    assert isinstance(layer, nn.Linear)
    with torch.no_grad():
        logits = features @ layer.weight.T + layer.bias
        loss = -(logits - logits.logsumexp(1, keepdim=True))[torch.arange(RECORDS), labels].mean().item()
    Trainer(job, tmp_path).fit()
    (line,) = lines_of(tmp_path)
    assert line["loss/id"] == pytest.approx(2 * loss, abs=1e-6)
    assert line["loss/bad"] == 0.25
    assert line["total"] == pytest.approx(2 * loss + 0.25, abs=1e-6)
    assert line["accuracy"] == pytest.approx((logits.argmax(1) == labels).float().mean().item())
    assert (line["step"], line["epoch"], line["lr"]) == (1, 1, 0.5)


def test_last_group_of_an_epoch_may_be_short(tmp_path: Path) -> None:
    job = linear_job((3, 3, 2), {"accumulate": 2, "epochs": 2})
    assert job.steps_per_epoch == 2
    assert Trainer(job, tmp_path).fit().step == 4
    assert [line["step"] for line in lines_of(tmp_path)] == [1, 2, 3, 4]
    assert [len(group) for group in grouped(iter("abcde"), 2)] == [2, 2, 1]  # type: ignore[arg-type]


@pytest.mark.parametrize("precision, tolerance", [("fp32", 1e-4), ("fp16", 1e-2)])
def test_clipping_bounds_the_update(tmp_path: Path, precision: str, tolerance: float) -> None:
    job = linear_job((8,), {"clip_norm": 0.01, "precision": precision})
    before = {name: value.clone() for name, value in job.model.state_dict().items()}
    Trainer(job, tmp_path).fit()
    moved = math.sqrt(
        sum(float((value - before[name]).square().sum()) for name, value in job.model.state_dict().items())
    )
    assert moved == pytest.approx(0.5 * 0.01, rel=1e-3), "the norm is that of the unscaled gradient"
    plain = expected_weights(rate=1.0)
    norm = math.sqrt(sum(float((plain[name] - before[name]).square().sum()) for name in plain))
    assert lines_of(tmp_path)[0]["gradient_norm"] == pytest.approx(norm, rel=tolerance)


def test_rate_of_every_step_follows_the_schedule(tmp_path: Path) -> None:
    job = linear_job((4, 4), {"epochs": 4})
    cases: tuple[tuple[Literal["epoch", "step"], list[float]], ...] = (
        ("epoch", [0.5 * (1 + math.cos(math.pi * epoch / 4)) / 2 for epoch in (0, 0, 1, 1, 2, 2, 3, 3)]),
        ("step", [0.5 * (1 + math.cos(math.pi * step / 8)) / 2 for step in range(8)]),
    )
    for interval, expected in cases:
        schedule = dataclasses.replace(job.config.schedule, name="cosine", interval=interval, warmup_epochs=0.0)
        folder = tmp_path / interval
        folder.mkdir()
        Trainer(dataclasses.replace(job, config=dataclasses.replace(job.config, schedule=schedule)), folder).fit()
        assert [line["lr"] for line in lines_of(folder)] == pytest.approx(expected, abs=1e-12)
        assert job.optimizer.param_groups[0]["lr"] == pytest.approx(expected[-1])


def test_accumulated_steps_run_through_the_whole_schedule(tmp_path: Path) -> None:
    """Five micro-batches by two are three steps an epoch: warm-up in the first epoch, a line to zero in the others."""
    job = linear_job((2, 2, 2, 1, 1), {"epochs": 3, "accumulate": 2})
    schedule = dataclasses.replace(
        job.config.schedule, name="linear", interval="step", warmup_epochs=1.0, warmup_factor=0.1
    )
    Trainer(dataclasses.replace(job, config=dataclasses.replace(job.config, schedule=schedule)), tmp_path).fit()
    expected = [0.05, 0.2, 0.35, *(0.5 * (1 - step / 6) for step in range(6))]
    assert [line["lr"] for line in lines_of(tmp_path)] == pytest.approx(expected, abs=1e-12)


def test_a_run_by_steps_ends_within_an_epoch(tmp_path: Path) -> None:
    """Two steps an epoch: five steps are two epochs and a step; the rate would be zero at the sixth."""
    job = linear_job((4, 4), {"epochs": 1, "steps": 5})
    schedule = dataclasses.replace(
        job.config.schedule, name="linear", interval="step", warmup="during", warmup_steps=2, warmup_factor=0.5
    )
    outcome = Trainer(
        dataclasses.replace(job, config=dataclasses.replace(job.config, schedule=schedule)), tmp_path
    ).fit()
    lines = lines_of(tmp_path)
    assert [line["epoch"] for line in lines] == [1, 1, 2, 2, 3] and (outcome.epoch, outcome.step) == (3, 5)
    expected = [0.5 * factor * (1 - step / 5) for step, factor in enumerate([0.5, 0.75, 1, 1, 1])]
    assert [line["lr"] for line in lines] == pytest.approx(expected, abs=1e-12)
    (tmp_path / "shorter").mkdir()
    job = linear_job((4, 4), {"epochs": 1, "steps": 5, "max_steps": 3})
    assert Trainer(job, tmp_path / "shorter").fit().step == 3


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_loss_that_is_not_finite_stops_before_the_update(tmp_path: Path, value: float) -> None:
    job = linear_job((4, 4), {"epochs": 3}, IdentityObjective(lambda step: value if step == 3 else 0.0))
    trainer = Trainer(job, tmp_path)
    with pytest.raises(UserError) as caught:
        trainer.fit()
    twin = linear_job((4, 4), {"epochs": 3, "max_steps": 3})
    (tmp_path / "twin").mkdir()
    Trainer(twin, tmp_path / "twin").fit()
    assert same(job.model.state_dict(), twin.model.state_dict()), "bit for bit the weights after step 3"
    gradients = [parameter.grad for parameter in job.model.parameters()]
    assert all(bool(torch.isnan(gradient).any()) for gradient in gradients if gradient is not None) and gradients
    text = str(caught.value)
    assert f"loss bad is {value} at step 4" in text
    assert "records picture-4, picture-5, picture-6, picture-7;" in text
    assert trainer.step == 3
    kept = load_checkpoint(tmp_path / "last.pth")
    assert (kept["epoch"], kept["step"]) == (1, 2)
    assert [line["step"] for line in lines_of(tmp_path)] == [1, 2, 3]


def test_weights_that_are_not_finite_replace_no_checkpoint(tmp_path: Path) -> None:
    job = linear_job((8,))
    trainer = Trainer(job, tmp_path)
    trainer.fit()
    before = (tmp_path / "last.pth").read_bytes()
    with torch.no_grad():
        job.model.get_parameter("classifier.bias")[1] = math.nan
    with pytest.raises(UserError, match="after step 1 .*classifier.bias"):
        trainer.save("last.pth", Progress(epoch=1, step=1, selected_on="last", metrics={}))
    assert (tmp_path / "last.pth").read_bytes() == before


@pytest.mark.parametrize(("failing", "states"), [(3, 1), (4, 2)], ids=["state of epoch 2", "last.pth of epoch 2"])
def test_full_disk_keeps_what_was_saved_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int, states: int
) -> None:
    job = linear_job((8,), {"epochs": 3})
    real, calls = torch.save, []

    def save(value: Any, path: Path) -> None:
        calls.append(path)
        if len(calls) == failing:
            Path(path).write_bytes(b"half of it")
            raise OSError(errno.ENOSPC, "No space left on device")
        real(value, path)

    monkeypatch.setattr(torch, "save", save)
    with pytest.raises(UserError, match="(?i)no space left"):
        Trainer(job, tmp_path).fit()
    assert load_checkpoint(tmp_path / "last.pth")["epoch"] == 1
    assert [path.name for path in tmp_path.glob("*.pth")] == ["last.pth"]
    assert not list(tmp_path.rglob("*tmp*")) and not list(tmp_path.rglob(".*tmp*"))
    assert len(state_files(tmp_path)) == states
    monkeypatch.undo()
    again, whole = Trainer(linear_job((8,), {"epochs": 3}), tmp_path), linear_job((8,), {"epochs": 3})
    again.restore(newest_state(tmp_path))
    assert again.step == states
    again.fit()
    (tmp_path / "whole").mkdir()
    Trainer(whole, tmp_path / "whole").fit()
    assert same(again.job.model.state_dict(), whole.model.state_dict())
    assert lines_of(tmp_path)[-1]["step"] == 3 and len(lines_of(tmp_path)) == 3


def test_epoch_without_a_batch_is_an_error(tmp_path: Path) -> None:
    job = dataclasses.replace(linear_job((8,)), loader=ListLoader([]))
    with pytest.raises(UserError, match="epoch 1 had no batch"):
        Trainer(job, tmp_path).fit()


def test_gradient_scaling_of_fp16_changes_nothing_in_float32_arithmetic(tmp_path: Path) -> None:
    job = linear_job((8,), {"precision": "fp16"})
    trainer = Trainer(job, tmp_path)
    assert trainer.scaler.is_enabled()
    trainer.fit()
    assert job.objective.dtypes == {torch.float16}
    for name, value in expected_weights().items():
        # The linear map runs in half precision: three digits.
        torch.testing.assert_close(job.model.state_dict()[name], value, rtol=1e-2, atol=2e-3)
    assert all(value.dtype == torch.float32 for value in job.model.state_dict().values())
    assert lines_of(tmp_path)[0]["loss_scale"] >= 1


def test_best_is_the_epoch_of_the_highest_score_not_the_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = iter([30.0, 50.0, 50.0, math.nan])

    def evaluate(job: TrainingJob, split: Any) -> Any:
        score = next(scores)
        # Rank-1 and the group's own mean have another order.
        rows = {"FOUR_AVER": {"mAP": -score, "R1": 90 - score}, "ALL_AVER": {"mAP": score, "R1": 90 - score}}
        return SimpleNamespace(
            name="val",
            average=lambda task, metric: rows[task][metric],
            averages=lambda: [SimpleNamespace(task=task, metrics=row) for task, row in rows.items()],
        )

    monkeypatch.setattr("solver.training.engine.evaluate_job", evaluate)
    job = dataclasses.replace(
        linear_job((8,), {"epochs": 7, "eval_period": 2, "select": "val"}),
        split=SimpleNamespace(),  # type: ignore[arg-type]
    )
    outcome = Trainer(job, tmp_path).fit()
    # Of equal ones the first.
    assert (outcome.epoch, outcome.score, outcome.selected_on) == (4, 50.0, "val")
    best, last = load_checkpoint(tmp_path / "best.pth"), load_checkpoint(tmp_path / "last.pth")
    assert (best["epoch"], best["step"], last["epoch"]) == (4, 4, 7)
    assert not same(best["model"], last["model"])
    evaluated = [line["epoch"] for line in lines_of(tmp_path) if "val/FOUR_AVER/mAP" in line]
    assert evaluated == [2, 4, 6], "the fourth, after the last epoch, had no number"


@pytest.mark.parametrize(("max_steps", "left"), [(0, "1:00 left"), (7, "0:30 left"), (3, "0:00 left")])
def test_the_time_that_is_left_is_that_of_the_whole_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, max_steps: int, left: str
) -> None:
    """Four of ten steps in 40 s."""
    trainer = Trainer(linear_job([4, 4], {"epochs": 5, "max_steps": max_steps}), tmp_path)
    trainer.step, said = 4, list[str]()
    monkeypatch.setattr("solver.training.engine.log_short", lambda short, full: said.append(short))
    monkeypatch.setattr("solver.training.engine.time.perf_counter", lambda: trainer.started + 40.0)
    trainer.log_step(1, {"total": 1.0, "lr": 0.5, "images_per_second": 2.0})
    assert said == [f"epoch 2/5 step 4: total 1 lr 0.5 2 images/s, {left}"]
