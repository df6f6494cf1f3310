"""Rankings whose first places are decided anew by a second, dearer score.

Shapes: b queries of one block, G gallery items, k items scored anew.
"""

from __future__ import annotations

import torch
from torch import Tensor


def rescored(order: Tensor, judged: Tensor) -> Tensor:
    """Return scores (b, G) float64 of a ranking whose first k items are put in the order of a second score.

    order (b, G): gallery items from best to worst by the first score. judged (b, k), k <= G: second score of the first
    k of them; larger = better, equal ones stay in their order, and so does the tail behind them. The scores are minus
    the places, so that no two are equal.

    Source: the re-ranking of Instruct-ReID's released text-to-image evaluation, k 128. There the tail ties at -100 and
    comes in any order; here it follows by the first score.
    """
    depth = judged.shape[1]
    anew = torch.argsort(judged, dim=1, descending=True, stable=True)
    final = torch.cat([order[:, :depth].gather(1, anew), order[:, depth:]], dim=1)
    places = torch.arange(order.shape[1], dtype=torch.float64, device=order.device)
    return torch.empty_like(final, dtype=torch.float64).scatter_(1, final, -places.expand_as(final))
