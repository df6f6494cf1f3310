"""How features are compared, in one place: as inner products, whichever similarity is asked for.

Shapes: n features of width D, all of them the part that is compared.
"""

from __future__ import annotations

import torch
from torch import Tensor

from utils.retrieval.options import Similarity
from utils.retrieval.ranking import unit_length

SIMILARITY_NAMES: dict[Similarity, str] = {
    "cosine": "cosine similarity",
    "euclidean": "minus squared Euclidean distance",
}
"""What a printed value is."""


def query_side(features: Tensor, similarity: Similarity) -> Tensor:
    """Return (n, D) or wider, float32: products with `gallery_side` of the same similarity are the similarities.

    Of the cosine the features of length 1. Of minus the squared Euclidean distance -|q - g|^2 = 2 q.g - |q|^2 - |g|^2
    the rows (2 q, -|q|^2, 1), so that every place that ranks by products ranks by the distance.
    """
    if similarity == "cosine":
        return unit_length(features)
    features = features.detach().float()
    squares = features.square().sum(1, keepdim=True)
    return torch.cat([2 * features, -squares, torch.ones_like(squares)], dim=1)


def gallery_side(features: Tensor, similarity: Similarity) -> Tensor:
    """Return (n, D) or wider, float32: the rows of length 1, or (g, 1, -|g|^2); see `query_side`."""
    if similarity == "cosine":
        return unit_length(features)
    features = features.detach().float()
    squares = features.square().sum(1, keepdim=True)
    return torch.cat([features, torch.ones_like(squares), -squares], dim=1)


def mirrored_mean(features: Tensor, mirrored: Tensor, similarity: Similarity) -> Tensor:
    """Return (n, D), up to a common factor the mean of images' features and of their mirror images'.

    Under the cosine both are of length 1 before, so that neither outweighs the other; else they are taken as they are.
    """
    if similarity == "cosine":
        return unit_length(features) + unit_length(mirrored)
    return (features.detach().float() + mirrored.detach().float()) / 2
