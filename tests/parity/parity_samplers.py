"""Golden checks of the sampler of both modalities: invariants of every batch, not the reference's sequence."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from parity_common import Kind, Row, exact

from datasets.loading.samplers import ModalityBatches

EPOCHS = 5


def _violations(case: dict[str, Any], seed: int) -> dict[str, int]:
    """How often each invariant of the file is broken in five epochs."""
    items, size, per_side, persons = case["items"], case["batch_size"], case["num_instances"], case["P"]
    infrared = [camera in case["ir_cams"] for _, camera in items]
    people = [person for person, _ in items]
    sampler = ModalityBatches(people, infrared, size, seed, per_side)
    counts = Counter(zip(people, infrared))
    offered = {int(person): groups for person, groups in case["groups_available_per_pid"].items()}
    broken: Counter[str] = Counter()
    for epoch in range(EPOCHS):
        used: Counter[int] = Counter()
        drawn: Counter[int] = Counter()
        batches = [[index for _, index in batch] for batch in sampler.epoch(epoch)]
        for batch in batches:
            groups = [batch[start : start + 2 * per_side] for start in range(0, len(batch), 2 * per_side)]
            owners = [{people[index] for index in group} for group in groups]
            broken["one pid per group"] += any(len(owner) != 1 for owner in owners)
            broken["infrared first, then visible"] += any(
                [infrared[index] for index in group] != [True] * per_side + [False] * per_side for group in groups
            )
            broken["distinct pids in a batch"] += len(set().union(*owners)) != persons
            broken["whole batches"] += len(batch) != size
            used.update(owner.pop() for owner in owners)
            drawn.update(batch)
        broken["only pids with infrared images"] += any(person not in offered for person in used)
        broken["groups offered by a pid"] += any(used[person] > offered.get(person, 0) for person in used)
        broken["an image at most once, unless its pid is short"] += any(
            times > 1 and counts[people[index], infrared[index]] >= per_side for index, times in drawn.items()
        )
        left = sum(offered[person] > used[person] for person in offered)
        broken["an epoch ends when too few pids are left"] += left >= persons
        broken["length is what is emitted"] += len(sampler) != len(batches)
    return broken


def check_sampler(path: Path) -> list[Row]:
    """Every invariant, in every case, for two seeds; and at least as many batches as the reference."""
    cases = json.loads(path.read_text(encoding="utf-8"))["cases"]
    rows = []
    for case in cases:
        for seed in (case["seed"], case["seed"] + 1):
            broken = _violations(case, seed)
            rows += [
                exact(count == 0, f"{case['name']}, seed {seed}: {invariant}") for invariant, count in broken.items()
            ]
        sampler = ModalityBatches(
            [person for person, _ in case["items"]],
            [camera in case["ir_cams"] for _, camera in case["items"]],
            case["batch_size"],
            case["seed"],
            case["num_instances"],
        )
        rows.append(exact(len(sampler) >= case["n_batches"], f"{case['name']}: batches of an epoch"))
    return rows


KINDS: tuple[Kind, ...] = (Kind("balanced sampler (visible-infrared)", r"sampler.*\.json", check_sampler),)
