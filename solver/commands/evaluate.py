"""What test.py does: load a trained model, evaluate it on the test split, write the results, return the table."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configs.changes import shared_options
from configs.schema.experiment import ExperimentConfig
from datasets.build import build_benchmark, build_source_reader
from datasets.fitting import ModelNeeds, needs_of
from datasets.loading.text_notes import text_notes
from datasets.structures import Benchmark, distinct_sources
from solver.calibration import read_calibration
from solver.commands.opening import ModelChoice, open_trained
from solver.evaluation.evaluator import evaluate_split
from solver.evaluation.result import EvaluationResult
from solver.reports.error_rates import MeasuredRates, draw_error_curves, measure_rates, write_curves
from solver.reports.examples_page import write_report
from solver.reports.features_file import check_export, export_evaluation, export_path
from solver.reports.figures import draw_combinations
from solver.reports.published import Published
from solver.reports.results import Provenance, format_result, result_document, write_results
from solver.run_directory import (
    COMBINATIONS_FILE,
    ERROR_CURVES_FILE,
    ERROR_PICTURE_FILE,
    PER_QUERY_FILE,
    RESULTS_FILE,
)
from solver.run_names import find_run
from solver.runs import TrainedModel, check_trials
from utils.device import resolve_device
from utils.errors import UserError
from utils.files import check_folder, files_together, real_path
from utils.log import configure_logging, library_versions
from utils.origin import code_commit, command_line, now
from utils.processes import ALONE, Processes, agree, join_processes

logger = logging.getLogger(__name__)

TEST_SPLIT = "test"


def together(device: str, command: Callable[..., str]) -> str:
    """Run a command, which takes `processes`, in all that torchrun has started, without it in this one; return what is
    to be printed, nothing in all but the first. Raises UserError, in all processes when one does.
    """
    processes = join_processes(resolve_device(device), "start the test again")
    with processes.together():
        text = command(processes=processes)
        # Whoever is done first waits: its end would end the others.
        processes.told(None)
        return text if processes.leader else ""


def run_test(
    *,
    run: str,
    config: str,
    checkpoint: str,
    output: str,
    device: str,
    overrides: Sequence[str],
    export: str = "",
    processes: Processes = ALONE,
) -> str:
    """Evaluate a run or a checkpoint, write the result files and return what is to be printed.

    run: a run directory, or empty when config and checkpoint are files. output: folder of the results, empty = beside
    the checkpoint. export: file of the features, empty = none. processes: share the evaluation; the first of them
    writes, and the others return nothing. Raises UserError for wrong input; then no result file is written.
    """
    configure_logging()
    run, checkpoint = find_run(run, checkpoint)
    folder = Path(output or run or Path(checkpoint).parent)
    if output:
        check_folder(folder, "--output")
    if export:
        check_export(export)
        if real_path(export_path(export)) == real_path(folder / PER_QUERY_FILE):
            raise UserError(f"--export {export}: the results of this test have that name; choose another")
    choice = ModelChoice(run=run, config=config, checkpoint=checkpoint, device=device, overrides=overrides)
    tested = evaluate_test(choice, processes)
    if not processes.leader:
        return ""
    files = write_test(folder, tested)
    if export:
        files.append(export_evaluation(export, tested.result.ranked, tested.provenance.checkpoint_fingerprint))
    return "\n".join([tested.table(), f"written: {', '.join(map(str, files))}"])


@dataclass(frozen=True, kw_only=True, slots=True)
class Tested:
    """An evaluation on the test set, and what its files say beside the figures."""

    result: EvaluationResult
    provenance: Provenance
    seed: int
    """Of the configuration."""
    rates: MeasuredRates | None
    """None = eval.verification does not ask for them."""

    def table(self) -> str:
        """Return what is printed."""
        rates = [self.rates.text()] if self.rates else []
        return "\n".join([format_result(self.result, self.provenance.published), *rates])

    def document(self) -> dict[str, Any]:
        """Return what results.json holds."""
        return result_document(self.result, self.provenance, self.rates.document() if self.rates else None)


def evaluate_test(choice: ModelChoice, processes: Processes = ALONE) -> Tested:
    """Evaluate a trained model on the test set of its data. processes: share the work; all get the result, the first of
    them the error rates. Raises UserError.
    """
    opened = open_trained(choice, processes)
    trained = opened.trained
    verified = trained.config.eval.verification and processes.leader
    calibration = read_calibration(trained) if verified else None
    benchmark = load_test_benchmark(trained.config, trained)
    told = {"checkpoint": trained.fingerprint, "data fingerprint": benchmark.fingerprint}
    agree(processes, shared_options(trained.config) | told)
    with processes.first_one_first():
        reader = build_source_reader(trained.config.data, trained.config.model, benchmark)
    result = evaluate_split(trained.model, benchmark.splits[TEST_SPLIT], reader, opened.spec, opened.device)
    asked = distinct_sources(benchmark.splits[TEST_SPLIT]).values()
    said = text_notes((source for group in asked for source in group), reader)
    return Tested(
        result=result,
        provenance=provenance_of(trained, benchmark, said, choice.overrides),
        seed=trained.config.seed,
        rates=measure_rates(result, calibration) if verified else None,
    )


def write_test(folder: Path, tested: Tested) -> list[Path]:
    """Write the result files, all or none of them; return them."""
    result, provenance, rates = tested.result, tested.provenance, tested.rates
    optional = [COMBINATIONS_FILE, ERROR_CURVES_FILE, ERROR_PICTURE_FILE]
    with files_together(folder, RESULTS_FILE, optional) as together:
        written = [write_results(together, result, provenance, rates.document() if rates else None)]
        drawn = None
        if result.mixed and any(math.isfinite(row.metrics["mAP"]) for row in result.averages()):
            drawn = draw_combinations(written[0], together / COMBINATIONS_FILE)
        written.append(write_report(together, result, provenance, tested.seed, drawn))
        written += [drawn] if drawn else []
        if rates:
            written.append(write_curves(together / ERROR_CURVES_FILE, rates.own))
            written.append(draw_error_curves(together / ERROR_PICTURE_FILE, rates.own))
    return [folder / path.name for path in written]


def load_test_benchmark(
    config: ExperimentConfig, trained: TrainedModel | None = None, *, whole: bool = False
) -> Benchmark:
    """Read the lists of the test split.

    whole: keep those that the model cannot answer, for a search that looks at one of them. Raises UserError when the
    data set has none, or when they are of another trial than the one that `trained` was trained on.
    """
    alone = ModelNeeds(told_gallery=config.objective.told_gallery)
    benchmark = build_benchmark(
        config.data,
        select="test",
        need_train=False,
        instruction=config.instruction,
        needs=alone if whole else needs_of(config.model, config.objective),
    )
    if TEST_SPLIT not in benchmark.splits:
        raise UserError(f"data set {benchmark.name} has no test split; there: {', '.join(benchmark.splits) or 'none'}")
    if trained is not None:
        check_trials(trained.trials, benchmark.trials, str(trained.checkpoint), "the test lists are of")
    return benchmark


def provenance_of(
    trained: TrainedModel, benchmark: Benchmark, notes: Sequence[str] = (), overrides: Sequence[str] = ()
) -> Provenance:
    """Return what the result file says about the weights, the data and the command. notes: what else is to be known."""
    return Provenance(
        checkpoint=str(trained.checkpoint),
        checkpoint_fingerprint=trained.fingerprint,
        selected_on=trained.selected_on,
        dataset=benchmark.name,
        data_fingerprint=benchmark.fingerprint,
        epoch=trained.epoch,
        step=trained.step,
        notes=(*trained.notes, *benchmark.notes, *notes),
        versions=library_versions(),
        date=now(),
        command=command_line(),
        overrides=tuple(overrides),
        commit=code_commit(),
        options=dataclasses.asdict(trained.config.eval),
        published=Published.of(trained.config),
    )
