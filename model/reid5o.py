"""ReID5o: four image tokenizers, a shared vision transformer with modality experts, a text tower, a fusion.

Shapes: B rows, L tokens of one source, S tokens of a mixed query, D embed_dim.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from configs.vocabulary import Modality
from model.fusion import Fusion
from model.interface import Tokens
from model.layers import float32_linear
from model.lora import ExpertLinear, Groups
from model.text import TextSpec, TextTransformer
from model.vision import ImageTokenizer, VisionSpec, VisionTransformer
from utils.errors import UserError, nearest

IMAGE_MODALITIES: tuple[Modality, ...] = (Modality.RGB, Modality.NIR, Modality.CP, Modality.SK)
"""Image modalities in the order of their experts."""


def as_modality(name: Modality | str) -> Modality:
    """Return the modality of that name. Raises UserError with the valid names."""
    try:
        return Modality(name)
    except ValueError as error:
        valid = [modality.value for modality in Modality]
        raise UserError(f"unknown modality {name!r}: {nearest(str(name), valid)}") from error


class ReID5o(nn.Module):
    """Retrieval across rgb, nir, cp, sk and text, and by any mix of the last four.

    Implements model.interface.RetrievalModel. checkpoint_activations: run blocks again in the backward pass instead
    of keeping what they computed. frozen_names: parameters that are never trained (the bases under the experts).
    Parameters hold no useful values until they are initialised or loaded.
    """

    follows_instructions = False
    statistics = "clip"

    def __init__(
        self,
        *,
        vision: VisionSpec,
        text: TextSpec,
        embed_dim: int,
        mmt_depth: int,
        mmt_heads: int,
        num_identities: int,
        checkpoint_activations: bool = False,
    ) -> None:
        super().__init__()
        self.embed_dim = embed_dim
        self.num_identities = num_identities
        self.checkpoint_activations = checkpoint_activations
        self.vision_spec = vision
        self.text_spec = text
        self.text = TextTransformer(text, embed_dim)
        self.tokenizers = nn.ModuleDict({modality.value: ImageTokenizer(vision) for modality in IMAGE_MODALITIES})
        self.vision = VisionTransformer(vision, embed_dim)
        self.fusion = Fusion(embed_dim, mmt_heads, mmt_depth)
        self.classifier = nn.Linear(embed_dim, num_identities)
        self.frozen_names = tuple(name for name, value in self.named_parameters() if not value.requires_grad)

    def encode(self, modality: Modality | str, inputs: Tensor, instruction: Tensor | None = None) -> Tokens:
        """Encode normalised images (B, 3, H, W) or token ids (B, T) of one modality. No instruction is taken."""
        if instruction is not None:
            raise UserError("ReID5o takes no instruction; leave it out or choose a family that does")
        kind = as_modality(modality)
        return self.encode_batch({kind: inputs})[kind]

    def encode_batch(self, inputs: Mapping[Modality, Tensor]) -> dict[Modality, Tokens]:
        """Encode several modalities: all images in one pass of the vision transformer, captions in another."""
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

    def fuse(self, members: Sequence[Tokens]) -> Tensor:
        """Fuse the sources of mixed queries, member by member, into (B, D) float32, un-normalised."""
        if not members:
            raise UserError("nothing to fuse: give at least one source")
        return self.fuse_prepared(self.prepare(torch.cat([member.tokens for member in members], dim=1)))

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
