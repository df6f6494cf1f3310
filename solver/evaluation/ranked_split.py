"""Single queries of an evaluated split: what counts for one, and what it finds."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from datasets.structures import EvalSplit
from solver.evaluation.comparison import Comparison
from solver.evaluation.labels import counted
from solver.evaluation.plan import Integers, ListPlan, SplitPlan
from utils.retrieval.ranking import sort_blocks


@dataclass(frozen=True, kw_only=True, slots=True)
class RankedSplit:
    """The features behind a result, for showing single queries."""

    plan: SplitPlan
    """The split and the place of each list's entries among the features."""
    features: Tensor
    """(F, D): of all sources and sets."""
    gallery_features: Tensor
    """(G, D): of the readable gallery images."""
    gallery: Integers
    """(G,): the readable images, as indices into the split's gallery."""
    comparison: Comparison = field(default_factory=Comparison)
    """How the features are compared."""
    instructed: bool = False
    """The features follow the instructions of the split."""

    @property
    def split(self) -> EvalSplit:
        """The split."""
        return self.plan.split

    def candidates(self, task: str, entry: int) -> Integers:
        """Return the positions in `gallery` that count for one entry of a list: in its part of the gallery, not
        excluded.
        """
        return np.flatnonzero(counted(self.plan, self._list(task), entry, self.gallery))

    def search(self, task: str, entry: int, top_k: int) -> tuple[Integers, NDArray[np.float32]]:
        """Return gallery indices and similarities of the `top_k` best images for one entry of a list."""
        positions = self.candidates(task, entry)
        listed = self._list(task)
        row = int(listed.rows[entry])
        chosen = torch.from_numpy(positions).to(self.gallery_features.device)
        gallery = self.comparison.gallery(self.gallery_features[chosen], listed.combination)
        (ranked,) = sort_blocks(self.comparison.queries(self.features[row : row + 1], listed.combination), gallery)
        order = ranked.order[0, :top_k].cpu().numpy()
        return self.gallery[positions[order]], ranked.similarity[0, :top_k].cpu().numpy()

    def _list(self, task: str) -> ListPlan:
        return next(listed for listed in self.plan.lists if listed.name == task)
