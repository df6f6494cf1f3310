"""What infer.py --calibrate does: set thresholds on persons that the model has not seen."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from typing import Any

from configs.load import parse_overrides
from datasets.build import build_benchmark, build_source_reader
from datasets.fitting import needs_of
from datasets.structures import Benchmark
from solver.calibration import (
    FORMAT,
    MIN_PERSONS,
    calibration_file,
    check_calibrated,
)
from solver.commands.evaluate import TEST_SPLIT, load_test_benchmark
from solver.commands.opening import ModelChoice, open_trained
from solver.evaluation.evaluator import evaluate_split
from solver.evaluation.verification import SEED, ErrorRates, error_rates
from solver.reports.error_rates import DEFINITIONS, INTERVALS, format_rates, rate_notes, rates_document
from solver.runs import TrainedModel, check_trials, model_identity
from solver.search.arguments import SearchOptions
from utils.errors import UserError
from utils.files import CHECKSUM, checksum_of, write_json
from utils.log import configure_logging, library_versions
from utils.origin import code_commit, command_line, now
from utils.retrieval.verification import PARTS

logger = logging.getLogger(__name__)

VAL_SPLIT = "val"
HELD_OUT_BY = ("data.val_fraction", "data.merge_val", "data.exclude", "train.select")
"""Options that decide who is held out."""
OTHER_DATA = (
    "set on other data than the model was trained on: persons of both, if there are any, make the rates look too good"
)
ELSEWHERE = {"root", "dataset"}
"""Options of section `data` by which persons of other data are asked for."""


def run_calibration(options: SearchOptions) -> str:
    """Set thresholds on the split `options.calibrate`, write them beside the checkpoint and return what is to be
    printed.

    On `test` they are stamped. Raises UserError for wrong input, for persons that the model was trained on, and for too
    few of them; then nothing is written.
    """
    configure_logging()
    split, overrides = options.calibrate, options.overrides
    opened = open_trained(ModelChoice.of(options))
    trained = opened.trained
    benchmark = load_test_benchmark(trained.config, trained) if split == TEST_SPLIT else _validation(trained, overrides)
    reader = build_source_reader(trained.config.data, trained.config.model)
    plain = dataclasses.replace(trained.config.eval, flip=False, rerank=False, thresholds=(), ap_topk=0)
    spec = dataclasses.replace(opened.spec, config=plain)
    result = evaluate_split(trained.model, benchmark.splits[split], reader, spec, opened.device)
    rates = error_rates(result)
    where = f"the {split} split of {benchmark.name}"
    check_calibrated(rates, where)
    kept = ErrorRates(
        combinations={name: one for name, one in rates.combinations.items() if one.persons >= MIN_PERSONS},
        pooled=rates.pooled,
        persons=rates.persons,
    )
    doubts = [] if split == TEST_SPLIT else _doubts(trained, benchmark)
    notes = _notes([*trained.notes, *doubts, *result.notes()], rates, kept, split)
    file = calibration_file(trained.checkpoint)
    document = _document(trained, benchmark, split, kept, result.ranked.comparison.similarity, notes)
    write_json(file, {**document, CHECKSUM: checksum_of(document)})
    title = f"thresholds set on {kept.persons} persons of {where} ({result.ranked.comparison.name})"
    return "\n".join([format_rates(kept, title), *_cutoffs(kept), *notes, f"written: {file}"])


def _validation(trained: TrainedModel, overrides: Sequence[str]) -> Benchmark:
    """Return the benchmark with the validation split. Raises UserError where the model was trained on its persons."""
    config, given = trained.config, parse_overrides(overrides)
    other = "or give --calibrate-test, which is stamped"
    changed = [key for key in HELD_OUT_BY if key.partition(".")[2] in given.get(key.partition(".")[0], {})]
    if changed:
        raise UserError(
            f"{changed[0]} decides who was held out of training and cannot be changed for a calibration; leave it out, "
            f"{other}"
        )
    if config.train.select != VAL_SPLIT:
        raise UserError(
            f"{trained.checkpoint} was trained with train.select={config.train.select}, on the validation persons too, "
            f"so that thresholds set on them would be wrong; train with train.select=val, {other}"
        )
    if trained.epoch is None:
        raise UserError(
            f"{trained.checkpoint} does not say which persons it was trained on, so that none are known to be new to "
            f"it; use a checkpoint of train.py, {other}"
        )
    benchmark = build_benchmark(
        config.data,
        select=VAL_SPLIT,
        need_train=True,
        instruction=config.instruction,
        needs=needs_of(config.model, config.objective),
    )
    if VAL_SPLIT not in benchmark.splits:
        raise UserError(f"data set {benchmark.name} has no validation persons; {other.removeprefix('or ')}")
    check_trials(trained.trials, benchmark.trials, str(trained.checkpoint), "the validation lists are of")
    if _is_other_data(trained, benchmark) and not ELSEWHERE & given.get("data", {}).keys():
        raise UserError(
            f"{trained.checkpoint} was trained on other data than these, or with other options of them (fingerprint "
            f"{trained.data_fingerprint} there, {benchmark.fingerprint} here), so that nobody knows whether the "
            f"validation persons are new to it; restore data and options, or train again, {other}"
        )
    return benchmark


def _is_other_data(trained: TrainedModel, benchmark: Benchmark) -> bool:
    return trained.data_fingerprint not in ("", benchmark.fingerprint)


def _doubts(trained: TrainedModel, benchmark: Benchmark) -> list[str]:
    """Return how the model may know persons that are held out."""
    found = [OTHER_DATA] if _is_other_data(trained, benchmark) else []
    origin = trained.config.train.init_from
    if origin:
        found.append(
            f"the training began with the weights of {origin}: persons that were held out here and not there, if there "
            "are any, make the rates look too good"
        )
    return found


def _notes(said: Sequence[str], rates: ErrorRates, kept: ErrorRates, split: str) -> list[str]:
    notes = [*said, *rate_notes(kept)]
    few = [name for name in rates.combinations if name not in kept.combinations]
    if few:
        notes.append(f"not calibrated, with fewer than {MIN_PERSONS} persons: {', '.join(few)}")
    if split == TEST_SPLIT:
        notes.append("fitted on the test set: rates that are measured there say nothing about other persons")
    return notes


def _cutoffs(rates: ErrorRates) -> list[str]:
    """Return one line for each combination: the threshold that a search answers by."""
    lines = []
    for name, one in rates.combinations.items():
        if one.identification:
            point = one.identification[-1]
            lines.append(f"{name}: above from {point.threshold:.4f} on ({100 * point.target:g} % false alarms)")
        else:
            lines.append(f"{name}: not calibrated, {one.absent_searches} searches are too few")
    return lines


def _document(
    trained: TrainedModel, benchmark: Benchmark, split: str, rates: ErrorRates, similarity: str, notes: Sequence[str]
) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "checkpoint": {
            "file": trained.checkpoint.name,
            "epoch": trained.epoch,
            "step": trained.step,
            "selected_on": trained.selected_on or "unknown",
        },
        "model": model_identity(trained),
        "similarity": similarity,
        "precision": trained.config.eval.precision,
        "data": {
            "dataset": benchmark.name,
            "fingerprint": benchmark.fingerprint,
            "split": split,
            "gallery": sorted({source.modality.value for source in benchmark.splits[split].gallery}),
            "persons": rates.persons,
        },
        "definitions": DEFINITIONS,
        "intervals": INTERVALS,
        "parts": PARTS,
        "seed": SEED,
        "error_rates": rates_document(rates),
        "notes": list(notes),
        "made": {"date": now(), "command": command_line(), "commit": code_commit()},
        "versions": library_versions(),
    }
