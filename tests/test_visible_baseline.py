"""Covers: solver/objectives/vireid, solver/losses/identity, configs/schema/vireid. Visible images alone: the residual
network's losses by hand, what its samplers must give, and a run that learns.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from scripts import exit_code, global_state_kept
from torch import Tensor

from configs.load import load_experiment
from configs.schema.vireid import VireidConfig, VireidObjectiveConfig
from configs.vocabulary import Family, Modality
from datasets.structures import Batch
from model.build import build_model, initialise
from model.vireid import Vireid
from solver.losses.identity import identity_loss
from solver.losses.triplet import batch_hard_triplet_loss
from solver.objectives.vireid import VireidObjective
from utils.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
BASELINE = ROOT / "configs" / "baseline"
LABELS = torch.tensor([2, 0, 2, 1, 0, 1])


def network() -> Vireid:
    config = VireidConfig(
        init="random",
        depth=18,
        blocks=(1, 1, 1, 1),
        width=4,
        image_size=(32, 16),
        head_width=0,
        conv_bias=False,
        stem_relu=True,
        neck_bias=False,
        classifier_bias=False,
    )
    model = build_model(Family.VIREID, config, 3)
    assert isinstance(model, Vireid)
    initialise(Family.VIREID, model, config)
    with torch.no_grad():
        model.neck.weight.uniform_(0.5, 2.0)
    return model.train()


def visible_batch() -> Batch:
    images = torch.randint(0, 256, (6, 3, 32, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return Batch(inputs={Modality.RGB: images}, erased={}, person_ids=LABELS, record_ids=torch.arange(6))


@pytest.mark.parametrize("place", ["neck", "pooled"])
def test_losses_of_visible_rows_by_hand(place: str) -> None:
    config = VireidObjectiveConfig(
        losses={"id": 2.0, "triplet": 0.5},
        margin=0.3,
        label_smoothing=0.1,
        triplet_feature=place,  # type: ignore[arg-type]
    )
    model = network()
    found = VireidObjective(config).step(model, visible_batch(), 0)
    assert set(found.losses) == {"id", "triplet"}
    images = (visible_batch().inputs[Modality.RGB] / 255 - torch.tensor([0.485, 0.456, 0.406])[:, None, None]) / (
        torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    )
    pooled = model.backbone({Modality.RGB: images}).mean(dim=(2, 3))
    # Batch norm of a training step, written out: the biased variance of the batch.
    scaled = (pooled - pooled.mean(dim=0)) / (pooled.var(dim=0, unbiased=False) + 1e-5).sqrt() * model.neck.weight
    logs = (scaled @ model.classifier.weight.T).log_softmax(dim=1)
    smoothed = 0.9 * torch.nn.functional.one_hot(LABELS, 3) + 0.1 / 3
    expected_id = 2 * -(smoothed * logs).sum(dim=1).mean()
    torch.testing.assert_close(found.losses["id"], expected_id, rtol=1e-4, atol=1e-5)
    compared = scaled if place == "neck" else pooled
    triplet = 0.5 * batch_hard_triplet_loss(compared, LABELS, margin=0.3)
    torch.testing.assert_close(found.losses["triplet"], triplet, rtol=1e-3, atol=1e-5)


def test_smoothing_of_the_identity_loss_by_hand() -> None:
    # One row, scores log 3 and 0: probabilities 3/4 and 1/4; target 1 - 0.2 + 0.1 and 0.1.
    logits = torch.tensor([[3.0, 1.0]]).log()
    expected = -(0.9 * Tensor([0.75]).log() + 0.1 * Tensor([0.25]).log()).item()
    assert identity_loss(logits, torch.tensor([0]), smoothing=0.2).item() == pytest.approx(expected)


def test_losses_of_the_heads_need_both_modalities() -> None:
    objective = VireidObjective(VireidObjectiveConfig(losses={"id": 1.0, "imitation": 1.0}))
    with pytest.raises(UserError, match="no NIR image.*without the losses modality_id and imitation"):
        objective.step(network(), visible_batch(), 0)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["train.sampler=random"], "train.sampler = 'random'.*identity, modality or tasks.*triplet"),
        (["train.batch_size=4"], "train.batch_size = 4.*at least 2 x train.instances"),
        (["objective.losses={imitation: 1.0}"], "train.sampler = 'identity'.*modality.*imitation"),
        (["objective.label_smoothing=1.0"], "objective.label_smoothing = 1.0.*below 1"),
        (["objective.triplet_feature=nek"], "objective.triplet_feature.*neck"),
    ],
)
def test_what_cannot_be_trained_is_refused(overrides: list[str], words: str) -> None:
    with pytest.raises(UserError, match=words):
        load_experiment(str(BASELINE / "market1501.yaml"), overrides)


def test_a_run_on_the_rendered_market_learns(tmp_path: Path, keep_logging: None) -> None:
    """Sixteen unseen persons: after its first step the network has a mean average precision of 58 %."""
    from datasets.synthetic.__main__ import main

    arguments = ["--layout", "market1501", "--root", str(tmp_path), "--identities", "48", "--test-identities", "16"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["synthetic", *arguments, "--image-size", "64x32", "--processes", "1"])
        main()
    where = [f"data.root={tmp_path}", f"output_dir={tmp_path / 'runs'}", "data.cache_dir=", "data.workers=0"]
    size = ["model.image_size=[64,32]", "train.epochs=6", "train.batch_size=32", "schedule.warmup_epochs=0"]
    with global_state_kept():
        assert exit_code("train", "--config", BASELINE / "quickstart.yaml", *where, *size) == 0
        assert exit_code("test", "--run", tmp_path / "runs" / "quickstart-market") == 0
    row = json.loads((tmp_path / "runs" / "quickstart-market" / "results.json").read_text())["rows"][0]
    assert row["mAP"] > 70
