"""Section `objective` of IRM++ (Instruct-ReID++): the same network as IRM, memory banks, an image alone as gallery.

IRM*, the paper's baseline, is the same section with other losses: triplet instead of soft and hard.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal

from configs.schema.checks import require
from configs.schema.irm import CaptionOptions, IrmConfig, check_captions, check_triplets

if TYPE_CHECKING:
    from configs.schema.experiment import ExperimentConfig

LOSSES = ("id", "soft", "hard", "triplet", "contrast", "match", "masked_language", "replaced")
"""id, soft, hard, triplet: of the retrieval feature F_r, which is F_q of an instructed row and F_g of any other. The
others are those of captions (T2I)."""


@dataclass(frozen=True)
class IrmppObjectiveConfig(CaptionOptions):
    """What IRM++ minimises. The defaults are the paper's eq. 14 with beta 5 where it can be minimised as printed."""

    told_gallery: ClassVar[bool] = False
    """F_g is of an image alone."""
    losses: dict[str, float] = field(default_factory=lambda: {"id": 1.0, "soft": 1.0, "hard": 5.0, "contrast": 1.0})
    """Weight of each loss; beta of the paper is that of `hard`, alpha that of `triplet` (IRM*)."""
    sign: Literal["divergence", "printed"] = "divergence"
    """soft and hard: the divergence from the target, or minus it, as eqs. 12 and 13 are printed: its minimum is
    farthest from the target."""
    temperature: float = 0.05
    """Of the softmax over the cosines with the bank; the paper prints none, which is 1."""
    target_temperature: float | None = None
    """Of the softmax over the annotations' cosines, none = temperature."""
    hard_target: Literal["one-hot", "softmax"] = "one-hot"
    """The row's own identity, or the softmax of that (printed), which is nearly uniform over many identities."""
    xi: float = 1.0e-8
    """Added to the target inside its logarithm."""
    centre: bool = False
    """Whether the mean of the bank is taken from the annotations' vectors before their cosines: class tokens of a text
    encoder are all alike without it."""
    soft_tasks: Literal["all", "varied"] = "all"
    """Rows of `soft`: all, or those of CTCC, LI and T2I, whose annotations tell identities apart; in the other tasks
    all identities share a few sentences."""
    unwritten: Literal["masked", "random"] = "masked"
    """Slots of identities that no batch has shown yet: left out, as are the rows whose own slot is one, or random
    vectors like any other (printed)."""
    triplet: Literal["released", "literal", "plain"] = "released"
    """As in IRM; the margin follows the annotations. plain: without them, the other reading of Table VII."""
    margin: float = 0.3
    """Of the triplet."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.temperature > 0, "objective.temperature", self.temperature, "above 0")
        require(
            self.target_temperature is None or self.target_temperature > 0,
            "objective.target_temperature",
            self.target_temperature,
            "above 0, or null for objective.temperature",
        )
        require(self.xi >= 0, "objective.xi", self.xi, "0 or larger")
        require(self.margin >= 0, "objective.margin", self.margin, "0 or larger")

    @property
    def remembers_identities(self) -> bool:
        """With soft or hard: both read the banks."""
        return any(self.losses.get(name) for name in ("soft", "hard"))

    def check(self, experiment: ExperimentConfig) -> None:
        """Raise ValueError for a model without the parts that the losses read, and for triplets without positives."""
        model = experiment.model
        assert isinstance(model, IrmConfig)
        require(
            model.attention != "none",
            "model.attention",
            model.attention,
            "joint or dual for the family irmpp, whose queries are the attention module's output",
        )
        require(
            model.heads_shared,
            "model.heads_shared",
            model.heads_shared,
            "true for the family irmpp: queries and gallery share one neck and one classifier",
        )
        typing = experiment.instruction.typing
        require(
            typing == "coin",
            "instruction.typing",
            typing,
            "coin for the family irmpp: rows without an instruction train what the gallery is compared by",
        )
        check_triplets(experiment, [name for name in ("triplet",) if self.losses.get(name)])
        check_captions(model, self.losses)
