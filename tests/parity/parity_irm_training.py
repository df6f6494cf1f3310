"""Golden checks of what IRM is trained by: adaptive triplet, contrast with queues, memory banks."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from parity_common import Kind, Row, max_error
from torch import Tensor
from torch.nn import functional

from solver.losses.adaptive_triplet import mine_rows, released_adaptive_triplet_loss
from solver.losses.contrast import queue_contrast_loss
from solver.losses.memory_bank import bank_losses
from solver.losses.triplet import batch_hard_triplet_loss
from solver.objectives.training_state import FeatureQueue, MemoryBank


def _load(path: Path) -> dict[str, Tensor]:
    with np.load(path, allow_pickle=False) as archive:
        return {name: torch.from_numpy(np.array(archive[name])) for name in archive.files}


def _share(values: Tensor) -> float:
    return values.double().mean().item()


def check_triplet(path: Path) -> list[Row]:
    """Adaptive and plain triplet: mined distances and cosines, both terms' sum, gradients, precisions, both widths."""
    golden = _load(path)
    labels, instructions, margin = golden["label"], golden["instr"], float(golden["margin"])
    rows = []
    for prefix, loss in (
        ("ada", lambda x: released_adaptive_triplet_loss(x, instructions.to(x.dtype), labels, margin=margin)),
        ("tri", lambda x: batch_hard_triplet_loss(x, labels, margin=margin)),
    ):
        leaf = golden["emb"].clone().requires_grad_()
        value = loss(functional.normalize(leaf) if bool(golden["normalize"]) else leaf)
        value.backward()
        single = golden["emb"].float()
        single = functional.normalize(single) if bool(golden["normalize"]) else single
        rows += [
            Row(f"{prefix}_loss", max_error(value.item(), golden[f"{prefix}_loss"]), 1e-9),
            Row(f"{prefix}_grad", max_error(leaf.grad, golden[f"{prefix}_grad"]), 1e-9),
            Row(f"{prefix}_loss float32", max_error(loss(single).item(), golden[f"{prefix}_loss"]), 1e-5),
        ]
    features = functional.normalize(golden["emb"]) if bool(golden["normalize"]) else golden["emb"]
    mined = mine_rows(features, instructions, labels)
    right = mined.nearest > mined.farthest + margin * (mined.agreement - 1)
    return [
        *rows,
        Row("alpha1", max_error(mined.agreement, golden["alpha1"]), 1e-9),
        Row("alpha2", max_error(mined.second_agreement, golden["alpha2"]), 1e-9),
        Row("ada_prec", max_error(_share(right), golden["ada_prec"]), 1e-12),
        Row("tri_prec", max_error(_share(mined.nearest > mined.farthest), golden["tri_prec"]), 1e-12),
    ]


def check_contrast(path: Path) -> list[Row]:
    """Contrast with queues, and the queues after the batch, past their end where they wrap."""
    golden = _load(path)
    size, width = golden["image_queue"].T.shape
    queue = FeatureQueue(size, width, torch.Generator()).double()
    queue.load_state_dict(
        {
            "image": golden["image_queue"].T,
            "text": golden["text_queue"].T,
            "person_ids": golden["idx_queue"][0],
            "pointer": golden["queue_ptr"][0],
        }
    )
    loss = queue_contrast_loss(
        golden["image_feat"],
        golden["text_feat"],
        golden["label"],
        taught_text=golden["text_feat_m"],
        image_queue=queue.image,
        text_queue=queue.text,
        queue_ids=queue.person_ids,
        temperature=golden["temp"],
        distillation=float(golden["alpha"]),
    )
    queue.push(golden["image_feat"], golden["text_feat_m"], golden["label"])
    after = {
        "image_queue_after": queue.image.T,
        "text_queue_after": queue.text.T,
        "idx_queue_after": queue.person_ids[None],
        "queue_ptr_after": queue.pointer,
    }
    return [
        Row("loss_cl", max_error(loss, golden["loss_cl"]), 1e-6),
        *(Row(name, max_error(value, golden[name].reshape(value.shape)), 0.0) for name, value in after.items()),
    ]


FORM = re.compile(r"soft_(T(.+)_xi(.+)_hard(onehot|softmax))")


def check_banks(path: Path) -> list[Row]:
    """Both bank losses under every temperature, xi and hard target, their gradients, eq. 12 as printed, the banks."""
    golden = _load(path)
    persons = golden["pid"]

    def both(features: Tensor, temperature: float, xi: float, hard: Any) -> tuple[Tensor, Tensor]:
        # Blocks that do not divide the number of slots.
        losses = bank_losses(
            features, golden["M_r"], persons, auxiliary=golden["F_a"], auxiliary_bank=golden["M_a"],
            temperature=temperature, hard_target=hard, xi=xi, block=7,
        )  # fmt: skip
        return losses.soft, losses.hard

    rows = []
    for name in golden:
        form = FORM.fullmatch(name)
        if form is None:
            continue
        leaf = golden["F_r"].clone().requires_grad_()
        soft, hard = both(leaf, float(form[2]), float(form[3]), {"onehot": "one-hot", "softmax": "softmax"}[form[4]])
        found = {"soft": soft.mean(), "hard": hard.mean()}
        found["total_noid"] = found["soft"] + float(golden["beta"]) * found["hard"]
        (found["gradsoft"],) = torch.autograd.grad(found["soft"], leaf, retain_graph=True)
        (found["gradhard"],) = torch.autograd.grad(found["hard"], leaf)
        rows += [
            Row(f"{key}_{form[1]}", max_error(value.detach(), golden[f"{key}_{form[1]}"]), 1e-9)
            for key, value in found.items()
        ]
    printed, _ = both(golden["F_r"], 1.0, 1e-8, "one-hot")
    rows.append(Row("literal eq. 12", max_error(-printed, golden["literal_eq12_sum_per_sample_xi1e8_T1"]), 1e-9))
    for key, features in (("M_r", "F_r"), ("M_a", "F_a")):
        bank = MemoryBank(len(golden[key]), golden[key].shape[1], torch.Generator()).double()
        bank.rows.copy_(golden[key])
        bank.write(golden[features], persons)
        rows.append(Row(f"{key}_after", max_error(bank.rows, golden[f"{key}_after"]), 0.0))
    return rows


KINDS: tuple[Kind, ...] = (
    Kind("adaptive triplet (IRM)", r"a_triplet_.*\.npz", check_triplet),
    Kind("contrastive queue (IRM)", r"m_t2i_cl_.*\.npz", check_contrast),
    Kind("memory banks (IRM++)", r"i_irmpp_.*\.npz", check_banks),
)
