"""Covers: solver/losses/cmpm, solver/losses/identity, solver/losses/itc, solver/losses/sdm, solver/losses/supitc,
solver/losses/numerics. Losses against loops written from their formulas, in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from solver.losses.cmpm import cmpm_loss
from solver.losses.identity import identity_loss
from solver.losses.itc import itc_loss
from solver.losses.sdm import sdm_loss
from solver.losses.supitc import supitc_loss

PAIR_LOSSES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "sdm": lambda a, b, ids: sdm_loss(a, b, ids),
    "sdm_warm": lambda a, b, ids: sdm_loss(a, b, ids, temperature=0.5, epsilon=1e-4),
    "itc": lambda a, b, ids: itc_loss(a, b, temperature=0.05),
    "supitc": lambda a, b, ids: supitc_loss(a, b, ids),
    "cmpm": lambda a, b, ids: cmpm_loss(a, b, ids),
}


def cosine(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b)) / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))


def softmax_probabilities(row: list[float]) -> list[float]:
    top = max(row)
    weights = [math.exp(entry - top) for entry in row]
    return [weight / sum(weights) for weight in weights]


def divergence(scores: list[list[float]], target: list[list[float]], epsilon: float) -> float:
    total = 0.0
    for row, wanted in zip(scores, target):
        for p, q in zip(softmax_probabilities(row), wanted):
            total += p * (math.log(p) - math.log(q + epsilon)) if p > 0 else 0.0
    return total / len(scores)


def transposed(matrix: list[list[float]]) -> list[list[float]]:
    return [list(column) for column in zip(*matrix)]


def oracle(name: str, a: list[list[float]], b: list[list[float]], ids: list[int]) -> float:
    size = range(len(ids))
    cosines = [[cosine(a[i], b[j]) for j in size] for i in size]
    if name.startswith("sdm"):
        temperature, epsilon = (0.02, 1e-8) if name == "sdm" else (0.5, 1e-4)
        scores = [[entry / temperature for entry in row] for row in cosines]
        target = [[(ids[i] == ids[j]) / ids.count(ids[i]) for j in size] for i in size]
        return divergence(scores, target, epsilon) + divergence(transposed(scores), target, epsilon)
    if name == "itc":
        scores = [[entry / 0.05 for entry in row] for row in cosines]
        picked = [softmax_probabilities(table[i])[i] for table in (scores, transposed(scores)) for i in size]
        return -sum(map(math.log, picked)) / len(picked)
    if name == "supitc":
        total = 0.0
        for i in size:
            others = [(cosine(a[i], a[j]), ids[j]) for j in size if j != i] + [(cosines[i][j], ids[j]) for j in size]
            probabilities = softmax_probabilities([score / 0.07 for score, _ in others])
            hits = [math.log(p) for p, (_, person) in zip(probabilities, others) if person == ids[i]]
            total -= sum(hits) / len(hits)
        return total / len(ids)
    target = [[(ids[i] == ids[j]) / math.sqrt(ids.count(ids[i])) for j in size] for i in size]
    norm = [[math.sqrt(sum(x * x for x in row)) for row in features] for features in (a, b)]
    onto_b = [[cosines[i][j] * norm[0][i] for j in size] for i in size]
    onto_a = [[cosines[i][j] * norm[1][j] for i in size] for j in size]
    return divergence(onto_b, target, 1e-8) + divergence(onto_a, target, 1e-8)


def example(rows: int = 7, width: int = 5, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(2, rows, width, generator=generator, dtype=torch.float64) * 3 + 0.5
    return features[0], features[1], torch.tensor([4, 9, 4, 2, 9, 9, 11][:rows])


@pytest.mark.parametrize("name", PAIR_LOSSES)
@pytest.mark.parametrize("seed", [0, 1])
def test_equals_the_loop(name: str, seed: int) -> None:
    a, b, ids = example(seed=seed)
    expected = oracle(name, a.tolist(), b.tolist(), ids.tolist())
    actual = PAIR_LOSSES[name](a, b, ids)
    assert actual.dtype == torch.float64 and actual.shape == ()
    assert actual.item() == pytest.approx(expected, rel=1e-11)
    assert PAIR_LOSSES[name](a.float(), b.float(), ids).item() == pytest.approx(expected, rel=1e-5)


def test_identity_equals_the_loop() -> None:
    scores, labels = example(7, 6)[0], torch.tensor([0, 5, 2, 2, 1, 4, 3])
    expected = (
        -sum(math.log(softmax_probabilities(row)[label]) for row, label in zip(scores.tolist(), labels.tolist())) / 7
    )
    assert identity_loss(scores, labels).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("name", PAIR_LOSSES)
def test_gradients(name: str) -> None:
    a, b, ids = example(5, 4)
    inputs = (a.requires_grad_(), b.requires_grad_())
    assert torch.autograd.gradcheck(lambda x, y: PAIR_LOSSES[name](x, y, ids), inputs)


def test_identity_gradient() -> None:
    scores = example(5, 4)[0].requires_grad_()
    assert torch.autograd.gradcheck(lambda x: identity_loss(x, torch.tensor([0, 3, 1, 1, 2])), (scores,))


@pytest.mark.parametrize("name", PAIR_LOSSES)
def test_order_of_rows_and_of_labels_is_irrelevant(name: str) -> None:
    a, b, ids = example()
    order = torch.tensor([3, 6, 0, 2, 5, 1, 4])
    loss = PAIR_LOSSES[name]
    torch.testing.assert_close(loss(a[order], b[order], ids[order]), loss(a, b, ids))
    torch.testing.assert_close(loss(a, b, 100 - ids), loss(a, b, ids))


@pytest.mark.parametrize("name", ["sdm", "itc", "supitc"])
def test_cosine_losses_ignore_lengths(name: str) -> None:
    a, b, ids = example()
    lengths = torch.tensor([1e-3, 1.0, 7.0, 1e4, 2.0, 0.5, 3.0], dtype=torch.float64)[:, None]
    torch.testing.assert_close(PAIR_LOSSES[name](a * lengths, b / lengths, ids), PAIR_LOSSES[name](a, b, ids))


def test_a_perfect_match_is_nearly_free_and_a_single_row_is_allowed() -> None:
    a = torch.eye(4)
    ids = torch.arange(4)
    assert sdm_loss(a, a, ids).item() == pytest.approx(0.0, abs=1e-5)
    assert itc_loss(a, a, temperature=0.02).item() == pytest.approx(0.0, abs=1e-5)
    for loss in PAIR_LOSSES.values():
        assert loss(a[:1], a[:1], ids[:1]).item() == pytest.approx(0.0, abs=1e-3)


@pytest.mark.parametrize("name", PAIR_LOSSES)
@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e-12, 1e4, 1e18, 1e30])
def test_extreme_inputs_stay_finite(name: str, scale: float) -> None:
    a, b, ids = example()
    a, b = (a.float() * scale).requires_grad_(), b.float().requires_grad_()
    for left, right in ((a, b), (b, a), (a, a), (a, -a)):
        loss = PAIR_LOSSES[name](left, right, ids)
        gradients = torch.autograd.grad(loss, [left] if left is right else [a, b], allow_unused=True)
        assert torch.isfinite(loss)
        assert all(torch.isfinite(gradient).all() for gradient in gradients if gradient is not None)


@pytest.mark.parametrize("name", PAIR_LOSSES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_inputs_and_autocast_compute_in_float32(name: str, dtype: torch.dtype) -> None:
    a, b, ids = example()
    a, b = a.to(dtype), b.to(dtype)
    expected = oracle(name, a.double().tolist(), b.double().tolist(), ids.tolist())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = PAIR_LOSSES[name](a, b, ids)
    assert actual.dtype == torch.float32
    assert actual.item() == pytest.approx(expected, rel=1e-5)
    logits = torch.randn(7, 9, generator=torch.Generator().manual_seed(0)).to(dtype)
    assert identity_loss(logits, ids % 9).dtype == torch.float32


def test_wrong_shapes_are_refused() -> None:
    a, b, ids = example()
    for loss in PAIR_LOSSES.values():
        with pytest.raises(ValueError, match="features must be"):
            loss(a, b[:-1], ids)
    with pytest.raises(ValueError, match="person_ids must be"):
        sdm_loss(a, b, ids[:-1])
    with pytest.raises(ValueError, match="labels"):
        identity_loss(a, ids[:-1])
