"""What the modality heads and their imitation add: the same runs with and without these terms, several seeds.

    python -m benchmarks.vireid_terms --seeds 0 1 2

Rows: all terms; without the imitation; without heads and imitation (identity and triplet alone). Each row is trained
with equal steps on equal data; printed are mean and standard deviation (n - 1) over the seeds.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

from benchmarks.runs import mean_and_deviation, parse_with_seeds, train_and_test
from utils.errors import run_script

VARIANTS = {
    "all terms": "{id: 1.0, modality_id: 1.0, imitation: 1.0, triplet: 1.0}",
    "without imitation": "{id: 1.0, modality_id: 1.0, triplet: 1.0}",
    "without heads and imitation": "{id: 1.0, triplet: 1.0}",
}
PROTOCOL = {"sysu": "sysu-all-single-seeded", "llcm": "llcm-ir-to-vis", "regdb": "regdb-thermal-to-visible"}


def measure(config: str, variant: str, seed: int, output_dir: str, overrides: list[str]) -> list[dict[str, float]]:
    """Train and test one run; return its rows. Raises UserError when that fails."""
    run = Path(output_dir, f"terms-{list(VARIANTS).index(variant)}-{seed}")
    options = [f"seed={seed}", f"objective.losses={VARIANTS[variant]}", *overrides]
    rows: list[dict[str, float]] = train_and_test(config, run, options)["rows"]
    return rows


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/vireid/quickstart.yaml")
    parser.add_argument("--dataset", default="sysu", choices=sorted(PROTOCOL))
    parser.add_argument("--seeds", nargs="+", default=["0", "1", "2"], metavar="SEED", help="(default: 0 1 2)")
    parser.add_argument("--output-dir", default="runs")
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value")
    parsed = parse_with_seeds(parser)
    for variant in VARIANTS:
        started, found = time.perf_counter(), []
        for seed in parsed.seeds:
            rows = measure(
                parsed.config, variant, seed, parsed.output_dir, [f"data.dataset={parsed.dataset}", *parsed.overrides]
            )
            wanted = [row for row in rows if row["protocol"] == PROTOCOL[parsed.dataset]]
            found.append([statistics.fmean(row[metric] for row in wanted) for metric in ("R1", "mAP")])
        means, spread = zip(*map(mean_and_deviation, zip(*found)))
        print(
            f"{variant:28} {PROTOCOL[parsed.dataset]}: rank-1 {means[0]:.2f} +- {spread[0]:.2f}, mAP {means[1]:.2f} +- "
            f"{spread[1]:.2f}, seeds "
            + " / ".join(f"{rank1:.1f}" for rank1, _ in found)
            + f"  ({time.perf_counter() - started:.0f} s)",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    run_script(main)
