"""ORBench: {vis,nir,cp,sk}/<folder4>/*.jpg, train_annos.json, test_gallery_and_queries.json (33 keys).

As in the original, the folder number, the training label and the test id of a person are three different numbers;
RGB and infrared come from the cameras of two sites (four visible and two infrared ones, nine of both), drawings in
three views; every RGB picture has one caption.
"""

from __future__ import annotations

from typing import Any

from configs.vocabulary import QUERY_MODALITIES, Modality, combination_name
from datasets.formats.query_lists import draw_query_lists
from datasets.synthetic.arguments import RenderArguments
from datasets.synthetic.captions import caption_of
from datasets.synthetic.person import View
from datasets.synthetic.population import BLOCKS, test_persons, train_persons
from datasets.synthetic.scenes import draw_view
from datasets.synthetic.shots import Plan, Shot
from utils.errors import UserError
from utils.seeding import stream

FOLDER = "ORBench"
MAXIMUM_PERSONS = 9999
CAMERAS = {
    Modality.RGB: {"sysu": (1, 2, 4, 5), "llcm": tuple(range(1, 10))},
    Modality.NIR: {"sysu": (3, 6), "llcm": tuple(range(1, 10))},
}
FOLDERS = {Modality.RGB: "vis", Modality.NIR: "nir", Modality.CP: "cp", Modality.SK: "sk"}
SUFFIXES = {Modality.RGB: "vis", Modality.NIR: "nir", Modality.CP: "colorpencil", Modality.SK: "sketch"}
DRAWING_VIEWS = (View.FRONT, View.BACK, View.SIDE)


def plan(arguments: RenderArguments) -> Plan:
    """Return the pictures and the two annotation files. Raises UserError for more persons than folder names can
    hold.
    """
    train, test = train_persons(arguments), test_persons(arguments, BLOCKS["orbench"])
    if len(train) + len(test) > MAXIMUM_PERSONS:
        raise UserError(
            f"--identities + --test-identities is {len(train) + len(test)}: ORBench's folder names have four digits, "
            f"{MAXIMUM_PERSONS} persons at most"
        )
    folders, test_ids = _numbers(len(train), len(test), arguments.seed)
    shots = {person: _shots(person, folder, arguments) for person, folder in zip((*train, *test), folders)}
    captions = {shot.path: caption_of(shot, arguments.seed) for person in shots for shot in shots[person][Modality.RGB]}
    train_annotations = [
        {"id": label, "file_path": shot.path, "caption": captions[shot.path], "split": "train"}
        for label, person in enumerate(train, start=1)
        for shot in shots[person][Modality.RGB]
    ]
    test_shots = {test_id: shots[person] for person, test_id in zip(test, test_ids)}
    return Plan(
        shots=tuple(shot for person in shots for modality in FOLDERS for shot in shots[person][modality]),
        annotations={
            "train_annos.json": train_annotations,
            "test_gallery_and_queries.json": _gallery_and_queries(test_shots, captions, arguments.seed),
        },
    )


def _numbers(train: int, test: int, seed: int) -> tuple[list[int], list[int]]:
    """Return a folder number per person (training persons first) and an id per test person, never equal to its
    folder.
    """
    rng = stream(seed, "orbench", "numbers")
    folders = rng.sample(range(1, train + test + 1), train + test)
    ids = rng.sample(range(train + 1, train + test + 1), test)
    if any(folder == test_id for folder, test_id in zip(folders[train:], ids)):
        # Ids above every folder number cannot meet one.
        ids = [test_id + test for test_id in ids]
    return folders, ids


def _shots(person: int, folder: int, arguments: RenderArguments) -> dict[Modality, list[Shot]]:
    seed, count = arguments.seed, arguments.images_per_modality
    rng = stream(seed, "orbench", "source", person)
    site = rng.choice(("sysu", "llcm"))
    stem = f"{folder:04d}/{folder:04d}_{site}_{rng.randint(1, 1064):04d}"
    first_frame = rng.randint(1, 60)
    found: dict[Modality, list[Shot]] = {modality: [] for modality in FOLDERS}
    for modality, sites in CAMERAS.items():
        order = rng.sample(sites[site], len(sites[site]))
        for index in range(count):
            camera = order[index % len(order)]
            name = f"{FOLDERS[modality]}/{stem}_cam{camera}_{first_frame + index:04d}_{SUFFIXES[modality]}.jpg"
            found[modality].append(Shot(name, person, 0, modality, index, draw_view(rng), site, camera))
    for modality in (Modality.CP, Modality.SK):
        for index in range(count):
            view = DRAWING_VIEWS[index % len(DRAWING_VIEWS)]
            name = f"{FOLDERS[modality]}/{stem}_{view.value}_{index // len(DRAWING_VIEWS) + 1}_{SUFFIXES[modality]}.jpg"
            found[modality].append(Shot(name, person, 0, modality, index, view))
    return found


def _gallery_and_queries(
    test_shots: dict[int, dict[Modality, list[Shot]]], captions: dict[str, str], seed: int
) -> dict[str, Any]:
    gallery = [[test_id, shot.path] for test_id in sorted(test_shots) for shot in test_shots[test_id][Modality.RGB]]
    items = {
        test_id: {
            modality: [captions[shot.path] for shot in shots[Modality.RGB]]
            if modality is Modality.TEXT
            else [shot.path for shot in shots[modality]]
            for modality in QUERY_MODALITIES
        }
        for test_id, shots in test_shots.items()
    }
    lists = draw_query_lists(items, seed)
    return {
        "RGB_GALLERY": gallery,
        **{combination_name(key): [[test_id, *parts] for test_id, parts in lists[key]] for key in lists},
    }
