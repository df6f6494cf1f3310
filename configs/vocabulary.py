"""The words that a configuration, a record and a result share."""

from __future__ import annotations

import itertools
from enum import Enum


class Modality(str, Enum):
    """What a source is. `rgb` is the gallery's; the order of the others is that of ORBench's keys."""

    RGB = "rgb"
    NIR = "nir"
    CP = "cp"
    SK = "sk"
    TEXT = "text"


class Family(str, Enum):
    """Model families; each has one entry in the tables of models, objectives and schemas."""

    REID5O = "reid5o"
    VIREID = "vireid"
    IRM = "irm"
    IRMPP = "irmpp"


class Task(str, Enum):
    """Retrieval task of a record. ORB is ORBench's; the other six are OmniReID's."""

    ORB = "orb"
    TRAD = "trad"
    CC = "cc"
    CTCC = "ctcc"
    VI = "vi"
    T2I = "t2i"
    LI = "li"


TASK_TAGS: dict[str, Task] = {
    "sc": Task.TRAD,
    "cc": Task.CC,
    "ctcc": Task.CTCC,
    "cross": Task.VI,
    "t2i": Task.T2I,
    "attr": Task.LI,
}
"""Glossary: the tags of OmniReID's authors -> our tasks."""


class AnnotationKind(str, Enum):
    """What an annotation is: a picture of the clothes, a description of this very image, or the sentence of the
    task.
    """

    CLOTHES = "clothes"
    DESCRIPTION = "description"
    SENTENCE = "sentence"


BOX = "box"
"""Name of the upper-body box, the one part of a picture that stands for something else than the whole."""

BOX_ROWS = (0.15, 0.55)
"""Rows of the upper-body box, as shares of the height; it has the full width."""

Combination = tuple[Modality, ...]

QUERY_MODALITIES: Combination = (Modality.NIR, Modality.CP, Modality.SK, Modality.TEXT)
"""Members of a mixed query, in the fixed order in which partners follow the anchor."""

COMBINATIONS: tuple[Combination, ...] = tuple(
    combination for size in (1, 2, 3, 4) for combination in itertools.combinations(QUERY_MODALITIES, size)
)
"""The 15 unordered combinations by size; the last 11 pass through the fusion."""

GROUP_NAMES = {1: "ONE_AVER", 2: "TWO_AVER", 3: "THREE_AVER", 4: "FOUR_AVER"}


def combination_name(combination: Combination) -> str:
    """Return the name in ORBench's spelling: `NIR+TEXT`."""
    return "+".join(modality.name for modality in combination)


def parse_combination(name: str) -> Combination:
    """Return the members named by `NIR+TEXT`, in that order. Raises ValueError for an unknown or repeated member."""
    members = tuple(
        Modality[part.strip().upper()] if part.strip().upper() in Modality.__members__ else None
        for part in name.split("+")
    )
    if None in members or len(set(members)) != len(members):
        raise ValueError(f"{name!r} is not a combination of distinct modalities out of NIR, CP, SK, TEXT")
    return members  # type: ignore[return-value]


def _ordered_keys() -> tuple[Combination, ...]:
    # Pairs come partner by partner with both orders, larger ones anchor by anchor.
    return tuple(
        (anchor, *(member for member in combination if member is not anchor))
        for combination in COMBINATIONS
        for anchor in combination
    )


ORBENCH_KEYS: tuple[Combination, ...] = _ordered_keys()
"""The 32 query lists in the order of the reference's table: the anchor leads, the rest keep QUERY_MODALITIES' order."""
