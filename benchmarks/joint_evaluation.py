"""The joint task-free test, its gallery encoded once, against a gallery that is encoded again for each of its lists.

    python benchmarks/joint_evaluation.py [--root FOLDER-THAT-HOLDS-OmniReID] [--config configs/irmpp/smoke.yaml]

The baseline evaluates the same lists (one task of one set each) one after the other with the same code, weights,
precision, threads and loader: what a gallery costs whose features depend on the task. Both sides alternate; the best of
the repeats counts. Encodes are images and captions that go through the model, each with what it is told. Exit code 1
when a metric differs by more than 1e-6 percent, or the measured ratio is below 0.9 x the ratio of encodes. Without
--root 24 test identities of six sets are rendered; without a run (--run) the weights are random, in the sizes below.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from utils.threads import configure_threads

configure_threads()

import torch  # noqa: E402

from configs.load import load_experiment  # noqa: E402
from datasets.build import build_benchmark, build_source_reader  # noqa: E402
from datasets.fitting import needs_of  # noqa: E402
from datasets.structures import EvalSplit  # noqa: E402
from datasets.synthetic.render import render  # noqa: E402
from model.build import build_model, initialise  # noqa: E402
from model.interface import RetrievalModel  # noqa: E402
from solver.evaluation.evaluator import evaluate_split  # noqa: E402
from solver.evaluation.plan import plan_evaluation  # noqa: E402
from solver.evaluation.result import EvaluationResult  # noqa: E402
from solver.evaluation.spec import EvaluationSpec  # noqa: E402
from solver.runs import open_run  # noqa: E402
from utils.device import describe_device, resolve_device  # noqa: E402
from utils.errors import run_script  # noqa: E402
from utils.threads import plan_threads  # noqa: E402

REACH, SAME = 0.9, 1e-6
MEMBERS = ("market", "prcc", "real1", "real2", "llcm", "CUHK-Pedes")
SIZES = ("model.image_size=[128,64]", "model.width=128", "model.layers=4", "model.stem=patch", "model.text_layers=2")
"""Of random weights: an image costs as much as in a small real model."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
    """What both sides evaluate."""

    model: RetrievalModel
    split: EvalSplit
    reader: Any
    spec: EvaluationSpec
    device: torch.device


def single_lists(split: EvalSplit) -> list[EvalSplit]:
    """Return a split for each list, with the whole gallery that it is searched in."""
    return [dataclasses.replace(split, query_lists=(queries,), pooled_groups=()) for queries in split.query_lists]


def encodes(model: RetrievalModel, splits: Sequence[EvalSplit]) -> int:
    """Return how many sources the splits encode, one evaluation after the other."""
    return sum(len(plan_evaluation([split], instructed=model.follows_instructions).table) for split in splits)


def evaluate(setting: Setting, splits: Sequence[EvalSplit]) -> tuple[float, list[EvaluationResult]]:
    """Return the seconds that evaluating the splits one after the other takes, and the results."""
    started = time.perf_counter()
    results = [evaluate_split(setting.model, split, setting.reader, setting.spec, setting.device) for split in splits]
    return time.perf_counter() - started, results


def largest_difference(ours: Sequence[EvaluationResult], theirs: Sequence[EvaluationResult]) -> float:
    """Return the largest difference of a metric, in percent."""
    values = [
        {found.task: found.metrics() for result in results for found in result.lists} for results in (ours, theirs)
    ]
    return max(
        abs(value - values[1][task][name])
        for task, metrics in values[0].items()
        for name, value in metrics.items()
        if value == value
    )


def make_setting(options: argparse.Namespace, root: str) -> Setting:
    """Read the joint test and load or draw a model. Raises UserError."""
    device = resolve_device(options.device)
    overrides = [f"data.root={root}", "data.protocols=[joint]", *options.overrides]
    if options.run:
        trained = open_run(options.run, overrides=overrides, device=device)
        config, model = trained.config, trained.model
    else:
        config = load_experiment(options.config, [*overrides[:2], *SIZES, *options.overrides])
        torch.manual_seed(0)
        model = build_model(config.family, config.model, 1)
        initialise(config.family, model, config.model)
        model.to(device).eval()
    threads = plan_threads(device.type, options.workers)
    torch.set_num_threads(options.threads or threads.threads)
    benchmark = build_benchmark(
        config.data,
        select="test",
        need_train=False,
        instruction=config.instruction,
        needs=needs_of(config.model, config.objective),
    )
    return Setting(
        model=model,
        split=benchmark.splits["test"],
        reader=build_source_reader(config.data, config.model, benchmark),
        spec=EvaluationSpec.of(config, threads.workers),
        device=device,
    )


def compare(options: argparse.Namespace, root: str) -> int:
    """Measure both sides, print them and return the exit code."""
    setting = make_setting(options, root)
    joint, single = [setting.split], single_lists(setting.split)
    evaluate(setting, joint)
    ours, theirs = float("inf"), float("inf")
    for _ in range(options.repeats):
        seconds, plain = evaluate(setting, single)
        theirs = min(theirs, seconds)
        seconds, found = evaluate(setting, joint)
        ours = min(ours, seconds)
    counted = encodes(setting.model, single) / encodes(setting.model, joint)
    difference = largest_difference(found, plain)
    reached = theirs / ours >= REACH * counted and difference <= SAME
    queries = sum(len(listed.entries) for listed in setting.split.query_lists)
    measured = theirs / ours
    print(
        f"{describe_device(setting.device)}, {torch.get_num_threads()} threads: {len(single)} lists, {queries} "
        f"queries, {len(setting.split.gallery)} gallery images\n"
        f"gallery encoded for each list: {encodes(setting.model, single):,} encodes, {theirs:.2f} s\n"
        f"gallery encoded once: {encodes(setting.model, joint):,} encodes, {ours:.2f} s\n"
        f"ratio of encodes {counted:.2f}, measured {measured:.2f} ({measured / counted:.2f} x, at least {REACH}); "
        f"largest difference of a metric {difference:.1e} percent: {'ok' if reached else 'MISSED'}"
    )
    return 0 if reached else 1


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/irmpp/smoke.yaml")
    parser.add_argument("--run", default="", help="a trained run instead of random weights")
    parser.add_argument("--root", default="", help="data.root; default: rendered into a temporary folder")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value")
    options = parser.parse_intermixed_args()
    if options.root:
        return compare(options, options.root)
    with tempfile.TemporaryDirectory() as root:
        render("omnireid", root, identities=4, test_identities=24, members=MEMBERS)
        return compare(options, root)


if __name__ == "__main__":
    run_script(main)
