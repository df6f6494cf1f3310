"""How a model's features are compared: by which similarity, and in which part of them.

Shapes: n features, D embed_dim, d columns of a part.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from configs.vocabulary import Combination
from model.interface import RetrievalModel
from utils.retrieval.options import Similarity
from utils.retrieval.similarity import SIMILARITY_NAMES, gallery_side, query_side


def whole(combination: Combination) -> slice:
    """Return all columns, whatever asks."""
    return slice(None)


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """Everything that decides how alike two features are."""

    similarity: Similarity = "cosine"
    compared: Callable[[Combination], slice] = whole
    """See RetrievalModel.compared."""

    @classmethod
    def of(cls, model: RetrievalModel) -> Comparison:
        """Return how a model's features are compared."""
        return cls(similarity=model.similarity, compared=model.compared)

    @property
    def name(self) -> str:
        """What a similarity is, in words."""
        return SIMILARITY_NAMES[self.similarity]

    def columns(self, combination: Combination, width: int) -> tuple[int, int]:
        """Return the first column that answers queries of these modalities and the one behind the last."""
        start, stop, step = self.compared(combination).indices(width)
        assert step == 1 and start < stop, f"a part of a feature is a run of columns, not {start}:{stop}:{step}"
        return start, stop

    def part(self, features: Tensor, combination: Combination) -> Tensor:
        """Return the columns (n, d) of features (n, D) that answer queries of these modalities."""
        start, stop = self.columns(combination, features.shape[1])
        return features[:, start:stop]

    def queries(self, features: Tensor, combination: Combination) -> Tensor:
        """Return features (n, D) as rows whose products with those of `gallery` are the similarities."""
        return query_side(self.part(features, combination), self.similarity)

    def gallery(self, features: Tensor, combination: Combination) -> Tensor:
        """Return features (n, D) as rows for the products; see `queries`."""
        return gallery_side(self.part(features, combination), self.similarity)
