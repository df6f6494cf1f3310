"""Covers: datasets/releases, datasets/benchmark, datasets/build. The fingerprint of a data set is that of its
lists: not of the order in which one process happens to hash words, nor of the place where the data lie.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from official_trees import TREES, root_of
from tiny_orbench import write_orbench

ROOT = Path(__file__).resolve().parent.parent
READ = """
import json, sys
from configs.schema.data import DataConfig
from datasets.build import build_benchmark
found = {}
for name, root in json.loads(sys.argv[1]).items():
    data = DataConfig(dataset=name, root=root, val_fraction=0.5)
    train = name != "cocas"
    found[name] = build_benchmark(data, select="test", need_train=train).fingerprint
print(json.dumps(found))
"""


def fingerprints(roots: dict[str, str], seed: str) -> dict[str, str]:
    """Read every data set in a process of its own."""
    environment = {**os.environ, "PYTHONHASHSEED": seed, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", READ, json.dumps(roots)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_readers_give_one_fingerprint_under_every_hash_seed_and_root(tmp_path: Path) -> None:
    first, second = tmp_path / "one", tmp_path / "other" / "deeper"
    made = {}
    for name, write in TREES.items():
        (first / name).mkdir(parents=True)
        made[name] = Path(root_of(name, write(first / name), first / name)).relative_to(first)
    made["orbench"] = write_orbench(first / "orbench").relative_to(first)
    shutil.copytree(first, second)
    found, again = (
        fingerprints({name: str(place / path) for name, path in made.items()}, seed)
        for place, seed in ((first, "1"), (second, "2"))
    )
    assert len(set(found.values())) == len(made), "each is another data set"
    assert {name for name in found if found[name] != again[name]} == set()
