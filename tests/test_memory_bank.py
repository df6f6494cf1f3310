"""Covers: solver/losses/memory_bank. Losses against memory banks: whole matrices, and cases by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from solver.losses.memory_bank import bank_losses

ROWS, SLOTS, WIDTH, TOLD = 6, 23, 5, 4
PERSONS = torch.tensor([3, 22, 3, 0, 7, 11])


def plain(
    values: dict[str, Tensor],
    written: Tensor,
    temperature: float,
    target_temperature: float,
    hard: str,
    xi: float,
    centre: bool,
) -> tuple[Tensor, Tensor]:
    """Eqs. 11-13 with (B, N) matrices of the written slots alone, differentiated by autograd."""
    kept = written.nonzero().squeeze(1)
    features, bank = values["features"], values["feature_bank"][kept]
    asked, told = values["auxiliary"], values["auxiliary_bank"][kept]
    if centre:
        asked, told = asked - told.mean(dim=0), told - told.mean(dim=0)
    log_q = (functional.cosine_similarity(features[:, None], bank[None], dim=2) / temperature).log_softmax(dim=1)
    soft = (functional.cosine_similarity(asked[:, None], told[None], dim=2) / target_temperature).softmax(dim=1)
    own = (PERSONS[:, None] == kept[None]).to(features.dtype)
    target = own if hard == "one-hot" else (own / temperature).softmax(dim=1)
    counted = written[PERSONS].to(features.dtype)

    def divergence(p: Tensor) -> Tensor:
        logs = torch.where(p + xi > 0, (p + xi).log(), torch.zeros_like(p))
        return (p * (logs - log_q)).sum(dim=1) * counted

    return divergence(soft), divergence(target)


def example(dtype: torch.dtype = torch.float64, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    sizes = {
        "features": (ROWS, WIDTH),
        "feature_bank": (SLOTS, WIDTH),
        "auxiliary": (ROWS, TOLD),
        "auxiliary_bank": (SLOTS, TOLD),
    }
    values = {name: torch.randn(size, generator=generator, dtype=torch.float64) + 0.4 for name, size in sizes.items()}
    return {name: value.to(dtype) for name, value in values.items()}


@pytest.mark.parametrize("block", [1, 5, 23, 4096])
@pytest.mark.parametrize("hard", ["one-hot", "softmax"])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("centre", [False, True])
def test_blocks_equal_the_plain_form(block: int, hard: Any, masked: bool, centre: bool) -> None:
    values = example()
    written = torch.ones(SLOTS, dtype=torch.bool)
    if masked:
        written[[1, 2, 7, 20]] = False
    leaf, twin = (values["features"].clone().requires_grad_() for _ in range(2))
    for temperature, target_temperature, xi in ((0.05, 0.5, 0.0), (1.0, 1.0, 1e-3)):
        found = bank_losses(
            leaf, values["feature_bank"], PERSONS, auxiliary=values["auxiliary"],
            auxiliary_bank=values["auxiliary_bank"], written=written if masked else None, temperature=temperature,
            target_temperature=target_temperature, hard_target=hard, xi=xi, centre=centre, block=block,
        )  # fmt: skip
        expected = plain(values | {"features": twin}, written, temperature, target_temperature, hard, xi, centre)
        for ours, theirs in zip((found.soft, found.hard), expected):
            torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
            weights = torch.linspace(0.1, 2, ROWS, dtype=torch.float64)
            (a,) = torch.autograd.grad(ours @ weights, leaf, retain_graph=True)
            (b,) = torch.autograd.grad(theirs @ weights, twin, retain_graph=True)
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_banks_of_another_type_and_autocast() -> None:
    values = example(torch.float32)
    halved = {name: values[name].bfloat16() for name in ("feature_bank", "auxiliary_bank")}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = bank_losses(
            values["features"], halved["feature_bank"], PERSONS, auxiliary=values["auxiliary"],
            auxiliary_bank=halved["auxiliary_bank"],
        )  # fmt: skip
    as_they_are = values | {name: value.float() for name, value in halved.items()}
    soft, hard = plain(as_they_are, torch.ones(SLOTS, dtype=torch.bool), 0.05, 0.05, "one-hot", 1e-8, False)
    assert found.soft.dtype == found.hard.dtype == torch.float32
    torch.testing.assert_close(found.soft, soft, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.hard, hard, rtol=1e-5, atol=1e-5)


def test_by_hand() -> None:
    """Two identities at right angles: q = softmax(1, 0); the annotation says both alike."""
    banks = torch.eye(2, dtype=torch.float64)
    losses = bank_losses(
        torch.tensor([[3.0, 0.0]], dtype=torch.float64), banks, torch.tensor([0]), auxiliary=torch.ones(1, 2).double(),
        auxiliary_bank=banks, temperature=1.0, xi=0.0,
    )  # fmt: skip
    q = math.e / (math.e + 1)
    assert losses.hard.item() == pytest.approx(-math.log(q))
    assert losses.soft.item() == pytest.approx(0.5 * (math.log(0.5 / q) + math.log(0.5 / (1 - q))))


def test_rows_whose_own_slot_is_unwritten_and_an_empty_bank_cost_nothing() -> None:
    values = example()
    written = torch.zeros(SLOTS, dtype=torch.bool)
    for slots in ([], [0, 1, 2]):
        written[slots] = True
        leaf = values["features"].clone().requires_grad_()
        losses = bank_losses(
            leaf, values["feature_bank"], PERSONS, auxiliary=values["auxiliary"],
            auxiliary_bank=values["auxiliary_bank"], written=written, centre=True, hard_target="softmax",
        )  # fmt: skip
        (losses.soft + losses.hard).sum().backward()
        assert leaf.grad is not None
        counted = [row for row, person in enumerate(PERSONS.tolist()) if person in slots]
        for tensor in (losses.soft, losses.hard, leaf.grad.abs().sum(dim=1)):
            assert tensor.nonzero().squeeze(1).tolist() == counted


def test_without_annotations_there_is_no_soft_loss() -> None:
    values = example()
    losses = bank_losses(values["features"], values["feature_bank"], PERSONS)
    both = bank_losses(
        values["features"], values["feature_bank"], PERSONS, auxiliary=values["auxiliary"],
        auxiliary_bank=values["auxiliary_bank"],
    )  # fmt: skip
    assert losses.soft.tolist() == [0.0] * ROWS and torch.equal(losses.hard, both.hard)


def test_wrong_shapes_and_temperatures_are_refused() -> None:
    values = example()
    with pytest.raises(ValueError, match="bank"):
        bank_losses(values["features"], values["auxiliary_bank"], PERSONS)
    with pytest.raises(ValueError, match="annotations"):
        bank_losses(values["features"], values["feature_bank"], PERSONS, auxiliary=values["auxiliary"])
    for wrong in (-1.0, 0.0, math.nan):
        with pytest.raises(ValueError, match="target_temperature must be above 0"):
            bank_losses(values["features"], values["feature_bank"], PERSONS, target_temperature=wrong)
    for written in (torch.ones(1, dtype=torch.bool), torch.ones(SLOTS + 1, dtype=torch.bool), torch.ones(SLOTS)):
        with pytest.raises(ValueError, match=rf"written must be \({SLOTS},\) bool"):
            bank_losses(values["features"], values["feature_bank"], PERSONS % 1, written=written)
