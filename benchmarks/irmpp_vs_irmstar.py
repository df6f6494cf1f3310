"""IRM++ against IRM*: the same network, typing, feature, classifier, batches and steps, other losses of the feature.

    python -m benchmarks.irmpp_vs_irmstar --config configs/irmpp/smoke.yaml --seeds 0 1 2 data.root=FOLDER

IRM* has `triplet` with the weight --alpha in the place of `soft` and `hard`; nothing else differs, so that a seed gives
both sides the same initial weights, batches and draws. --irmpp and --irmstar give options to one side, for instance
what an equal number of trials found best for each. --literal FILE adds IRM* read literally, a configuration of the
family irm, tested in the same way. Printed for each row of the joint and the task-free test: mAP in percent, mean and
standard deviation (n - 1) over the seeds, the sign of IRM++ minus IRM* seed by seed, and the same of mAP@0.5. A run
that has finished is not trained again. The whole comparison is written to OUTPUT-DIR/irmpp_vs_irmstar.json.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.runs import mean_and_deviation, parse_with_seeds, train_and_test
from configs.load import load_experiment
from utils.errors import UserError, run_script
from utils.files import write_json
from utils.tables import format_table

METRICS = ("mAP", "mAP@0.5")
TESTED = ("data.protocols=[task-free,joint]", "eval.thresholds=[0.25,0.5,0.75]")
BANK_LOSSES = ("soft", "hard")

Figures = Mapping[str, Mapping[str, float]]
"""Row of the table -> metric -> percent."""


@dataclass(frozen=True, kw_only=True)
class Side:
    """One of what is compared."""

    name: str
    config: str
    options: tuple[str, ...]


def star_losses(config: str, overrides: Sequence[str], alpha: float) -> dict[str, float]:
    """Return the losses of IRM*: those of a configuration of IRM++ with the triplet for the bank losses. Raises
    UserError for a configuration without these.
    """
    losses: dict[str, float] = dict(load_experiment(config, overrides).objective.losses)
    if not any(losses.get(name) for name in BANK_LOSSES):
        raise UserError(f"{config} has none of the losses {' and '.join(BANK_LOSSES)}; give a configuration of IRM++")
    return {name: weight for name, weight in losses.items() if name not in BANK_LOSSES} | {"triplet": alpha}


def sides_of(options: argparse.Namespace) -> list[Side]:
    """Return what is compared, IRM++ first. Raises UserError for options that a configuration does not have."""
    shared = tuple(options.overrides)
    losses = star_losses(options.config, shared, options.alpha)
    written = "{" + ", ".join(f"{name}: {weight}" for name, weight in losses.items()) + "}"
    sides = [
        Side(name="IRM++", config=options.config, options=(*shared, *options.irmpp)),
        Side(name="IRM*", config=options.config, options=(*shared, f"objective.losses={written}", *options.irmstar)),
    ]
    if options.literal:
        sides.append(Side(name="literal IRM*", config=options.literal, options=shared))
    for side in sides:
        load_experiment(side.config, [*side.options, *TESTED])
    return sides


def run_name(side: Side, seed: int) -> str:
    """Return a name for a run."""
    return f"versus-{side.name.lower().replace('++', 'pp').replace('*', 'star').replace(' ', '-')}-{seed}"


def measure(side: Side, seed: int, output_dir: str) -> tuple[Figures, int]:
    """Train and test a side with a seed; return its figures and the number of its steps."""
    run = Path(output_dir, run_name(side, seed))
    found = train_and_test(side.config, run, [*side.options, f"seed={seed}"], TESTED, resume=True)
    rows = [*found["rows"], *(row for row in found["averages"] if row["task"] == "joint")]
    figures = {row["task"]: {name: row[name] for name in METRICS} for row in rows if not row.get("stamp")}
    return figures, int(found["checkpoint"]["step"])


def cell(values: Sequence[float]) -> str:
    """Mean and standard deviation."""
    return "{:.2f} ± {:.2f}".format(*mean_and_deviation(values))


def signs(ours: Sequence[float], theirs: Sequence[float]) -> str:
    """Which side was ahead, seed by seed."""
    return " ".join("+" if a > b else "-" if a < b else "=" for a, b in zip(ours, theirs, strict=True))


def compared(found: Mapping[str, Sequence[Figures]]) -> list[dict[str, str]]:
    """Return the rows of the table. found: side -> figures by seed."""
    first, second, *others = found
    rows = []
    for task in sorted(found[first][0], key=lambda task: (not task.startswith("joint"), task != "joint")):
        row = {"row": task}
        for metric in METRICS:
            values = {side: [figures[task][metric] for figures in seeds] for side, seeds in found.items()}
            row |= {f"{side} {metric}": cell(values[side]) for side in (first, second)}
            row[f"sign {metric}"] = signs(values[first], values[second])
            row |= {f"{side} {metric}": cell(values[side]) for side in others}
        rows.append(row)
    return rows


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/irmpp/smoke.yaml")
    parser.add_argument("--seeds", nargs="+", default=["0", "1", "2"], metavar="SEED", help="(default: 0 1 2)")
    parser.add_argument("--alpha", type=float, default=3.0, help="weight of the triplet of IRM* (default: 3)")
    parser.add_argument("--irmpp", action="append", default=[], metavar="key.sub=value", help="option of IRM++ alone")
    parser.add_argument("--irmstar", action="append", default=[], metavar="key.sub=value", help="option of IRM* alone")
    parser.add_argument("--literal", default="", metavar="FILE", help="a configuration of irm: IRM* read literally")
    parser.add_argument("--output-dir", default="runs")
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value")
    options = parse_with_seeds(parser)
    sides = sides_of(options)
    found: dict[str, list[Figures]] = {side.name: [] for side in sides}
    for seed in options.seeds:
        steps = {}
        for side in sides:
            started = time.perf_counter()
            figures, steps[side.name] = measure(side, seed, options.output_dir)
            found[side.name].append(figures)
            print(
                f"seed {seed}, {side.name}: joint mAP {figures['joint']['mAP']:.2f}, {steps[side.name]} steps, "
                f"{time.perf_counter() - started:.0f} s",
                flush=True,
            )
        if len(set(steps.values())) > 1:
            raise UserError(f"seed {seed}: the sides had {steps} steps; leave train.steps and train.epochs to both")
    print(format_table(compared(found)))
    document = {"sides": [vars(side) for side in sides], "seeds": options.seeds, "figures": found}
    write_json(Path(options.output_dir) / "irmpp_vs_irmstar.json", document)
    return 0


if __name__ == "__main__":
    run_script(main)
