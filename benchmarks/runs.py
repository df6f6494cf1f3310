"""Runs that benchmarks train and test by the scripts of the project, and the spread of their figures."""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from utils.errors import UserError


def run_command(arguments: Sequence[str], what: str) -> None:
    """Run a script of the project in a process of its own. Raises UserError with its last line when it fails."""
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, errors="replace")
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise UserError(f"{what}: {lines[-1].removeprefix('error: ')}")


def train_and_test(
    config: str,
    run: Path,
    options: Sequence[str] = (),
    tested: Sequence[str] = (),
    *,
    resume: bool = False,
) -> dict[str, Any]:
    """Train a configuration into a run directory, test it, and return what its results.json holds.

    tested: options of the test alone. resume: a run that has finished is not trained again, and one that has not goes
    on. Raises UserError when either script fails.
    """
    place = [f"name={run.name}", f"output_dir={run.parent}"]
    how = "--resume" if resume else "--overwrite"
    run_command(["train.py", "--config", config, how, *options, *place], f"training {run}")
    run_command(["test.py", "--run", str(run), *tested], f"testing {run}")
    found: dict[str, Any] = json.loads((run / "results.json").read_text(encoding="utf-8"))
    return found


def parse_with_seeds(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Return the arguments of a parser with `--seeds` (words) and `overrides`: `seeds` as integers, None where neither
    given nor by default. Ends the script by `parser.error` for a seed that is none.
    """
    parsed = parser.parse_intermixed_args()
    if parsed.seeds is None:
        return parsed
    # argparse gives an option of several values every word behind it, overrides too.
    parsed.overrides += [word for word in parsed.seeds if "=" in word]
    seeds = [word for word in parsed.seeds if "=" not in word]
    if not seeds:
        parser.error("argument --seeds: give at least one seed")
    try:
        parsed.seeds = [int(word) for word in seeds]
    except ValueError:
        parser.error(f"argument --seeds: seeds are integers, not {' '.join(seeds)}")
    return parsed


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean and the standard deviation (n - 1), 0 for a single value."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0
