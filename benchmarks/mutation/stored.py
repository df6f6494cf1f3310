"""Damaged files that the project has written itself: checkpoints, states, indexes, caches, thresholds, results."""

from __future__ import annotations

import json
import math
import os
import random
import re
import shutil
import signal
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.mutation.contain import ROOT, Command, run_one
from benchmarks.mutation.damage import damage_bytes, damage_json, damage_torch, instead_of_file, replace_file

LIMIT = 300.0
OPTIONS = ("--device", "cpu")
ONE = ("train.max_steps=1", "train.epochs=1", "train.select=last")
STATED = ("train.epochs=2", "train.batch_size=4", "train.save_steps=1", "train.select=last", "train.keep_states=3")
LAST_STEP = 6
STOPPED = 128 + signal.SIGTERM


@dataclass(frozen=True)
class Target:
    """A file that is damaged."""

    place: str
    """Folder that is copied."""
    file: str
    """Which of it, by its pattern."""
    words: tuple[str, ...]
    """Script and arguments, with {place} for the copy, which is {parent}/{name}, and {out} for a folder of output."""
    judged: bool = True
    """Whether another answer without a word is a fault; not of files that people write, whose content is theirs."""

    def command(self, place: Path, out: Path) -> Command:
        """Return the command on a copied folder."""
        names = {"{place}": place, "{parent}": place.parent, "{name}": place.name, "{out}": out}
        script, *words = (re.sub("|".join(names), lambda found: str(names[found[0]]), word) for word in self.words)
        return Command(script=script, arguments=words)


class Stored:
    """What the cases start from, made once in a folder: data, runs, an index, caches, thresholds, results."""

    def __init__(self, folder: Path, data: Path) -> None:
        """data: a rendered tree of ORBench's layout with ten test persons and more."""
        self.folder, self.data = folder, data
        self._number = 0

    @property
    def query(self) -> str:
        """An infrared picture."""
        return str(min((self.data / "ORBench" / "nir").rglob("*.jpg")))

    def make(self) -> None:
        """Make everything. Raises RuntimeError when a command fails."""
        self.folder.mkdir()
        run, other = self.folder / "run", self.folder / "other"
        self._train(run, *ONE)
        self._train(other, *ONE, "model.embed_dim=16")
        self._do("infer", "--run", run, "--calibrate-test", *OPTIONS)
        self._do("test", "--run", run, *OPTIONS)
        self._do(
            "solver.gallery", "add", "--run", run, "--index", self.folder / "index", self.data / "ORBench/vis", *OPTIONS
        )
        searched = ("--run", run, *OPTIONS, "--task", "NIR", "--output", self.folder / "found.png")
        self._do("infer", *searched, "--gallery-cache", self.folder / "gallery")
        self._train(self.folder / "cached", *ONE, f"data.cache_dir={self.folder / 'cache'}")
        self._stopped(self.folder / "stopped")
        mine = self.folder / "mine"
        mine.mkdir()
        photos = sorted((self.data / "ORBench" / "vis").rglob("*.jpg"))[:6]
        rows = "".join(f"{path},{path.parent.name},door,,,gallery\n" for path in photos)
        (mine / "photos.csv").write_text(f"path,person,camera,clothes,caption,split\n{rows}", encoding="utf-8")
        (mine / "asked.json").write_text(json.dumps([{"nir": self.query}, {"nir": self.query, "text": "a red coat"}]))

    def _do(self, script: str, *arguments: object, codes: tuple[int, ...] = (0,)) -> None:
        self._number += 1
        run_one(self.folder / f"log-{self._number}", script, [str(word) for word in arguments], LIMIT, codes)

    def _train(self, run: Path, *options: str) -> None:
        self._do("train", *self.training(run, *options))

    def training(self, run: Path, *options: str) -> list[str]:
        """Return the arguments of train.py."""
        place = [f"data.root={self.data}", f"output_dir={run.parent}", f"name={run.name}"]
        return ["--config", str(ROOT / "configs/reid5o/smoke.yaml"), *OPTIONS, *place, *options]

    def _stopped(self, run: Path) -> None:
        """Make a run that was ended by SIGTERM in its second epoch, with several states."""
        command = Command(script="train", arguments=self.training(run, *STATED))

        def prepare() -> Command:
            """The command, and a watch that ends it."""

            def end() -> None:
                # In the second epoch: there are checkpoints too.
                while not (run / "states" / f"step-{LAST_STEP:09d}.pth").exists():
                    time.sleep(0.001)
                os.kill(os.getpid(), signal.SIGTERM)

            threading.Thread(target=end, daemon=True).start()
            return command

        self._number += 1
        run_one(self.folder / f"log-{self._number}", prepare, [], LIMIT, (STOPPED,))

    def targets(self) -> dict[str, Target]:
        """Return what is damaged, by name."""
        place, out, run = Path("{parent}/{name}"), Path("{out}"), self.folder / "run"
        goes_on = ("train", *self.training(place, *STATED, "--resume"))
        tested = ("test", "--run", "{place}", *OPTIONS, "--output", "{out}")
        compared = ("test", "--compare", str(run), "{place}")
        searched = ("infer", *OPTIONS, "--output", "{out}/found.png", "--run")
        asked = (*searched, str(run), "--nir", self.query, "--gallery-cache", "{out}/cache")
        indexed = (*asked, "--index", "{place}")
        listed = ("--queries", "{place}/asked.json", "--gallery", str(self.data / "ORBench/vis"))
        other = ("--gallery-cache", "{out}/cache")
        return {
            "checkpoint, tested": Target("run", "best.pth", tested),
            "checkpoint, taken over": Target(
                "run", "best.pth", ("train", *self.training(out / "run", *ONE, "train.init_from={place}"))
            ),
            "configuration of a run": Target("run", "config.yaml", tested, judged=False),
            "outcome of a run": Target(
                "run", "outcome.json", ("train", *self.training(place, *ONE, "--resume")), judged=False
            ),
            "state": Target("stopped", "states/step-*.pth", goes_on),
            "metrics of a stopped run": Target("stopped", "metrics.jsonl", goes_on),
            "configuration of a stopped run": Target("stopped", "config.yaml", goes_on),
            "last.pth of a stopped run": Target("stopped", "*.pth", goes_on),
            "index": Target("index", "index.json", indexed),
            "index, shards": Target("index", "shards/*", indexed),
            "encoded gallery": Target(
                "gallery", "**/*.*", (*searched, str(run), "--task", "NIR", "--gallery-cache", "{place}")
            ),
            "decoded images": Target(
                "cache", "*.*", ("train", *self.training(out / "run", *ONE, "data.cache_dir={place}"))
            ),
            "thresholds": Target("run", "*.calibration.json", (*searched, "{place}", "--task", "NIR", *other)),
            "results": Target("run", "results.json", compared, judged=False),
            "per query": Target("run", "per_query.npz", compared, judged=False),
            "queries": Target("mine", "asked.json", (*searched, str(run), *listed, *other), judged=False),
            "manifest": Target("mine", "photos.csv", (*asked, "--gallery", "{place}/photos.csv"), judged=False),
        }


def damage_arrays(rng: random.Random, path: Path) -> str:
    """Change an array of a .npy or .npz file, which is still one; return how."""
    loaded = np.load(path, allow_pickle=False)
    arrays = {name: loaded[name] for name in loaded.files} if path.suffix == ".npz" else {"": loaded}
    name = rng.choice(sorted(arrays))
    value = arrays[name]
    changes: dict[str, Callable[[], Any]] = {
        "float64": lambda: value.astype(np.float64) if value.dtype.kind in "biuf" else value[:0],
        "int8": lambda: value.astype(np.int8) if value.dtype.kind in "biuf" else value[:0],
        "text": lambda: value.astype("U"),
        "cut": lambda: value[:-1] if value.ndim else value,
        "flat": lambda: value.reshape(-1),
        "reversed": lambda: value[::-1] if value.ndim else value,
        "nan": lambda: np.full_like(value, math.nan) if value.dtype.kind == "f" else value[:0],
        "order": lambda: np.asfortranarray(value),
        "a number": lambda: np.array(3),
    }
    how = rng.choice((*sorted(changes), *(["absent"] if name else [])))
    if how == "absent":
        del arrays[name]
    else:
        arrays[name] = changes[how]()
    path.unlink()
    if path.suffix == ".npz":
        np.savez(path, **arrays)
    else:
        np.save(path, arrays[name])
    return f"{name} {how}"


def damage_stored(rng: random.Random, file: Path, other: Path) -> str:
    """Damage a file in a way that fits its kind; return how. other: a run of another model."""
    kinds: list[Callable[[], str]] = [lambda: damage_bytes(rng, file), lambda: damage_bytes(rng, file)]
    if file.suffix == ".json":
        kinds.append(lambda: damage_json(rng, file))
    if file.suffix == ".pth":
        kinds += [lambda: damage_torch(rng, file)] * 2
    if file.suffix in (".npy", ".npz"):
        kinds.append(lambda: damage_arrays(rng, file))
    if (other / file.name).is_file():
        kinds.append(lambda: _exchanged(file, other / file.name))
    kinds.append(lambda: instead_of_file(rng, file))
    return rng.choice(kinds)()


def _exchanged(file: Path, other: Path) -> str:
    replace_file(file, other.read_bytes())
    return "that of another model"


def copied(source: Path, target: Path) -> Path:
    """Copy a folder, with times, and return the copy."""
    shutil.copytree(source, target)
    return target


def answer(script: str, arguments: Mapping[str, Any] | list[str], out: str, place: Path, folder: Path) -> Any:
    """Return what a command has found, without times and places; two equal answers mean the same result."""
    if script == "test" and "--compare" in arguments:
        return out.replace(str(place), "")
    if script == "test":
        return results_of(folder / "results.json")
    if script == "infer":
        found = json.loads((folder / "found.json").read_text(encoding="utf-8"))
        return json.dumps(found["queries"], sort_keys=True)
    run = folder / "run" if (folder / "run").is_dir() else place
    return trained(run)


def results_of(file: Path) -> Any:
    """Return the figures of a results.json."""
    found = json.loads(file.read_text(encoding="utf-8"))
    return json.dumps([found["rows"], found["averages"]])


def trained(run: Path) -> Any:
    """Return what a training has learned: every line of its metrics but the speed, and a digest of its weights."""
    from utils.checkpoint_io import fingerprint_state, load_checkpoint

    # Speeds differ from run to run; a damaged line is compared as it is.
    lines = re.sub(rb'"images_per_second": [^,}]*', b"", (run / "metrics.jsonl").read_bytes())
    return lines, fingerprint_state(load_checkpoint(run / "last.pth")["model"])
