"""Training samples per second: five modalities of 384x128, decode cache off and on, against Pillow in one plain loop.

    python -m benchmarks.loading [--identities 40 --height 384 --width 128 --seconds 8]

Baseline: open, convert, resize (bilinear), float, normalise, one thread: what the reference's transforms do, without
its augmentation. Ours: the training loader in the same process, one thread, with flip, crop and erasing, images as
uint8. An image is one picture of one sample; four of them and a caption make a sample. Exit code 1 when a rate is zero.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from utils.threads import configure_threads

configure_threads()

import numpy as np  # noqa: E402
import torch  # noqa: E402
from PIL import Image  # noqa: E402

from configs.load import build_experiment  # noqa: E402
from datasets.build import build_benchmark, build_source_reader  # noqa: E402
from datasets.loading.loaders import build_batches, build_train_loader  # noqa: E402
from datasets.modalities import CLIP_MEAN, CLIP_STD  # noqa: E402
from datasets.structures import Batch, Benchmark  # noqa: E402
from datasets.synthetic.render import render  # noqa: E402
from utils.tables import format_table  # noqa: E402

IMAGES_PER_SAMPLE = 4


def rate(step: Callable[[], int], seconds: float) -> float:
    """Call `step`, which returns how many images it read, for about `seconds`; return images per second of process
    time.
    """
    step()
    count, started = 0, time.process_time()
    while time.process_time() - started < seconds:
        count += step()
    return count / (time.process_time() - started)


def pillow_loop(benchmark: Benchmark, size: tuple[int, int]) -> Callable[[], int]:
    """The baseline: four images of one record after the other."""
    mean, std = (np.array(values, dtype=np.float32)[:, None, None] for values in (CLIP_MEAN, CLIP_STD))
    records = itertools.cycle(benchmark.train)

    def step() -> int:
        """Read four images of the next record; return how many."""
        record = next(records)
        for source in (
            next(iter(record.sources.values())),
            *(candidates[0] for candidates in record.partners.values()),
        ):
            image = Image.open(source.value).convert("RGB").resize((size[1], size[0]), Image.Resampling.BILINEAR)
            torch.from_numpy((np.asarray(image, dtype=np.float32).transpose(2, 0, 1) / 255 - mean) / std)
        return IMAGES_PER_SAMPLE

    return step


def loader_loop(benchmark: Benchmark, root: str, size: tuple[int, int], cache: str) -> Callable[[], int]:
    """Ours: batches of the training loader in this process."""
    config = build_experiment(
        [
            (
                "benchmark",
                {
                    "data": {"root": root, "cache_dir": cache},
                    "model": {"image_size": list(size)},
                    "augment": {"flip": 0.5, "pad_crop": 10, "erase": 0.5, "caption_mask": 0.15},
                    "train": {"batch_size": 32},
                },
            )
        ]
    )
    reader = build_source_reader(config.data, config.model, benchmark)
    sampled = build_batches(benchmark, config.train, 0)
    loader = build_train_loader(benchmark, config.data, config.augment, reader, sampled, seed=0, workers=0)
    batches: Iterator[Batch] = itertools.chain.from_iterable(map(loader.epoch, itertools.count()))
    return lambda: IMAGES_PER_SAMPLE * len(next(batches).person_ids)


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--identities", type=int, default=40)
    parser.add_argument("--height", type=int, default=384)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--seconds", type=float, default=8.0)
    parsed = parser.parse_args()
    logging.disable(logging.INFO)
    torch.set_num_threads(1)
    size = (parsed.height, parsed.width)
    with tempfile.TemporaryDirectory() as folder:
        render("orbench", folder, identities=parsed.identities, test_identities=4, image_size=size)
        config = build_experiment([("benchmark", {"data": {"root": folder}})])
        benchmark = build_benchmark(config.data, select="last", need_train=True)
        rates = {
            "Pillow, plain loop": rate(pillow_loop(benchmark, size), parsed.seconds),
            "loader, cache off": rate(loader_loop(benchmark, folder, size, ""), parsed.seconds),
            "loader, cache on": rate(loader_loop(benchmark, folder, size, str(Path(folder, "cache"))), parsed.seconds),
        }
    baseline = rates["Pillow, plain loop"]
    print(
        format_table(
            [
                {"reader": name, "images/s per core": f"{value:.0f}", "ratio": f"{value / baseline:.2f}"}
                for name, value in rates.items()
            ]
        )
    )
    return 0 if min(rates.values()) > 0 else 1


if __name__ == "__main__":
    sys.exit(main())
