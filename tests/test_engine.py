"""Training on a handful of records: what a step computes, what a run keeps, what stops it."""

import dataclasses
import errno
import json
import logging
import math
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_orbench import write_orbench
from torch import Tensor, nn

import model.layers
from configs.load import build_experiment, load_experiment
from configs.schema.experiment import ExperimentConfig
from configs.schema.train import OptimizerConfig
from configs.vocabulary import Modality
from datasets.structures import Batch, Benchmark, Record
from model.build import build_model
from model.interface import RetrievalModel, Tokens
from solver.commands.train import run_training
from solver.objectives.base import Objective, StepOutput
from solver.training.checkpoint import Progress, take_weights
from solver.training.engine import Trainer, TrainingJob, assemble, grouped
from solver.training.optimizer import build_optimizer
from solver.training.param_groups import Rule, apply_policy
from utils.checkpoint_io import load_checkpoint
from utils.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
SMOKE = str(ROOT / "configs" / "reid5o" / "smoke.yaml")
CPU = torch.device("cpu")
RECORDS, CLASSES, WIDTH = 8, 3, 5


@pytest.fixture(autouse=True)
def keep_logging() -> Iterator[None]:
    """A run configures the root logger; give it back."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    for handler in root.handlers:
        if handler not in handlers:
            handler.close()
    root.handlers, root.level = handlers, level
    logging.captureWarnings(False)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_orbench(tmp_path_factory.mktemp("data"))


def train(data: Path, output: Path, *overrides: str, overwrite: bool = False) -> str:
    """Run the tiny configuration without augmentation."""
    config = load_experiment(
        SMOKE, [f"data.root={data}", f"output_dir={output}", "name=run", "augment.flip=0", *overrides]
    )
    return run_training(config, device="cpu", overwrite=overwrite)


def lines_of(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def weights(run: Path, name: str = "last.pth") -> dict[str, Tensor]:
    return load_checkpoint(run / name)["model"]


def same(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


# Doubles: a linear classifier as model and objective, so that the expected numbers can be written down.


class LinearModel(RetrievalModel):
    """Logits of feature vectors; what the trainer itself needs of a model and no more."""

    def __init__(self) -> None:
        super().__init__()
        self.num_identities, self.embed_dim, self.checkpoint_activations = CLASSES, WIDTH, False
        self.classifier = nn.Linear(WIDTH, CLASSES).requires_grad_(True)

    def encode_batch(self, inputs: Mapping[Modality, Tensor], instructions: Any = None) -> dict[Modality, Tokens]:
        raise AssertionError("the trainer itself encodes nothing")

    def identity_logits(self, features: Tensor) -> Tensor:
        return self.classifier(features)

    def compile_blocks(self, **options: Any) -> None:
        self.classifier.compile(**options)


class IdentityObjective(Objective[Any]):
    """Cross-entropy. poison(step) may replace the value of the term `bad`."""

    def __init__(self, poison: Callable[[int], float] = lambda step: 0.0) -> None:
        super().__init__()
        self.poison = poison
        self.steps: list[int] = []
        self.dtypes: set[torch.dtype] = set()

    def step(self, model: Any, batch: Batch, step: int) -> StepOutput:
        self.steps.append(step)
        logits = model.classifier(batch.inputs[Modality.TEXT])
        self.dtypes.add(logits.dtype)
        loss = nn.functional.cross_entropy(logits, batch.person_ids)
        return StepOutput(
            losses={"id": 2.0 * loss, "bad": loss.new_tensor(self.poison(step))},
            diagnostics={"accuracy": (logits.argmax(1) == batch.person_ids).float().mean()},
        )


class ListLoader:
    """The same batches every epoch."""

    def __init__(self, batches: Sequence[Batch]) -> None:
        self.batches, self.steps_per_epoch, self.skipped = batches, len(batches), ()
        self.records = tuple(Record(person_id=0, sources={}, name=f"picture-{index}") for index in range(RECORDS))

    def epoch(self, epoch: int) -> Iterator[Batch]:
        return iter(self.batches)


def features_and_labels() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    return torch.randn(RECORDS, WIDTH, generator=generator), torch.arange(RECORDS) % CLASSES


def batches_of(sizes: Sequence[int]) -> list[Batch]:
    features, labels = features_and_labels()
    parts = zip(
        features.split(list(sizes)), labels.split(list(sizes)), torch.arange(RECORDS).split(list(sizes)), strict=True
    )
    return [
        Batch(inputs={Modality.TEXT: rows}, erased={}, person_ids=ids, record_ids=records)
        for rows, ids, records in parts
    ]


def linear_job(sizes: Sequence[int], options: Mapping[str, Any] | None = None, objective: Any = None) -> TrainingJob:
    """A job of plain gradient descent at rate 0.5 without a schedule, over one epoch unless `options` say more."""
    chosen = {"epochs": 1, "select": "last", "log_period": 1, **(options or {})}
    config = build_experiment(
        [
            (
                "test",
                {
                    "name": "linear",
                    "train": chosen,
                    "optimizer": {"name": "sgd", "lr": 0.5, "momentum": 0.0, "weight_decay": 0.0},
                    "schedule": {"name": "step", "warmup_epochs": 0, "milestones": []},
                },
            )
        ]
    )
    torch.manual_seed(0)
    model = LinearModel()
    policy = apply_policy(model.named_parameters(), (Rule(r".*", 1.0),), lr=0.5)
    benchmark = Benchmark(name="double", train=(), num_identities=CLASSES, splits={}, fingerprint="00ff")
    return TrainingJob(
        config=config,
        device=CPU,
        benchmark=benchmark,
        model=model,
        objective=objective or IdentityObjective(),
        policy=policy,
        optimizer=build_optimizer(policy.groups, OptimizerConfig(name="sgd", momentum=0.0)),
        loader=ListLoader(batches_of(sizes)),
        split=None,
        reader=lambda source: torch.zeros(1),
        workers=0,
    )


def expected_weights(rate: float = 0.5, steps: int = 1) -> dict[str, Tensor]:
    """Weights after steps over all records, by the closed form of the cross-entropy's gradient."""
    features, labels = features_and_labels()
    torch.manual_seed(0)
    layer = LinearModel().classifier
    weight, bias = layer.weight.detach(), layer.bias.detach()
    for _ in range(steps):
        error = (features @ weight.T + bias).softmax(1) - nn.functional.one_hot(labels, CLASSES)
        weight, bias = weight - rate * 2.0 * error.T @ features / RECORDS, bias - rate * 2.0 * error.mean(0)
    return {"classifier.weight": weight, "classifier.bias": bias}


@pytest.mark.parametrize("sizes", [(8,), (4, 4), (6, 2), (2, 2, 2, 2)])
def test_micro_batches_give_the_gradient_of_the_whole_batch(tmp_path: Path, sizes: tuple[int, ...]) -> None:
    job = linear_job(sizes, {"accumulate": len(sizes), "epochs": 2})
    Trainer(job, tmp_path).fit()
    state = job.model.state_dict()
    for name, value in expected_weights(steps=2).items():
        torch.testing.assert_close(state[name], value, rtol=1e-5, atol=1e-6)
    assert job.objective.steps == [0] * len(sizes) + [1] * len(sizes), "all micro-batches belong to one optimiser step"


def test_logged_terms_are_means_over_rows_and_total_is_their_sum(tmp_path: Path) -> None:
    features, labels = features_and_labels()
    job = linear_job((6, 2), {"accumulate": 2}, IdentityObjective(lambda step: 0.25))
    layer = job.model.classifier
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
    for interval, expected in (
        ("epoch", [0.5 * (1 + math.cos(math.pi * epoch / 4)) / 2 for epoch in (0, 0, 1, 1, 2, 2, 3, 3)]),
        ("step", [0.5 * (1 + math.cos(math.pi * step / 8)) / 2 for step in range(8)]),
    ):
        schedule = dataclasses.replace(job.config.schedule, name="cosine", interval=interval, warmup_epochs=0.0)
        folder = tmp_path / interval
        folder.mkdir()
        Trainer(dataclasses.replace(job, config=dataclasses.replace(job.config, schedule=schedule)), folder).fit()
        assert [line["lr"] for line in lines_of(folder)] == pytest.approx(expected, abs=1e-12)
        assert job.optimizer.param_groups[0]["lr"] == pytest.approx(expected[-1])


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_loss_that_is_not_finite_stops_before_the_update(tmp_path: Path, value: float) -> None:
    job = linear_job((4, 4), {"epochs": 3}, IdentityObjective(lambda step: value if step == 3 else 0.0))
    trainer = Trainer(job, tmp_path)
    with pytest.raises(UserError) as caught:
        trainer.fit()
    text = str(caught.value)
    assert f"loss bad is {value} at step 4" in text
    assert "records picture-4, picture-5, picture-6, picture-7;" in text
    assert trainer.step == 3
    kept = load_checkpoint(tmp_path / "last.pth")
    assert (kept["epoch"], kept["step"]) == (1, 2)
    assert all(bool(torch.isfinite(tensor).all()) for tensor in job.model.state_dict().values())
    assert [line["step"] for line in lines_of(tmp_path)] == [1, 2, 3]


def test_weights_that_are_not_finite_replace_no_checkpoint(tmp_path: Path) -> None:
    job = linear_job((8,))
    trainer = Trainer(job, tmp_path)
    trainer.fit()
    before = (tmp_path / "last.pth").read_bytes()
    with torch.no_grad():
        job.model.classifier.bias[1] = math.nan
    with pytest.raises(UserError, match="after step 1 .*classifier.bias"):
        trainer.save("last.pth", Progress(epoch=1, step=1, selected_on="last", metrics={}))
    assert (tmp_path / "last.pth").read_bytes() == before


def test_full_disk_keeps_the_previous_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = linear_job((8,), {"epochs": 3})
    real, calls = torch.save, []

    def save(value: Any, path: Path) -> None:
        calls.append(path)
        if len(calls) == 2:
            Path(path).write_bytes(b"half of it")
            raise OSError(errno.ENOSPC, "No space left on device")
        real(value, path)

    monkeypatch.setattr(torch, "save", save)
    with pytest.raises(UserError, match="(?i)no space left"):
        Trainer(job, tmp_path).fit()
    assert load_checkpoint(tmp_path / "last.pth")["epoch"] == 1
    assert [path.name for path in tmp_path.glob("*.pth")] == ["last.pth"]
    assert not list(tmp_path.glob("*tmp*")) and not list(tmp_path.glob(".*tmp*"))


@pytest.mark.parametrize(
    "error, expected",
    [
        (
            OSError(errno.ENOSPC, "No space left on device", "metrics.jsonl"),
            "no space left while writing to .*metrics.jsonl",
        ),
        (torch.OutOfMemoryError("CUDA out of memory"), "train.checkpoint_activations=true"),
    ],
)
def test_full_disk_and_full_device_are_told_in_one_sentence(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, expected: str
) -> None:
    def write(self: Any, step: int, values: Any) -> None:
        raise error

    monkeypatch.setattr("utils.log.MetricsWriter.write", write)
    with pytest.raises(UserError, match=expected):
        train(data, tmp_path)
    assert "stopped: " in (tmp_path / "run" / "train.log").read_text()


def test_other_failures_keep_their_traceback(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(self: Any, step: int, values: Any) -> None:
        raise OSError(errno.EIO, "input/output error")

    monkeypatch.setattr("utils.log.MetricsWriter.write", write)
    with pytest.raises(OSError, match="input/output error"):
        train(data, tmp_path)


def test_epoch_without_a_batch_is_an_error(tmp_path: Path) -> None:
    job = linear_job((8,))
    job.loader.batches = []
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


# The whole path: files, loader, model, objective, evaluator.


def test_loss_falls_on_eight_records(data: Path, tmp_path: Path) -> None:
    train(data, tmp_path, "train.epochs=24", "optimizer.lr=0.003", "objective.losses={mm_sdm: 1, id: 1}")
    lines = lines_of(tmp_path / "run")
    assert len(lines) == 24
    assert lines[-1]["total"] < 0.1 * lines[0]["total"]
    assert lines[-1]["batch_rank1/four"] == 100
    assert lines[0]["loss/id"] == pytest.approx(math.log(4), abs=0.05), "equal classes before the first step"


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_follows_float32(data: Path, tmp_path: Path, precision: str) -> None:
    for name in ("fp32", precision):
        train(data, tmp_path, f"name={name}", f"train.precision={name}", "train.epochs=4")
    first, second = (lines_of(tmp_path / name) for name in ("fp32", precision))
    # Later steps need not agree: under fp16 the first may be skipped until the loss scale fits.
    assert second[0]["total"] == pytest.approx(first[0]["total"], rel=0.01)
    assert first[-1]["total"] < first[0]["total"] and second[-1]["total"] < second[0]["total"]
    assert all(value.dtype == torch.float32 for value in weights(tmp_path / precision).values())


def test_run_directory_holds_what_it_should(data: Path, tmp_path: Path) -> None:
    text = train(data, tmp_path)
    run = tmp_path / "run"
    assert {path.name for path in run.iterdir()} == {
        "config.yaml",
        "train.log",
        "metrics.jsonl",
        "tensorboard",
        "last.pth",
        "best.pth",
        "curves.png",
        "outcome.json",
    }
    assert str(run / "best.pth") in text and "selected on last" in text
    log = (run / "train.log").read_text()
    checkpoint = load_checkpoint(run / "best.pth")
    total = sum(value.numel() for value in checkpoint["model"].values())
    for wanted in (
        f"fingerprint {checkpoint['data_fingerprint']}",
        "effective batch 8",
        f"parameters: {total:,} trainable, 0 frozen",
        "device cpu",
        "precision fp32",
        f"torch {torch.__version__.split('+')[0]}",
        "compute threads",
        "initial weights from random",
        "parameter policy",
    ):
        assert wanted in log
    assert (checkpoint["family"], checkpoint["num_identities"], checkpoint["epoch"], checkpoint["step"]) == (
        "reid5o",
        4,
        2,
        2,
    )
    assert load_experiment(run / "config.yaml").data.root == str(data)
    assert checkpoint["config"]["train"]["batch_size"] == 8


def test_same_seed_same_weights(data: Path, tmp_path: Path) -> None:
    options = (
        "augment.flip=0.5",
        "augment.pad_crop=2",
        "augment.erase=0.5",
        "augment.caption_mask=0.3",
        "train.batch_size=4",
    )
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        train(data, tmp_path, *options, f"name={name}", f"seed={seed}")
    assert same(weights(tmp_path / "a"), weights(tmp_path / "b"))
    assert not same(weights(tmp_path / "a"), weights(tmp_path / "c"))


def test_recomputed_activations_train_the_same(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = model.layers.checkpoint, []

    def checkpoint(*arguments: Any, **options: Any) -> Any:
        calls.append(arguments)
        return real(*arguments, **options)

    monkeypatch.setattr(model.layers, "checkpoint", checkpoint)
    train(data, tmp_path, "name=kept")
    assert not calls
    train(data, tmp_path, "name=recomputed", "train.checkpoint_activations=true")
    assert calls
    kept, recomputed = weights(tmp_path / "kept"), weights(tmp_path / "recomputed")
    for name, value in kept.items():
        torch.testing.assert_close(recomputed[name], value, rtol=1e-4, atol=1e-6)


def test_frozen_parameters_do_not_move(data: Path, tmp_path: Path) -> None:
    train(data, tmp_path, r"train.freeze=['text\..*', 'vision\.projection']")
    config = load_experiment(tmp_path / "run" / "config.yaml")
    start = initial_state(config)
    for name, value in weights(tmp_path / "run").items():
        frozen = name.startswith("text.") or name == "vision.projection"
        assert torch.equal(value, start[name]) == frozen or (not frozen and not bool(start[name].any())), name
    moved = [name for name, value in weights(tmp_path / "run").items() if not torch.equal(value, start[name])]
    assert any(name.startswith("fusion.") for name in moved) and any(name.startswith("tokenizers.") for name in moved)


def initial_state(config: ExperimentConfig) -> dict[str, Tensor]:
    job = assemble(config, CPU)
    assert isinstance(job.model, nn.Module)
    return {name: value.clone() for name, value in job.model.state_dict().items()}


@pytest.fixture(scope="module")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("finished")
    train(data, output)
    return output / "run"


def test_init_from_takes_all_weights(data: Path, tmp_path: Path, finished: Path) -> None:
    # The archive named by model.init is absent: the weights of the run make it superfluous.
    config = load_experiment(SMOKE, [f"data.root={data}", f"train.init_from={finished}", "model.init=absent.pt"])
    assert same(initial_state(config), weights(finished, "best.pth"))


def test_init_from_with_other_identities_keeps_a_new_classifier(tmp_path: Path, finished: Path) -> None:
    config = load_experiment(SMOKE)
    torch.manual_seed(3)
    model = build_model(config.family, config.model, 6)
    assert isinstance(model, nn.Module)
    nn.init.constant_(model.classifier.weight, 7.0)
    report = take_weights(model, config.family, str(finished))
    assert "classifier.weight (4, 32) there, (6, 32) here" in report and "classifier.bias" in report
    state, theirs = model.state_dict(), weights(finished, "best.pth")
    assert bool((state.pop("classifier.weight") == 7.0).all())
    del state["classifier.bias"]
    assert all(torch.equal(value, theirs[name]) for name, value in state.items())


@pytest.mark.parametrize(
    "overrides, expected",
    [
        (["train.init_from=absent"], "no such run directory"),
        (["train.init_from={run}", "model.embed_dim=64"], "does not fit"),
        (["train.init_from={run}", "model.lora.enabled=false"], "does not fit"),
    ],
)
def test_init_from_refuses(data: Path, tmp_path: Path, finished: Path, overrides: list[str], expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        train(data, tmp_path, *(text.format(run=finished) for text in overrides))
    assert not (tmp_path / "run").exists()


def test_init_from_of_another_family_is_refused(finished: Path) -> None:
    model = SimpleNamespace(num_identities=4)
    with pytest.raises(UserError, match="of family reid5o, this run of other"):
        take_weights(model, SimpleNamespace(value="other"), str(finished))  # type: ignore[arg-type]


def test_existing_run_is_refused_or_replaced(data: Path, tmp_path: Path) -> None:
    train(data, tmp_path)
    run = tmp_path / "run"
    (run / "notes.txt").write_text("mine")
    (run / "results.json").write_text("{}")
    before = (run / "last.pth").read_bytes()
    with pytest.raises(UserError, match="--overwrite"):
        train(data, tmp_path, "seed=5")
    assert (run / "last.pth").read_bytes() == before
    train(data, tmp_path, "seed=5", "train.epochs=1", overwrite=True)
    assert (run / "notes.txt").read_text() == "mine"
    assert not (run / "results.json").exists()
    assert load_checkpoint(run / "last.pth")["epoch"] == 1
    assert len(list((run / "tensorboard").iterdir())) == 1
    assert (run / "train.log").read_text().count("effective batch") == 1


@pytest.mark.parametrize(
    "override, expected",
    [
        ("data.root=absent", "data root"),
        ("train.freeze=['nothing']", "matches no parameter"),
        ("model.init=absent.pt", "absent.pt"),
        ("optimizer.lr=-1", "optimizer.lr"),
        ("objective.losses={mm_sdn: 1}", "mm_sdm"),
        ("train.init_from=RUN", "itself"),
    ],
)
def test_wrong_input_leaves_the_previous_run_alone(data: Path, tmp_path: Path, override: str, expected: str) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "last.pth").write_text("previous")
    with pytest.raises(UserError, match=expected):
        train(data, tmp_path, override.replace("RUN", str(run)), overwrite=True)
    assert [path.name for path in run.iterdir()] == ["last.pth"]


def test_select_test_is_stamped(data: Path, tmp_path: Path) -> None:
    text = train(data, tmp_path, "train.select=test", "train.eval_period=1")
    run = tmp_path / "run"
    best = load_checkpoint(run / "best.pth")
    assert best["selected_on"] == "test" and "selected on test" in text
    assert load_checkpoint(run / "last.pth")["selected_on"] == "last"
    scores = {line["epoch"]: line["test/ALL_AVER/mAP"] for line in lines_of(run) if "test/ALL_AVER/mAP" in line}
    assert set(scores) == {1, 2}
    assert best["metrics"]["test/ALL_AVER/mAP"] == max(scores.values()) == scores[best["epoch"]]
    groups = [best["metrics"][f"test/{name}_AVER/mAP"] for name in ("ONE", "TWO", "THREE", "FOUR")]
    assert best["metrics"]["test/ALL_AVER/mAP"] == pytest.approx(sum(groups) / 4)


def test_best_is_the_epoch_of_the_highest_score_not_the_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = iter([30.0, 50.0, 40.0, math.nan])

    def evaluate(job: TrainingJob, split: Any) -> Any:
        score = next(scores)
        return SimpleNamespace(
            name="val",
            average=lambda task, metric: score,
            averages=lambda: [SimpleNamespace(task="FOUR_AVER", metrics={"mAP": score, "R1": score})] * 2,
        )

    monkeypatch.setattr("solver.training.engine.evaluate_job", evaluate)
    job = dataclasses.replace(
        linear_job((8,), {"epochs": 7, "eval_period": 2, "select": "val"}), split=SimpleNamespace()
    )
    outcome = Trainer(job, tmp_path).fit()
    assert (outcome.epoch, outcome.score, outcome.selected_on) == (4, 50.0, "val")
    best, last = load_checkpoint(tmp_path / "best.pth"), load_checkpoint(tmp_path / "last.pth")
    assert (best["epoch"], best["step"], last["epoch"]) == (4, 4, 7)
    assert not same(best["model"], last["model"])
    evaluated = [line["epoch"] for line in lines_of(tmp_path) if "val/FOUR_AVER/mAP" in line]
    assert evaluated == [2, 4, 6], "the fourth, after the last epoch, had no number"


def test_validation_split_is_identity_disjoint_and_used(data: Path, tmp_path: Path) -> None:
    train(data, tmp_path, "train.select=val", "data.val_fraction=0.5")
    checkpoint = load_checkpoint(tmp_path / "run" / "best.pth")
    assert (checkpoint["selected_on"], checkpoint["num_identities"]) == ("val", 2)
    assert any(name.startswith("val/") for name in checkpoint["metrics"])


def test_max_steps_ends_the_run(data: Path, tmp_path: Path) -> None:
    train(data, tmp_path, "train.batch_size=2", "train.max_steps=5", "train.epochs=9")
    assert len(lines_of(tmp_path / "run")) == 5
    assert load_checkpoint(tmp_path / "run" / "best.pth")["step"] == 5


@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="torch.compile needs a C++ compiler")
def test_compiled_training_equals_plain_training(data: Path, tmp_path: Path) -> None:
    options = (
        "train.max_steps=2",
        "train.select=last",
        "model.vision_layers=2",
        "model.text_layers=1",
        "model.mmt_depth=1",
    )
    train(data, tmp_path / "plain", *options)
    # The compiler itself, not a double: its options change with its versions.
    train(data, tmp_path / "compiled", *options, "train.compile=true")
    plain, compiled = lines_of(tmp_path / "plain" / "run"), lines_of(tmp_path / "compiled" / "run")
    assert len(plain) == len(compiled) == 2
    for name in ("total", "loss/id", "gradient_norm"):
        assert [line[name] for line in compiled] == pytest.approx([line[name] for line in plain], rel=1e-4)


def test_help_is_quick_and_wrong_arguments_exit_with_2(tmp_path: Path) -> None:
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "train.py", "--help"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "--overwrite" in done.stdout and time.perf_counter() - started < 2.0, "torch is not imported for --help"
    done = subprocess.run(
        [sys.executable, "train.py", "--config", "absent.yaml"], cwd=ROOT, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.strip().splitlines()[-1].startswith("error: no such configuration: absent.yaml")
