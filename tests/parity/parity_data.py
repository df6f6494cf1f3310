"""Golden checks of the data sets: galleries drawn per trial, published counts."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from parity_common import Kind, Row, exact

from configs.vocabulary import Modality
from datasets.catalogue import dataset_entry
from datasets.structures import Record, Release, Source

MODES = {"all_search": "sysu-all-single-seeded", "indoor_search": "sysu-indoor-single-seeded"}


def _release(paths: Iterable[str]) -> Release:
    """A SYSU-MM01 release of paths `cam1/0050/0001.jpg`, all of the test split."""
    parts: dict[str, list[Record]] = {"query": [], "gallery": []}
    for path in paths:
        camera, person = int(path.split("/")[0].removeprefix("cam")), int(path.split("/")[1])
        modality, part = (Modality.NIR, "query") if camera in (3, 6) else (Modality.RGB, "gallery")
        source = Source(modality=modality, value=path)
        parts[part].append(
            Record(person_id=person, camera_id=camera, sources={modality: source}, dataset="sysu", name=path)
        )
    return Release(name="sysu", root=Path(), parts={name: tuple(records) for name, records in parts.items()})


def _galleries(release: Release, protocol: str) -> list[list[str]]:
    """Paths of the gallery of each draw."""
    return [
        [record.sources[Modality.RGB].value for record in search.gallery]
        for search in dataset_entry("sysu").protocols[protocol].searches(release)
    ]


def check_gallery_selection(path: Path) -> list[Row]:
    """AGW's draws of SYSU-MM01: the galleries of trials 0 to 9, from the files in any order."""
    golden = json.loads(path.read_text(encoding="utf-8"))
    # Listed backwards: the order of the files must not matter.
    release = _release(
        f"{folder}/{name}" for folder, names in reversed(golden["tree"].items()) for name in reversed(names)
    )
    rows = []
    for mode, protocol in MODES.items():
        drawn = _galleries(release, protocol)
        rows.append(exact(len(drawn) == len(golden[mode]), f"{mode}: number of draws"))
        rows += [
            exact(drawn[int(trial)] == expected, f"{mode}, trial {trial}") for trial, expected in golden[mode].items()
        ]
    return rows


def check_official_counts(path: Path) -> list[Row]:
    """SYSU-MM01's sizes: what is published in its entry, and what its protocols draw from a tree with as many persons
    per camera.
    """
    golden = json.loads(path.read_text(encoding="utf-8"))
    tested, trained = golden["test_images_per_cam"], golden["train296_images_per_cam"]
    published = dataset_entry("sysu").published[""]
    visible, infrared = ("cam1", "cam2", "cam4", "cam5"), ("cam3", "cam6")
    rows = [
        exact(published["train"].images == sum(trained.values()), "training images"),
        exact(
            (published["train"].persons, published["query"].persons)
            == (golden["n_train_ids_296"], golden["n_test_ids"]),
            "persons",
        ),
        exact(published["query"].images == golden["n_query"] == sum(tested[camera] for camera in infrared), "queries"),
        exact(published["gallery"].images == sum(tested[camera] for camera in visible), "gallery images"),
    ]
    release = _release(_tree(golden["test_ids_per_cam"], tested))
    for mode, expected in golden["gallery_size"].items():
        protocol = f"sysu-{mode.replace('multi10', 'multi').replace('_', '-')}-seeded"
        searches = list(dataset_entry("sysu").protocols[protocol].searches(release))
        rows.append(exact({len(search.gallery) for search in searches} == {expected}, f"gallery of {mode}"))
        rows.append(exact({len(search.query) for search in searches} == {golden["n_query"]}, f"queries of {mode}"))
    return rows


def _tree(persons: Mapping[str, int], images: Mapping[str, int]) -> list[str]:
    """Paths with that many persons and images per camera, at least ten images each; who is where is invented."""
    return [
        f"{camera}/{place % count + 1:04d}/{place // count + 1:04d}.jpg"
        for camera, count in persons.items()
        for place in range(images[camera])
    ]


KINDS: tuple[Kind, ...] = (
    Kind("gallery selection (SYSU-MM01)", r"sysu_gallery_selection.*\.json", check_gallery_selection),
    Kind("counts (SYSU-MM01)", r"sysu_official_counts.*\.json", check_official_counts),
)
