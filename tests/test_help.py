"""Covers: train, test, infer, datasets/synthetic/__main__, datasets/check, datasets/split, datasets/cache,
solver/gallery/__main__. Every command answers --help at once: what would make it slow, the heavy libraries, is not
imported for it.
"""

import subprocess
import sys

import pytest
from scripts import ROOT

HEAVY = {"torch", "torchvision", "numpy", "PIL", "scipy", "omegaconf", "yaml", "transformers", "matplotlib"}


@pytest.mark.parametrize(
    ("command", "word"),
    [
        ("train.py", "--overwrite"),
        ("test.py", "--compare"),
        ("infer.py", "--gallery"),
        ("-m datasets.synthetic", "--images-per-modality"),
        ("-m datasets.check", "--dataset"),
        ("-m datasets.split", "--source"),
        ("-m datasets.cache", "--clear"),
        ("-m solver.gallery", "compact"),
    ],
)
def test_help_imports_no_heavy_library(command: str, word: str) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *command.split(), "--help"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0 and done.stdout.startswith("usage:") and word in done.stdout
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "argparse" in imported and not imported & HEAVY
