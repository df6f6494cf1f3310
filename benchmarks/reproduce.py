"""Train and test seeds of a configuration and compare them with the band that was recorded for it: pass or fail.

    python -m benchmarks.reproduce configs/reid5o/quickstart.yaml
    python -m benchmarks.reproduce configs/reid5o/quickstart.yaml --record --seeds 0 1 2

A band is the mean and the standard deviation (n - 1) over seeds of each figure of the result table, in the file
NAME.band.json beside NAME.yaml, with the resolved configuration and the fingerprint of the data that it holds for.
Rows: averages, and lists that belong to no group. Without --seeds the recorded seeds are trained.

A figure passes when the mean of ours is at most --width deviations from the recorded mean; a deviation counts as at
least half a percentage point, since few seeds may lie close together by chance. Exit code 1 when a figure fails. Other
options or other data than the recorded ones are refused: a band says nothing of them.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.runs import mean_and_deviation, parse_with_seeds, train_and_test
from configs.changes import MACHINERY, differences
from configs.load import build_experiment, experiment_to_dict, load_experiment
from configs.schema.experiment import ExperimentConfig
from utils.errors import UserError, run_script, shortened
from utils.files import read_json, write_json
from utils.log import library_versions
from utils.tables import format_table
from utils.threads import available_cores, busy_note

METRICS = ("R1", "mAP", "mINP")
LEAST_DEVIATION = 0.5
"""Percentage points: what another number of threads, or another version of a library, changes."""
WIDTH = 3.0
HARMLESS = {**MACHINERY, "name": ("",), "seed": ("",), "data": (*MACHINERY["data"], "root")}
"""Options that may differ from the recorded ones: the data is known by its fingerprint."""
SHOWN = 5

Figures = Mapping[str, Mapping[str, float]]
"""Row of the result table -> metric -> percent."""


def band_file(config: str | Path) -> Path:
    """Return where the band of a configuration lies."""
    path = Path(config)
    return path.with_name(f"{path.stem}.band.json")


def figures_of(results: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Return the figures of a result that are compared; a metric that a row does not have is left out."""
    rows = [*results["averages"], *(row for row in results["rows"] if not row.get("group"))]
    found = {row["task"]: {name: row[name] for name in METRICS if row.get(name) is not None} for row in rows}
    return {task: values for task, values in found.items() if values}


def measure(config: str, seeds: Sequence[int], parsed: argparse.Namespace) -> dict[str, Any]:
    """Train and test every seed; return a band. Raises UserError when a script fails or seeds see other data."""
    made: list[dict[str, dict[str, float]]] = []
    prints = set()
    experiment = load_experiment(config, parsed.overrides)
    for seed in seeds:
        started = time.perf_counter()
        run = Path(parsed.output_dir) / f"reproduce-{experiment.family.value}-{Path(config).stem}-seed{seed}"
        results = train_and_test(config, run, [f"seed={seed}", *parsed.overrides], resume=parsed.resume)
        made.append(figures_of(results))
        prints.add(results["data"]["fingerprint"])
        print(f"seed {seed}: {run}, {time.perf_counter() - started:.0f} s", flush=True)
    if len(prints) > 1:
        raise UserError(f"the seeds have seen other data ({', '.join(sorted(prints))}); leave the data alone meanwhile")
    return {
        "config": _options(experiment),
        "data_fingerprint": prints.pop(),
        "seeds": list(seeds),
        "rows": _rows(made),
        "threads": os.environ.get("OMP_NUM_THREADS", "") or str(available_cores()),
        "versions": library_versions(),
    }


def _options(experiment: ExperimentConfig) -> dict[str, Any]:
    """Return the options that figures depend on; the places of one machine are none."""
    found = experiment_to_dict(experiment)
    for section, names in HARMLESS.items():
        for name in names:
            if name:
                del found[section][name]
            else:
                del found[section]
    return found


def _rows(made: Sequence[Figures]) -> dict[str, dict[str, dict[str, Any]]]:
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for task, metrics in made[0].items():
        for name in metrics:
            values = [figures[task][name] for figures in made]
            mean, deviation = mean_and_deviation(values)
            found.setdefault(task, {})[name] = {"mean": mean, "sd": deviation, "values": values}
    return found


def read_band(config: str, experiment: ExperimentConfig) -> dict[str, Any]:
    """Read the band of a configuration. Raises UserError when there is none, or it was recorded for other options."""
    path = band_file(config)
    band = read_json(path, "a recorded band; make one with --record")
    wanted = {"config": dict, "data_fingerprint": str, "seeds": list, "rows": dict}
    wrong = [
        name for name, kind in wanted.items() if not isinstance(band, dict) or not isinstance(band.get(name), kind)
    ]
    if wrong:
        raise UserError(f"{path} is no recorded band ({shortened(wrong, SHOWN)} missing); make it again with --record")
    found = differences(build_experiment([(str(path), band["config"])]), experiment, HARMLESS)
    if found:
        raise UserError(
            f"{path} was recorded with other options: {shortened(found, SHOWN)}; take the changes back, or record "
            "another band with --record"
        )
    return band


def compared(band: Mapping[str, Any], ours: Mapping[str, Any], width: float) -> tuple[list[dict[str, str]], int]:
    """Return the rows of the table and how many figures fail."""
    table, failed = [], 0
    for task, metrics in band["rows"].items():
        row = {"row": task}
        for name, recorded in metrics.items():
            found = ours["rows"].get(task, {}).get(name)
            reach = width * max(recorded["sd"], LEAST_DEVIATION)
            fails = found is None or abs(found["mean"] - recorded["mean"]) > reach
            failed += fails
            row[f"{name} ours"] = f"{'absent' if found is None else _cell(found)} {'FAIL' if fails else 'pass'}"
            row[f"{name} band"] = _cell(recorded)
        table.append(row)
    return table, failed


def _cell(figure: Mapping[str, Any]) -> str:
    return f"{figure['mean']:.2f} ± {figure['sd']:.2f}"


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", metavar="CONFIG", help="a configuration, for instance configs/reid5o/quickstart.yaml")
    parser.add_argument("--record", action="store_true", help="make the band instead of comparing with it")
    parser.add_argument("--seeds", nargs="+", metavar="SEED", help="default: the recorded ones; with --record 0 1 2")
    parser.add_argument("--width", type=float, default=WIDTH, help=f"deviations that pass ({WIDTH:g})")
    parser.add_argument("--resume", action="store_true", help="take runs that have finished, go on with others")
    parser.add_argument("--output-dir", default="runs")
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value", help="for instance data.root=/data")
    parsed = parse_with_seeds(parser)
    experiment = load_experiment(parsed.config, parsed.overrides)
    band = None if parsed.record else read_band(parsed.config, experiment)
    seeds = parsed.seeds or ([0, 1, 2] if band is None else band["seeds"])
    if note := busy_note():
        print(note)
    ours = measure(parsed.config, seeds, parsed)
    if band is None:
        write_json(band_file(parsed.config), ours)
        rows = [
            {"row": task, **{name: _cell(figure) for name, figure in metrics.items()}}
            for task, metrics in ours["rows"].items()
        ]
        print(format_table(rows))
        print(f"recorded: {band_file(parsed.config)}")
        return 0
    if ours["data_fingerprint"] != band["data_fingerprint"]:
        raise UserError(
            f"the band was recorded on data {band['data_fingerprint']}, these are {ours['data_fingerprint']}; render "
            f"them as {parsed.config} says, or record another band with --record"
        )
    table, failed = compared(band, ours, parsed.width)
    print(format_table(table))
    print(f"{'FAIL' if failed else 'pass'}: {failed} figures outside mean ± {parsed.width:g} deviations")
    return 1 if failed else 0


if __name__ == "__main__":
    run_script(main)
