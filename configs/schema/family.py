"""What the sections `model` and `objective` of all families have in common, and what a model may take besides images.

A family's section says what the model reads by what it is made of: `ReadsText`, `FollowsInstructions`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from configs.schema.checks import require
from configs.vocabulary import Modality

if TYPE_CHECKING:
    from configs.schema.experiment import ExperimentConfig


class Section:
    """A section of one family."""

    def check(self, experiment: ExperimentConfig) -> None:
        """Raise ValueError where other sections do not fit the family. Called once the experiment is complete."""


@dataclass(frozen=True)
class ModelSection(Section):
    """Section `model` of every family."""

    modalities: ClassVar[tuple[Modality, ...]]
    """What it encodes."""
    fuses: ClassVar[bool] = False
    """Whether it takes queries of several modalities."""
    init: str = "random"
    """Initial weights."""
    image_size: tuple[int, int] = (384, 128)
    """Height and width in pixels."""

    def check(self, experiment: ExperimentConfig) -> None:
        """Raise ValueError where instructions are taken away from a model that gets none."""
        require(
            experiment.instruction.given == "right" or isinstance(self, FollowsInstructions),
            "instruction.given",
            experiment.instruction.given,
            f"right: a model of the family {experiment.family.value} is given no instruction",
        )


@dataclass(frozen=True)
class ReadsText:
    """A model that reads captions, descriptions or instructions."""

    tokenizer: str = "clip"
    """clip, or bert:FOLDER-OR-HUB-ID (a folder that holds vocab.txt)."""
    text_length: int = 77
    """Ids of a text, start and end included; longer texts are cut."""
    vocab_size: int = 49408
    """Rows of the text embedding."""

    def __post_init__(self) -> None:
        require(self.text_length >= 3, "model.text_length", self.text_length, "at least 3 (start, one piece, end)")
        require(self.vocab_size >= 1, "model.vocab_size", self.vocab_size, "at least 1")


@dataclass(frozen=True)
class FollowsInstructions:
    """A model that takes an instruction beside an image: a text, or a picture of clothes."""

    instruction_size: tuple[int, int] = (128, 128)
    """Height and width in pixels of a clothes picture."""

    @property
    def follows(self) -> bool:
        """Whether it takes one under these options."""
        return True


@dataclass(frozen=True)
class ObjectiveSection(Section):
    """Section `objective` of every family."""

    paired: ClassVar[bool] = False
    """Whether a training row is a visible image together with what the same person has in other modalities."""
    told_gallery: ClassVar[bool] = True
    """Whether gallery images may be given an instruction at test."""
    losses: dict[str, float] = field(default_factory=dict)
    """Weight of each loss."""
    ramps: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Loss -> optimiser steps between which its weight rises from 0 in a line; one that is not named has its whole
    weight from the first step. A batch-hard triplet holds random features together until other losses have parted them.
    """

    def __post_init__(self) -> None:
        require(bool(self.losses), "objective.losses", self.losses, "a table with at least one loss")
        require(
            self.ramps.keys() <= self.losses.keys() and all(0 <= first <= last for first, last in self.ramps.values()),
            "objective.ramps",
            self.ramps,
            f"losses of objective.losses ({', '.join(self.losses)}), each with the first and the last step of its rise",
        )

    def weight_share(self, loss: str, step: int) -> float:
        """Return the share of a loss's weight that counts in optimiser step `step` (from 0)."""
        first, last = self.ramps.get(loss, (0, 0))
        return 1.0 if step >= last else max(0, step - first) / (last - first)

    @property
    def remembers_identities(self) -> bool:
        """Whether a memory bank keeps something of each training identity."""
        return False
