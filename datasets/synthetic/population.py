"""Who appears in which layout: a block of training, validation and test persons of its own for each, and their numbers
in files.
"""

from __future__ import annotations

from collections.abc import Iterable

from datasets.synthetic.arguments import MAXIMUM_PERSONS, RenderArguments
from datasets.synthetic.person import BLOCK, Membership, person_indices
from utils.errors import UserError
from utils.seeding import stream

BLOCKS = {
    "orbench": 0,
    "market1501": 1,
    "msmt17": 2,
    "cuhk03": 3,
    "prcc": 4,
    "ltcc": 5,
    "vc-clothes": 6,
    "last": 7,
    "nkup": 8,
    "llcm": 9,
    "sysu": 10,
    "regdb": 11,
    "cuhk-pedes": 12,
    "icfg-pedes": 13,
    "rstpreid": 14,
    "cocas": 15,
}
"""Block of a layout in each part of the population; the layout `omnireid` uses the blocks of its members."""


def train_persons(arguments: RenderArguments, block: int | None = None) -> tuple[int, ...]:
    """Return the training persons. block: default that of `arguments.layout`.

    Layouts share no training persons either: in a joint training one person would be two labels, hence his own
    negative.
    """
    return tuple(
        person_indices(Membership.TRAIN, arguments.identities, BLOCKS[arguments.layout] if block is None else block)
    )


def val_persons(block: int, count: int) -> tuple[int, ...]:
    """Return validation persons; they are neither trained on nor tested with, in any layout."""
    return tuple(person_indices(Membership.VAL, count, block))


def test_persons(arguments: RenderArguments, block: int) -> tuple[int, ...]:
    """Return the test persons; the first `arguments.shared_persons` are the first training persons of the same
    block.
    """
    shared = train_persons(arguments, block)[: arguments.shared_persons]
    return shared + tuple(person_indices(Membership.TEST, arguments.test_identities - len(shared), block))


def bystanders(block: int, count: int) -> tuple[int, ...]:
    """Return persons of the test part who are nobody's match: they fill galleries."""
    assert count <= BLOCK - MAXIMUM_PERSONS
    return tuple(person_indices(Membership.TEST, BLOCK, block)[MAXIMUM_PERSONS : MAXIMUM_PERSONS + count])


def need_outfits(arguments: RenderArguments, least: int) -> None:
    """Raise UserError when persons own too few outfits for a layout in which clothes change."""
    if arguments.outfits < least:
        raise UserError(
            f"--outfits is {arguments.outfits}: people change clothes in the layout {arguments.layout}, give at least "
            f"{least}"
        )


def draw_ids(seed: int, layout: str, persons: Iterable[int], low: int, high: int) -> dict[int, int]:
    """Return a number in low..high for each person, in no relation to the person's index; a person listed twice has one
    number.

    Raises UserError for more persons than numbers.
    """
    persons = tuple(dict.fromkeys(persons))
    if len(persons) > high - low + 1:
        raise UserError(
            f"{len(persons)} identities are too many for {layout}: it numbers persons from {low} to {high}; give fewer "
            "--identities or --test-identities"
        )
    # The numbers lie close together, as in the originals, but nobody's follows from the index.
    numbers = stream(seed, layout, "numbers", low).sample(range(low, low + len(persons)), len(persons))
    return dict(zip(persons, numbers))
