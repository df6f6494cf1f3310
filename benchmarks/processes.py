"""Two processes against one process with two threads: training steps and an evaluation, the same batches in both.

    python -m benchmarks.processes [--config configs/reid5o/quickstart.yaml --rounds 3 --steps 60 key.sub=value ...]

Data are rendered unless --data names a folder. Both forms run train.py and test.py as users do and take turns; a step
is what metrics.jsonl says of it (the first ten of a run are left out), an evaluation what results.json says of
encoding, fusing and ranking. Medians of all rounds. Exit code 1 when several processes are slower in one of the two.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from solver.run_directory import METRICS_FILE, RESULTS_FILE
from utils.errors import UserError, run_script
from utils.tables import format_table
from utils.threads import busy_note

WARM_UP = 10
SHOWN_LINES = 10
PARTS = ("encode", "fuse", "rank")


def run(processes: int, threads: int, command: list[str]) -> None:
    """Run a script in some processes. Raises UserError with the end of what it said when it fails."""
    several = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), "--"]
    done = subprocess.run(
        [sys.executable, *(several if processes > 1 else []), *command],
        capture_output=True,
        text=True,
        errors="replace",
        env={**os.environ, "OMP_NUM_THREADS": str(threads)},
    )
    if done.returncode:
        said = " / ".join(done.stderr.strip().splitlines()[-SHOWN_LINES:])
        raise UserError(f"{' '.join(command)}: exit code {done.returncode} in {processes} processes: {said}")


def step_seconds(directory: Path) -> list[float]:
    """Return the seconds per image of the steps of a run."""
    lines = [json.loads(line) for line in (directory / METRICS_FILE).read_text(encoding="utf-8").splitlines()]
    rates = [line["images_per_second"] for line in lines if "images_per_second" in line]
    return [1 / rate for rate in rates[WARM_UP:]]


def evaluation_seconds(directory: Path) -> dict[str, float]:
    """Return the seconds of the parts of a test."""
    seconds = json.loads((directory / RESULTS_FILE).read_text(encoding="utf-8"))["seconds"]
    return {name: float(seconds[name]) for name in PARTS}


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/reid5o/quickstart.yaml")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--identities", type=int, default=400, help="rendered persons")
    parser.add_argument("--test-identities", type=int, default=100)
    parser.add_argument("--data", default="", help="folder with rendered data, empty = made for this run")
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value")
    parsed = parser.parse_intermixed_args()
    forms = {"one": (1, parsed.processes), "several": (parsed.processes, 1)}
    steps: dict[str, list[float]] = {form: [] for form in forms}
    tests: dict[str, list[dict[str, float]]] = {form: [] for form in forms}
    with tempfile.TemporaryDirectory() as folder:
        root = parsed.data or str(Path(folder) / "data")
        if not parsed.data:
            made = ["--identities", str(parsed.identities), "--test-identities", str(parsed.test_identities)]
            run(1, 1, ["-m", "datasets.synthetic", "--layout", "orbench", "--root", root, *made])
        where = [f"data.root={root}", f"data.cache_dir={folder}/cache", f"output_dir={folder}"]
        for _ in range(parsed.rounds):
            for form, (processes, threads) in forms.items():
                name = [f"name={form}", "train.epochs=1000", f"train.max_steps={parsed.steps}"]
                train = ["train.py", "--config", parsed.config, "--device", "cpu", "--overwrite"]
                run(processes, threads, [*train, *where, *name, *parsed.overrides])
                # Both test the weights of one of them.
                directory = Path(folder) / next(iter(forms))
                run(processes, threads, ["test.py", "--run", str(directory), "--device", "cpu"])
                steps[form] += step_seconds(Path(folder) / form)
                tests[form].append(evaluation_seconds(directory))
    rows, slower = [], False
    measured = {"training, images/s": {form: 1 / statistics.median(steps[form]) for form in forms}}
    for part in ("all", *PARTS):
        summed = {
            form: statistics.median(sum(test.values()) if part == "all" else test[part] for test in tests[form])
            for form in forms
        }
        measured[f"evaluation, {part}, 1/s"] = {form: 1 / max(value, 1e-3) for form, value in summed.items()}
    for what, rates in measured.items():
        ratio = rates["several"] / rates["one"]
        slower = slower or (ratio < 1 and "training" in what) or (ratio < 1 and "all" in what)
        rows.append(
            {
                "what": what,
                f"1 process, {parsed.processes} threads": f"{rates['one']:.3f}",
                f"{parsed.processes} processes": f"{rates['several']:.3f}",
                "ratio": f"{ratio:.2f}",
            }
        )
    print(format_table(rows))
    print(f"{parsed.config}, {parsed.rounds} rounds of {parsed.steps} steps; {busy_note() or 'nothing else ran'}")
    return 1 if slower else 0


if __name__ == "__main__":
    run_script(main)
