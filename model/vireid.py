"""The visible-infrared baseline: one residual network for both modalities, a norm neck, a shared and two modality
heads.

Shapes: B rows, C channels of the backbone = embed_dim, N identities.
Source: linyq17/IV-REID, whose peculiarities are the defaults (biased convolutions, no ReLU after the stem, last stride
1, the feature after the neck for classification, triplet and retrieval). AGW's stem, pooling and blocks are options.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from configs.vocabulary import Modality
from model.interface import Tokens
from model.layers import float32_linear
from model.resnet import Backbone, ResNetSpec, gem_pool
from utils.errors import UserError

MODALITIES = (Modality.RGB, Modality.NIR)
GROUPS_OF_NORM = 2


@dataclass(frozen=True, kw_only=True)
class HeadSpec:
    """What stands on the backbone. neck: bn or gn. neck_bias, classifier_bias: whether they have a bias. pooling: mean
    or GeM.

    feature: what is compared in retrieval, after the neck or before it. head_width: hidden width of the modality heads,
    0 = the model has none (they serve training only, and published checkpoints lack them).
    """

    neck: Literal["bn", "gn"] = "bn"
    neck_bias: bool = True
    classifier_bias: bool = True
    pooling: Literal["avg", "gem"] = "avg"
    feature: Literal["neck", "pooled"] = "neck"
    head_width: int = 512


class ModalityHead(nn.Module):
    """Norm, linear, linear: (B, C) -> (B, N). No activation between the linears, as in the reference."""

    def __init__(self, channels: int, width: int, num_identities: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm1d(channels)
        self.fc1 = nn.Linear(channels, width)
        self.fc2 = nn.Linear(width, num_identities)

    def forward(self, features: Tensor) -> Tensor:
        """Return class scores."""
        return self.fc2(self.fc1(self.bn(features)))


class VIReID(nn.Module):
    """Visible and infrared images in, one feature each out."""

    follows_instructions = False
    statistics = "imagenet"
    frozen_names: tuple[str, ...]

    def __init__(self, backbone: ResNetSpec, head: HeadSpec, num_identities: int) -> None:
        super().__init__()
        self.head_spec, self.num_identities = head, num_identities
        self.checkpoint_activations = False
        self.backbone = Backbone(backbone)
        self.embed_dim = backbone.out_channels
        self.neck = (
            nn.BatchNorm1d(self.embed_dim) if head.neck == "bn" else nn.GroupNorm(GROUPS_OF_NORM, self.embed_dim)
        )
        self.classifier = nn.Linear(self.embed_dim, num_identities, bias=head.classifier_bias)
        self.heads = nn.ModuleDict(
            {
                modality.value: ModalityHead(self.embed_dim, head.head_width, num_identities)
                for modality in (MODALITIES if head.head_width else ())
            }
        )
        self.frozen_names = () if head.neck_bias else ("neck.bias",)
        if not head.neck_bias:
            self.neck.bias.requires_grad_(False)

    def pool(self, inputs: Mapping[Modality, Tensor]) -> Tensor:
        """Return the features before the neck, (B, C), of images by modality, one modality after the other."""
        unknown = [modality.name for modality in inputs if modality not in MODALITIES]
        if unknown:
            raise UserError(
                f"the vireid family encodes RGB and NIR images, not {', '.join(unknown)}; use another family for such "
                "queries"
            )
        features = self.backbone(inputs)
        return gem_pool(features) if self.head_spec.pooling == "gem" else features.mean(dim=(2, 3))

    def features(self, inputs: Mapping[Modality, Tensor]) -> Tensor:
        """Return the features after the neck, (B, C): what is classified and, in training, compared."""
        return self.neck(self.pool(inputs))

    def encode(self, modality: Modality | str, inputs: Tensor, instruction: Tensor | None = None) -> Tokens:
        """Encode normalised images (B, 3, H, W) of one modality; the one token is the feature itself."""
        return self.encode_batch({Modality(modality): inputs})[Modality(modality)]

    def encode_batch(self, inputs: Mapping[Modality, Tensor]) -> dict[Modality, Tokens]:
        """Encode both modalities in one pass, so that the norms see the whole batch."""
        pooled = self.pool(inputs)
        compared = self.neck(pooled) if self.head_spec.feature == "neck" else pooled
        parts = compared.split([len(images) for images in inputs.values()])
        return {modality: Tokens(tokens=part[:, None], pooled=part) for modality, part in zip(inputs, parts)}

    def identity_logits(self, features: Tensor) -> Tensor:
        """Scores of the shared classifier, (B, C) after the neck -> (B, N) float32."""
        return float32_linear(features, self.classifier.weight, self.classifier.bias)

    def modality_logits(self, features: Tensor) -> dict[Modality, Tensor]:
        """Scores of both modality heads for ALL rows (B, C), whatever they show: each head's norm sees both
        modalities.
        """
        return {modality: self.heads[modality.value](features) for modality in MODALITIES}

    def prepare(self, tokens: Tensor) -> Tensor:
        """Raise UserError: this family has no mixed queries."""
        raise UserError("the vireid family has no fusion: give each query one image; ReID5o answers mixed queries")

    def fuse_prepared(self, prepared: Tensor) -> Tensor:
        """Raise UserError: this family has no mixed queries."""
        return self.prepare(prepared)

    def fuse(self, members: Sequence[Tokens]) -> Tensor:
        """Raise UserError: this family has no mixed queries."""
        return self.prepare(members[0].tokens)

    def compile_blocks(self, **options: Any) -> None:
        """Compile the stages in place; the names of the state stay."""
        for stage in self.backbone.stages:
            stage.compile(**options)
