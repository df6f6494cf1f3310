"""Whole representations of sources, for a model that compares two sources token by token.

Shapes: N slots (distinct sources), n rows of one request, L tokens of a source, D embed_dim.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from model.interface import Tokens
from solver.evaluation.token_cache import BankShape, CacheBudget, TokenCache


class KeptTokens:
    """Whole representations of sources by slot, in the tiers of a token cache. Whoever has them made closes them."""

    def __init__(
        self,
        num_slots: int,
        shapes: Sequence[tuple[Tensor, Tokens]],
        *,
        device: torch.device,
        budget: CacheBudget,
    ) -> None:
        """shapes: slots (n,) of sources whose representations have the shape of the example beside them."""
        banks = []
        self._masks: dict[int, Tensor] = {}
        self._bank_of = torch.full((num_slots,), -1, dtype=torch.int64)
        for slots, example in shapes:
            _, length, width = example.tokens.shape
            self._bank_of[slots] = length
            banks.append(
                BankShape(
                    slots=slots, length=length, plain_width=width, prepared_width=width, dtype=example.tokens.dtype
                )
            )
            if example.mask is not None and length not in self._masks:
                self._masks[length] = torch.ones((num_slots, length), dtype=torch.bool)
        self.cache = TokenCache(num_slots, banks, device=device, budget=budget)

    def put(self, slots: Tensor, tokens: Tokens) -> None:
        """Keep tokens of `slots` (n,) int64 on the CPU, all of one length."""
        self.cache.put(slots, tokens.tokens)
        if tokens.mask is not None:
            self._masks[tokens.tokens.shape[1]][slots] = tokens.mask.cpu()

    def gather(self, slots: Tensor, pooled: Tensor) -> Tokens:
        """Return the representations of `slots` (n,) int64 on the CPU, all of one length. pooled (N, D): of all."""
        mask = self._masks.get(int(self._bank_of[slots[0]]))
        return Tokens(
            tokens=self.cache.gather(slots),
            pooled=pooled[slots.to(pooled.device)],
            mask=None if mask is None else mask[slots].to(self.cache.device),
        )

    def close(self) -> None:
        """Free everything."""
        self.cache.close()
        self._masks = {}
