"""Train and evaluate a configuration with several seeds; print each, the mean and the spread, and check the targets.

    python -m benchmarks.seeds --config configs/reid5o/quickstart.yaml --seeds 0 1 2

Targets of the rendered benchmark: mean mAP of one, two, three, four modalities strictly rising, FOUR_AVER mAP at least
1.5 x ONE_AVER mAP, FOUR_AVER rank-1 at least 60 %. Exit code 1 when a seed misses one.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

GROUPS = ("ONE_AVER", "TWO_AVER", "THREE_AVER", "FOUR_AVER")
MIN_GAIN = 1.5
MIN_RANK1 = 60.0


def run_seed(
    config: str, seed: int, output_dir: str, overrides: list[str]
) -> tuple[dict[str, dict[str, float]], float]:
    """Train and test one seed; return the group averages in percent and the seconds both took."""
    name = f"{Path(config).stem}_seed{seed}"
    started = time.perf_counter()
    train = [
        sys.executable,
        "train.py",
        "--config",
        config,
        "--overwrite",
        f"seed={seed}",
        f"name={name}",
        f"output_dir={output_dir}",
    ]
    subprocess.run([*train, *overrides], check=True, stdout=subprocess.DEVNULL)
    subprocess.run([sys.executable, "test.py", "--run", f"{output_dir}/{name}"], check=True, stdout=subprocess.DEVNULL)
    seconds = time.perf_counter() - started
    results = json.loads(Path(output_dir, name, "results.json").read_text(encoding="utf-8"))
    return {row["task"]: row for row in results["averages"]}, seconds


def passes(averages: dict[str, dict[str, float]]) -> bool:
    """Return whether one seed's averages meet every target."""
    mean_ap = [averages[group]["mAP"] for group in GROUPS]
    rising = all(low < high for low, high in zip(mean_ap, mean_ap[1:]))
    return rising and mean_ap[3] >= MIN_GAIN * mean_ap[0] and averages["FOUR_AVER"]["R1"] >= MIN_RANK1


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/reid5o/quickstart.yaml")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--output-dir", default="runs")
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value")
    parsed = parser.parse_intermixed_args()
    measured = []
    for seed in parsed.seeds:
        averages, seconds = run_seed(parsed.config, seed, parsed.output_dir, parsed.overrides)
        row = [*(averages[group]["mAP"] for group in GROUPS), averages["FOUR_AVER"]["R1"]]
        measured.append((row, passes(averages)))
        print(
            f"seed {seed}: mAP one/two/three/four "
            + " / ".join(f"{value:.2f}" for value in row[:4])
            + f"  rank-1 four {row[4]:.2f}  {seconds:.0f} s  {'ok' if measured[-1][1] else 'MISSED'}",
            flush=True,
        )
    columns = list(zip(*(row for row, _ in measured)))
    spread = [statistics.stdev(column) if len(column) > 1 else 0.0 for column in columns]
    print(
        "mean +- standard deviation: "
        + ", ".join(
            f"{name} {statistics.fmean(column):.2f} +- {deviation:.2f}"
            for name, column, deviation in zip((*GROUPS, "FOUR rank-1"), columns, spread)
        )
    )
    return 0 if all(ok for _, ok in measured) else 1


if __name__ == "__main__":
    sys.exit(main())
