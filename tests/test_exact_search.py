"""Covers: utils/retrieval/exact. The exact search against a plain sort in float64: for any parts, blocks, removed rows,
half precision, ties and numbers that leave float32's range.
"""

import itertools
from typing import Any

import numpy as np
import pytest
import torch

from utils.errors import UserError
from utils.retrieval import exact
from utils.retrieval.exact import FeatureRows, Pivot, best_rows, exact_scores
from utils.retrieval.options import Similarity

COLUMNS = slice(4, 16)
ROWS = 397


def made(dtype: Any) -> tuple[np.ndarray, np.ndarray]:
    """Rows with copies, a row of zeros and one far away, and queries of which one is a row."""
    generator = np.random.default_rng(0)
    rows = generator.standard_normal((ROWS, 24)).astype(dtype)
    rows[100:140] = rows[7]
    rows[5], rows[200] = 0, rows[300]
    queries = generator.standard_normal((5, 12)).astype(np.float32)
    return rows, np.concatenate([queries, rows[7:8, COLUMNS].astype(np.float32)])


def by_hand(queries: np.ndarray, rows: np.ndarray, similarity: Similarity) -> np.ndarray:
    """Similarities as float32, from float64 sums by a loop over the rows."""
    found = np.zeros((len(queries), len(rows)))
    for number, query in enumerate(queries.astype(np.float64)):
        for place, row in enumerate(rows.astype(np.float64)):
            if similarity == "cosine":
                lengths = np.linalg.norm(query) * np.linalg.norm(row)
                found[number, place] = query @ row / lengths if lengths else 0
            else:
                found[number, place] = -np.square(query - row).sum()
    return found.astype(np.float32)


def cut(rows: np.ndarray, kept: np.ndarray | None, count: int) -> FeatureRows:
    """Rows in so many parts, of which some may be empty."""
    places = np.linspace(0, len(rows), count + 1).astype(int)
    spans = [slice(start, stop) for start, stop in zip(places, places[1:])]
    return FeatureRows(
        parts=tuple(torch.from_numpy(rows[span].copy()) for span in spans),
        kept=() if kept is None else tuple(kept[span] for span in spans),
    )


@pytest.mark.parametrize("similarity", ["cosine", "euclidean"])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_the_best_are_those_of_a_plain_sort_whatever_the_parts(similarity: Similarity, dtype: Any) -> None:
    rows, queries = made(dtype)
    kept = np.random.default_rng(1).random(ROWS) < 0.8
    kept[100:140] = True
    scores = by_hand(queries, rows[:, COLUMNS], similarity)
    alive = np.flatnonzero(kept)
    # Before row 120 stand 20 copies of the query itself, and row 7.
    distinct = np.unique(scores[2][kept])
    place = (float(distinct[-30]) + float(distinct[-31])) / 2
    pivots = [
        Pivot(
            query=5,
            score=float(
                exact_scores(
                    torch.from_numpy(queries[5:]),
                    cut(rows, None, 1),
                    np.array([120]),
                    similarity=similarity,
                    columns=COLUMNS,
                )[0]
            ),
            row=120,
        ),
        Pivot(query=2, score=place, row=0),
    ]
    first: dict[int, Any] = {}
    for parts, block, top_k in itertools.product((1, 3, 60), (700, 5000, 1 << 26), (1, 10, 2000)):
        found = best_rows(
            torch.from_numpy(queries),
            cut(rows, kept, parts),
            top_k,
            similarity=similarity,
            columns=COLUMNS,
            pivots=pivots,
            block_bytes=block,
        )
        assert found.rows.shape == (6, min(top_k, len(alive)))
        assert found.before.tolist() == [int(kept[7]) + 20, int((scores[2][kept] > place).sum())]
        same = first.setdefault(top_k, found)
        assert np.array_equal(found.rows, same.rows) and np.array_equal(found.scores, same.scores)
    for top_k, found in first.items():
        for number in range(len(queries)):
            order = alive[np.lexsort((alive, -scores[number, alive]))][:top_k]
            assert np.allclose(found.scores[number], scores[number, order], rtol=1e-6, atol=1e-7)
            # The last bit of a query's length may differ: places where that changes nothing are the same.
            moved = found.rows[number] != order
            assert np.allclose(scores[number, found.rows[number]][moved], scores[number, order][moved], rtol=2e-7)
        ties = found.rows[5][: min(top_k, 41)]
        assert ties.tolist() == [row for row in (7, *range(100, 140)) if kept[row]][: len(ties)] or top_k > 41


def test_more_copies_than_results_keep_their_order_over_blocks() -> None:
    rows = np.tile(np.random.default_rng(0).standard_normal(8).astype(np.float32), (3000, 1))
    for count, block in ((1, 1 << 20), (7, 500)):
        found = best_rows(torch.from_numpy(rows[:2]), cut(rows, None, count), 5, block_bytes=block)
        assert found.rows.tolist() == [[0, 1, 2, 3, 4]] * 2


@pytest.mark.parametrize("scale", [1e-30, 1e30])
@pytest.mark.parametrize("similarity", ["cosine", "euclidean"])
def test_numbers_whose_squares_leave_float32(scale: float, similarity: Similarity) -> None:
    generator = np.random.default_rng(2)
    rows = generator.standard_normal((50, 6)).astype(np.float32)
    rows[::2] *= np.float32(scale)
    query = rows[3:4].copy()
    with np.errstate(over="ignore"):
        scores = by_hand(query, rows, similarity)[0]
    found = best_rows(torch.from_numpy(query), cut(rows, None, 3), 9, similarity=similarity, block_bytes=64)
    assert found.rows[0, 0] == 3 and found.rows[0].tolist() == np.argsort(-scores, kind="stable")[:9].tolist()


def test_known_lengths_are_no_shortcut_to_other_results() -> None:
    generator = np.random.default_rng(3)
    rows = generator.standard_normal((500, 32)).astype(np.float32)
    rows *= (1 + 1e-3 * generator.uniform(-1, 1, 500) / 1.01).astype(np.float32)[:, None] / np.linalg.norm(
        rows, axis=1, keepdims=True
    )
    parts = cut(rows, None, 2)
    known = FeatureRows(parts=parts.parts, spread=1e-3)
    queries = torch.from_numpy(generator.standard_normal((9, 32)).astype(np.float32))
    pivots = [Pivot(query=query, score=0.2) for query in range(9)]
    plain, short = (best_rows(queries, one, 20, pivots=pivots) for one in (parts, known))
    assert np.array_equal(plain.rows, short.rows) and np.array_equal(plain.scores, short.scores)
    assert np.array_equal(plain.before, short.before) and plain.before.sum() > 100


def test_the_fast_product_only_rules_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the product's last bits are, within its bound, the result is the same."""
    rows, queries = made(np.float32)
    parts = cut(rows, None, 2)
    pivots = [Pivot(query=0, score=0.3)]
    plain = best_rows(torch.from_numpy(queries), parts, 10, columns=COLUMNS, pivots=pivots)
    product = exact._products
    noise = np.random.default_rng(4)

    def shaken(asked: np.ndarray, block: torch.Tensor) -> np.ndarray:
        found = product(asked, block)
        lengths = np.linalg.norm(block.numpy(), axis=1)
        return found + (noise.uniform(-1, 1, found.shape) * 12 * exact.UNIT * lengths).astype(np.float32)

    monkeypatch.setattr(exact, "_products", shaken)
    for _ in range(5):
        found = best_rows(torch.from_numpy(queries), parts, 10, columns=COLUMNS, pivots=pivots)
        assert np.array_equal(found.rows, plain.rows) and np.array_equal(found.scores, plain.scores)
        assert np.array_equal(found.before, plain.before)


def test_edges() -> None:
    none = FeatureRows(parts=())
    assert best_rows(torch.ones(2, 3), none, 5).rows.shape == (2, 0)
    rows = cut(np.eye(3, dtype=np.float32), np.zeros(3, dtype=bool), 1)
    assert best_rows(torch.ones(1, 3), rows, 5).rows.shape == (1, 0)
    assert best_rows(torch.ones(0, 3), cut(np.eye(3, dtype=np.float32), None, 1), 5).rows.shape == (0, 3)
    with pytest.raises(UserError, match="feature of query 1 has a value that is not finite"):
        best_rows(torch.tensor([[1.0], [torch.nan]]), FeatureRows(parts=(torch.ones(2, 1),)), 1)
