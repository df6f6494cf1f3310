"""Training by doubles: a linear classifier as model and objective, so that the expected numbers can be written down."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from configs.load import build_experiment
from configs.schema.train import OptimizerConfig
from configs.vocabulary import Modality
from datasets.loading.readers import PillowReader, SourceReader
from datasets.structures import Batch, Benchmark, Record
from model.interface import RetrievalModel, Tokens
from solver.objectives.base import Objective, StepOutput
from solver.objectives.rows import WHOLE, Rows, Spread
from solver.training.job import TrainingJob
from solver.training.optimizer import build_optimizer
from solver.training.param_groups import Rule, apply_policy

CPU = torch.device("cpu")
RECORDS, CLASSES, WIDTH = 8, 3, 5


def lines_of(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def same(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


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

    def encode(self, model: Any, batch: Batch, step: int) -> Rows:
        return Rows(features={"rows": batch.inputs[Modality.TEXT]}, facts={"labels": batch.person_ids})

    def terms(self, model: Any, rows: Rows, step: int, spread: Spread = WHOLE) -> StepOutput:
        self.steps.append(step)
        logits, labels = model.classifier(rows.features["rows"]), rows.facts["labels"]
        self.dtypes.add(logits.dtype)
        loss = nn.functional.cross_entropy(logits, labels)
        return StepOutput(
            # The value is the poison's, the gradient is not a number where the poison is none.
            losses={"id": 2.0 * loss, "bad": self.poison(step) * (1.0 + 0.0 * logits.float().sum())},
            diagnostics={"accuracy": (logits.argmax(1) == labels).float().mean()},
        )


class ListLoader:
    """The same batches every epoch."""

    def __init__(self, batches: Sequence[Batch]) -> None:
        self.batches, self.steps_per_epoch, self.skipped = batches, len(batches), ()
        self.records = tuple(Record(person_id=0, sources={}, name=f"picture-{index}") for index in range(RECORDS))

        self.position = (0, 0)

    def epoch(self, epoch: int) -> Iterator[Batch]:
        first = self.position[1] if self.position[0] == epoch else 0
        for number, batch in enumerate(self.batches[first:], start=first + 1):
            self.position = (epoch, number) if number < len(self.batches) else (epoch + 1, 0)
            yield batch

    def state_dict(self) -> dict[str, Any]:
        return {"position": self.position}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.position = state["position"]


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
        reader=SourceReader(PillowReader((1, 1))),
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
