"""Kill training with -9 at random moments, go on with --resume, and compare the end with a run that was never killed.

    python -m benchmarks.kill_and_resume --kills 50 [--processes 2]

Kills fall into training, into the writing of a state or a checkpoint, and into evaluations. Every finished run must
hold bit-equal weights, the same lines of metrics (but for images per second) and the same files, nothing half-written
among them. Data are rendered, the model is tiny. Exit code 1 when a run differs.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from solver.run_directory import BEST_FILE, LAST_FILE, LOG_FILE, METRICS_FILE, OUTCOME_FILE, STATES_FOLDER
from utils.checkpoint_io import load_checkpoint
from utils.files import is_leftover

PHASES = ("training", "saving", "evaluating")
OPTIONS = ["train.epochs=6", "train.batch_size=16", "train.save_steps=2", "train.select=test", "train.eval_period=1"]
LONGEST = 120.0
"""Seconds after which a moment that does not come is given up."""


def train(root: Path, output: Path, overrides: list[str], processes: int) -> subprocess.Popen[bytes]:
    """Start the run, or go on with it."""
    options = [f"data.root={root}", f"output_dir={output}", "name=run", *OPTIONS, *overrides]
    command = ["train.py", "--config", "configs/reid5o/smoke.yaml", "--device", "cpu", "--resume", *options]
    several = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    return subprocess.Popen(
        [sys.executable, *(several if processes > 1 else ()), *command],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def modified(path: Path) -> int:
    """Return when a file was written last, 0 = never."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def writing(run: Path) -> bool:
    """Return whether an unfinished file of a state or a checkpoint is there."""
    names = [entry.name for folder in (run, run / STATES_FOLDER) if folder.is_dir() for entry in folder.iterdir()]
    return any(is_leftover(name) and name.endswith(".pth") for name in names)


def moment(run: Path, phase: str, rng: random.Random) -> Callable[[], bool]:
    """Return what tells, asked again and again, that the moment to kill has come."""
    if phase == "saving":
        skipped = rng.randrange(8)
        seen = [False, 0]

        def saving() -> bool:
            now = writing(run)
            seen[1] += now and not seen[0]
            seen[0] = now
            return now and seen[1] > skipped

        return saving
    # last.pth is written before an evaluation; the log says when training begins.
    file = run / (LAST_FILE if phase == "evaluating" else LOG_FILE)
    before, delay = modified(file), rng.uniform(0.0, 0.5 if phase == "evaluating" else 3.0)
    came = [0.0]

    def passed() -> bool:
        if not came[0] and modified(file) != before:
            came[0] = time.monotonic()
        return bool(came[0]) and time.monotonic() - came[0] >= delay

    return passed


def kill_once(process: subprocess.Popen[bytes], reached: Callable[[], bool]) -> bool:
    """Kill a process and those that it has started at a moment; return whether it was still there."""
    deadline = time.monotonic() + LONGEST
    while process.poll() is None and time.monotonic() < deadline and not reached():
        time.sleep(0.001)
    there = process.poll() is None
    started = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    others = started.read_text(encoding="ascii").split() if started.is_file() else []
    process.kill()
    for number in others:
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(number), signal.SIGKILL)
    process.wait()
    return there


def differences(whole: Path, killed: Path) -> list[str]:
    """Return in what a run that was killed differs from the other."""
    found = [
        f"{name} is in one of them only"
        for name in sorted({path.name for path in whole.iterdir()} ^ {path.name for path in killed.iterdir()})
    ]
    for name in (LAST_FILE, BEST_FILE):
        first, second = (load_checkpoint(run / name)["model"] for run in (whole, killed))
        found += [f"{name}: {key}" for key, value in first.items() if not torch.equal(value, second[key])]
    if _lines(whole) != _lines(killed):
        found.append(METRICS_FILE)
    if (whole / OUTCOME_FILE).read_bytes() != (killed / OUTCOME_FILE).read_bytes():
        found.append(OUTCOME_FILE)
    return found


def _lines(run: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / METRICS_FILE).read_text(encoding="utf-8").splitlines()]
    return [{name: value for name, value in line.items() if name != "images_per_second"} for line in lines]


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=1, help="more than one are started by torchrun")
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value")
    parsed = parser.parse_intermixed_args()
    rng, counts = random.Random(parsed.seed), collections.Counter[str]()
    runs = different = 0
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "data"
        made = ["--layout", "orbench", "--root", str(root), "--identities", "24", "--test-identities", "8"]
        subprocess.run([sys.executable, "-m", "datasets.synthetic", *made, "--image-size", "64x32"], check=True)
        if train(root, Path(folder) / "whole", parsed.overrides, parsed.processes).wait():
            print("the run without kills failed")
            return 1
        whole = Path(folder) / "whole" / "run"
        while counts.total() < parsed.kills:
            output = Path(folder) / f"killed-{runs}"
            run, here = output / "run", 0
            while not (run / OUTCOME_FILE).is_file():
                process = train(root, output, parsed.overrides, parsed.processes)
                phase = rng.choice(PHASES)
                ending = counts.total() >= parsed.kills
                if ending and process.wait():
                    break
                if not ending and kill_once(process, moment(run, phase, rng)):
                    counts["saving" if writing(run) else phase] += 1
                    here += 1
            runs += 1
            found = differences(whole, run) if (run / OUTCOME_FILE).is_file() else ["it could not go on"]
            different += bool(found)
            print(f"run {runs}, killed {here} times: {'; '.join(found) or 'bit-equal, no leftover'}", flush=True)
    where = ", ".join(f"{phase} {counts[phase]}" for phase in PHASES)
    print(f"{counts.total()} kills ({where}) in {runs} runs, {different} of them different")
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
