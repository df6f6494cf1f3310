"""What every model family offers: sources in, token representations out.

Shapes: B rows, L tokens of one source, S tokens of a mixed query, D embed_dim, K width of a prepared token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from configs.vocabulary import Modality


@dataclass(frozen=True, kw_only=True, slots=True)
class Tokens:
    """Representation of B sources of one modality.

    tokens: (B, L, D), what a fusion reads. pooled: (B, D) float32, un-normalised, what a single-modality query or a
    gallery image is compared by.
    """

    tokens: Tensor
    pooled: Tensor


@runtime_checkable
class RetrievalModel(Protocol):
    """A model whose queries may mix modalities. It computes no loss and keeps no state about the current modality."""

    embed_dim: int
    num_identities: int
    checkpoint_activations: bool
    """Recompute blocks in the backward pass instead of keeping what they computed. May be set at any time."""
    frozen_names: tuple[str, ...]
    """Parameters that the family never trains; their requires_grad is False."""
    statistics: str
    """By which statistics images are normalised: a name in datasets.modalities.STATISTICS."""
    follows_instructions: bool = False
    """Whether `encode` reads the instruction beside a source; otherwise an image is encoded once, whatever is asked of
    it.
    """

    def encode(self, modality: Modality | str, inputs: Tensor, instruction: Tensor | None = None) -> Tokens:
        """Encode normalised images (B, 3, H, W) or token ids (B, T) of one modality."""

    def encode_batch(self, inputs: Mapping[Modality, Tensor]) -> dict[Modality, Tokens]:
        """Encode several modalities in one pass where the family can share it; equal to `encode` one by one."""

    def prepare(self, tokens: Tensor) -> Tensor:
        """Return what the fusion needs of each token alone, (B, L, D) -> (B, L, K): computed once per source."""

    def fuse_prepared(self, prepared: Tensor) -> Tensor:
        """Fuse concatenated prepared tokens of mixed queries, (B, S, K) -> (B, D) float32, un-normalised."""

    def fuse(self, members: Sequence[Tokens]) -> Tensor:
        """Fuse the sources of mixed queries, member by member, into (B, D) float32, un-normalised."""

    def compile_blocks(self, **options: Any) -> None:
        """Compile the repeated blocks in place with torch.compile's `options`; the names of the state stay."""

    def identity_logits(self, features: Tensor) -> Tensor:
        """Class scores of the training identities, (B, D) -> (B, num_identities) float32."""
