"""Covers: utils/retrieval/ranking, utils/retrieval/arrays. Counted ranks against a stable argsort, for every block
size, dtype and degree of ties.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
import torch

from utils.errors import UserError
from utils.retrieval import ranking
from utils.retrieval.arrays import Array, to_numpy
from utils.retrieval.exclusion import RULES, LabelBlock
from utils.retrieval.ranking import RankedMatches, RankingPlan, rank_blocks, rank_similarity, sort_blocks, unit_length


def labels(persons: np.ndarray, cameras: np.ndarray | None = None) -> LabelBlock:
    return LabelBlock.of(
        persons=torch.from_numpy(persons.astype(np.int32)),
        cameras=None if cameras is None else torch.from_numpy(cameras.astype(np.int64)),
    )


def plan_for(query: np.ndarray, gallery: np.ndarray, **options: Any) -> RankingPlan:
    return RankingPlan(query=labels(query), gallery=labels(gallery), rule=RULES["none"], **options)


def collect(blocks: Iterable[RankedMatches]) -> list[tuple[int, int, int]]:
    """All (query, rank, gallery index) triples, in the order they come."""
    return [
        triple
        for block in blocks
        for triple in zip((block.queries + block.first).tolist(), block.ranks.tolist(), block.gallery.tolist())
    ]


def oracle(similarity: np.ndarray, query: np.ndarray, gallery: np.ndarray) -> list[tuple[int, int, int]]:
    """The same triples from a stable sort of each whole row."""
    order = np.argsort(-similarity, axis=1, kind="stable")
    return [
        (row, rank + 1, int(item))
        for row, items in enumerate(order)
        for rank, item in enumerate(items)
        if gallery[item] == query[row]
    ]


def problem(
    seed: int, queries: int = 37, gallery: int = 301, persons: int = 9
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    similarity = random.standard_normal((queries, gallery)).astype(np.float32)
    return similarity, random.integers(0, persons + 2, queries), random.integers(0, persons, gallery)


def as_bf16(similarity: np.ndarray) -> np.ndarray:
    return torch.from_numpy(similarity).bfloat16().float().numpy()


SCORES = {
    "random": lambda scores: scores,
    "float64": lambda scores: scores.astype(np.float64) / 3,
    "float64, tied": lambda scores: np.round(scores.astype(np.float64), 1),
    "bf16": as_bf16,
    "three values": lambda scores: np.clip(np.round(scores), -1, 1),
    "two zeros": lambda scores: np.where(scores > 0, np.float32(0.0), np.float32(-0.0)),
    "all equal": lambda scores: np.full_like(scores, 0.25),
    "one outlier": lambda scores: np.where(np.arange(scores.shape[1]) == 5, np.float32(1e20), scores),
    "nearly the largest floats": lambda scores: np.sign(scores) * np.float32(3.4e38),
    "denormal": lambda scores: scores * np.float32(1e-41),
    "last bits": lambda scores: (np.float32(1) + np.round(scores * 4) * np.finfo(np.float32).eps).astype(np.float32),
}


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        ([1.5, -2.0], np.float64),
        (np.array([1.5, -2.0], dtype=np.float32), np.float32),
        (torch.tensor([1.5, -2.0], requires_grad=True), np.float32),
        (torch.tensor([1.5, -2.0], dtype=torch.bfloat16), np.float32),
        (torch.tensor([1.5, -2.0], dtype=torch.float16), np.float16),
    ],
)
def test_whatever_is_handed_over_becomes_an_array(values: Array, dtype: type) -> None:
    array = to_numpy(values)
    assert type(array) is np.ndarray and array.dtype == dtype and array.tolist() == [1.5, -2.0]


@pytest.mark.parametrize("name", SCORES)
def test_ranks_equal_a_stable_sort(name: str) -> None:
    similarity, query, gallery = problem(3)
    scores = SCORES[name](similarity)
    assert collect(rank_similarity(scores, plan_for(query, gallery))) == oracle(scores, query, gallery)


@pytest.mark.parametrize("persons", [1, 2, 60, 301])
def test_any_number_of_matches(persons: int) -> None:
    similarity, query, gallery = problem(4, persons=persons)
    assert collect(rank_similarity(similarity, plan_for(query, gallery))) == oracle(similarity, query, gallery)


@pytest.mark.parametrize("memory_bytes", [1, 5 * 301 * ranking.BYTES_PER_SCORE, 1 << 30])
def test_every_block_size_gives_the_same_ranks(memory_bytes: int) -> None:
    similarity, query, gallery = problem(5)
    scores = as_bf16(similarity)
    plan = plan_for(query, gallery, memory_bytes=memory_bytes)
    blocks = list(rank_similarity(scores, plan))
    assert len(blocks) == {1: 37, 5 * 301 * ranking.BYTES_PER_SCORE: 8}.get(memory_bytes, 1)
    assert collect(blocks) == oracle(scores, query, gallery)


def test_features_are_ranked_like_their_products(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ranking.PRODUCT_SCORES, "cpu", 1)
    _, query, gallery = problem(6)
    generator = torch.Generator().manual_seed(0)
    # Small integers: the products are exact in any order, and heavily tied.
    left, right = (
        torch.randint(-2, 3, (count, 8), generator=generator).float() for count in (len(query), len(gallery))
    )
    expected = oracle((left @ right.t()).numpy(), query, gallery)
    for memory_bytes in (1, 1 << 20):
        assert collect(rank_blocks(left, right, plan_for(query, gallery, memory_bytes=memory_bytes))) == expected
    assert collect(rank_blocks(left.bfloat16(), right.half(), plan_for(query, gallery))) == expected


def test_products_are_float32_under_autocast() -> None:
    _, query, gallery = problem(7)
    generator = torch.Generator().manual_seed(1)
    left, right = (torch.randn(count, 16, generator=generator) for count in (len(query), len(gallery)))
    expected = oracle((left @ right.t()).numpy(), query, gallery)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert collect(rank_blocks(left, right, plan_for(query, gallery))) == expected


def test_ranks_before_and_after_the_exclusion() -> None:
    similarity, query, gallery = problem(8)
    random = np.random.default_rng(1)
    query_cameras, gallery_cameras = random.integers(0, 3, len(query)), random.integers(0, 3, len(gallery))
    plan = RankingPlan(
        query=labels(query, query_cameras),
        gallery=labels(gallery, gallery_cameras),
        rule=RULES["same_camera"],
        full_ranks=True,
    )
    (block,) = rank_similarity(similarity, plan)
    assert block.full_ranks is not None
    found = list(zip(block.queries.tolist(), block.gallery.tolist(), block.ranks.tolist(), block.full_ranks.tolist()))
    expected = []
    for row, order in enumerate(np.argsort(-similarity, axis=1, kind="stable")):
        kept = 0
        for place, item in enumerate(order.tolist()):
            same = gallery[item] == query[row]
            if same and gallery_cameras[item] == query_cameras[row]:
                continue
            kept += 1
            if same:
                expected.append((row, item, kept, place + 1))
    assert found == expected


def test_place_among_distinct_persons() -> None:
    similarity, query, gallery = problem(9, persons=40)
    scores = as_bf16(similarity)
    (block,) = rank_similarity(scores, plan_for(query, gallery, identity_ranks=True))
    assert block.identity_ranks is not None
    for row, order in enumerate(np.argsort(-scores, axis=1, kind="stable")):
        people = list(dict.fromkeys(gallery[order].tolist()))
        expected = people.index(query[row]) + 1 if query[row] in people else 0
        assert block.identity_ranks[row] == expected


@pytest.mark.parametrize("rows", [1, 5, 1000])
def test_the_sorted_gallery_agrees_with_a_stable_sort(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Features of small integers, so that products are exact and most similarities are tied."""
    random = np.random.default_rng(12)
    query, gallery = (torch.from_numpy(random.integers(-1, 2, (count, 3))).float() for count in (11, 40))
    monkeypatch.setattr(ranking, "PRODUCT_SCORES", {"cpu": rows * 40})
    monkeypatch.setattr(ranking, "MIN_PRODUCT_ROWS", 1)
    blocks = list(sort_blocks(query, gallery))
    assert [block.first for block in blocks] == list(range(0, 11, min(rows, 11)))
    similarity = (query @ gallery.T).numpy()
    order = np.argsort(-similarity, axis=1, kind="stable")
    assert np.array_equal(torch.cat([block.order for block in blocks]).numpy(), order)
    assert np.array_equal(
        torch.cat([block.similarity for block in blocks]).numpy(), np.take_along_axis(similarity, order, axis=1)
    )


def test_unit_length_makes_products_cosines() -> None:
    unit = unit_length(torch.tensor([[3.0, 4.0], [0.0, 0.0], [-2.0, 0.0]]).half())
    assert unit.dtype == torch.float32
    assert unit.numpy() == pytest.approx(np.array([[0.6, 0.8], [0.0, 0.0], [-1.0, 0.0]]))


def test_the_input_is_left_alone_and_no_query_is_no_block() -> None:
    similarity, query, gallery = problem(10)
    tensor = torch.from_numpy(similarity.copy())
    cameras = np.ones(len(query)), np.ones(len(gallery))
    plan = RankingPlan(query=labels(query, cameras[0]), gallery=labels(gallery, cameras[1]), rule=RULES["same_camera"])
    assert collect(rank_similarity(tensor, plan)) == []
    assert np.array_equal(tensor.numpy(), similarity)
    assert list(rank_similarity(tensor[:0], plan_for(query[:0], gallery))) == []


def test_values_that_are_not_finite_are_refused() -> None:
    similarity, query, gallery = problem(11)
    similarity[12, 7] = np.nan
    with pytest.raises(UserError, match="similarity has a value that is not finite in row 12"):
        list(rank_similarity(similarity, plan_for(query, gallery)))
    features = torch.ones(len(query), 4)
    features[3, 1] = torch.inf
    with pytest.raises(UserError, match="query_features has a value that is not finite in row 3"):
        list(rank_blocks(features, torch.ones(len(gallery), 4), plan_for(query, gallery)))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", SCORES)
def test_ranks_on_a_gpu(name: str) -> None:
    similarity, query, gallery = problem(3)
    scores = SCORES[name](similarity)
    tensor = torch.from_numpy(scores).cuda()
    assert collect(rank_similarity(tensor, plan_for(query, gallery))) == oracle(scores, query, gallery)
