"""Token ids as tensors, for tokenizers and models alike; names in one form."""

from __future__ import annotations

import unicodedata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    # Names are asked for before anything heavy is imported.
    from torch import Tensor


def attention_mask(ids: Tensor, pad_id: int) -> Tensor:
    """Return a boolean mask shaped as int64 `ids` (..., T): False for the padding at the end of each row.

    Only the run of pad_id that ends a row is padding: CLIP's pad id is also the id of a piece.
    """
    return (ids != pad_id).flip(-1).cumsum(-1).flip(-1) > 0


def one_form(text: str) -> str:
    """Return a name in Unicode's composed form (NFC): by system, an accent is a letter's own or a sign behind it."""
    return unicodedata.normalize("NFC", text)
