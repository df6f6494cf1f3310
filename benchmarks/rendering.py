"""Rendering speed: images per second of one core, JPEG encoding and writing included.

    python benchmarks/rendering.py [--sizes 128x64 384x128 --identities 40 --repeats 3]

Each size is rendered in the ORBench layout by one process into a temporary folder; the best of the repeats counts, by
processor time (what the core did) and by the clock (what a user waits, beside whatever else runs). Exit code 1 when a
size with a target misses it by processor time.
"""

from __future__ import annotations

import argparse
import platform
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from configs.vocabulary import Modality
from datasets.synthetic.arguments import RenderArguments, parse_image_size
from datasets.synthetic.render import render
from datasets.synthetic.shots import encode_shot
from utils.errors import run_script
from utils.tables import format_table

TARGETS = {(128, 64): 300.0, (384, 128): 100.0}


def measure_layout(size: tuple[int, int], identities: int, repeats: int) -> tuple[float, float]:
    """Return pictures per second of processor time and of the clock, the best of `repeats`."""
    processor, clock = [], []
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as folder:
            begin_processor, begin_clock = time.process_time(), time.perf_counter()
            result = render("orbench", folder, identities=identities, test_identities=2, image_size=size, processes=1)
            processor.append(result.pictures / (time.process_time() - begin_processor))
            clock.append(result.pictures / (time.perf_counter() - begin_clock))
    return max(processor), max(clock)


def measure_modalities(size: tuple[int, int], repeats: int) -> dict[str, float]:
    """Return milliseconds of processor time per picture of each image modality, encoding included."""
    arguments = RenderArguments("orbench", 10, 1, 0, size, 4)
    shots = arguments.layout_module().plan(arguments).shots
    found = {}
    for modality in (Modality.RGB, Modality.NIR, Modality.CP, Modality.SK):
        chosen = [shot for shot in shots if shot.modality is modality]
        times = []
        for _ in range(repeats):
            begin = time.process_time()
            for shot in chosen:
                encode_shot(shot, arguments.seed, size)
            times.append((time.process_time() - begin) / len(chosen) * 1e3)
        found[modality.name] = min(times)
    return found


def main() -> int:
    """Measure, print a table, compare with the targets."""
    parser = argparse.ArgumentParser(description="Images per second per core of the rendered benchmark.")
    parser.add_argument("--sizes", nargs="+", default=["128x64", "384x128"], metavar="HxW")
    parser.add_argument("--identities", type=int, default=40, metavar="N", help="rendered per size and repeat")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    rows, missed = [], False
    for text in options.sizes:
        size = parse_image_size(text)
        processor, clock = measure_layout(size, options.identities, options.repeats)
        target = TARGETS.get(size)
        missed |= target is not None and processor < target
        each = measure_modalities(size, options.repeats)
        rows.append(
            {
                "size": text,
                "images/s (processor)": round(processor),
                "images/s (clock)": round(clock),
                "target": round(target) if target else None,
                **{f"{name} ms": each[name] for name in each},
            }
        )
    print(f"{platform.machine()}, one process")
    print(format_table(rows))
    return 1 if missed else 0


if __name__ == "__main__":
    run_script(main)
