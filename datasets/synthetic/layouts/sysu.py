"""SYSU-MM01: cam1..cam6/<id4>/<frame4>.jpg, exp/{train,val,test,available}_id.txt and exp/rand_perm_cam.mat.

Cameras 1, 2, 4, 5 are visible, 3 and 6 infrared; 1, 2 and 3 are indoors. As in the original, the numbers of the persons
have gaps and cameras 1 and 2 do not see everybody. Every person has images of both kinds, and every infrared image of a
test person has a match in the visible cameras other than 2, so also where queries of camera 3 skip camera 2. There are
as many validation persons as test persons. A person's images are numbered from 1 in each camera.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from configs.vocabulary import Modality
from datasets.synthetic.arguments import RenderArguments
from datasets.synthetic.layouts.matlab_cells import Matrix, nested_cells
from datasets.synthetic.population import BLOCKS, test_persons, train_persons, val_persons
from datasets.synthetic.roll import Roll
from datasets.synthetic.shots import Plan, Shot
from utils.errors import UserError
from utils.seeding import stream, stream_seed

FOLDER = "SYSU-MM01"
BLOCK = BLOCKS["sysu"]
CAMERAS = 6
MAXIMUM_PERSONS = 9000
"""Persons whose numbers, gaps included, have four digits."""
MAXIMUM_IMAGES = 255
"""Images of one person in one camera that the original's uint8 permutations can number."""
NUMBERS_PER_PERSON = 533 / 491
INDOOR_SHARE = 0.58
SINGLE_INFRARED_SHARE = 0.06
TRIALS = 10


def plan(arguments: RenderArguments) -> Plan:
    """Return the pictures, the lists of persons and the permutations. Raises UserError for more than file names can
    hold.
    """
    roll, test = Roll(arguments.seed, "sysu"), test_persons(arguments, BLOCK)
    persons = {
        "train": train_persons(arguments, BLOCK),
        "val": val_persons(BLOCK, arguments.test_identities),
        "test": test,
    }
    everybody = tuple(dict.fromkeys(person for part in persons.values() for person in part))
    if len(everybody) > MAXIMUM_PERSONS:
        raise UserError(
            f"{len(everybody)} identities are too many for SYSU-MM01: its folder names have four digits, "
            f"{MAXIMUM_PERSONS} training, validation and test persons at most"
        )
    if arguments.images_per_modality > MAXIMUM_IMAGES:
        raise UserError(
            f"--images-per-modality is {arguments.images_per_modality}: SYSU-MM01's permutations number "
            f"{MAXIMUM_IMAGES} at most"
        )
    numbers = _numbers(everybody, arguments.seed)
    for person in everybody:
        # The first test person is indoors: each search mode has a match.
        _take(roll, person, numbers[person], arguments, indoor=person == test[0])
    lists = {part: [numbers[person] for person in listed] for part, listed in persons.items()} | {
        "available": list(numbers.values())
    }
    return Plan(
        shots=tuple(roll.shots),
        annotations={},
        texts={f"exp/{part}_id.txt": ",".join(map(str, sorted(listed))) + "\n" for part, listed in lists.items()}
        | _empty_cameras(roll.shots),
        binaries={
            "exp/rand_perm_cam.mat": nested_cells(
                "rand_perm_cam", _permutations(roll.shots, max(numbers.values()), arguments.seed)
            )
        },
    )


def _numbers(persons: Sequence[int], seed: int) -> dict[int, int]:
    """Return a number from 1 per person; some are left out."""
    highest = int(len(persons) * NUMBERS_PER_PERSON) + 1
    return dict(zip(persons, stream(seed, "sysu", "numbers").sample(range(1, highest + 1), len(persons))))


def _take(roll: Roll, person: int, number: int, arguments: RenderArguments, indoor: bool) -> None:
    rng = stream(arguments.seed, "sysu", "cameras", person)
    visible = rng.sample((4, 5), 2)
    if rng.random() < INDOOR_SHARE or indoor:
        # Camera 1 first: with one image per person, no query of camera 3 is left with camera 2 only.
        visible = [1, *rng.sample((2, *visible), 3)]
    infrared = [6] if rng.random() < SINGLE_INFRARED_SHARE else rng.sample((3, 6), 2)
    for modality, cameras in ((Modality.RGB, visible), (Modality.NIR, infrared)):
        for index in range(arguments.images_per_modality):
            camera, frame = cameras[index % len(cameras)], index // len(cameras) + 1
            roll.take(f"cam{camera}/{number:04d}/{frame:04d}.jpg", person, 0, camera, modality)


def _empty_cameras(shots: Sequence[Shot]) -> dict[str, str]:
    """Return a hidden file for each camera that sees nobody, so that its folder is there: the original has all six."""
    used = {shot.camera for shot in shots}
    return {f"cam{camera}/.empty": "" for camera in range(1, CAMERAS + 1) if camera not in used}


def _permutations(shots: Sequence[Shot], highest: int, seed: int) -> list[list[Matrix]]:
    """Return, per camera and number of a person, ten permutations (10, n) of the numbers 1..n of the images, empty for
    none.
    """
    counts = Counter((shot.camera, int(shot.path.split("/")[1])) for shot in shots)
    rng = np.random.default_rng(stream_seed(seed, "sysu", "permutations"))
    return [
        [_draws(counts[camera, number], rng) for number in range(1, highest + 1)] for camera in range(1, CAMERAS + 1)
    ]


def _draws(count: int, rng: np.random.Generator) -> Matrix:
    if not count:
        return np.zeros((0, 0), dtype=np.uint8)
    return np.stack([rng.permutation(count) + 1 for _ in range(TRIALS)]).astype(np.uint8)
