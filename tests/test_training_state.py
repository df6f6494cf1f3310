"""Covers: solver/objectives/training_state. Queues, momentum copies and memory banks against cases worked by hand."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from solver.objectives.training_state import NOBODY, FeatureQueue, MemoryBank, MomentumCopy


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def numbered(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.float32)[:, None].repeat(1, 2)


def test_a_queue_runs_past_its_end_and_forgets_the_oldest() -> None:
    queue = FeatureQueue(5, 2, seeded())
    assert queue.person_ids.tolist() == [NOBODY] * 5
    torch.testing.assert_close(queue.image.norm(dim=1), torch.ones(5))
    queue.push(numbered(1, 2, 3), numbered(11, 12, 13), torch.tensor([101, 102, 103]))
    assert queue.pointer.item() == 3 and queue.person_ids.tolist() == [101, 102, 103, NOBODY, NOBODY]
    queue.push(numbered(4, 5, 6), numbered(14, 15, 16).requires_grad_(), torch.tensor([104, 105, 106]))
    assert queue.pointer.item() == 1
    assert queue.image[:, 0].tolist() == [6, 2, 3, 4, 5]
    assert queue.text[:, 1].tolist() == [16, 12, 13, 14, 15] and not queue.text.requires_grad
    assert queue.person_ids.tolist() == [106, 102, 103, 104, 105]
    queue.push(numbered(*range(20, 27)), numbered(*range(30, 37)), torch.arange(7))
    assert sorted(queue.person_ids.tolist()) == [2, 3, 4, 5, 6]
    assert (queue.image[:, 0] - 20).tolist() == queue.person_ids.tolist()


def test_a_copy_moves_once_a_step() -> None:
    module = nn.BatchNorm1d(2)
    with torch.no_grad():
        module.weight.fill_(1.0)
    copy = MomentumCopy({"norm": module}, momentum=0.75)
    with torch.no_grad():
        module.weight.fill_(5.0)
        module.running_mean.fill_(3.0)  # type: ignore[union-attr]
    copied = copy["norm"]
    assert isinstance(copied, nn.BatchNorm1d)
    assert copied.weight.tolist() == [1.0, 1.0]
    for _ in range(3):
        copy.follow({"norm": module}, step=0)
        assert copied.weight.tolist() == [2.0, 2.0]
    copy.follow({"norm": module}, step=1)
    assert copied.weight.tolist() == [2.75, 2.75]
    assert copied.running_mean is not None and copied.running_mean.tolist() == [3.0, 3.0]
    assert not copied.training and not any(value.requires_grad for value in copy.parameters())
    assert module.weight.tolist() == [5.0, 5.0] and module.weight.requires_grad


def test_a_bank_keeps_the_last_row_of_each_person() -> None:
    bank = MemoryBank(4, 2, seeded())
    before = bank.rows.clone()
    features = numbered(1, 2, 3, 4).requires_grad_()
    bank.write(features, torch.tensor([2, 0, 2, 0]))
    assert bank.rows[[0, 2], 0].tolist() == [4, 3] and bank.written.tolist() == [True, False, True, False]
    assert torch.equal(bank.rows[[1, 3]], before[[1, 3]]) and not bank.rows.requires_grad
    bank.write(numbered(9), torch.tensor([2]))
    assert bank.rows[[0, 2], 0].tolist() == [4, 9]
    assert torch.equal(before, MemoryBank(4, 2, seeded()).rows) and len(before.unique()) == 8


def test_everything_is_state_and_comes_back(tmp_path: Path) -> None:
    def built(seed: int) -> nn.ModuleDict:
        parts = {
            "queue": FeatureQueue(3, 2, seeded(seed)),
            "bank": MemoryBank(3, 2, seeded(seed)),
            "copy": MomentumCopy({"map": nn.Linear(2, 2)}, 0.5),
        }
        return nn.ModuleDict(parts)

    first, second = built(0), built(1)
    queue, bank = first["queue"], first["bank"]
    assert isinstance(queue, FeatureQueue) and isinstance(bank, MemoryBank)
    queue.push(numbered(1, 2), numbered(3, 4), torch.tensor([5, 6]))
    bank.write(numbered(7), torch.tensor([1]))
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    restored, kept = second["queue"], second["bank"]
    assert isinstance(restored, FeatureQueue) and isinstance(kept, MemoryBank)
    assert restored.pointer.item() == 2 and restored.person_ids.tolist() == [5, 6, NOBODY]
    assert kept.written.tolist() == [False, True, False] and torch.equal(kept.rows, bank.rows)
    assert torch.equal(second.state_dict()["copy.copies.map.weight"], first.state_dict()["copy.copies.map.weight"])
