"""Covers: docs, train, test, infer. The documented commands are run, in the order in which a reader would, on rendered
data and own files, with tiny models and one step.
"""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from documented import DOCUMENTED, NOT_RUN, NOT_RUN_WITH, reason_not_to_run, shortened, split_command
from PIL import Image
from scripts import exit_code, global_state_kept, module_exit_code

from datasets.synthetic.render import render

LAYOUTS = ("orbench", "market1501", "msmt17", "ltcc", "sysu", "regdb", "llcm", "omnireid")
ORDER = ("datasets.synthetic", "datasets.split", "train.py", "test.py", "solver.gallery", "infer.py", "datasets.check")
DEFECTS_ALLOWED = ("datasets.check",)
"""Exit code 1 is the answer of a check that finds something, such as counts of a rendering."""


def plan() -> list[str]:
    """Every command once: what makes data and runs first."""
    kept = {
        command: split_command(command)[0]
        for _, command in DOCUMENTED
        if not reason_not_to_run(*split_command(command))
    }
    return sorted(kept, key=lambda command: ORDER.index(kept[command]) if kept[command] in ORDER else len(ORDER))


PLAN = plan()


def write_own_files(place: Path) -> None:
    """A folder per person, a manifest with captions and infrared images, and the files that the pages name."""
    visible = sorted((place / "data" / "ORBench" / "vis").iterdir())
    rows = []
    for number, folder in enumerate(visible):
        for index, image in enumerate(sorted(folder.iterdir())):
            target = place / "photos" / f"p{number}" / f"{index}.jpg"
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(image, target)
            path = target.relative_to(place).as_posix()
            rows.append({"path": path, "person": f"p{number}", "modality": "rgb", "caption": f"coat {index}"})
        infrared = next((place / "data" / "ORBench" / "nir" / folder.name).iterdir())
        target = place / "infrared" / f"a{number}.png"
        target.parent.mkdir(exist_ok=True)
        Image.open(infrared).save(target)
        rows.append({"path": f"infrared/a{number}.png", "person": f"p{number}", "modality": "nir", "caption": ""})
    with (place / "all.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    for name in ("a.jpg", "FILE.jpg", "b.png"):
        Image.open(place / "photos" / "p0" / "0.jpg").save(place / name)
    shutil.copytree(place / "photos", place / "FOLDER")
    asked = [{"nir": "a.jpg", "text": "a red coat", "person_id": "p1"}]
    for name in ("queries.json", "asked.json"):
        (place / name).write_text(json.dumps(asked))


def prepare(place: Path, target: str, arguments: list[str]) -> list[str]:
    """Make what a command expects that no other command makes; return its arguments."""
    run = place / "runs" / "orbench"
    if "configs.yaml" in arguments and not (place / "configs.yaml").exists():
        shutil.copy(run / "config.yaml", place / "configs.yaml")
        shutil.copy(run / "best.pth", place / "best.pth")
    if target == "test.py" and "--compare" in arguments:
        for name in ("A.json", "B.json"):
            shutil.copy(run / "results.json", place / name)
    stands_for = {"R": "runs/orbench", "DIR": "runs/orbench/gallery_cache"}
    arguments = [stands_for.get(word, word) for word in arguments]
    if target == "datasets.split":
        for name in ("photos.csv",):
            (place / name).unlink(missing_ok=True)
    return arguments


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("reader")
    sizes = {"identities": 10, "test_identities": 4, "images_per_modality": 4, "image_size": (64, 32), "processes": 1}
    for layout in LAYOUTS:
        render(layout, str(folder / "data"), seed=0, **sizes)  # type: ignore[arg-type]
    write_own_files(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield folder


@pytest.mark.parametrize("command", PLAN)
def test_the_command_runs(place: Path, command: str) -> None:
    target, arguments = split_command(command)
    arguments = prepare(place, target, shortened(target, arguments))
    with global_state_kept():
        if target.endswith(".py"):
            code = exit_code(target.removesuffix(".py"), *arguments)
        else:
            code = module_exit_code(target, *arguments)
    assert code == 0 or (target in DEFECTS_ALLOWED and code == 1)


def test_what_is_not_run_is_listed_with_its_reason() -> None:
    targets = {split_command(command)[0] for _, command in DOCUMENTED}
    assert {target for target in targets if not reason_not_to_run(target)} >= set(ORDER)
    assert len(PLAN) > 35 and all({**NOT_RUN, **NOT_RUN_WITH}.values())
