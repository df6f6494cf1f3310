"""Text encoder of IRM: BERT's layers, of which the last may also attend to an image's tokens.

Shapes: U texts of L ids, C width, S tokens of an image, V ids.
Source: ALBEF's text encoder as released with IRM, out of transformers' layers. Its BertModel is not used: it would add
a pooler, and its cross-attention reads every layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from model.editing import attention_weights
from model.layers import float32_linear, run_blocks
from model.said import Said
from utils.errors import UserError
from utils.texts import attention_mask

PAD_ID = 0
"""What fills a row of token ids; CLIP's vocabulary and BERT's agree."""


@dataclass(frozen=True, kw_only=True)
class TextSpec:
    """Sizes of the text encoder. positions: rows of its position embedding. hidden: width of the MLPs."""

    vocab_size: int
    positions: int
    width: int
    heads: int
    layers: int
    fusion_layers: int
    hidden: int
    dropout: float = 0.0
    image_width: int | None = None
    eps: float = 1e-12


class TextEncoder(nn.Module):
    """Embeddings; layers that see the text alone; layers that attend to an image as well; the masked-language head.

    The head shares its matrix with the word embedding. Without fusion layers there is no head.
    """

    def __init__(self, spec: TextSpec) -> None:
        # Imported here: it takes seconds, and the other families have no such text.
        from transformers.models.bert.modeling_bert import BertEmbeddings, BertLayer, BertPredictionHeadTransform

        super().__init__()
        self.spec = spec
        text, fusion = _bert_config(spec, fuses=False), _bert_config(spec, fuses=True)
        self.embeddings = BertEmbeddings(text)
        self.layers = nn.ModuleList(BertLayer(text) for _ in range(spec.layers))
        self.fusion = nn.ModuleList(BertLayer(fusion) for _ in range(spec.fusion_layers))
        layer: Any
        for layer in self.fusion:
            # A layer with cross-attention is a decoder to transformers: without a mask it would turn causal.
            layer.attention.self.is_causal = False
        if spec.fusion_layers:
            self.transform = BertPredictionHeadTransform(text)
            self.bias = nn.Parameter(torch.zeros(spec.vocab_size))

    def forward(self, ids: Tensor, recompute: bool = False) -> Said:
        """Encode token ids (U, L) by the text layers; nothing attends to padding. Raises UserError for long texts."""
        if ids.dim() != 2 or ids.shape[1] > self.spec.positions:
            raise UserError(
                f"token ids of shape {tuple(ids.shape)}: the text encoder has {self.spec.positions} positions; "
                "tokenize to at most that length or raise model.text_positions"
            )
        mask = attention_mask(ids, PAD_ID)
        hidden = run_blocks(self.layers, self.embeddings(ids), _keys(mask), recompute=recompute, draws=self._draws)
        return Said(tokens=hidden, mask=mask)

    def fuse(self, said: Said, image: Tensor, recompute: bool = False) -> Tensor:
        """Pass texts through the fusion layers, text i beside image tokens (U, S, C) i; (U, L, C)."""
        return run_blocks(self.fusion, said.tokens, _keys(said.mask), image, recompute=recompute, draws=self._draws)

    def language_logits(self, tokens: Tensor) -> Tensor:
        """Scores of every id for fused tokens, (..., C) -> (..., V) float32."""
        return float32_linear(self.transform(tokens), self.embeddings.word_embeddings.weight, self.bias)

    def cross_attention(self, said: Said, image: Tensor) -> Tensor:
        """Return what the class token of each text attends to in its image (U, S, C) in the last fusion layer.

        (U, S) float32, mean of the heads.
        """
        hidden = run_blocks(self.fusion[:-1], said.tokens, _keys(said.mask), image, recompute=False)
        last: Any = self.fusion[-1]
        attended, _ = last.attention(hidden, _keys(said.mask))
        cross, heads = last.crossattention.self, self.spec.heads
        query, key = (
            part.unflatten(2, (heads, -1)).transpose(1, 2) for part in (cross.query(attended[:, :1]), cross.key(image))
        )
        return attention_weights(query, key, None)[:, 0]

    @property
    def _draws(self) -> bool:
        return self.training and self.spec.dropout > 0


def _keys(mask: Tensor) -> Tensor:
    """Return what may be attended to, (U, 1, 1, L) bool; a text that is all padding sees all of itself, so that no
    softmax runs over nothing.
    """
    return (mask | ~mask.any(dim=1, keepdim=True))[:, None, None]


def _bert_config(spec: TextSpec, fuses: bool) -> Any:
    from transformers import BertConfig

    config = BertConfig(
        vocab_size=spec.vocab_size,
        hidden_size=spec.width,
        num_attention_heads=spec.heads,
        intermediate_size=spec.hidden,
        max_position_embeddings=spec.positions,
        hidden_dropout_prob=spec.dropout,
        attention_probs_dropout_prob=spec.dropout,
        layer_norm_eps=spec.eps,
        pad_token_id=PAD_ID,
        is_decoder=fuses,
        add_cross_attention=fuses,
    )
    config._attn_implementation = "sdpa"
    return config
