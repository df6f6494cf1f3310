"""What the modality heads and their imitation add: the same runs with and without these terms, several seeds.

    python -m benchmarks.vireid_terms --seeds 0 1 2

Rows: all terms; without the imitation; without heads and imitation (identity and triplet alone). Each row is trained
with equal steps on equal data; printed are mean and standard deviation (n - 1) over the seeds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

VARIANTS = {
    "all terms": "{id: 1.0, modality_id: 1.0, imitation: 1.0, triplet: 1.0}",
    "without imitation": "{id: 1.0, modality_id: 1.0, triplet: 1.0}",
    "without heads and imitation": "{id: 1.0, triplet: 1.0}",
}
PROTOCOL = {"sysu": "sysu-all-single-seeded", "llcm": "llcm-ir-to-vis", "regdb": "regdb-thermal-to-visible"}


def measure(config: str, variant: str, seed: int, output_dir: str, overrides: list[str]) -> list[dict[str, float]]:
    """Train and test one run; return its rows."""
    name = f"terms-{list(VARIANTS).index(variant)}-{seed}"
    train = [
        sys.executable,
        "train.py",
        "--config",
        config,
        "--overwrite",
        f"seed={seed}",
        f"name={name}",
        f"output_dir={output_dir}",
        f"objective.losses={VARIANTS[variant]}",
    ]
    subprocess.run([*train, *overrides], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    subprocess.run(
        [sys.executable, "test.py", "--run", f"{output_dir}/{name}"],
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    return json.loads(Path(output_dir, name, "results.json").read_text(encoding="utf-8"))["rows"]


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/vireid/quickstart.yaml")
    parser.add_argument("--dataset", default="sysu", choices=sorted(PROTOCOL))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--output-dir", default="runs")
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value")
    parsed = parser.parse_intermixed_args()
    for variant in VARIANTS:
        started, found = time.perf_counter(), []
        for seed in parsed.seeds:
            rows = measure(
                parsed.config, variant, seed, parsed.output_dir, [f"data.dataset={parsed.dataset}", *parsed.overrides]
            )
            wanted = [row for row in rows if row["protocol"] == PROTOCOL[parsed.dataset]]
            found.append([statistics.fmean(row[metric] for row in wanted) for metric in ("R1", "mAP")])
        spread = [statistics.stdev(column) if len(column) > 1 else 0.0 for column in zip(*found)]
        means = [statistics.fmean(column) for column in zip(*found)]
        print(
            f"{variant:28} {PROTOCOL[parsed.dataset]}: rank-1 {means[0]:.2f} +- {spread[0]:.2f}, mAP {means[1]:.2f} +- "
            f"{spread[1]:.2f}, seeds "
            + " / ".join(f"{rank1:.1f}" for rank1, _ in found)
            + f"  ({time.perf_counter() - started:.0f} s)",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
