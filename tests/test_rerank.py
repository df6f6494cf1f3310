"""Covers: utils/retrieval/rerank. Re-ranking against a dense reference of plain loops, its bounds, ties, refusals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from utils.errors import UserError
from utils.retrieval import rerank
from utils.retrieval.exclusion import Labels
from utils.retrieval.metrics import evaluate, evaluate_blocks
from utils.retrieval.rerank import estimate_bytes, longest_set, rerank_distances


def dense_reference(
    query: np.ndarray, gallery: np.ndarray, k1: int, k2: int, weight: float, normalize: bool
) -> np.ndarray:
    """The paper's steps with sets, dictionaries and whole matrices, float64."""
    points = np.concatenate([query, gallery]).astype(np.float64)
    if normalize:
        points = points / np.linalg.norm(points, axis=1, keepdims=True)
    count = len(points)
    base = [[float(((points[i] - points[j]) ** 2).sum()) for j in range(count)] for i in range(count)]
    base = [[value / (max(row) or 1.0) for value in row] for row in base]
    # The item itself leads; then by distance, equal ones by index.
    ranked = [sorted(range(count), key=lambda j: (j != i, base[i][j], j)) for i in range(count)]

    def reciprocal(i: int, k: int) -> set[int]:
        return {j for j in ranked[i][: k + 1] if i in ranked[j][: k + 1]}

    encoded: list[dict[int, float]] = []
    for i in range(count):
        members = reciprocal(i, k1)
        larger = set(members)
        for j in members:
            others = reciprocal(j, int(np.around(k1 / 2)))
            if len(others & members) > 2 / 3 * len(others):
                larger |= others
        weights = {j: np.exp(-base[i][j]) for j in larger}
        encoded.append({j: value / sum(weights.values()) for j, value in weights.items()})
    averaged = [
        {j: sum(encoded[n].get(j, 0.0) for n in ranked[i][:k2]) / k2 for j in range(count)} for i in range(count)
    ]
    final = np.empty((len(query), len(gallery)))
    for i in range(len(query)):
        for g in range(len(gallery)):
            j = len(query) + g
            smaller = sum(min(averaged[i][c], averaged[j][c]) for c in range(count))
            larger_sum = sum(max(averaged[i][c], averaged[j][c]) for c in range(count))
            final[i, g] = (1 - weight) * (1 - smaller / larger_sum) + weight * base[i][j]
    return final


def clustered(
    seed: int, queries: int, gallery: int, persons: int = 6
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    centres = random.standard_normal((persons, 8))
    ids, gallery_ids = random.integers(0, persons, queries), random.integers(0, persons, gallery)
    query, items = (
        (centres[labels] + 0.7 * random.standard_normal((len(labels), 8))).astype(np.float32)
        for labels in (ids, gallery_ids)
    )
    return query, items, ids, gallery_ids


def final(query: np.ndarray, gallery: np.ndarray, **options: Any) -> np.ndarray:
    blocks = list(rerank_distances(torch.from_numpy(query), torch.from_numpy(gallery), **options))
    assert [start for start, _ in blocks] == np.cumsum([0, *(len(block) for _, block in blocks)])[:-1].tolist()
    return torch.cat([block for _, block in blocks]).numpy()


@pytest.mark.parametrize(
    ("k1", "k2", "weight", "normalize"), [(6, 3, 0.3, True), (5, 1, 0.3, False), (9, 4, 0.0, True), (3, 6, 0.5, False)]
)
def test_equals_the_dense_reference(k1: int, k2: int, weight: float, normalize: bool) -> None:
    query, gallery, _, _ = clustered(k1, 9, 31)
    expected = dense_reference(query, gallery, k1, k2, weight, normalize)
    found = final(query, gallery, k1=k1, k2=k2, weight=weight, normalize=normalize)
    assert found == pytest.approx(expected, abs=2e-6)
    assert final(query, gallery, k1=k1, k2=k2, weight=1.0, normalize=normalize) == pytest.approx(
        dense_reference(query, gallery, 1, 1, 1.0, normalize), abs=2e-6
    )


def test_equal_distances_go_by_index() -> None:
    random = np.random.default_rng(0)
    # Small integers: every distance is exact, most are shared by several items, and some items are the same point.
    query, gallery = (random.integers(-1, 2, (count, 3)).astype(np.float32) for count in (10, 40))
    for k1, k2 in ((4, 2), (12, 6)):
        expected = dense_reference(query, gallery, k1, k2, 0.3, normalize=False)
        assert final(query, gallery, k1=k1, k2=k2, normalize=False) == pytest.approx(expected, abs=2e-6)
    same = np.ones((12, 3), dtype=np.float32)
    assert np.isfinite(final(same[:2], same[2:], k1=3, k2=2)).all()


def test_block_sizes_and_budget_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    query, gallery, _, _ = clustered(3, 50, 90)
    expected = final(query, gallery, k1=8, k2=3)
    assert np.array_equal(final(query, gallery, k1=8, k2=3, memory_mb=5000), expected)
    monkeypatch.setattr(rerank, "CHUNK_VALUES", 50)
    monkeypatch.setattr(rerank, "BLOCK_SCORES", 1)
    blocks = list(rerank_distances(torch.from_numpy(query), torch.from_numpy(gallery), k1=8, k2=3))
    assert len(blocks) == 4
    # The rounding of a product may depend on how many rows it has; nothing else does.
    assert torch.cat([block for _, block in blocks]).numpy() == pytest.approx(expected, abs=1e-6)


def test_sets_stay_within_the_bound_of_the_estimate() -> None:
    query, gallery, _, _ = clustered(4, 60, 240, persons=3)
    for k1 in (2, 7, 20):
        points = rerank._Points(torch.from_numpy(query), torch.from_numpy(gallery), True)
        lists, largest = rerank._nearest(points, k1 + 1)
        sizes = np.diff(rerank._reciprocal_sets(points, lists, largest, k1).starts)
        assert 1 <= sizes.max() <= longest_set(k1)
    # By hand: lists of 21, half lists of 11, of which fewer than a third, 3, may be new.
    assert longest_set(20) == 21 * 4


def test_metrics_of_blocks_and_a_better_ranking() -> None:
    query, gallery, ids, gallery_ids = clustered(5, 40, 200)
    labels = Labels(ids=ids), Labels(ids=gallery_ids)
    blocks = rerank_distances(torch.from_numpy(query), torch.from_numpy(gallery), k1=20, k2=6)
    found = evaluate_blocks(((start, -block) for start, block in blocks), *labels, (40, 200))
    whole = evaluate(-final(query, gallery, k1=20, k2=6), ids, gallery_ids)
    unit = [torch.nn.functional.normalize(torch.from_numpy(side), dim=1) for side in (query, gallery)]
    assert dict(found) == dict(whole)
    assert found.mAP > evaluate(unit[0] @ unit[1].t(), ids, gallery_ids).mAP + 1


def test_what_does_not_fit_is_refused_with_the_estimate() -> None:
    needed = estimate_bytes(11_659, 82_161, 20)
    assert 100 << 20 < needed < 1 << 30, "MSMT17 fits the default budget"
    assert estimate_bytes(11_659, 82_161, 40) > needed and estimate_bytes(11_659, 2 * 82_161, 20) > needed
    few = torch.ones(3, 2), torch.eye(2).repeat(20, 1)
    with pytest.raises(
        UserError, match=rf"3 queries against 40 gallery items with k1 = 5 takes up to {estimate_bytes(3, 40, 5) >> 20}"
    ):
        rerank_distances(*few, k1=5, memory_mb=1)
    wrong: dict[str, dict[str, Any]] = {"k1 = 50": {"k1": 50}, "at least 1": {"k2": 0}, "weight = 2": {"weight": 2}}
    for message, options in wrong.items():
        with pytest.raises(UserError, match=message):
            rerank_distances(*few, **options)
    with pytest.raises(UserError, match="have 2 dimensions and gallery_features 3"):
        rerank_distances(torch.ones(2, 2), torch.ones(30, 3))
    with pytest.raises(UserError, match="query_features has a value that is not finite"):
        rerank_distances(torch.full((2, 2), torch.nan), torch.ones(30, 2))
    with pytest.raises(UserError, match="gallery is empty"):
        rerank_distances(torch.ones(30, 2), torch.ones(0, 2))


def test_no_query_is_no_block() -> None:
    assert list(rerank_distances(torch.ones(0, 4), torch.eye(4).repeat(10, 1), k1=3, k2=2)) == []
