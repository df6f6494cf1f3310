"""RegDB: {Visible,Thermal}/<id>/*.bmp and idx/{train,test}_{visible,thermal}_{1..10}.txt, ten trials.

A pair of cameras in one place sees each person from the front or from behind. Thermal pictures have the population's
infrared look: light and dark by material.

Departure from the original, where each trial divides the same 412 persons into halves anew: here a training person
would then be a test person of another trial, while in the rendered population the part of a person is the same
everywhere. So all trials have the same training persons and the same test persons; they differ in the labels, in the
order, and in who takes part: four fifths of either, drawn per trial.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from configs.vocabulary import Modality
from datasets.synthetic.arguments import RenderArguments
from datasets.synthetic.person import View, make_person
from datasets.synthetic.population import BLOCKS, draw_ids, test_persons, train_persons
from datasets.synthetic.roll import Roll
from datasets.synthetic.shots import Plan, Shot
from utils.errors import UserError
from utils.seeding import stream

FOLDER = "RegDB"
BLOCK = BLOCKS["regdb"]
TRIALS = 10
SHARE = 0.8
MAXIMUM_LABELS = 206
MAXIMUM_NUMBER = 99_999
CAMERA = 1
"""The infrared camera of this number stands where the visible one does."""
SIDES = {"visible": (Modality.RGB, "Visible", "v"), "thermal": (Modality.NIR, "Thermal", "t")}


def plan(arguments: RenderArguments) -> Plan:
    """Return the pictures and the lists of ten trials. Raises UserError for more persons than the lists have labels."""
    roll, parts = (
        Roll(arguments.seed, "regdb"),
        {"train": train_persons(arguments, BLOCK), "test": test_persons(arguments, BLOCK)},
    )
    for option, persons in (("identities", parts["train"]), ("test-identities", parts["test"])):
        if _taking_part(len(persons)) > MAXIMUM_LABELS:
            raise UserError(
                f"--{option} is {len(persons)}: RegDB's lists have the labels 0..{MAXIMUM_LABELS - 1} and a trial "
                f"takes four fifths, give at most {math.floor(MAXIMUM_LABELS / SHARE)}"
            )
    numbers = draw_ids(arguments.seed, "regdb", (*parts["train"], *parts["test"]), 1, MAXIMUM_NUMBER)
    shots = {person: _take(roll, person, number, arguments) for person, number in numbers.items()}
    texts: dict[str, str] = {}
    for trial in range(1, TRIALS + 1):
        for part, persons in parts.items():
            order = stream(arguments.seed, "regdb", part, trial).sample(persons, _taking_part(len(persons)))
            texts |= {f"idx/{part}_{side}_{trial}.txt": _list(order, shots, side) for side in SIDES}
    return Plan(tuple(roll.shots), {}, texts)


def _taking_part(persons: int) -> int:
    return math.ceil(persons * SHARE)


def _list(persons: Sequence[int], shots: Mapping[int, Mapping[str, Sequence[Shot]]], side: str) -> str:
    return "".join(f"{shot.path} {label}\n" for label, person in enumerate(persons) for shot in shots[person][side])


def _take(roll: Roll, person: int, number: int, arguments: RenderArguments) -> dict[str, list[Shot]]:
    """Take a person's pictures; return them by side."""
    rng = stream(arguments.seed, "regdb", "walk", person)
    view, first = rng.choice((View.FRONT, View.BACK)), rng.randint(1, 200)
    stem = f"{'male' if make_person(arguments.seed, person).sex == 'man' else 'female'}_{view.value}"
    return {
        side: [
            roll.take(
                f"{folder}/{number}/{stem}_{letter}_{first + 9 * index:05d}_{number}.bmp",
                person,
                0,
                CAMERA,
                modality,
                view,
            )
            for index in range(arguments.images_per_modality)
        ]
        for side, (modality, folder, letter) in SIDES.items()
    }
