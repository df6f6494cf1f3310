"""Sections `model` and `objective` of the family vireid."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal

from configs.schema.checks import require
from configs.schema.family import ModelSection, ObjectiveSection
from configs.vocabulary import Modality

if TYPE_CHECKING:
    from configs.schema.experiment import ExperimentConfig


BY_MODALITY = ("modality_id", "imitation")
"""Losses of the modality heads: a batch needs visible and infrared rows."""

TRIPLETS = ("triplet", "weighted_triplet")
"""Losses that need several rows of each of several identities in a batch."""


@dataclass(frozen=True)
class VireidConfig(ModelSection):
    """The residual network of visible-infrared retrieval, and of retrieval among visible images alone (the visible
    baseline). The defaults are IV-REID's, peculiarities included."""

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
        """Raise ValueError for losses of both modalities under a sampler whose batches may lack one, and for losses of
        heads that are not there; for triplets without an identity sampler.
        """
        by_heads = [name for name in BY_MODALITY if experiment.objective.losses.get(name)]
        require(
            not by_heads or experiment.train.sampler in ("modality", "tasks"),
            "train.sampler",
            experiment.train.sampler,
            f"modality (or tasks) with the losses {' and '.join(by_heads)} of the family vireid, whose batches need "
            "visible and infrared images of each identity",
        )
        train, triplets = experiment.train, [name for name in TRIPLETS if experiment.objective.losses.get(name)]
        require(
            not triplets or train.sampler != "random",
            "train.sampler",
            train.sampler,
            f"identity, modality or tasks with the losses {' and '.join(triplets)}, which need several images of each "
            "identity in a batch",
        )
        require(
            not triplets or train.sampler != "identity" or train.batch_size >= 2 * train.instances,
            "train.batch_size",
            train.batch_size,
            "at least 2 x train.instances, because a triplet needs two identities",
        )
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
    triplet_feature: Literal["neck", "pooled"] = "neck"
    """What the triplets compare: the feature after the neck as IV-REID, or before it (BNNeck, Luo et al., CVPRW
    2019)."""
    label_smoothing: float = 0.0
    """Share of the target that the loss `id` spreads evenly over all identities."""
    imitation_reduction: Literal["batchmean", "mean"] = "batchmean"
    """The reference's SYSU-MM01 script sums over classes (batchmean), its RegDB script takes the mean of all
    entries.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.margin is None or self.margin >= 0, "objective.margin", self.margin, "0 or larger, or empty")
        require(
            0 <= self.label_smoothing < 1, "objective.label_smoothing", self.label_smoothing, "at least 0 and below 1"
        )
