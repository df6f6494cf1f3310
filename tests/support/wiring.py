"""An experiment assembled and run in small, together with what was given to the functions where options act."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from configs.load import build_experiment
from configs.schema.experiment import FAMILIES, ExperimentConfig
from configs.vocabulary import Family, Modality, Task
from datasets.loading.record_dataset import Row
from datasets.loading.tokenizers import TOKENIZERS, TextReader
from datasets.structures import Batch, Source
from solver.evaluation.result import EvaluationResult
from solver.training.engine import Trainer, assemble

SEAMS = (
    "datasets.build.build_cache",
    "datasets.loading.loaders.DataLoader",
    "datasets.loading.record_dataset.mask_caption",
    "datasets.loading.transforms._erase_box",
    "datasets.loading.transforms._filled",
    "datasets.loading.transforms.jitter_colours",
    "model.layers.checkpoint",
    "model.weights.clip.load_clip",
    "solver.evaluation.encoding.TokenCache",
    "solver.evaluation.encoding.autocast",
    "solver.evaluation.encoding.source_loader",
    "solver.evaluation.evaluator.relevance_of",
    "solver.evaluation.ranking.evaluate_features",
    "solver.evaluation.ranking.rerank_distances",
    "solver.objectives.base.model_input",
    "solver.objectives.caption_terms.hide_pieces",
    "solver.objectives.caption_terms.masked_language_loss",
    "solver.objectives.irm.identity_loss",
    "solver.objectives.irm.literal_adaptive_triplet_loss",
    "solver.objectives.irmpp.bank_losses",
    "solver.objectives.reid5o.sdm_loss",
    "solver.objectives.vireid.batch_hard_triplet_loss",
    "solver.objectives.vireid.identity_loss",
    "solver.objectives.vireid.imitation_loss",
    "solver.training.engine.StateFiles",
    "solver.training.engine.Trainer.log_step",
    "solver.training.engine.Trainer.train_step",
    "solver.training.engine.evaluate_job",
    "solver.training.engine.moving_average",
    "solver.training.engine.plan_threads",
    "solver.training.engine.seed_everything",
    "solver.training.gradients.autocast",
    "solver.training.gradients.joined",
    "torch.nn.utils.clip_grad_norm_",
)
"""Functions whose arguments are written down while they do what they always do."""

SILENT = ("solver.training.job.require_compiler", "model.reid5o.ReID5o.compile_blocks")
"""Written down and not called: a compiler takes half a minute."""


RGB, NIR, TEXT = Modality.RGB, Modality.NIR, Modality.TEXT


@dataclass
class Assembled:
    """A job that ran, if it was to, and what was seen on the way."""

    job: Any
    """solver.training.job.TrainingJob"""
    folder: Path
    calls: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """Last part of a seam's name -> the arguments of every call by name."""

    def given(self, seam: str, argument: str) -> Any:
        """The argument of all calls of a seam, which must be one and the same."""
        values = [call[argument] for call in self.calls[seam]]
        assert values and all(value == values[0] for value in values), f"{seam}({argument}): {values}"
        return values[0]

    def module(self, name: str) -> Any:
        return self.job.model.get_submodule(name)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.job.model.state_dict()[name].shape)

    def group(self, parameter: str) -> dict[str, Any]:
        """What the optimiser does with a parameter."""
        (found,) = [group for group in self.job.optimizer.param_groups if parameter in group["names"]]
        return found

    @property
    def state(self) -> Mapping[str, Tensor]:
        return self.job.model.state_dict()

    @property
    def results(self) -> list[EvaluationResult]:
        return [call["returned"] for call in self.calls["evaluate_job"]]

    @property
    def evaluated_after(self) -> list[int]:
        """The epochs that an evaluation followed."""
        text = (self.folder / "metrics.jsonl").read_text(encoding="utf-8")
        return [line["epoch"] for line in map(json.loads, text.splitlines()) if "lr" not in line]

    @property
    def batches(self) -> list[list[Batch]]:
        """The micro-batches of every step."""
        return [call["batches"] for call in self.calls["train_step"]]

    @property
    def lines(self) -> list[dict[str, Any]]:
        text = (self.folder / "metrics.jsonl").read_text(encoding="utf-8")
        return [line for line in map(json.loads, text.splitlines()) if "lr" in line]

    @functools.cached_property
    def read(self) -> list[Row]:
        """Training rows of four epochs as the loader's data set reads them."""
        dataset = self.job.loader._loader.dataset
        found = [dataset[(epoch, index)] for epoch in range(4) for index in range(len(dataset))]
        return [row for row in found if isinstance(row, Row)]


class Words:
    """Stands for BERT's word pieces, whose library takes seconds to import."""

    vocab_size, pad_id, mask_id, start_id, end_id, ordinary_ids = 100, 0, 1, 2, None, range(3, 100)

    def __init__(self, vocab: str) -> None:
        self.vocab = vocab

    def encode(self, text: str) -> list[int]:
        return [3 + len(word) for word in text.split()]

    def __call__(self, text: str, length: int) -> Tensor:
        ids = [self.start_id, *self.encode(text)][:length]
        return torch.tensor(ids + [self.pad_id] * (length - len(ids)))


def seam_name(place: str) -> str:
    return "encoding" if place == "solver.evaluation.encoding.autocast" else place.rpartition(".")[2]


def watch(patch: pytest.MonkeyPatch, place: str, calls: dict[str, list[dict[str, Any]]], silent: bool) -> None:
    """Write down the arguments of a function, defaults included."""
    parts = place.split(".")
    # A class is a part that begins with a capital; the last part is the function.
    depth = next((number for number, part in enumerate(parts[:-1]) if part[0].isupper()), len(parts) - 1)
    owner: Any = importlib.import_module(".".join(parts[:depth]))
    for part in parts[depth:-1]:
        owner = getattr(owner, part)
    original, signature = getattr(owner, parts[-1]), inspect.signature(getattr(owner, parts[-1]))

    def call(*positional: Any, **named: Any) -> Any:
        bound = signature.bind(*positional, **named)
        bound.apply_defaults()
        # What a function takes as **options is listed among its arguments.
        seen = {**bound.arguments, **bound.arguments.get("kwargs", {})}
        calls.setdefault(seam_name(place), []).append(seen)
        seen["returned"] = None if silent else original(*positional, **named)
        return seen["returned"]

    patch.setattr(owner, parts[-1], call)


def nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """`{"model.lora.rank": 3}` -> `{"model": {"lora": {"rank": 3}}}`."""
    tree: dict[str, Any] = {}
    for key, value in values.items():
        *sections, name = key.split(".")
        node = tree
        for section in sections:
            node = node.setdefault(section, {})
        node[name] = value
    return tree


def assembled(family: str, values: Mapping[str, Any], folder: Path, *, fit: bool) -> Assembled:
    """Build a job from `key -> value` as train.py would, and train it."""
    config = build_experiment([("table", {"family": family, **nested({"output_dir": str(folder), **values})})])
    calls: dict[str, list[dict[str, Any]]] = {}
    with pytest.MonkeyPatch.context() as patch:
        for place in (*SEAMS, *SILENT):
            watch(patch, place, calls, place in SILENT)
        patch.setitem(TOKENIZERS, "bert", lambda argument, length: TextReader(Words(argument), length))
        found = Assembled(assemble(config, torch.device("cpu")), folder, calls)
        if fit:
            Trainer(found.job, folder).fit()
        else:
            found.read
    return found


def keys_of(kind: type, prefix: str = "") -> dict[str, Any]:
    """`key -> default` of every option of a section, sections in it included; no default = None."""
    found: dict[str, Any] = {}
    for entry in dataclasses.fields(kind):
        default = entry.default_factory() if entry.default_factory is not dataclasses.MISSING else entry.default
        if dataclasses.is_dataclass(default) and not isinstance(default, type):
            found |= keys_of(type(default), f"{prefix}{entry.name}.")
        else:
            found[f"{prefix}{entry.name}"] = None if default is dataclasses.MISSING else default
    return found


def schema_keys(family: Family) -> dict[str, Any]:
    """`key -> default` of every option of an experiment of a family."""
    whole = build_experiment([("defaults", {"family": family.value, **_allowed(family)})])
    found: dict[str, Any] = {}
    for entry in dataclasses.fields(ExperimentConfig):
        value = getattr(whole, entry.name)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            found |= keys_of(type(value), f"{entry.name}.")
        else:
            found[entry.name] = value
    assert {type(whole.model), type(whole.objective)} == set(vars(FAMILIES[family]).values())
    return found


def _allowed(family: Family) -> dict[str, Any]:
    """What a family needs that is not the default."""
    sampler = {Family.VIREID: "modality", Family.IRM: "identity", Family.IRMPP: "identity"}.get(family)
    allowed: dict[str, Any] = {"train": {"sampler": sampler}} if sampler else {}
    own = {"model": {"heads_shared": True}, "instruction": {"typing": "coin"}} if family is Family.IRMPP else {}
    return allowed | own


Found = Callable[[Assembled], Any]


# Where options are seen


def flipped(run: Assembled) -> float:
    """Share of infrared training pictures that are the file's mirror image."""
    rows = run.read
    mirrored = [
        any(torch.equal(row.inputs[NIR], run.job.reader(source).flip(-1)) for source in partners(run, row))
        for row in rows
    ]
    return sum(mirrored) / len(rows)


def partners(run: Assembled, row: Row) -> Sequence[Source]:
    """The infrared pictures of a training row's person."""
    return run.job.loader.records[row.record_id].partners[NIR]


def border(run: Assembled) -> int:
    """The widest black border on the left or the right of a training picture without black pixels."""
    columns = [(row.inputs[RGB] == 0).all(dim=0).all(dim=0) for row in run.read]
    return max(int(black.sum()) for black in columns)


def identities_of(run: Assembled) -> set[int]:
    """Rows per identity in the batches of a run."""
    return {
        count
        for step in run.batches
        for batch in step
        for count in batch.person_ids.unique(return_counts=True)[1].tolist()
    }


def tasks_of(run: Assembled) -> list[list[str]]:
    """The tasks of each batch of an epoch."""
    records = run.job.loader.records
    batches = run.job.loader.batches.whole_epoch(0)
    return [sorted({records[index].task.value for _, index in batch}) for batch in batches]


def rate(step: int) -> Found:
    """The logged learning rate of a step."""
    return lambda run: run.lines[step]["lr"]


def asked_and_used_workers(run: Assembled) -> tuple[int, bool]:
    """What was asked for, and whether what the cores allow of it reaches the loader and evaluations."""
    (planned,) = run.calls["plan_threads"]
    return planned["workers"], run.given("DataLoader", "num_workers") == planned["returned"].workers == run.job.workers


def argument(seam: str, name: str) -> Found:
    return lambda run: run.given(seam, name)


def measured(name: str) -> Found:
    """An option of every measurement."""
    return lambda run: {getattr(call["options"], name) for call in run.calls["evaluate_features"]}


def neck_or_pooled(run: Assembled) -> str:
    """What the first triplets compared: a group norm leaves no mean."""
    first = run.calls["batch_hard_triplet_loss"][0]["features"]
    return "neck" if first.mean(dim=1).abs().max() < 1e-4 else "pooled"


def images(run: Assembled) -> dict[Modality, Tensor]:
    size = run.job.config.model.image_size
    return {RGB: torch.rand((4, 3, *size), generator=torch.Generator().manual_seed(1))}


def evaluated(part: Callable[[Any, dict[Modality, Tensor]], Any]) -> Found:
    """What the model gives for some pictures in evaluation."""

    def found(run: Assembled) -> Any:
        with torch.inference_mode():
            return part(run.job.model.eval(), images(run))

    return found


def sources_of(run: Assembled) -> list[Any]:
    return [source for record in run.job.benchmark.train for source in record.sources.values()]


def annotations_of(run: Assembled) -> set[str]:
    return {row.annotation.source.value for row in run.read if row.annotation is not None}


def instructed_rows(run: Assembled) -> set[bool]:
    return {row.annotation.instructed for row in run.read if row.annotation is not None}


def foreign_annotations(run: Assembled) -> bool:
    """Whether any training row is told the description of another picture."""
    told = [(run.job.loader.records[row.record_id], row.annotation) for row in run.read if row.annotation is not None]
    return any(
        record.task is Task.LI and annotation.source not in record.annotations.values() for record, annotation in told
    )


def told_by(run: Assembled, modality: Modality) -> list[Tensor]:
    """The annotations of one modality that training rows have, as the model takes them."""
    found = [row.annotation for row in run.read if row.annotation is not None]
    return [annotation.value for annotation in found if annotation.source.modality is modality]


def seeds_of(run: Assembled) -> set[int]:
    dataset = run.job.loader._loader.dataset
    return {run.given("seed_everything", "seed"), run.job.objective.seed, dataset.seed, run.job.loader.batches.seed}


def pictures_of(run: Assembled) -> list[Path]:
    """Every picture of training and test."""
    found = [source for record in run.job.benchmark.train for source in record.sources.values()]
    found += [source for split in run.job.benchmark.splits.values() for source in split.gallery]
    return [Path(source.value) for source in found if source.modality is not TEXT]


def frozen_parts(run: Assembled) -> set[str]:
    """The parts of the model that have no trained parameter."""
    trained = {name.partition(".")[0] for name, value in run.job.model.named_parameters() if value.requires_grad}
    return {name for name, _ in run.job.model.named_children()} - trained
