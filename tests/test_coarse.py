"""Covers: utils/retrieval/coarse, utils/retrieval/exact. Rows in 8 bits a column: their products are as near to the
exact ones as is said, and a search by them finds what one without them finds.
"""

import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from utils.retrieval import coarse, exact
from utils.retrieval.coarse import CoarseRows, coarse_products, coded, has_form, scales_of
from utils.retrieval.exact import FeatureRows, Pivot, best_rows

ROWS, WIDTH = 3000, 96
MULTIPLIED = coarse._multiplied
pytestmark = pytest.mark.threads(2)


@pytest.fixture(autouse=True)
def form_is_used(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The real product where there is one, else its arithmetic in numpy."""
    coarse.multiplies.cache_clear()
    if not coarse.multiplies():
        monkeypatch.setattr(coarse, "_multiplied", in_numpy)
    monkeypatch.setattr(exact, "multiplies", lambda: True)
    yield
    coarse.multiplies.cache_clear()


def cut(values: torch.Tensor) -> np.ndarray:
    """As float32 of which the last 16 bits are 0."""
    bits = values.float().numpy().view(np.uint32) & np.uint32(0xFFFF0000)
    return bits.view(np.float32)


def in_numpy(asked: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(cut(asked.double() @ codes.double().T)).to(torch.bfloat16)


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def made(kind: str) -> np.ndarray:
    generator = np.random.default_rng(0)
    rows = generator.standard_normal((ROWS, WIDTH))
    if kind == "outliers":
        # As features of transformers are: a few columns are large in every row, one is constant.
        rows[:, 3] += 40
        rows[:, 50] -= 15
        rows = unit(rows)
        rows[:, 7] = 0.1
    if kind == "clusters":
        rows = 5 * rows[generator.integers(0, 40, ROWS)] + rows
    if kind == "copies":
        rows[1000:2500] = rows[7]
    if kind == "one value":
        rows[:] = rows[0]
    return unit(rows)


KINDS = ("random", "outliers", "clusters", "copies", "one value")


def formed(rows: np.ndarray) -> CoarseRows:
    scales = scales_of(rows)
    codes, error, longest = coded(rows, scales)
    return CoarseRows(codes=torch.from_numpy(codes), scales=scales, error=error, longest=longest)


def asked(rows: np.ndarray) -> np.ndarray:
    """Queries: a row, one near a row, one like none, one against all."""
    noise = np.random.default_rng(1).standard_normal((2, WIDTH))
    return unit(np.stack([rows[7], rows[40] + 0.1 * unit(noise)[0], noise[1], -rows.mean(0)]))


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("kind", KINDS)
def test_products_are_within_their_bound(kind: str, dtype: Any) -> None:
    rows = made(kind).astype(dtype)
    form, queries = formed(rows), asked(made(kind))
    assert form.codes.dtype == torch.int8 and form.scales.shape == (2, WIDTH)
    back = form.scales[0].astype(np.float64) + form.scales[1].astype(np.float64) * form.codes.double().numpy()
    assert form.error == pytest.approx(np.linalg.norm(rows - back, axis=1).max(), abs=1e-12)
    # Half a step at most in every column.
    assert (np.abs(rows - back) <= 0.501 * form.scales[1] + 1e-7).all()
    for count in (1, 4):
        found, error = coarse_products(queries[:count], [form])
        true = queries[:count].astype(np.float64) @ rows.astype(np.float64).T
        assert (np.abs(found - true) <= error[:, None]).all()
        assert error.max() < 0.035
    part = form.rows(100, 200)
    whole, error = coarse_products(queries, [form])
    assert np.array_equal(coarse_products(queries, [part])[0], whole[:, 100:200])
    other = formed(rows[:700])
    several, further = coarse_products(queries, [part, other, form.rows(0, 0), form])
    assert np.array_equal(several[:, 800:], whole)
    assert np.array_equal(several[:, 100:800], coarse_products(queries, [other])[0])
    assert np.array_equal(further, np.maximum(error, coarse_products(queries, [other])[1]))


def test_threads_share_the_products(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = made("outliers")
    forms, queries = [formed(rows[:1001]), formed(rows[1001:])], asked(rows)
    wanted, error = coarse_products(queries, forms)
    seen = set()
    real = coarse._multiplied

    def watched(given: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        seen.add((threading.current_thread() is threading.main_thread(), torch.get_num_threads(), len(codes)))
        return real(given, codes)

    monkeypatch.setattr(coarse, "TASK_ROWS", 500)
    coarse._ones.cache_clear()
    monkeypatch.setattr(coarse, "_multiplied", watched)
    found, further = coarse_products(queries, forms)
    coarse._ones.cache_clear()
    assert np.array_equal(found, wanted) and np.array_equal(further, error)
    assert seen == {(False, 1, 500), (False, 1, 1), (False, 1, 499)}
    later: list[int] = []
    thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert torch.get_num_threads() == 2 and later == [2]


def test_the_bound_is_reached() -> None:
    """A query along a row's own error is off by all of E: a smaller bound would be wrong."""
    rows = made("random")
    form = formed(rows)
    back = form.scales[0] + form.scales[1] * form.codes.numpy()
    off = rows.astype(np.float64) - back
    worst = int(np.linalg.norm(off, axis=1).argmax())
    query = unit(off[worst : worst + 1])
    found, error = coarse_products(query, [form])
    true = (query.astype(np.float64) @ rows[worst].astype(np.float64)).item()
    assert true - found[0, worst] > 0.6 * error[0] and true - found[0, worst] <= error[0]


@pytest.mark.parametrize("kind", KINDS)
def test_a_search_by_them_finds_the_same(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, generator = made(kind), np.random.default_rng(2)
    spans = [slice(0, 1100), slice(1100, 1100), slice(1100, ROWS)]
    parts = tuple(torch.from_numpy(rows[span].copy()) for span in spans)
    kept = generator.random(ROWS) < 0.9
    masks = (kept[spans[0]], None, kept[spans[2]])
    plain = FeatureRows(parts=parts, kept=masks, spread=1e-6)
    forms = tuple(formed(rows[span]) if len(rows[span]) else None for span in spans)
    queries = torch.from_numpy(asked(rows))
    scores = np.sort(rows.astype(np.float64) @ queries[1].numpy())
    # One pivot near the top, one in the middle, where the coarse form rules nothing out.
    pivots = [Pivot(query=1, score=float(scores[-5])), Pivot(query=1, score=float(scores[ROWS // 2]), row=9)]
    multiplied: list[int] = []
    real = exact._Search._approximate

    def counted(self: Any, block: torch.Tensor) -> Any:
        multiplied.append(len(block))
        return real(self, block)

    monkeypatch.setattr(exact._Search, "_approximate", counted)
    for mixed in (forms, (*forms[:2], None)):
        quick = FeatureRows(parts=parts, kept=masks, spread=1e-6, coarse=mixed)
        for top_k, count, own in ((10, 4, []), (1, 1, []), (200, 2, []), (10, 2, pivots[:1]), (10, 2, pivots)):
            wanted = best_rows(queries[:count], plain, top_k, pivots=own)
            multiplied.clear()
            found = best_rows(queries[:count], quick, top_k, pivots=own)
            assert np.array_equal(found.rows, wanted.rows) and np.array_equal(found.scores, wanted.scores)
            assert np.array_equal(found.before, wanted.before)
            if kind == "random" and mixed[2] is not None:
                assert bool(multiplied) == (len(own) == 2 or top_k == 200)


@pytest.mark.parametrize("top_k", [1, 10])
def test_only_the_bound_decides(top_k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Products that are off by all that the bound allows, in either direction, change nothing."""
    rows = made("random")
    form, queries, noise = formed(rows), torch.from_numpy(asked(rows)), np.random.default_rng(3)
    plain = FeatureRows(parts=(torch.from_numpy(rows),), spread=1e-6)
    quick = FeatureRows(parts=plain.parts, spread=1e-6, coarse=(form,))
    wanted = best_rows(queries, plain, top_k)

    def shaken(given: np.ndarray, parts: list[CoarseRows]) -> tuple[np.ndarray, np.ndarray]:
        _, error = coarse_products(given, parts)
        true = given.astype(np.float64) @ rows.astype(np.float64).T
        return (true + noise.choice([-0.999, 0.999], true.shape) * error[:, None]).astype(np.float32), error

    monkeypatch.setattr(exact, "coarse_products", shaken)
    for _ in range(5):
        found = best_rows(queries, quick, top_k)
        assert np.array_equal(found.rows, wanted.rows) and np.array_equal(found.scores, wanted.scores)


def test_other_comparisons_do_without(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*given: object) -> None:
        raise AssertionError("the coarse form is used")

    monkeypatch.setattr(exact, "coarse_products", never)
    rows = made("random")
    parts, queries = (torch.from_numpy(rows),), torch.from_numpy(asked(rows))
    quick = FeatureRows(parts=parts, spread=1e-6, coarse=(formed(rows),))
    best_rows(queries, quick, 3, similarity="euclidean")
    best_rows(queries[:, :64], quick, 3, columns=slice(0, 64))
    best_rows(queries.repeat(9, 1), quick, 3)
    best_rows(queries, FeatureRows(parts=parts, coarse=quick.coarse), 3)
    monkeypatch.setattr(exact, "multiplies", lambda: False)
    best_rows(queries, quick, 3)
    assert has_form(512, 1e-6, 1e-3) and has_form(64, 1e-3, 1e-3)
    assert not has_form(32, 0, 1e-3) and not has_form(100, 0, 1e-3) and not has_form(512, 2e-3, 1e-3)


def test_a_product_that_is_not_what_it_was_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def asked_again() -> bool:
        coarse.multiplies.cache_clear()
        return coarse.multiplies()

    # Not the arithmetic that stands for it where there is none.
    monkeypatch.setattr(coarse, "_multiplied", MULTIPLIED)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    monkeypatch.setattr(torch, "_weight_int8pack_mm", lambda a, b, s: (a.double() @ b.double().T).bfloat16())
    assert asked_again()
    monkeypatch.setattr(torch, "_weight_int8pack_mm", lambda a, b, s: 1.01 * (a @ b.to(a.dtype).T))
    assert not asked_again()
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
    assert not asked_again()
    monkeypatch.undo()
    monkeypatch.delattr(torch, "_weight_int8pack_mm", raising=False)
    assert not asked_again()
