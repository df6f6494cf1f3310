"""Sections `model` and `objective` of the family vireid."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal

from configs.schema.checks import require
from configs.schema.family import ModelSection, ObjectiveSection
from configs.vocabulary import Modality

if TYPE_CHECKING:
    from configs.schema.experiment import ExperimentConfig


@dataclass(frozen=True)
class VireidConfig(ModelSection):
    """The visible-infrared residual network. The defaults are IV-REID's, peculiarities included."""

    modalities: ClassVar[tuple[Modality, ...]] = (Modality.RGB, Modality.NIR)
    """What it encodes."""
    init: str = "imagenet"
    """Initial weights: random, imagenet (torchvision's, downloaded once), or FILE.pth, a state dict of a torchvision
    ResNet.
    """
    depth: Literal[18, 34, 50, 101, 152] = 50
    """Of torchvision's residual networks; it decides the block and, unless `blocks` is given, their numbers."""
    blocks: tuple[int, ...] | None = None
    """Blocks of the four stages; empty = those of the depth."""
    width: int = 64
    """Channels of the first stage."""
    conv_bias: bool = True
    """Biased convolutions, as the reference; they start at random even with ImageNet weights."""
    stem_relu: bool = False
    """ReLU after the stem's norm; the reference has none."""
    stem: Literal["shared", "two_stream"] = "shared"
    """One stem for both modalities, or one each (AGW)."""
    non_local: bool = False
    """AGW's non-local blocks in the second and third stage."""
    last_stride: int = 1
    """Of the fourth stage."""
    neck: Literal["bn", "gn"] = "bn"
    """Batch norm, or group norm in two groups."""
    neck_bias: bool = True
    """False = the neck's bias stays zero."""
    classifier_bias: bool = True
    pooling: Literal["avg", "gem"] = "avg"
    """Mean over positions, or generalised mean with power 3 (AGW)."""
    feature: Literal["neck", "pooled"] = "neck"
    """What is compared in retrieval: the feature after the neck or before it."""
    head_width: int = 512
    """Hidden width of the modality heads; 0 = none."""

    def __post_init__(self) -> None:
        require(min(self.image_size) >= 16, "model.image_size", self.image_size, "at least 16 pixels a side")
        require(
            self.blocks is None or (len(self.blocks) == 4 and min(self.blocks) >= 1),
            "model.blocks",
            self.blocks,
            "four numbers, each at least 1",
        )
        require(self.width >= 1, "model.width", self.width, "at least 1")
        require(self.last_stride in (1, 2), "model.last_stride", self.last_stride, "1 or 2")
        require(self.head_width >= 0, "model.head_width", self.head_width, "0 (no modality heads) or larger")

    def check(self, experiment: ExperimentConfig) -> None:
        """Raise ValueError for a sampler whose batches lack a modality, and for losses of heads that are not there."""
        require(
            experiment.train.sampler in ("modality", "tasks"),
            "train.sampler",
            experiment.train.sampler,
            "modality (or tasks) for the family vireid, whose batches need visible and infrared images of each "
            "identity",
        )
        by_heads = [name for name in ("modality_id", "imitation") if experiment.objective.losses.get(name)]
        require(
            self.head_width > 0 or not by_heads,
            "model.head_width",
            self.head_width,
            f"above 0 with the losses {' and '.join(by_heads)}, which are those of the modality heads",
        )


@dataclass(frozen=True)
class VireidObjectiveConfig(ObjectiveSection):
    """What the visible-infrared baseline minimises."""

    losses: dict[str, float] = field(
        default_factory=lambda: {"id": 1.0, "modality_id": 1.0, "imitation": 1.0, "triplet": 1.0}
    )
    """Weight of each loss: id, modality_id, imitation (KL between the heads), triplet, weighted_triplet."""
    margin: float | None = 0.3
    """Margin of the triplet; empty = its soft form."""
    imitation_reduction: Literal["batchmean", "mean"] = "batchmean"
    """The reference's SYSU-MM01 script sums over classes (batchmean), its RegDB script takes the mean of all
    entries.
    """

    def __post_init__(self) -> None:
        require(bool(self.losses), "objective.losses", self.losses, "a table with at least one loss")
        require(self.margin is None or self.margin >= 0, "objective.margin", self.margin, "0 or larger, or empty")
