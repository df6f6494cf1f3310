"""What going on after a stop costs: the share of states in a training, and the seconds from a start to the next step.

    python -m benchmarks.resume
    python -m benchmarks.resume --size vitb16

quickstart: some epochs of configs/reid5o/quickstart.yaml on rendered data at the default periods; the share of its time
that the log says went into states. vitb16: ReID5o in the sizes of its paper from random weights, a batch of few rows; a
run is killed behind its first state and goes on: seconds from the start of the process to the end of the next step, of
which until the state is in place, beside those of a start from nothing, and the bytes of a state.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.runs import run_command
from solver.run_directory import LOG_FILE, METRICS_FILE, state_files
from utils.errors import UserError, run_script
from utils.tables import format_table
from utils.threads import busy_note

LONGEST = 900.0
"""Seconds after which a start is given up."""
SIZES = {
    "quickstart": ("configs/reid5o/quickstart.yaml", ("data.cache_dir=",)),
    "vitb16": ("configs/reid5o/orbench.yaml", ("model.init=random", "train.select=last", "train.save_steps=1")),
}


def render(root: Path, identities: int) -> None:
    """Render data of ORBench's layout. Raises UserError."""
    how = ["--identities", str(identities), "--test-identities", "4", "--image-size", "64x32"]
    run_command(["-m", "datasets.synthetic", "--layout", "orbench", "--root", str(root), *how], "rendering")


def share(folder: Path, epochs: int, identities: int) -> dict[str, object]:
    """Return the row of a training with the quickstart's model. Raises UserError when it fails."""
    config, options = SIZES["quickstart"]
    render(folder / "data", identities)
    place = [f"data.root={folder / 'data'}", f"output_dir={folder}", "name=share", f"train.epochs={epochs}"]
    started = time.perf_counter()
    run_command(["train.py", "--config", config, "--device", "cpu", *options, *place], "training")
    log = (folder / "share" / LOG_FILE).read_text(encoding="utf-8")
    found = re.search(r"saving states took ([\d.]+) s, ([\d.]+) % of the (\d+) s", log)
    if found is None:
        raise UserError(f"{folder / 'share' / LOG_FILE} does not say how long its states took; correct this script")
    return {
        "epochs": epochs,
        "persons": identities,
        "whole command, s": round(time.perf_counter() - started, 1),
        "training, s": float(found[3]),
        "states, s": float(found[1]),
        "share, %": float(found[2]),
    }


def until_next_step(command: list[str], run: Path, steps: int) -> tuple[subprocess.Popen[bytes], float, float]:
    """Start a training and return it with the seconds until the log says that a state is in place (0 = it says no such
    thing), and until its metrics have so many lines. Raises UserError when it ends or takes too long.
    """
    log, metrics = run / LOG_FILE, run / METRICS_FILE
    told = log.read_text(encoding="utf-8").count("goes on after") if log.is_file() else 0
    started, placed = time.perf_counter(), 0.0
    process = subprocess.Popen([sys.executable, *command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not metrics.is_file() or metrics.read_text(encoding="utf-8").count("\n") < steps:
        spent = time.perf_counter() - started
        if process.poll() is not None or spent > LONGEST:
            process.kill()
            raise UserError(f"{run} has no step {steps} after {spent:.0f} s; read its {LOG_FILE}")
        if not placed and log.is_file() and log.read_text(encoding="utf-8").count("goes on after") > told:
            placed = spent
        time.sleep(0.02)
    return process, placed, time.perf_counter() - started


def restart(folder: Path, batch: int) -> list[dict[str, object]]:
    """Return the rows of a start and of a start that goes on. Raises UserError when either fails."""
    config, options = SIZES["vitb16"]
    render(folder / "data", 16)
    run = folder / "restart"
    place = [f"data.root={folder / 'data'}", f"output_dir={folder}", f"name={run.name}", f"train.batch_size={batch}"]
    command = ["train.py", "--config", config, "--device", "cpu", "--resume", *options, *place, "train.log_period=1"]
    rows: list[dict[str, object]] = []
    for steps in (1, 2):
        process, placed, seconds = until_next_step(command, run, steps)
        while process.poll() is None and not (state_files(run) and state_files(run)[0].name >= f"step-{steps:09d}"):
            time.sleep(0.02)
        process.kill()
        process.wait()
        rows.append(
            {
                "start": "goes on" if steps > 1 else "from nothing",
                "batch": batch,
                "state in place, s": round(placed, 1) if placed else None,
                "first step done, s": round(seconds, 1),
                "state on disk, MB": round(state_files(run)[0].stat().st_size / 1e6),
            }
        )
    return rows


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=sorted(SIZES), help="measure one of them only")
    parser.add_argument("--epochs", type=int, default=3, help="of the quickstart (3)")
    parser.add_argument("--identities", type=int, default=400, help="of the quickstart (400)")
    parser.add_argument("--batch", type=int, default=8, help="rows of a batch in ViT-B/16 sizes (8)")
    parsed = parser.parse_args()
    if note := busy_note():
        print(note)
    with tempfile.TemporaryDirectory() as folder:
        for size in [parsed.size] if parsed.size else list(SIZES):
            place = Path(folder) / size
            place.mkdir()
            quick = size == "quickstart"
            rows = [share(place, parsed.epochs, parsed.identities)] if quick else restart(place, parsed.batch)
            print(format_table(rows, title=size), flush=True)
    return 0


if __name__ == "__main__":
    run_script(main)
