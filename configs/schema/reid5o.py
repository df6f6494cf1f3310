"""Sections `model` and `objective` of the family reid5o."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from configs.schema.checks import require
from configs.schema.family import ModelSection, ObjectiveSection, ReadsText
from configs.vocabulary import Modality


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank experts of the shared vision transformer, one per image modality."""

    enabled: bool = True
    """False = plain blocks."""
    mode: Literal["mlp", "all"] = "mlp"
    """mlp: the two linears of the MLP. all: these and the attention's projections."""
    layers: int = 2
    """The last k blocks have experts."""
    rank: int = 4
    """Rows of the low-rank factors."""
    num_experts: int = 4
    """Experts of each layer; the first four are those of RGB, NIR, CP and SK."""
    scale: float | None = None
    """Factor of the low-rank product; empty = 1/rank."""
    train_base: bool = False
    """Train the base weights under the experts as well."""

    @property
    def factor(self) -> float:
        """Factor of the low-rank product."""
        return 1 / self.rank if self.scale is None else self.scale


@dataclass(frozen=True)
class Reid5oConfig(ReadsText, ModelSection):
    """Sizes of ReID5o. The defaults are CLIP ViT-B/16 at 384x128."""

    modalities: ClassVar[tuple[Modality, ...]] = tuple(Modality)
    """What it encodes."""
    fuses: ClassVar[bool] = True
    """Whether it takes queries of several modalities."""
    init: str = "random"
    """Initial weights: random, FILE.pt (OpenAI archive), hf:DIRECTORY-OR-HUB-ID, open_clip:MODEL/TAG."""
    patch_size: int = 16
    """Side of a patch in pixels."""
    stride: int = 16
    """Pixels from one patch to the next; smaller than patch_size = overlapping patches."""
    embed_dim: int = 512
    """Width of what is compared."""
    vision_width: int = 768
    vision_layers: int = 12
    vision_heads: int | None = None
    """Empty = vision_width / 64. 8 reproduces checkpoints trained before 2026-01-08."""
    text_width: int = 512
    text_layers: int = 12
    text_heads: int | None = None
    """Empty = text_width / 64."""
    mmt_depth: int = 4
    """Transformer blocks of the fusion."""
    mmt_heads: int | None = None
    """Attention heads of the fusion; empty = embed_dim / 64, the reference's."""
    position_resize: Literal["bilinear", "bicubic"] = "bilinear"
    """Interpolation of CLIP's position embedding; bilinear is the reference's."""
    lora: LoraConfig = field(default_factory=LoraConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        require(min(self.image_size) >= self.patch_size, "model.image_size", self.image_size, "at least the patch size")
        for name in (
            "patch_size",
            "stride",
            "embed_dim",
            "vision_width",
            "vision_layers",
            "text_width",
            "text_layers",
            "mmt_depth",
        ):
            require(getattr(self, name) >= 1, f"model.{name}", getattr(self, name), "at least 1")
        require(self.lora.rank >= 1, "model.lora.rank", self.lora.rank, "at least 1")
        require(
            self.lora.num_experts >= 4,
            "model.lora.num_experts",
            self.lora.num_experts,
            "at least 4, one per image modality",
        )
        require(
            0 <= self.lora.layers <= self.vision_layers, "model.lora.layers", self.lora.layers, "0..model.vision_layers"
        )


@dataclass(frozen=True)
class Reid5oObjectiveConfig(ObjectiveSection):
    """What ReID5o minimises."""

    paired: ClassVar[bool] = True
    """A training row is a visible image with what the same person has of NIR, CP, SK and TEXT."""
    losses: dict[str, float] = field(default_factory=lambda: {"mm_sdm": 1.0, "id": 1.0})
    """Weight of each loss. A losses table in a child file replaces the parent's."""
    temperature: float = 0.02
    """Temperature of sdm and itc in all forms (supitc keeps the reference's 0.07)."""
    combinations_per_step: int = 11
    """How many of the fused combinations take part in a step, at least one of each size (3..11); all where the data
    have fewer modalities and so no more combinations (11 of four modalities, 4 of three, 1 of two)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.temperature > 0, "objective.temperature", self.temperature, "larger than 0")
        require(
            3 <= self.combinations_per_step <= 11,
            "objective.combinations_per_step",
            self.combinations_per_step,
            "3..11",
        )
