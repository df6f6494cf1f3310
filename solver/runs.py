"""Trained models as files: a run directory, a checkpoint of ours with its configuration, or a released checkpoint."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from configs.load import build_experiment, experiment_to_dict, load_experiment, parse_overrides
from configs.schema.experiment import ExperimentConfig
from configs.schema.reid5o import Reid5oConfig
from configs.vocabulary import Family
from model.build import build_model
from model.interface import RetrievalModel
from model.weights.reid5o import build_official, is_flat_config, read_flat_config, read_official_state, reid5o_sizes
from solver.run_directory import CONFIG_FILE, OUTCOME_FILE
from solver.run_names import locate_run
from utils.checkpoint_io import fingerprint_state, load_checkpoint
from utils.errors import UserError, shortened
from utils.files import fingerprint, real_path

SHOWN = 5
INITIAL = frozenset({"init", "position_resize"})
"""Options of a model that only its first weights depend on."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainedModel:
    """A model with its weights, in eval mode, and where they came from."""

    config: ExperimentConfig
    model: RetrievalModel
    checkpoint: Path
    """File of the weights."""
    fingerprint: str
    """Digest of the weights."""
    selected_on: str = ""
    """The split that chose this checkpoint, empty = unknown."""
    epoch: int | None = None
    step: int | None = None
    """Optimiser steps of the weights."""
    trials: Mapping[str, int] = field(default_factory=dict)
    """Data set -> trial that the weights were trained on."""
    data_fingerprint: str = ""
    """Of the data that they were trained on, empty = unknown."""
    notes: tuple[str, ...] = ()
    """What a reader of its results must know."""


def open_run(
    run: str | Path, checkpoint: str = "", overrides: Sequence[str] = (), device: torch.device | None = None
) -> TrainedModel:
    """Load a run directory. checkpoint: best, last or a file; empty = best, else last. Raises UserError."""
    directory, file = locate_run(run, checkpoint)
    trained = open_checkpoint(directory / CONFIG_FILE, file, overrides, device)
    own = real_path(trained.checkpoint.parent) == real_path(directory)
    if not own or (directory / OUTCOME_FILE).is_file() or trained.epoch is None:
        return trained
    train = trained.config.train
    note = (
        f"the run {directory} has not finished (no {OUTCOME_FILE}): {trained.checkpoint.name} is of epoch "
        f"{trained.epoch} of {f'a run of {train.steps:,} steps' if train.steps else train.epochs}"
    )
    return dataclasses.replace(trained, notes=(*trained.notes, note))


def open_checkpoint(
    config: str | Path, checkpoint: str | Path, overrides: Sequence[str] = (), device: torch.device | None = None
) -> TrainedModel:
    """Load a checkpoint with its configuration: ours, or the flat configs.yaml of a released run with its best.pth."""
    if is_flat_config(config):
        trained = _open_official(Path(config), Path(checkpoint), overrides)
    else:
        trained = _open_ours(Path(config), Path(checkpoint), overrides)
    trained.model.eval().to(device or torch.device("cpu"))
    return trained


def _open_ours(config_file: Path, checkpoint: Path, overrides: Sequence[str]) -> TrainedModel:
    config = load_experiment(config_file, overrides)
    content = load_checkpoint(checkpoint)
    if content["family"] != config.family.value:
        raise UserError(
            f"{checkpoint} is of family {content['family']}, {config_file} of {config.family.value}; give the "
            "configuration that lies beside the checkpoint"
        )
    notes = _check_model_section(config_file, config, checkpoint, content["config"], overrides)
    model = build_model(config.family, config.model, content["num_identities"])
    load_weights(model, content["model"], str(checkpoint))
    return TrainedModel(
        config=config,
        model=model,
        checkpoint=checkpoint,
        fingerprint=fingerprint_state(content["model"]),
        selected_on=str(content.get("selected_on") or ""),
        epoch=content.get("epoch"),
        step=content.get("step"),
        trials=trials_of(content),
        data_fingerprint=str(content.get("data_fingerprint") or ""),
        notes=notes,
    )


def _check_model_section(
    config_file: Path, config: ExperimentConfig, checkpoint: Path, trained: Any, overrides: Sequence[str]
) -> tuple[str, ...]:
    """Return a note on every option of the model that the command line changed since the training.

    The same weights under other options are another model. Raises UserError for options that the file changed; an
    option that either side does not know is of another version of the code.
    """
    section = trained.get("model") if isinstance(trained, Mapping) else None
    before: Mapping[str, Any] = section if isinstance(section, Mapping) else {}
    now = experiment_to_dict(config)["model"]
    asked = parse_overrides(overrides).get("model", {})
    changed = [key for key in now if key in before and key not in INITIAL and before[key] != now[key]]
    silent = [key for key in changed if key not in asked]
    if silent:
        differences = ", ".join(f"model.{key} is {now[key]!r} (the checkpoint: {before[key]!r})" for key in silent)
        raise UserError(
            f"{config_file} is not what {checkpoint} was trained with: {differences}; restore the file, or name "
            f"model.{silent[0]}=... on the command line to change it on purpose"
        )
    return tuple(f"model.{key} is {now[key]!r}, the checkpoint was trained with {before[key]!r}" for key in changed)


def _open_official(config_file: Path, checkpoint: Path, overrides: Sequence[str]) -> TrainedModel:
    flat = read_flat_config(config_file)
    state = read_official_state(checkpoint)
    released: dict[str, Any] = {
        "family": Family.REID5O.value,
        "name": str(flat.get("name", "released")),
        "model": dataclasses.asdict(reid5o_sizes(state, flat)),
        "data": {},
        "eval": {},
    }
    for section, key, source in (("data", "root", "root_dir"), ("eval", "batch_size", "test_batch_size")):
        if source in flat:
            released[section][key] = flat[source]
    config = build_experiment([(str(config_file), released), ("command line", parse_overrides(overrides))])
    assert isinstance(config.model, Reid5oConfig), "the family is stated above"
    model = build_official(state, config.model, str(checkpoint))
    return TrainedModel(config=config, model=model, checkpoint=checkpoint, fingerprint=fingerprint_state(state))


def model_identity(trained: TrainedModel) -> dict[str, Any]:
    """Return what the features of an image depend on besides its file: weights, sizes and options of the model."""
    sizes = {key: value for key, value in experiment_to_dict(trained.config)["model"].items() if key != "init"}
    return {"family": trained.config.family.value, "weights": trained.fingerprint, "model": fingerprint([sizes])}


def trials_of(content: Mapping[str, Any]) -> dict[str, int]:
    """Return data set -> trial of a checkpoint's content; nothing for one that records none."""
    trials = content.get("trials")
    return dict(trials) if isinstance(trials, Mapping) else {}


def check_trials(trained: Mapping[str, int], used: Mapping[str, int], checkpoint: str, use: str) -> None:
    """Raise UserError when a checkpoint was trained on another trial of a data set than the one it would be used with.

    use: words before the trial that is used, `this run trains on`.
    """
    for name, trial in used.items():
        if trained.get(name, trial) != trial:
            raise UserError(
                f"{checkpoint} was trained on trial {trained[name]} of {name}, but {use} trial {trial}, whose test "
                f"persons it has been trained on in part; set data.trial={trained[name]} or give a checkpoint of trial "
                f"{trial}"
            )


def load_weights(model: RetrievalModel, state: Mapping[str, Tensor], where: str) -> None:
    """Copy a state dict into a model, every entry accounted for. Raises UserError that lists what does not fit."""
    own = model.state_dict()
    shapes = [
        f"{name} {tuple(state[name].shape)} (the model: {tuple(own[name].shape)})"
        for name in sorted(own.keys() & state.keys())
        if own[name].shape != state[name].shape
    ]
    kinds = [
        f"{name} {str(state[name].dtype).removeprefix('torch.')}"
        for name in sorted(own.keys() & state.keys())
        if _kind(own[name]) != _kind(state[name])
    ]
    problems = [
        _listed("of another kind of number", kinds),
        _listed("missing", sorted(own.keys() - state.keys())),
        _listed("unexpected", sorted(state.keys() - own.keys())),
        _listed("of another shape", shapes),
    ]
    if any(problems):
        raise UserError(
            f"{where} does not fit its configuration: {'; '.join(filter(None, problems))}; give the configuration that "
            "it was trained with"
        )
    model.load_state_dict(state, strict=True)


def _kind(value: Tensor) -> str:
    return "float" if value.is_floating_point() else "bool" if value.dtype is torch.bool else "whole"


def _listed(what: str, names: list[str]) -> str:
    if not names:
        return ""
    return f"{len(names)} entries {what}: {shortened(names, SHOWN)}"
