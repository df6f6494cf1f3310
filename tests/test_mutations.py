"""Covers: benchmarks/mutations, benchmarks/mutation. The net that damaged cases fall through is whole: deaths, hangs,
tracebacks and configurations that are not what was written are told from successes and refusals.
"""

import json
import os
import random
import re
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from benchmarks import mutations
from benchmarks.mutation import configurations, damage, trees
from benchmarks.mutation.contain import Command, Job, Outcome, run_jobs
from configs.load import experiment_to_dict, load_experiment
from utils.files import write_json

ROOT = Path(__file__).resolve().parent.parent
SMOKE = ROOT / "configs" / "reid5o" / "smoke.yaml"


def refused() -> Command:
    return Command(script="train", arguments=["--config", "absent.yaml"])


def raises() -> Command:
    raise ValueError("damaged beyond words")


def dies() -> Command:
    os.kill(os.getpid(), signal.SIGKILL)
    return refused()


def hangs() -> Command:
    time.sleep(60)
    return refused()


def compares_nothing() -> Command:
    Path("a.json").write_text(json.dumps({"rows": [{"task": "NIR", "mAP": 1.0}], "averages": []}))
    return Command(script="test", arguments=["--compare", "a.json", "a.json"])


def test_every_end_of_a_case_is_told_from_the_others(tmp_path: Path) -> None:
    prepared = (refused, raises, dies, compares_nothing)
    jobs = [Job(folder=tmp_path / one.__name__, prepare=one, about=one.__name__) for one in prepared]
    found = {job.about: outcome for job, outcome in run_jobs(jobs, workers=2, limit=100)}
    found |= {"hangs": outcome for _, outcome in run_jobs([Job(folder=tmp_path / "h", prepare=hangs)], 1, limit=0.5)}
    assert found["refused"].refused and found["refused"].code == 2 and not found["refused"].problem
    assert "damaged beyond words" in found["raises"].problem and found["raises"].problem.startswith("traceback")
    assert "SIGKILL" in found["dies"].problem
    assert found["hangs"].code is None and found["hangs"].problem.startswith("hangs") and found["hangs"].seconds < 50
    assert found["compares_nothing"].code == 0 and not found["compares_nothing"].problem
    assert not (ROOT / "a.json").exists(), "a case works in a folder of its own"


@pytest.mark.parametrize(
    ("code", "err", "problem"),
    [
        (2, "10:00:00 begins\nerror: no such file: x; restore it\n", ""),
        (2, "error: one\nerror: two\n", "without one sentence"),
        (2, "error: KeyError: 'x'; this is a defect of the program, please report it with the log\n", "traceback"),
        (2, "usage: train.py\n", "without one sentence"),
        (1, "error: no\n", "exit code 1"),
        (0, "Traceback (most recent call last):\n", "traceback"),
    ],
)
def test_what_counts_as_one_sentence(code: int, err: str, problem: str) -> None:
    found = Outcome(code=code, out="", err=err, seconds=0.0).problem
    assert problem in found and bool(found) == bool(problem)


WRITTEN = (
    "family: reid5o\nseed: 3\ntrain: {epochs: 10, select: last}\noptimizer: {eps: 1e-1}\n"
    "model: {image_size: [32, 16]}\n"
)


@pytest.mark.parametrize(
    ("changes", "text", "found"),
    [
        ({}, WRITTEN, ""),
        ({}, WRITTEN.replace("1e-1", "0.10"), ""),
        ({}, WRITTEN.replace("epochs: 10", "epochs: 11"), "train.epochs = '11' became 10"),
        ({}, WRITTEN.replace("[32, 16]", "[32]"), r"model.image_size = \['32'\] became \[32, 16\]"),
        ({}, WRITTEN.replace("seed: 3", "sed: 3"), "sed is not in the run"),
        ({}, WRITTEN.replace("seed: 3\n", ""), "seed is 3, which was not written .the default is 0"),
        ({}, f"{WRITTEN}seed: 3\n", "'seed' stands twice"),
        ({}, WRITTEN.replace("{epochs", "{epochs: 10, epochs"), "'epochs' stands twice"),
        ({}, "a: [", "it is no YAML"),
        ({"optimizer": {"lr": 5.0}}, WRITTEN, "optimizer.lr is 5.0, which was not written"),
        ({}, f"{WRITTEN}eval: {{flip: 'yes'}}\n", "eval.flip = 'yes' became False"),
    ],
)
def test_a_configuration_that_is_not_what_was_written(
    changes: dict[str, Any], text: str, found: str, tmp_path: Path
) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(WRITTEN)
    resolved = experiment_to_dict(load_experiment(file))
    for section, values in changes.items():
        resolved[section] |= values
    file.write_text(text)
    told = configurations.unlike(file, resolved, configurations.defaults_of("reid5o"))
    assert (not told) if not found else re.search(found, told), told


@pytest.mark.parametrize("group", configurations.GROUPS)
def test_damage_is_drawn_from_the_seed_alone(group: str, tmp_path: Path) -> None:
    options = experiment_to_dict(load_experiment(SMOKE))
    made = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        file = tmp_path / name / "config.yaml"
        what = configurations.damaged(random.Random("7"), group, yaml.safe_load(json.dumps(options)), file)
        made.append((what, file.read_bytes() if file.is_file() and not file.is_symlink() else None))
    assert made[0] == made[1]
    assert made[0][1] != yaml.safe_dump(options, sort_keys=False).encode()


def test_damaged_values_lose_or_change_one_entry() -> None:
    value = {"a": 1, "b": {"c": [1, 2, 3], "d": torch.arange(3.0)}}
    for seed in range(200):
        changed, what = damage.damage_value(random.Random(seed), value)
        assert what and repr(changed) != repr(value)
    assert value["a"] == 1 and torch.equal(value["b"]["d"], torch.arange(3.0))  # type: ignore[index]


def test_a_linked_copy_leaves_its_origin_alone(tmp_path: Path) -> None:
    source = tmp_path / "whole" / "s"
    source.mkdir(parents=True)
    for name in ("a.jpg", "b.txt", "c.json"):
        (source / name).write_text('{"x": [1, 2]}')
    before = {path.name: path.read_bytes() for path in source.iterdir()}
    for number, (kind, spoil) in enumerate(trees.KINDS.items()):
        copy = tmp_path / f"copy-{number}"
        trees.copy_linked(source.parent, copy)
        assert spoil(random.Random(number), copy), kind
    assert {path.name: path.read_bytes() for path in source.iterdir()} == before


def test_a_silent_change_is_told_from_a_change_that_was_said(tmp_path: Path) -> None:
    bench = mutations.Bench(tmp_path / "bench")
    whole = Outcome(code=0, out="| NIR | 5.0 |", err="10:00:00 split test: 3 lists\n", seconds=0.0)
    bench.whole["sysu/test"] = (("[1]", "print"), mutations.said(whole))
    place = tmp_path / "case"
    case = next(
        case
        for case in (mutations.tree_case(bench, "list, values", number) for number in range(20))
        if case.name.startswith("data sets/sysu") and "datasets" not in case.name and case.name.endswith("/6")
    )

    def verdict(rows: list[int], fingerprint: str, err: str) -> tuple[str, str]:
        content = {"rows": rows, "averages": [], "data": {"fingerprint": fingerprint}}
        write_json(place / "out" / "results.json", content)
        return mutations.verdict_of(case, place, Outcome(code=0, out=whole.out, err=err, seconds=0.0))

    bench.whole["sysu/test"] = ((json.dumps([[1], []]), "print"), mutations.said(whole))
    assert verdict([1], "print", whole.err)[0] == "same"
    assert verdict([2], "print", "11:11:11 split test: 9 lists\n") == (
        "FAILED",
        "SILENT: another answer, and nothing was said",
    )
    assert verdict([2], "other", whole.err)[0] == "said"
    assert verdict([2], "print", f"{whole.err}10:00:01 one image was left out\n")[0] == "said"
