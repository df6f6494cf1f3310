"""Retrieval features against a memory of every training identity (Instruct-ReID++, IRM++).

Shapes: B rows, N training identities (slots of the banks), D features, C of an annotation's vector.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from solver.losses.numerics import unit_rows

BLOCK = 4096
"""Slots that are looked at together: (B, N) similarities of a large data set are never held whole."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BankLosses:
    """Divergences of every row, not yet averaged."""

    soft: Tensor
    """(B,) from what the annotations say; zero where none were given."""
    hard: Tensor
    """(B,) from the row's own identity."""


def bank_losses(
    features: Tensor,
    feature_bank: Tensor,
    person_ids: Tensor,
    *,
    auxiliary: Tensor | None = None,
    auxiliary_bank: Tensor | None = None,
    written: Tensor | None = None,
    temperature: float = 0.05,
    target_temperature: float | None = None,
    hard_target: Literal["one-hot", "softmax"] = "one-hot",
    xi: float = 1e-8,
    centre: bool = False,
    block: int = BLOCK,
) -> BankLosses:
    """Return for each row sum_i p_i (log(p_i + xi) - log q_i) over the identities i, q = softmax(S_r / temperature).

    S_r: cosines of features (B, D) and feature_bank (N, D). soft: p = softmax(S_a / target_temperature), S_a the
    cosines of auxiliary (B, C) and auxiliary_bank (N, C); target_temperature None = temperature; `centre` takes the
    mean of the bank's written slots from both first. hard: p = the one-hot of person_ids (B,), or its softmax at
    `temperature`. written: (N,) bool, slots that take part, None = all; a row whose own slot does not is 0 in both.
    Only `features` get a gradient. Computed in blocks of slots, twice, the gradient with the value, so that memory
    beside the banks depends on `block` and not on N; banks of any floating type. Arithmetic of the features' type, at
    least float32. Raises: ValueError for wrong shapes and a temperature that is not above 0.

    Source: Instruct-ReID++, eqs. 11-13. Departures: the sign (printed is minus this, whose minimum is farthest from
    the target), the temperature (none is printed: 1), the one-hot (printed is its softmax), the mean over rows is the
    caller's; xi as printed. 0 log 0 = 0.
    """
    wide = torch.float64 if features.dtype == torch.float64 else torch.float32
    _check(features, feature_bank, person_ids, auxiliary, auxiliary_bank, written)
    target_temperature = temperature if target_temperature is None else target_temperature
    for name, value in (("temperature", temperature), ("target_temperature", target_temperature)):
        if not value > 0:
            raise ValueError(f"{name} must be above 0, not {value}")
    with torch.autocast(device_type=features.device.type, enabled=False):
        banks = _Banks(
            dtype=wide,
            features=feature_bank,
            auxiliary=None if auxiliary is None else auxiliary_bank,
            taken=torch.ones_like(feature_bank[:, 0], dtype=torch.bool) if written is None else written,
            block=block,
        )
        form = _Form(
            banks=banks,
            person_ids=person_ids,
            asked=None if auxiliary is None else auxiliary.detach().to(wide),
            temperature=temperature,
            target_temperature=target_temperature,
            hard_target=hard_target,
            xi=xi,
            centre=banks.auxiliary_mean() if centre and auxiliary is not None else None,
        )
        soft, hard = _Divergences.apply(unit_rows(features.to(wide)), form)
    return BankLosses(soft=soft, hard=hard)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Banks:
    dtype: torch.dtype
    features: Tensor
    auxiliary: Tensor | None
    taken: Tensor
    block: int

    def slices(self) -> Iterator[slice]:
        for start in range(0, len(self.taken), self.block):
            yield slice(start, start + self.block)

    def auxiliary_mean(self) -> Tensor:
        """(C,): mean of the slots that take part; zero where none does."""
        assert self.auxiliary is not None
        total = torch.zeros(self.auxiliary.shape[1], dtype=self.dtype, device=self.auxiliary.device)
        for part in self.slices():
            total += self.taken[part].to(self.dtype) @ self.auxiliary[part].to(self.dtype)
        return total / self.taken.sum().clamp_min(1)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Form:
    banks: _Banks
    person_ids: Tensor
    asked: Tensor | None
    temperature: float
    target_temperature: float
    hard_target: Literal["one-hot", "softmax"]
    xi: float
    centre: Tensor | None

    def logits(self, units: Tensor, part: slice) -> tuple[Tensor, Tensor]:
        """(B, b) cosines over the temperature, -inf where a slot takes no part, and the unit rows (b, D)."""
        rows = unit_rows(self.banks.features[part].to(self.banks.dtype))
        return self._masked(units @ rows.T / self.temperature, part), rows

    def target_logits(self, asked: Tensor, part: slice) -> Tensor:
        """(B, b): the same for the annotations."""
        assert self.banks.auxiliary is not None
        slots = self.banks.auxiliary[part].to(self.banks.dtype)
        slots = slots if self.centre is None else slots - self.centre
        return self._masked(asked @ unit_rows(slots).T / self.target_temperature, part)

    def hard_targets(self, part: slice) -> Tensor:
        """(B, b): p of the hard loss."""
        taken = self.banks.taken
        slots = torch.arange(part.start, min(part.stop, len(taken)), device=taken.device)
        own = self.person_ids[:, None] == slots[None, :]
        if self.hard_target == "one-hot":
            return own.to(self.banks.dtype)
        others = (taken.sum().to(self.banks.dtype) - 1).clamp_min(0).log()
        total = torch.logaddexp(torch.full_like(others, 1 / self.temperature), others)
        return torch.where(own, (1 / self.temperature - total).exp(), (-total).exp()) * taken[part]

    def asked_units(self) -> Tensor | None:
        if self.asked is None:
            return None
        return unit_rows(self.asked if self.centre is None else self.asked - self.centre)

    def _masked(self, logits: Tensor, part: slice) -> Tensor:
        return logits.masked_fill(~self.banks.taken[part], -torch.inf)


class _Divergences(torch.autograd.Function):
    """(B, D) unit rows -> soft and hard (B,). The banks are constants, so the gradient is known with the value."""

    @staticmethod
    def forward(ctx: Any, units: Tensor, form: _Form) -> tuple[Tensor, Tensor]:
        """Return soft and hard loss (B,), and keep their gradients."""
        asked, values = form.asked_units(), units.new_zeros(2, len(units))
        gradients = units.new_zeros(2, *units.shape)
        sums, asked_sums = _log_sums(units, asked, form)
        for part in form.banks.slices():
            logits, rows = form.logits(units, part)
            taken = form.banks.taken[part]
            log_q = torch.where(taken, sums.log_softmax(logits), 0)
            q = log_q.exp() * taken
            targets = [form.hard_targets(part)]
            if asked is not None:
                soft = torch.where(taken, asked_sums.log_softmax(form.target_logits(asked, part)), -torch.inf).exp()
                targets.append(soft)
            for place, p in zip((1, 0), targets):
                values[place] += (torch.special.xlogy(p, p + form.xi) - p * log_q).sum(dim=1)
                gradients[place] += (q - p) @ rows
        counted = form.banks.taken[form.person_ids].to(values.dtype)
        has_soft = values.new_tensor([float(asked is not None), 1.0])[:, None]
        ctx.save_for_backward(gradients * (counted * has_soft)[..., None] / form.temperature)
        soft, hard = values * counted * has_soft
        return soft, hard

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, soft: Tensor, hard: Tensor) -> tuple[Tensor, None]:
        (gradients,) = ctx.saved_tensors
        return soft[:, None] * gradients[0] + hard[:, None] * gradients[1], None


class _LogSum:
    """Logarithm of a row's sum of exponents, of which blocks come one by one.

    The largest exponent stays apart from the logarithm of the rest: in their sum float32 would lose the digits by which
    a softmax over so many slots differs.
    """

    def __init__(self, units: Tensor) -> None:
        self.top = units.new_full((len(units), 1), -torch.inf)
        self.rest = units.new_zeros(len(units), 1)

    def add(self, logits: Tensor) -> None:
        top = torch.maximum(self.top, logits.amax(dim=1, keepdim=True))
        # While every slot so far is left out the largest exponent is -inf, and their difference would be no number.
        finite = torch.where(top.isinf(), 0, top)
        self.rest = self.rest * (self.top - finite).exp() + (logits - finite).exp().sum(dim=1, keepdim=True)
        self.top = top

    def log_softmax(self, logits: Tensor) -> Tensor:
        return (logits - self.top) - self.rest.log()


def _log_sums(units: Tensor, asked: Tensor | None, form: _Form) -> tuple[_LogSum, _LogSum]:
    """Sums over all slots, for the features and for the annotations."""
    sums, asked_sums = _LogSum(units), _LogSum(units)
    for part in form.banks.slices():
        sums.add(form.logits(units, part)[0])
        if asked is not None:
            asked_sums.add(form.target_logits(asked, part))
    return sums, asked_sums


def _check(
    features: Tensor,
    bank: Tensor,
    person_ids: Tensor,
    auxiliary: Tensor | None,
    auxiliary_bank: Tensor | None,
    written: Tensor | None,
) -> None:
    problem = features.ndim != 2 or bank.ndim != 2 or features.shape[1] != bank.shape[1]
    if problem or person_ids.shape != features.shape[:1]:
        raise ValueError(
            "features must be (B, D), their bank (N, D) and person_ids (B,), not "
            f"{tuple(features.shape)}, {tuple(bank.shape)} and {tuple(person_ids.shape)}"
        )
    if written is not None and (written.shape != bank.shape[:1] or written.dtype != torch.bool):
        raise ValueError(f"written must be ({len(bank)},) bool, not {tuple(written.shape)} {written.dtype}")
    if auxiliary is None:
        return
    told = None if auxiliary_bank is None else tuple(auxiliary_bank.shape)
    if auxiliary.ndim != 2 or told != (len(bank), auxiliary.shape[1]) or len(auxiliary) != len(features):
        raise ValueError(f"annotations must be (B, C) and their bank (N, C), not {tuple(auxiliary.shape)} and {told}")
