"""Covers: solver/objectives/vireid, datasets/loading/samplers, datasets/loading/transforms. What a visible-infrared
step is made of: order of rows, channel augmentation, erasing, the step schedule. From files to losses.
"""

import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import official_trees
import pytest
import torch
from PIL import Image
from torch import Tensor

from configs.load import load_experiment
from configs.schema.data import AugmentConfig, DataConfig
from configs.schema.train import TrainConfig
from configs.schema.vireid import VireidConfig, VireidObjectiveConfig
from configs.vocabulary import Family, Modality
from datasets.build import build_benchmark, build_source_reader
from datasets.loading.loaders import build_batches, build_train_loader
from datasets.loading.record_dataset import RecordDataset, Row, collate
from datasets.loading.samplers import Key
from datasets.loading.transforms import ImageAugmentation, model_input
from datasets.structures import Batch
from datasets.synthetic.render import render
from model.build import build_model, initialise
from model.vireid import Vireid
from solver.objectives import base
from solver.objectives.vireid import LOSSES, VireidObjective
from solver.training.engine import Trainer, assemble

ROOT = Path(__file__).resolve().parent.parent
RGB, NIR = Modality.RGB, Modality.NIR
MODEL = VireidConfig(init="random", depth=18, blocks=(1, 1, 1, 1), width=4, head_width=8, image_size=(16, 16))
MEAN, STD = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SYSU-MM01 in small, every picture noise of its own; stored without loss."""
    root = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for path in sorted(official_trees.sysu(root).rglob("*.jpg")):
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(path, "PNG")
    return root


def dataset(root: Path, **augment: Any) -> tuple[RecordDataset, list[Key]]:
    """The records of training as the loader reads them, and the keys of its first batch."""
    data = DataConfig(dataset="sysu", root=str(root), workers=0)
    benchmark = build_benchmark(data, select="last", need_train=True)
    train = TrainConfig(sampler="modality", batch_size=12, instances=2)
    loader = build_train_loader(
        benchmark,
        data,
        AugmentConfig(**augment),
        build_source_reader(data, MODEL, benchmark),
        build_batches(benchmark, train, 3),
        seed=3,
        workers=0,
    )
    return loader._loader.dataset, next(iter(loader.batches.whole_epoch(0)))  # type: ignore[return-value]


def rows_of(found: RecordDataset, keys: Sequence[Key]) -> list[Row]:
    rows = [found[key] for key in keys]
    assert all(isinstance(row, Row) for row in rows)
    return rows  # type: ignore[return-value]


def batch_of(rows: Sequence[Row]) -> Batch:
    batch, failures = collate(rows)
    assert batch is not None and not failures
    return batch


def network(stem: str = "two_stream") -> Vireid:
    torch.manual_seed(0)
    config = VireidConfig(**{**vars(MODEL), "stem": stem})
    model = build_model(Family.VIREID, config, 3)
    assert isinstance(model, Vireid)
    initialise(Family.VIREID, model, config)
    return model.double().train()


def losses_of(batch: Batch, monkeypatch: pytest.MonkeyPatch) -> tuple[dict[str, float], Tensor]:
    """Every term in float64 and the gradient of the first weights."""
    monkeypatch.setattr(base, "model_input", lambda *given: model_input(*given).double())
    model = network()
    output = VireidObjective(
        VireidObjectiveConfig(losses=dict.fromkeys(LOSSES, 1.0), margin=0.3, imitation_reduction="mean")
    ).step(model, batch, 0)
    output.total.backward()
    gradient = model.backbone.stems["nir"].conv1.weight.grad  # type: ignore[union-attr]
    values = {name: float(value.detach()) for name, value in {**output.losses, **output.diagnostics}.items()}
    return values, gradient  # type: ignore[return-value]


def test_no_loss_depends_on_the_order_of_the_rows(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found, keys = dataset(root, flip=0.5, erase=0.5, channel=0.5)
    rows = rows_of(found, keys)
    sides = ["".join("V" if RGB in row.inputs else "I" for row in rows)]
    expected, gradient = losses_of(batch_of(rows), monkeypatch)
    assert len(expected) == 8 and all(value > 0 for name, value in expected.items() if name != "accuracy")
    orders = [
        sorted(range(len(rows)), key=lambda place: (RGB not in rows[place].inputs, place)),
        list(range(len(rows)))[::-1],
        random.Random(1).sample(range(len(rows)), len(rows)),
    ]
    for order in orders:
        permuted = [rows[place] for place in order]
        sides.append("".join("V" if RGB in row.inputs else "I" for row in permuted))
        values, other = losses_of(batch_of(permuted), monkeypatch)
        # The classifiers' scores are float32.
        assert values == pytest.approx(expected, abs=1e-6, rel=0)
        torch.testing.assert_close(other, gradient, rtol=1e-4, atol=1e-6)
    assert sides[0] == "IIVV" * 3 and len(set(sides)) == 4, "every order has its own pattern"


def test_losses_depend_on_which_rows_are_infrared(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The counterpart: the same pictures and persons, two rows with their modalities exchanged, give other losses."""
    found, keys = dataset(root)
    batch = batch_of(rows_of(found, keys))
    rgb, nir = batch.inputs[RGB].clone(), batch.inputs[NIR].clone()
    rgb[0], nir[0] = batch.inputs[NIR][0], batch.inputs[RGB][0]
    exchanged = Batch(
        inputs={RGB: rgb, NIR: nir},
        erased=batch.erased,
        rows=batch.rows,
        person_ids=batch.person_ids,
        record_ids=batch.record_ids,
    )
    first, second = losses_of(batch, monkeypatch)[0], losses_of(exchanged, monkeypatch)[0]
    assert all(abs(first[name] - second[name]) > 1e-4 for name in first if name != "accuracy")


def candidates(image: np.ndarray) -> list[np.ndarray]:
    """Red, green, blue and grey of (3, H, W), written out pixel by pixel."""
    found = [np.stack([image[channel]] * 3) for channel in range(3)]
    grey = np.empty(image.shape, dtype=np.uint8)
    for row in range(image.shape[1]):
        for column in range(image.shape[2]):
            red, green, blue = (int(image[channel, row, column]) for channel in range(3))
            grey[:, row, column] = round(0.2989 * red + 0.587 * green + 0.114 * blue)
    return [*found, grey]


def which(image: np.ndarray, original: np.ndarray) -> int:
    """0, 1, 2, 3 = red, green, blue, grey; 4 = unchanged."""
    (place,) = [
        place for place, candidate in enumerate([*candidates(original), original]) if np.array_equal(image, candidate)
    ]
    return place


def test_a_visible_image_becomes_one_channel_or_grey() -> None:
    original = np.random.default_rng(0).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    kept = original.copy()
    drawn = Counter(
        which(
            ImageAugmentation(AugmentConfig(flip=0, channel=0.6)).replace_channels(original, random.Random(seed)),
            original,
        )
        for seed in range(1000)
    )
    assert np.array_equal(original, kept)
    # 400 unchanged and 150 of each, within four standard deviations.
    assert abs(drawn[4] - 400) < 62 and all(abs(drawn[place] - 150) < 46 for place in range(4)), drawn
    assert {
        which(
            ImageAugmentation(AugmentConfig(flip=0, channel=1)).replace_channels(original, random.Random(seed)),
            original,
        )
        for seed in range(60)
    } == {0, 1, 2, 3}
    white = np.full((3, 2, 2), 255, dtype=np.uint8)
    assert all(
        np.array_equal(
            ImageAugmentation(AugmentConfig(flip=0, channel=1)).replace_channels(white, random.Random(seed)), white
        )
        for seed in range(20)
    )


def test_channels_are_drawn_by_seed_epoch_and_index_for_visible_images_only(root: Path) -> None:
    plain, keys = dataset(root, flip=0.5, pad_crop=2, erase=0.5)
    changing, _ = dataset(root, flip=0.5, pad_crop=2, erase=0.5, channel=0.5)
    drawn: dict[Key, int] = {}
    for epoch in range(8):
        for _, index in sorted(set(keys)):
            before, after, again = (rows_of(found, [(epoch, index)])[0] for found in (plain, changing, changing))
            (modality,) = before.inputs
            assert before.boxes == after.boxes and torch.equal(after.inputs[modality], again.inputs[modality])
            if modality is NIR:
                assert torch.equal(before.inputs[NIR], after.inputs[NIR])
            else:
                # Flip and crop are what they are without it.
                drawn[epoch, index] = which(after.inputs[RGB].numpy(), before.inputs[RGB].numpy())
    assert set(drawn.values()) == {0, 1, 2, 3, 4}
    assert len({tuple(value for (epoch, _), value in drawn.items() if epoch == number) for number in range(8)}) > 4


def test_erased_pixels_have_the_mean_of_the_models_statistics(root: Path) -> None:
    found, keys = dataset(root, flip=0, erase=1)
    batch = batch_of(rows_of(found, keys))
    model, seen = network(), {}

    def pool(inputs: dict[Modality, Tensor]) -> Tensor:
        seen.update(inputs)
        return Vireid.pool(model.float(), inputs)

    model.pool = pool  # type: ignore[method-assign,assignment]
    VireidObjective(VireidObjectiveConfig(losses={"id": 1.0}, margin=None, imitation_reduction="mean")).step(
        model, batch, 0
    )
    erased = 0
    for modality in (RGB, NIR):
        for image, pixels, box in zip(seen[modality], batch.inputs[modality], batch.erased[modality].tolist()):
            expected = (pixels / 255 - MEAN) / STD
            top, left, height, width = box
            erased += height * width
            for channel in range(3):
                expected[channel, top : top + height, left : left + width] = MEAN[channel]
            torch.testing.assert_close(image, expected, rtol=1e-5, atol=1e-6)
    assert erased > 0


def test_the_step_schedule_lowers_both_groups_at_its_milestones(root: Path, tmp_path: Path) -> None:
    config = load_experiment(
        ROOT / "configs" / "vireid" / "smoke.yaml",
        [
            f"data.root={root}",
            "train.epochs=6",
            "train.batch_size=6",
            "train.instances=1",
            "schedule.milestones=[2, 5]",
            "schedule.gamma=0.5",
            "model.image_size=[16,16]",
            "objective.losses={id: 1, modality_id: 1, weighted_triplet: 2}",
        ],
    )
    trainer = Trainer(assemble(config, torch.device("cpu")), tmp_path)
    for epoch, factor in enumerate((1, 1, 0.5, 0.5, 0.5, 0.25)):
        rate = trainer.set_learning_rate(epoch, 0)
        assert rate == pytest.approx(1e-4 * factor)
        groups = trainer.job.optimizer.param_groups
        rates = {group["lr"] for group in groups}
        assert sorted(rates) == pytest.approx([1e-4 * factor, 1e-3 * factor])
    values = trainer.train_step([next(iter(trainer.job.loader.epoch(0)))])
    assert {name for name in values if name.startswith("loss/")} == {
        "loss/id",
        "loss/id/rgb",
        "loss/id/nir",
        "loss/weighted_triplet",
    }


def test_a_batch_that_skipping_left_without_a_modality_is_passed_over(tmp_path: Path) -> None:
    """Infrared files that cannot be read take whole batches with them; the run goes on with the others."""
    render("sysu", tmp_path, identities=12, test_identities=2, images_per_modality=4, image_size=(32, 16), processes=1)
    config = load_experiment(Path("configs/vireid/smoke.yaml"), [f"data.root={tmp_path}", "data.on_error=skip"])
    benchmark = build_benchmark(config.data, select="last", need_train=True)
    broken = [
        source.value
        for record in benchmark.train
        if record.person_id < 8
        for kind, source in record.sources.items()
        if kind is NIR
    ]
    for path in broken:
        Path(path).write_bytes(b"")
    loader = build_train_loader(
        benchmark,
        config.data,
        config.augment,
        build_source_reader(config.data, config.model, benchmark),
        build_batches(benchmark, config.train, 0),
        seed=0,
        workers=0,
    )
    batches = list(loader.epoch(0))
    assert loader.skipped and 0 < len(batches) < loader.steps_per_epoch
    assert all({RGB, NIR} == set(batch.inputs) and len(batch.person_ids.unique()) > 1 for batch in batches)
