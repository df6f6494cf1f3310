"""Golden checks of how the released Instruct-ReID evaluates: text to image, the best images scored again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from parity_common import Kind, Row, max_error

from utils.retrieval.metrics import evaluate
from utils.retrieval.rescoring import rescored

TAIL = -100.0
"""Score of the images that the release does not score again: they tie."""


def check_text_reranking(path: Path) -> list[Row]:
    """The final scores of the best images, and the metrics of the ranking that they lead."""
    with np.load(path, allow_pickle=False) as archive:
        golden = {name: archive[name] for name in archive.files}
    order = torch.from_numpy(golden["sim"]).sort(dim=1, descending=True, stable=True).indices
    best = order[:, : min(int(golden["topk"]), order.shape[1])]
    judged = torch.from_numpy(golden["itm"]).gather(1, best)
    ranking = rescored(order, judged)
    final = torch.full(ranking.shape, TAIL).scatter_(1, best, judged)
    # What we rank first is what the release scores highest, in that order.
    first = ranking.argsort(dim=1, descending=True)[:, : best.shape[1]]
    ours = final.gather(1, first)
    theirs = -np.sort(-golden["final_scores"], axis=1)[:, : best.shape[1]]
    rows = [
        Row("final_scores", max_error(final, golden["final_scores"]), 1e-6),
        Row("final_scores in order", max_error(ours, theirs), 1e-6),
    ]
    result = evaluate(ranking, golden["q_pids"], golden["g_pids"])
    named = {f"r{depth}": result[f"R{depth}"] / 100 for depth in (1, 5, 10, 50)}
    named |= {"mAP": result.mAP / 100, "r_mean": (named["r1"] + named["r5"] + named["r10"]) / 3}
    return rows + [Row(name, max_error(value, golden[name]), 1e-6) for name, value in named.items()]


KINDS: tuple[Kind, ...] = (Kind("text-to-image re-ranking (IRM)", r"b_t2i_rerank_.*\.npz", check_text_reranking),)
