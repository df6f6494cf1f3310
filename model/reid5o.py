"""ReID5o: four image tokenizers, a shared vision transformer with modality experts, a text tower, a fusion.

Shapes: B rows, L tokens of one source, S tokens of a mixed query, D embed_dim.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from configs.schema.reid5o import Reid5oConfig
from configs.vocabulary import Modality
from model.fusion import Fusion
from model.interface import FusingModel, Instructions, Tokens, refuse_instructions
from model.layers import float32_linear, head_count
from model.lora import ExpertLinear, Groups
from model.text import TextSpec, TextTransformer
from model.vision import ImageTokenizer, VisionSpec, VisionTransformer
from utils.errors import UserError

IMAGE_MODALITIES: tuple[Modality, ...] = (Modality.RGB, Modality.NIR, Modality.CP, Modality.SK)
"""Image modalities in the order of their experts."""


def _vision_spec(config: Reid5oConfig) -> VisionSpec:
    return VisionSpec(
        image_size=config.image_size,
        patch_size=config.patch_size,
        stride=config.stride,
        width=config.vision_width,
        layers=config.vision_layers,
        heads=head_count(config.vision_width, config.vision_heads, "vision transformer (model.vision_heads)"),
        lora=config.lora if config.lora.enabled else None,
    )


def _text_spec(config: Reid5oConfig) -> TextSpec:
    return TextSpec(
        length=config.text_length,
        vocab_size=config.vocab_size,
        width=config.text_width,
        layers=config.text_layers,
        heads=head_count(config.text_width, config.text_heads, "text transformer (model.text_heads)"),
    )


class ReID5o(FusingModel):
    """Retrieval across rgb, nir, cp, sk and text, and by any mix of the last four.

    frozen_names are the bases under the experts. Parameters hold no useful values until they are initialised or loaded.
    """

    statistics = "clip"

    def __init__(self, config: Reid5oConfig, num_identities: int) -> None:
        """Build the model of section `model`. Raises UserError for sizes that do not fit together."""
        super().__init__()
        embed_dim = config.embed_dim
        vision, text = _vision_spec(config), _text_spec(config)
        mmt_heads = head_count(embed_dim, config.mmt_heads, "fusion (model.mmt_heads)")
        self.embed_dim, self.num_identities = embed_dim, num_identities
        self.checkpoint_activations = False
        self.vision_spec, self.text_spec = vision, text
        self.text = TextTransformer(text, embed_dim)
        self.tokenizers = nn.ModuleDict({modality.value: ImageTokenizer(vision) for modality in IMAGE_MODALITIES})
        self.vision = VisionTransformer(vision, embed_dim)
        self.fusion = Fusion(embed_dim, mmt_heads, config.mmt_depth)
        self.classifier = nn.Linear(embed_dim, num_identities)
        self.frozen_names = tuple(name for name, value in self.named_parameters() if not value.requires_grad)

    def encode_batch(
        self, inputs: Mapping[Modality, Tensor], instructions: Mapping[Modality, Instructions] | None = None
    ) -> dict[Modality, Tokens]:
        """Encode several modalities: all images in one pass of the vision transformer, captions in another."""
        refuse_instructions("ReID5o", instructions)
        images = [kind for kind in IMAGE_MODALITIES if kind in inputs]
        encoded: dict[Modality, Tokens] = {}
        if images:
            rows = [len(inputs[kind]) for kind in images]
            hidden = [self.tokenizers[kind.value](inputs[kind]) for kind in images]
            groups: Groups = tuple(
                (IMAGE_MODALITIES.index(kind), count) for kind, count in zip(images, rows, strict=True)
            )
            joined = hidden[0] if len(hidden) == 1 else torch.cat(hidden)
            output = self.vision(joined, groups, self.checkpoint_activations)
            parts = zip(images, output.tokens.split(rows), output.pooled.split(rows), strict=True)
            encoded = {kind: Tokens(tokens=tokens, pooled=pooled) for kind, tokens, pooled in parts}
        if Modality.TEXT in inputs:
            encoded[Modality.TEXT] = self.text(inputs[Modality.TEXT], self.checkpoint_activations)
        return {kind: encoded[kind] for kind in inputs}

    def prepare(self, tokens: Tensor) -> Tensor:
        """Return what the fusion needs of each token alone, (B, L, D) -> (B, L, 3D): computed once per source."""
        return self.fusion.prepare(tokens)

    def fuse_prepared(self, prepared: Tensor) -> Tensor:
        """Fuse concatenated prepared tokens of mixed queries, (B, S, 3D) -> (B, D) float32, un-normalised."""
        return self.fusion(prepared, self.checkpoint_activations)

    def identity_logits(self, features: Tensor) -> Tensor:
        """Class scores of the training identities, (B, D) -> (B, num_identities) float32."""
        return float32_linear(features, self.classifier.weight, self.classifier.bias)

    def merge_experts(self) -> None:
        """Build the experts' merged weights for inference. Training, loading or `unmerge_experts` undoes it.

        Raises UserError in training mode, in which merged weights would receive no gradient.
        """
        if self.training:
            raise UserError("experts are merged for inference only; call eval() first")
        for layer in self._expert_layers():
            layer.merge()

    def unmerge_experts(self) -> None:
        """Forget the merged weights."""
        for layer in self._expert_layers():
            layer.unmerge()

    def _expert_layers(self) -> Iterator[ExpertLinear]:
        return (module for module in self.modules() if isinstance(module, ExpertLinear))

    def compile_blocks(self, **options: Any) -> None:
        """Compile every transformer block in place with torch.compile's `options`; names of the state stay."""
        for stack in (self.text.blocks, self.vision.blocks, self.fusion.blocks):
            for block in stack:
                block.compile(**options)
