"""The visible-infrared baseline: one residual network for both modalities, a norm neck, a shared and two modality
heads.

Shapes: B rows, C channels of the backbone = embed_dim, N identities.
Source: linyq17/IV-REID, whose peculiarities are the defaults (biased convolutions, no ReLU after the stem, last stride
1, the feature after the neck for classification, triplet and retrieval). AGW's stem, pooling and blocks are options.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from configs.schema.vireid import VireidConfig
from configs.vocabulary import Modality
from model.interface import Instructions, RetrievalModel, Tokens, refuse_instructions
from model.layers import float32_linear
from model.resnet import Backbone, gem_pool, out_channels
from utils.errors import UserError

SPECTRA = VireidConfig.modalities
"""What the two heads are of."""
GROUPS_OF_NORM = 2


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


class Vireid(RetrievalModel):
    """Visible and infrared images in, one feature each out."""

    statistics = "imagenet"

    def __init__(self, config: VireidConfig, num_identities: int) -> None:
        """Build the model of section `model`; its parameters are initialised or loaded afterwards."""
        super().__init__()
        self.config, self.num_identities = config, num_identities
        self.checkpoint_activations = False
        self.backbone = Backbone(config)
        self.embed_dim = out_channels(config)
        self.neck = (
            nn.BatchNorm1d(self.embed_dim) if config.neck == "bn" else nn.GroupNorm(GROUPS_OF_NORM, self.embed_dim)
        )
        self.classifier = nn.Linear(self.embed_dim, num_identities, bias=config.classifier_bias)
        self.heads = nn.ModuleDict(
            {
                modality.value: ModalityHead(self.embed_dim, config.head_width, num_identities)
                for modality in (SPECTRA if config.head_width else ())
            }
        )
        self.frozen_names = () if config.neck_bias else ("neck.bias",)
        if not config.neck_bias:
            self.neck.bias.requires_grad_(False)

    def pool(self, inputs: Mapping[Modality, Tensor]) -> Tensor:
        """Return the features before the neck, (B, C), of images by modality, one modality after the other."""
        unknown = [modality.name for modality in inputs if modality not in SPECTRA]
        if unknown:
            raise UserError(
                f"the vireid family encodes RGB and NIR images, not {', '.join(unknown)}; use another family for such "
                "queries"
            )
        features = self.backbone(inputs)
        return gem_pool(features) if self.config.pooling == "gem" else features.mean(dim=(2, 3))

    def features(self, inputs: Mapping[Modality, Tensor]) -> Tensor:
        """Return the features after the neck, (B, C): what is classified and, in training, compared."""
        return self.neck(self.pool(inputs))

    def encode_batch(
        self, inputs: Mapping[Modality, Tensor], instructions: Mapping[Modality, Instructions] | None = None
    ) -> dict[Modality, Tokens]:
        """Encode both modalities in one pass, so that the norms see the whole batch; the one token is the feature."""
        refuse_instructions("the visible-infrared family", instructions)
        pooled = self.pool(inputs)
        compared = self.neck(pooled) if self.config.feature == "neck" else pooled
        parts = compared.split([len(images) for images in inputs.values()])
        return {modality: Tokens(tokens=part[:, None], pooled=part) for modality, part in zip(inputs, parts)}

    def identity_logits(self, features: Tensor) -> Tensor:
        """Scores of the shared classifier, (B, C) after the neck -> (B, N) float32."""
        return float32_linear(features, self.classifier.weight, self.classifier.bias)

    def modality_logits(self, features: Tensor) -> dict[Modality, Tensor]:
        """Scores of both modality heads for ALL rows (B, C), whatever they show: each head's norm sees both
        modalities.
        """
        return {modality: self.heads[modality.value](features) for modality in SPECTRA}

    def compile_blocks(self, **options: Any) -> None:
        """Compile the stages in place; the names of the state stay."""
        for stage in self.backbone.stages:
            stage.compile(**options)
