"""Covers: solver/evaluation/token_cache. Token cache: every tier returns what was stored, by the stated budget, and
leaves no file behind.
"""

import errno
import os
from pathlib import Path

import pytest
import torch

from solver.evaluation.token_cache import BankShape, CacheBudget, TokenCache, reserve_file, store_prepared
from utils.errors import UserError

CPU = torch.device("cpu")
IMAGE_ROW = 9 * 4 * 4
"""Bytes of a plain row of 9 tokens of width 4 in float32."""


def make_shapes(dtype: torch.dtype = torch.float32) -> list[BankShape]:
    """Two image modalities of 9 tokens that share a bank, texts of 5 tokens, plain width 4, prepared 12."""
    ranges = {"first": (range(0, 10), 9), "second": (range(20, 27), 9), "text": (range(10, 20), 5)}
    return [
        BankShape(slots=torch.tensor(list(slots)), length=length, plain_width=4, prepared_width=12, dtype=dtype)
        for slots, length in ranges.values()
    ]


def fill(cache: TokenCache, width: int, dtype: torch.dtype = torch.float32) -> dict[int, torch.Tensor]:
    """Store random rows in two unequal requests per modality; return what each slot should hold."""
    generator = torch.Generator().manual_seed(0)
    stored: dict[int, torch.Tensor] = {}
    for shape in make_shapes(dtype):
        for slots in (shape.slots[:3], shape.slots[3:].flip(0)):
            values = torch.randn((len(slots), shape.length, width), generator=generator).to(dtype)
            cache.put(slots, values)
            stored.update({int(slot): value for slot, value in zip(slots, values)})
    return stored


@pytest.mark.parametrize("device_rows, host_rows", [(100, 0), (0, 100), (0, 0), (5, 4), (12, 0), (0, 12), (1, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_tier_returns_what_was_stored(
    device_rows: int, host_rows: int, dtype: torch.dtype, tmp_path: Path
) -> None:
    budget = CacheBudget(
        device_bytes=device_rows * IMAGE_ROW, host_bytes=host_rows * IMAGE_ROW, directory=str(tmp_path)
    )
    with TokenCache(27, make_shapes(dtype), device=CPU, budget=budget) as cache:
        stored = fill(cache, 12 if cache.prepared else 4, dtype)
        for slots in ([0], [26, 0, 20, 9, 9, 3], list(range(10)), [25, 24], [19, 10, 12]):
            found = cache.gather(torch.tensor(slots))
            assert torch.equal(found, torch.stack([stored[slot] for slot in slots]))
        assert cache.lengths(torch.tensor([0, 12, 26])).tolist() == [9, 5, 9]
        assert cache.length(11) == 5


def test_budget_decides_form_and_tiers(tmp_path: Path) -> None:
    plain = 17 * 9 * 4 * 4 + 10 * 5 * 4 * 4
    for device, host, prepared in ((3 * plain, 0, True), (plain, 2 * plain, True), (plain, 2 * plain - 1, False)):
        budget = CacheBudget(device_bytes=device, host_bytes=host, directory=str(tmp_path))
        assert store_prepared(make_shapes(), budget) is prepared
        with TokenCache(27, make_shapes(), device=CPU, budget=budget) as cache:
            assert cache.prepared is prepared


def test_tiers_are_filled_in_order_and_the_file_is_removed(tmp_path: Path) -> None:
    budget = CacheBudget(device_bytes=5 * IMAGE_ROW + 7, host_bytes=4 * IMAGE_ROW, directory=str(tmp_path))
    with TokenCache(27, make_shapes(), device=CPU, budget=budget) as cache:
        # 17 image rows: 5 + 4 + 8; 10 text rows of 80 bytes: none fits the 7 bytes left.
        assert cache._used == {"device": 5 * IMAGE_ROW, "host": 4 * IMAGE_ROW, "disk": 8 * IMAGE_ROW + 10 * 80}
        files = sorted(path.stat().st_size for path in tmp_path.glob("tokens-*/*.bin"))
        assert files == [800, 8 * IMAGE_ROW]
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_one_sentence_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", refuse, raising=False)
    with pytest.raises(UserError, match="eval.cache_host_mb"):
        TokenCache(
            27, make_shapes(), device=CPU, budget=CacheBudget(device_bytes=0, host_bytes=0, directory=str(tmp_path))
        )
    assert list(tmp_path.iterdir()) == []


def test_reserved_file_has_its_size(tmp_path: Path) -> None:
    reserve_file(tmp_path / "bank.bin", 12345)
    assert (tmp_path / "bank.bin").stat().st_size == 12345


def test_one_request_must_stay_in_one_bank() -> None:
    with TokenCache(27, make_shapes(), device=CPU, budget=CacheBudget(device_bytes=1 << 20, host_bytes=0)) as cache:
        with pytest.raises(AssertionError, match="one bank"):
            cache.gather(torch.tensor([0, 10]))
