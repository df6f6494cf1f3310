"""The matching head in an evaluation: it scores the best images of each query again.

Shapes: N slots (distinct sources), b queries of one block, G gallery images, k images scored again, P pairs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from configs.vocabulary import Combination
from model.interface import Matches, RetrievalModel
from solver.evaluation.encoding import EncodedSources, batch_rows, inference
from solver.evaluation.kept_tokens import KeptTokens
from solver.evaluation.plan import EvaluationPlan, Integers
from solver.evaluation.sharing import Gather, complete, rounds
from solver.evaluation.spec import EvaluationSpec
from utils.errors import UserError
from utils.progress import progress_bar
from utils.retrieval.ranking import sort_blocks
from utils.retrieval.rescoring import rescored


def check_rescoring(model: RetrievalModel, depth: int) -> None:
    """Raise UserError for scores that are asked of a model without a matching head. depth: eval.rescore."""
    if depth and not isinstance(model, Matches):
        raise UserError(
            f"eval.rescore={depth}: this model has no matching head that could score its best images again; set "
            "eval.rescore=0"
        )


def matched_slots(plan: EvaluationPlan, model: RetrievalModel) -> NDArray[np.bool_]:
    """Return which slots (N,) the matching head will look at: queries that it scores for, and their galleries."""
    wanted = np.zeros(len(plan.table), dtype=bool)
    if isinstance(model, Matches):
        for split in plan.splits:
            for listed in split.lists:
                if model.rescores(listed.combination):
                    wanted[listed.members.reshape(-1)] = True
                    wanted[split.gallery if listed.subset is None else split.gallery[listed.subset]] = True
    return wanted


@dataclass(frozen=True, kw_only=True, slots=True)
class Rescoring:
    """Scores the best images of queries again by a model's matching head."""

    depth: int
    """Images of each query that are scored again."""
    model: RetrievalModel
    encoded: EncodedSources
    """With the representations that the head reads; they must not be closed yet."""
    spec: EvaluationSpec
    device: torch.device

    def serves(self, combination: Combination) -> bool:
        """Return whether queries of these modalities are scored again."""
        return self._head().rescores(combination)

    def blocks(
        self, features: tuple[Tensor, Tensor], queries: Integers, gallery: Integers
    ) -> Iterator[tuple[int, Tensor]]:
        """Yield (first query, scores (b, G) float64): see utils.retrieval.rescoring.

        features: of queries (Q, d) and gallery (G, d), whose products are the similarities. queries (Q,), gallery (G,):
        their slots. A block holds what the ranking by features holds; pairs are scored a batch at a time.
        """
        depth = min(self.depth, len(gallery))
        slots, processes = torch.from_numpy(gallery), self.spec.processes
        with progress_bar(None, len(queries) * depth, "match", "pair") as bar:
            for block in sort_blocks(*features):
                # Nobody else's products need have the same last bits.
                best = slots[processes.spread(block.order[:, :depth].cpu())]
                asked = torch.from_numpy(queries[block.first : block.first + len(best)])
                pairs = asked[:, None].expand_as(best).reshape(-1), best.reshape(-1)
                judged = self._judged(pairs, bar)
                scores = judged.view(best.shape).to(block.order.device)
                yield block.first, rescored(block.order, scores)

    def _judged(self, pairs: tuple[Tensor, Tensor], bar: tqdm) -> Tensor:
        """Return (P,) float32 of pairs of slots, which processes share out."""
        cache, rows = self._kept().cache, self._rows(pairs)
        sides = [side.split(rows) for side in pairs]
        places = torch.arange(len(pairs[0])).split(rows)
        scores = torch.zeros(len(pairs[0]), device=self.encoded.pooled.device)
        own = [torch.empty(0, dtype=torch.int64)]
        for number, gather in rounds(cache, [torch.cat(batch) for batch in zip(*sides, strict=True)]):
            text, image = (side[number] for side in sides)
            scores[places[number].to(scores.device)] = self._scores(text, image, gather)
            own.append(places[number])
            bar.update(len(text) * cache.owners.processes.count)
        complete(cache.owners.processes, scores, torch.cat(own))
        return scores

    def _rows(self, pairs: tuple[Tensor, Tensor]) -> int:
        kept = self._kept()
        tokens = sum(kept.cache.length(int(side[0])) for side in pairs)
        return batch_rows(tokens, self.spec.config.batch_size, self.device)

    def _scores(self, text: Tensor, image: Tensor, gather: Gather) -> Tensor:
        """Return (P,) float32 of pairs of slots."""
        kept, pooled = self._kept(), self.encoded.pooled
        with inference(self.model, self.device, self.spec.config.precision):
            sides = (kept.gather(side, pooled, gather) for side in (text, image))
            return self._head().match(*sides).float()

    def _head(self) -> Matches:
        assert isinstance(self.model, Matches), "checked before anything was encoded"
        return self.model

    def _kept(self) -> KeptTokens:
        assert self.encoded.kept is not None, "lists that are scored again have their sources kept"
        return self.encoded.kept
