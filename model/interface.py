"""What every model family offers: sources in, token representations out.

Shapes: B rows, L tokens of one source, S tokens of a mixed query, D embed_dim, K width of a prepared token, U distinct
instructions, T token ids of a text.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from configs.vocabulary import Combination, Modality
from utils.errors import UserError, nearest
from utils.retrieval.options import Similarity


@dataclass(frozen=True, kw_only=True, slots=True)
class Tokens:
    """Representation of B sources of one modality."""

    tokens: Tensor
    """(B, L, D): what a fusion reads."""
    pooled: Tensor
    """(B, D) float32, un-normalised: what a single-modality query or a gallery image is compared by, in the part that
    `RetrievalModel.compared` names.
    """
    mask: Tensor | None = None
    """(B, L) bool: the tokens that are no padding; None = all."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Instruction:
    """Instructions of one modality for B rows: each distinct one once, however many rows it is given to."""

    modality: Modality
    """Text, or the modality of a clothes picture."""
    inputs: Tensor
    """(U, T) int64 token ids, or normalised pictures (U, 3, H, W) float32 of the model's `instruction_size`."""
    rows: Tensor
    """(B,) int64: which of the U each row is given, -1 = none of this modality."""


Instructions = Sequence[Instruction]
"""Instructions of one batch, at most one entry for each modality; no row is given two."""


class RetrievalModel(nn.Module, ABC):
    """A model that encodes sources. It computes no loss and keeps no state about the current modality."""

    embed_dim: int
    num_identities: int
    checkpoint_activations: bool
    """Recompute blocks in the backward pass instead of keeping what they computed. May be set at any time."""
    frozen_names: tuple[str, ...]
    """Parameters that the family never trains; their requires_grad is False."""
    statistics: ClassVar[str]
    """By which statistics images are normalised: a name in datasets.modalities.STATISTICS."""
    instruction_statistics: str | None = None
    """Those of pictures that are given as instructions; None = as all images."""
    follows_instructions: bool = False
    """Whether `encode` reads the instructions beside a source; otherwise an image is encoded once, whatever is asked of
    it. A family may leave it to its configuration."""
    similarity: Similarity = "cosine"
    """How features are compared in retrieval."""

    def compared(self, combination: Combination) -> slice:
        """Return the columns of the features that answer queries of these modalities, of queries and gallery alike.

        A feature may have parts, for instance one for identity and one that captions are compared with: everything
        that is measured for such a query is measured within its part.
        """
        return slice(None)

    @abstractmethod
    def encode_batch(
        self, inputs: Mapping[Modality, Tensor], instructions: Mapping[Modality, Instructions] | None = None
    ) -> dict[Modality, Tokens]:
        """Encode several modalities in one pass where the family can share it; equal to `encode` one by one.

        inputs: normalised images (B, 3, H, W) or token ids (B, T) by modality, each with rows of its own.
        instructions: for a modality those of its rows; a modality that is left out has none. Raises UserError for a
        modality that the family does not encode, and for instructions given to a family that follows none.
        """

    @abstractmethod
    def identity_logits(self, features: Tensor) -> Tensor:
        """Class scores of the training identities, (B, D) -> (B, num_identities) float32."""

    @abstractmethod
    def compile_blocks(self, **options: Any) -> None:
        """Compile the repeated blocks in place with torch.compile's `options`; the names of the state stay."""

    def encode(self, modality: Modality | str, inputs: Tensor, instructions: Instructions = ()) -> Tokens:
        """Encode sources of one modality; see `encode_batch`."""
        kind = as_modality(modality)
        return self.encode_batch({kind: inputs}, {kind: instructions} if instructions else None)[kind]


class Fuses(ABC):
    """A model whose queries may mix modalities is this as well."""

    @abstractmethod
    def prepare(self, tokens: Tensor) -> Tensor:
        """Return what the fusion needs of each token alone, (B, L, D) -> (B, L, K): computed once per source."""

    @abstractmethod
    def fuse_prepared(self, prepared: Tensor) -> Tensor:
        """Fuse concatenated prepared tokens of mixed queries, (B, S, K) -> (B, D) float32, un-normalised."""

    def fuse(self, members: Sequence[Tokens]) -> Tensor:
        """Fuse the sources of mixed queries, member by member, into (B, D) float32, un-normalised. Raises UserError."""
        if not members:
            raise UserError("nothing to fuse: give at least one source")
        return self.fuse_prepared(self.prepare(torch.cat([member.tokens for member in members], dim=1)))


class Matches(ABC):
    """A model that can say of a caption and an image, looking at both, whether they belong together is this as well."""

    @abstractmethod
    def rescores(self, combination: Combination) -> bool:
        """Return whether the best images of queries of these modalities are to be scored again by `match`."""

    @abstractmethod
    def match(self, text: Tokens, image: Tokens) -> Tensor:
        """Return (P,) float32: for each of P pairs how well its text fits its image, a logit; larger = better."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AttentionMap:
    """Where a model looks in B images."""

    weights: Tensor
    """(B, ny, nx) float32, at least 0: for each patch, rows from the top."""
    module: str
    """What they are taken from, for readers: for instance `editing layer 12, class token`."""


class MapsAttention(ABC):
    """A model that shows where it looks is this as well."""

    @abstractmethod
    def attention_maps(
        self, modality: Modality, inputs: Tensor, instructions: Instructions = (), captions: Tensor | None = None
    ) -> AttentionMap:
        """Return where the model looks in images (B, 3, H, W) under their instructions.

        captions (B, T) token ids: one for each image, where it is compared with them instead of told something; then
        the map is that of the comparison. Raises UserError where the model has no such part.
        """


class FusingModel(RetrievalModel, Fuses):
    """A model that encodes and fuses."""


def as_modality(name: Modality | str) -> Modality:
    """Return the modality of that name. Raises UserError with the valid names."""
    try:
        return Modality(name)
    except ValueError as error:
        valid = [modality.value for modality in Modality]
        raise UserError(f"unknown modality {name!r}: {nearest(str(name), valid)}") from error


def refuse_instructions(family: str, instructions: object) -> None:
    """Raise UserError for instructions given to a family that follows none."""
    if instructions:
        raise UserError(f"{family} takes no instruction; leave it out or choose a family that follows instructions")
