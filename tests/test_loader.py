"""Covers: datasets/build, datasets/loading/loaders, datasets/loading/readers, datasets/loading/transforms,
datasets/loading/record_dataset, datasets/loading/image_cache. From files to batches: reading, augmenting, drawing,
sampling, caching. Every picture has one colour that says which file it is.
"""

import io
import json
import os
import random
import shutil
import struct
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pytest
import torch
from PIL import Image
from tiny_orbench import load_orbench

from configs.schema.data import AugmentConfig, DataConfig
from configs.schema.reid5o import Reid5oConfig
from configs.schema.train import TrainConfig
from configs.vocabulary import Modality
from datasets.build import build_source_reader, image_sources
from datasets.loading import image_cache
from datasets.loading.image_cache import build_cache
from datasets.loading.loaders import TrainLoader, build_batches, build_train_loader, source_loader
from datasets.loading.readers import ImageReader, PillowReader, SourceReader, open_image
from datasets.loading.samplers import IdentityBatches, RandomBatches
from datasets.loading.transforms import ImageAugmentation, model_input
from datasets.structures import Batch, Benchmark, Record, Source
from utils.errors import UserError

SIZE = (8, 4)
MODEL = Reid5oConfig(image_size=SIZE, patch_size=4, text_length=6)
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
KINDS = {Modality.RGB: "vis", Modality.NIR: "nir", Modality.CP: "cp", Modality.SK: "sk"}
PERSONS, RECORDS, PARTNERS = 3, 3, 5


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three persons; red of a pixel = person, green = kind, blue = number of the file (times ten each)."""
    root = tmp_path_factory.mktemp("data")
    base = root / "ORBench"
    annotations = []
    for person in range(PERSONS):
        for kind, name in enumerate(KINDS.values()):
            for index in range(RECORDS if name == "vis" else PARTNERS):
                path = base / name / f"{person:04d}" / f"{index}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", SIZE[::-1], (person * 10, kind * 10, index * 10)).save(path)
        annotations += [
            {"id": person, "file_path": f"vis/{person:04d}/{index}.png", "caption": f"person {person}"}
            for index in range(RECORDS)
        ]
    (base / "train_annos.json").write_text(json.dumps(annotations))
    Image.new("RGB", (4, 8)).save(base / "vis" / "0000" / "t.png")
    (base / "vis" / "0009").mkdir()
    shutil.copy(base / "vis" / "0000" / "t.png", base / "vis" / "0009" / "t.png")
    (base / "test_gallery_and_queries.json").write_text(
        json.dumps({"RGB_GALLERY": [[1, "vis/0009/t.png"]], "TEXT": [[1, "words"]]})
    )
    return root


def loader(
    root: Path,
    *,
    workers: int = 0,
    seed: int = 0,
    augment: AugmentConfig = AugmentConfig(flip=0),
    on_error: str = "raise",
    batch_size: int = 4,
    **train: Any,
) -> TrainLoader:
    data = DataConfig(root=str(root), on_error=on_error)  # type: ignore[arg-type]
    benchmark = load_orbench(root, need_train=True, check_files=on_error == "raise")
    reader = build_source_reader(data, MODEL)
    batches = build_batches(benchmark, TrainConfig(batch_size=batch_size, **train), seed)
    return build_train_loader(benchmark, data, augment, reader, batches, seed=seed, workers=workers)


def drawn(batches: list[Batch]) -> list[tuple[int, ...]]:
    """Return (record, then red, green, blue / 10 of each kind) of every row, read off the pixels."""
    return [
        (int(record), *(int(batch.inputs[kind][row, channel, 0, 0]) // 10 for kind in KINDS for channel in range(3)))
        for batch in batches
        for row, record in enumerate(batch.record_ids)
    ]


def test_rows_hold_the_own_person_and_partners_of_the_own_folder(root: Path) -> None:
    files: dict[tuple[int, Modality], set[int]] = {}
    found = loader(root)
    batches = [batch for epoch in range(12) for batch in found.epoch(epoch)]
    for record, *pixels in drawn(batches):
        person, index = divmod(record, RECORDS)
        assert pixels[0:3] == [person, 0, index]
        for kind, modality in enumerate(KINDS):
            red, green, blue = pixels[3 * kind : 3 * kind + 3]
            assert (red, green) == (person, kind)
            files.setdefault((record, modality), set()).add(blue)
    # Over twelve epochs every record meets most of its five candidates, hence they are drawn anew each time.
    assert min(len(files[record, modality]) for record in range(9) for modality in list(KINDS)[1:]) >= 3
    for batch in batches:
        assert batch.person_ids.tolist() == (batch.record_ids // RECORDS).tolist()
        assert (
            batch.inputs[Modality.TEXT].shape == (len(batch.person_ids), 6)
            and batch.inputs[Modality.TEXT].dtype == torch.int64
        )


def test_partners_of_a_record_are_drawn_apart(root: Path) -> None:
    found = loader(root)
    rows = [row for epoch in range(20) for row in drawn(list(found.epoch(epoch)))]
    same = sum(row[6] == row[9] for row in rows) / len(rows)
    # 180 rows, probability 1/5 each: 0.2 +- 0.03.
    assert 0.1 < same < 0.3


def test_draws_depend_on_seed_and_epoch_alone(root: Path) -> None:
    augment = AugmentConfig(flip=0.5, pad_crop=1, erase=0.5, caption_mask=0.5)

    def digest(found: TrainLoader, epochs: tuple[int, ...]) -> list[list[bytes]]:
        return [
            [
                tensor.numpy().tobytes()
                for batch in found.epoch(epoch)
                for tensor in (*batch.inputs.values(), *batch.erased.values(), batch.record_ids)
            ]
            for epoch in epochs
        ]

    plain = digest(loader(root, augment=augment), (0, 1, 2))
    # Workers persist over epochs here; a run that starts at epoch 2 has never seen epochs 0 and 1.
    assert digest(loader(root, augment=augment, workers=2), (0, 1, 2)) == plain
    assert digest(loader(root, augment=augment, workers=1), (2,)) == plain[2:]
    assert digest(loader(root, augment=augment), (2, 0)) == [plain[2], plain[0]]
    assert plain[0] != plain[1] and digest(loader(root, augment=augment, seed=1), (0,)) != plain[:1]


def test_augmentation_differs_by_epoch_record_and_modality(root: Path) -> None:
    found = loader(root, augment=AugmentConfig(flip=0, erase=1))
    boxes = [
        {
            (int(record), kind): tuple(batch.erased[kind][row].tolist())
            for batch in found.epoch(epoch)
            for row, record in enumerate(batch.record_ids)
            for kind in KINDS
        }
        for epoch in (0, 1)
    ]
    shared = boxes[0].keys() & boxes[1].keys()
    # An 8 x 4 picture has few boxes, so that some agree by chance.
    assert sum(boxes[0][key] != boxes[1][key] for key in shared) > len(shared) / 2
    assert (
        sum(
            boxes[0][record, Modality.NIR] != boxes[0][record, Modality.CP]
            for record, kind in boxes[0]
            if kind is Modality.CP
        )
        >= 4
    )


def test_draws_do_not_depend_on_the_batch(root: Path) -> None:
    by_record = dict((row[0], row[1:]) for row in drawn(list(loader(root, batch_size=3).epoch(3))))
    assert by_record == dict((row[0], row[1:]) for row in drawn(list(loader(root, batch_size=9).epoch(3))))


@pytest.mark.parametrize("drop_last", [False, True])
def test_a_last_batch_of_one_row_is_not_trained_on(root: Path, drop_last: bool) -> None:
    assert [len(batch.person_ids) for batch in loader(root, drop_last=drop_last).epoch(0)] == [4, 4]
    assert [len(batch.person_ids) for batch in loader(root, batch_size=5, drop_last=False).epoch(0)] == [5, 4]


def test_no_batch_can_be_formed(root: Path) -> None:
    with pytest.raises(UserError, match="train.batch_size = 64"):
        loader(root, batch_size=64, drop_last=True)
    with pytest.raises(UserError, match="3 identities"):
        loader(root, batch_size=16, sampler="identity", instances=4)


def test_unreadable_images_end_the_run_or_are_listed(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root, tmp_path / "copy")
    base = tmp_path / "copy" / "ORBench"
    (base / "vis" / "0001" / "1.png").write_bytes(b"")
    (base / "vis" / "0002" / "0.png").unlink()
    (base / "vis" / "0002" / "0.png").mkdir()
    with pytest.raises(UserError, match=r"(1\.png.*entry 4.*empty)|(0\.png.*entry 6)"):
        list(loader(tmp_path / "copy").epoch(0))
    found = loader(tmp_path / "copy", on_error="skip", batch_size=9)
    assert sorted(row[0] for epoch in range(2) for row in drawn(list(found.epoch(epoch)))) == sorted(
        [0, 1, 2, 3, 5, 7, 8] * 2
    )
    assert len(found.skipped) == 2
    assert any("1.png" in reason and "train_annos.json entry 4" in reason for reason in found.skipped)


def test_a_batch_that_skipping_left_with_one_person_is_passed_over(root: Path, tmp_path: Path) -> None:
    """No loss has a negative in it."""
    shutil.copytree(root, tmp_path / "copy")
    options: dict[str, Any] = {"on_error": "skip", "batch_size": 4, "sampler": "identity", "instances": 2}
    assert list(loader(tmp_path / "copy", **options).epoch(0))
    for folder in ("0001", "0002"):
        for path in (tmp_path / "copy" / "ORBench" / "vis" / folder).iterdir():
            path.write_bytes(b"")
    found = loader(tmp_path / "copy", **options)
    assert list(found.epoch(0)) == [] and found.skipped


def test_sources_of_one_modality_in_order_with_failures(root: Path, tmp_path: Path) -> None:
    paths = [root / "ORBench" / "nir" / "0001" / f"{index}.png" for index in (3, 0, 4)]
    sources = [
        Source(modality=Modality.NIR, value=str(path)) for path in (paths[0], tmp_path / "no.png", paths[1], paths[2])
    ]
    reader = build_source_reader(DataConfig(), MODEL)
    for workers in (0, 1):
        batches = list(source_loader(sources, reader, 2, workers))
        assert [indices.tolist() for indices, _, _ in batches] == [[0], [2, 3]]
        assert [int(image[2, 0, 0]) for _, inputs, _ in batches for image in inputs] == [30, 0, 40]
        assert [index for _, _, failures in batches for index, _ in failures] == [1] and "no.png" in batches[0][2][0][1]
    empty = list(source_loader(sources[1:2], reader, 2, 0))[0]
    assert len(empty[0]) == 0 and len(empty[2]) == 1


@pytest.mark.parametrize(
    ("text", "start"), [("", [49406, 49407, 0]), ("vis/0001/a.jpg", None), ("word " * 5000, None), ("\ud800", None)]
)
def test_captions_are_texts_whatever_they_say(text: str, start: list[int] | None) -> None:
    ids = build_source_reader(DataConfig(), MODEL)(Source(modality=Modality.TEXT, value=text)).tolist()
    assert len(ids) == 6 and ids[0] == 49406 and 49407 in ids
    assert start is None or ids[:3] == start
    if len(text) > 5000:
        assert ids[-1] == 49407 and 0 not in ids


# Pictures


def picture(path: Path, record: str = "", crop: str = "") -> Source:
    return Source(modality=Modality.RGB, value=str(path), record=record, crop=crop)


@pytest.mark.parametrize("cached", [False, True], ids=["decoded", "cached"])
def test_the_crop_of_a_source_is_what_is_read(tmp_path: Path, cached: bool) -> None:
    """Box and whole picture of one file are two pictures, the box rows 15 to 55 % by hand."""
    pixels = np.random.default_rng(3).integers(0, 256, (20, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    whole, box = picture(tmp_path / "a.png"), picture(tmp_path / "a.png", crop="box")
    size = (8, 8)
    reader: ImageReader = build_cache([whole, box], size, tmp_path / "c", threads=1) if cached else PillowReader(size)
    by_hand = Image.fromarray(pixels[3:11])
    assert np.array_equal(reader(box), np.moveaxis(np.asarray(by_hand.resize((8, 8), Image.Resampling.BILINEAR)), 2, 0))
    assert not np.array_equal(reader(box), reader(whole))
    assert np.array_equal(SourceReader(reader)(box).numpy(), reader(box))
    with pytest.raises(UserError, match="unknown crop 'head'"):
        PillowReader(size)(picture(tmp_path / "a.png", crop="head"))


def test_reading_is_pillows_bilinear_resize(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (31, 17, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    expected = np.asarray(Image.fromarray(pixels).resize((4, 8), Image.Resampling.BILINEAR))
    found = PillowReader(SIZE)(picture(tmp_path / "a.png"))
    assert found.dtype == np.uint8 and found.flags.c_contiguous
    assert np.array_equal(found, np.moveaxis(expected, 2, 0))


def test_pictures_of_other_modes_become_rgb(tmp_path: Path) -> None:
    grey = np.arange(32, dtype=np.uint8).reshape(8, 4) * 8
    Image.fromarray(grey).save(tmp_path / "grey.png")
    assert np.array_equal(PillowReader(SIZE)(picture(tmp_path / "grey.png")), np.stack([grey] * 3))
    for mode in ("1", "LA", "P", "RGBA", "CMYK"):
        Image.new(mode, (4, 8)).save(tmp_path / ("a.tif" if mode == "CMYK" else "a.png"))
        assert PillowReader(SIZE)(picture(tmp_path / ("a.tif" if mode == "CMYK" else "a.png"))).shape == (3, *SIZE)


def claimed_png(width: int, height: int) -> bytes:
    """A PNG of a few bytes that claims any size."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


def jpeg(size: tuple[int, int] = (64, 64)) -> bytes:
    stream = io.BytesIO()
    Image.effect_noise(size, 60).convert("RGB").save(stream, "JPEG")
    return stream.getvalue()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", ["empty"]),
        (b"not a picture at all", ["not an image"]),
        (jpeg()[:900], ["truncated"]),
        (jpeg()[:-400], ["truncated"]),
        (claimed_png(10_000, 10_000), ["10000 x 10000", "50,000,000", "shrink"]),
        (claimed_png(60_000, 60_000), ["pixels", "shrink"]),
        (claimed_png(8, 8), ["decoded"]),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\nshowpage\n", ["not an image"]),
    ],
)
def test_unreadable_files_are_named_with_their_record(tmp_path: Path, content: bytes, words: list[str]) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        PillowReader(SIZE)(picture(path, "train_annos.json entry 7"))
    message = str(caught.value)
    assert not [word for word in (str(path), "train_annos.json entry 7", *words) if word not in message], message


def test_absent_file_folder_and_deep_pixels(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such image"):
        open_image(tmp_path / "no.jpg")
    with pytest.raises(UserError, match="entry 1"):
        open_image(tmp_path, "entry 1")
    Image.fromarray(np.full((8, 4), 40_000, dtype=np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(UserError, match="more than 8 bits"):
        open_image(tmp_path / "deep.png")


# Augmentation


def numbered(height: int = 4, width: int = 3) -> np.ndarray:
    return np.arange(1, 3 * height * width + 1, dtype=np.uint8).reshape(3, height, width)


def test_flip_mirrors_columns() -> None:
    image, box = ImageAugmentation(AugmentConfig(flip=1))(numbered(), random.Random(0))
    assert image[0].tolist() == [[3, 2, 1], [6, 5, 4], [9, 8, 7], [12, 11, 10]] and box == (0, 0, 0, 0)
    assert np.array_equal(ImageAugmentation(AugmentConfig(flip=0))(numbered(), random.Random(0))[0], numbered())
    share = (
        sum(
            ImageAugmentation(AugmentConfig(flip=0.25))(numbered(), random.Random(seed))[0][0, 0, 0] == 3
            for seed in range(400)
        )
        / 400
    )
    assert 0.18 < share < 0.32


def test_crop_shifts_into_a_black_border() -> None:
    seen = set()
    for seed in range(200):
        image, _ = ImageAugmentation(AugmentConfig(flip=0, pad_crop=1))(numbered(), random.Random(seed))
        assert image.shape == (3, 4, 3) and image.flags.c_contiguous
        # Which of the nine shifts was it? Compare with each, built by moving the picture on a black canvas.
        matches = []
        for down in (-1, 0, 1):
            for right in (-1, 0, 1):
                canvas = np.zeros_like(image)
                canvas[:, max(0, down) : 4 + min(0, down), max(0, right) : 3 + min(0, right)] = numbered()[
                    :, max(0, -down) : 4 - max(0, down), max(0, -right) : 3 - max(0, right)
                ]
                matches += [(down, right)] if np.array_equal(canvas, image) else []
        assert len(matches) == 1
        seen.update(matches)
    assert len(seen) == 9


def test_erased_boxes_lie_inside_and_have_the_area_asked_for() -> None:
    boxes = [
        ImageAugmentation(AugmentConfig(flip=0, erase=1))(np.zeros((3, 40, 20), dtype=np.uint8), random.Random(seed))[1]
        for seed in range(300)
    ]
    for top, left, height, width in boxes:
        assert top >= 0 and left >= 0 and top + height <= 40 and left + width <= 20
        assert 0.015 * 800 <= height * width <= 0.42 * 800
    areas = [height * width / 800 for _, _, height, width in boxes]
    assert 0.15 < float(np.mean(areas)) < 0.25
    # Its logarithm is uniform, so a box is as often wide as tall; drawn uniformly 77 % would be tall. On a square
    # picture, where both fit alike.
    square = np.zeros((3, 200, 200), dtype=np.uint8)
    draw = ImageAugmentation(AugmentConfig(flip=0, erase=1))
    shapes = [draw(square, random.Random(seed))[1] for seed in range(600)]
    assert 0.42 < np.mean([width > height for _, _, height, width in shapes]) < 0.58
    assert sum(
        ImageAugmentation(AugmentConfig(flip=0, erase=0.3))(np.zeros((3, 40, 20), dtype=np.uint8), random.Random(seed))[
            1
        ][2]
        > 0
        for seed in range(300)
    ) in range(60, 121)


def test_model_input_normalises_and_erases_with_the_mean_after_normalising() -> None:
    images = torch.tensor([0, 255, 51], dtype=torch.uint8).view(1, 3, 1, 1).expand(2, 3, 4, 3)
    plain = [(value - mean) / std for value, mean, std in zip((0.0, 1.0, 0.2), CLIP_MEAN, CLIP_STD)]
    found = model_input(Modality.SK, images, torch.tensor([[1, 0, 2, 2], [0, 0, 0, 0]]))
    assert found.dtype == torch.float32
    for row in range(4):
        for column in range(3):
            inside = row in (1, 2) and column in (0, 1)
            assert found[0, :, row, column].tolist() == pytest.approx(CLIP_MEAN if inside else plain, abs=1e-6)
            assert found[1, :, row, column].tolist() == pytest.approx(plain, abs=1e-6)
    assert torch.equal(model_input(Modality.SK, images), found[1:].expand(2, 3, 4, 3))
    ids = torch.tensor([[1, 2, 3]])
    assert model_input(Modality.TEXT, ids) is ids


# Samplers


@pytest.mark.parametrize(("drop_last", "sizes"), [(False, [4, 4, 2]), (True, [4, 4])])
def test_random_batches_are_a_permutation(drop_last: bool, sizes: list[int]) -> None:
    batches = RandomBatches([0] * 10, 4, seed=0, drop_last=drop_last)
    first = list(batches.epoch(0))
    assert [len(batch) for batch in first] == sizes and len(batches) == len(sizes)
    indices = [index for batch in first for _, index in batch]
    assert len(set(indices)) == sum(sizes) and set(indices) <= set(range(10))
    assert {epoch for batch in batches.epoch(3) for epoch, _ in batch} == {3}
    assert list(batches.epoch(0)) == first
    assert [[index for _, index in batch] for batch in batches.epoch(1)] != [
        [index for _, index in batch] for batch in first
    ]
    assert list(RandomBatches([0] * 10, 4, seed=1, drop_last=drop_last).epoch(0)) != first


def test_identity_batches_hold_p_identities_k_times() -> None:
    records = [person for person, count in enumerate((1, 2, 3, 4, 5, 8, 8, 4, 4, 4)) for _ in range(count)]
    batches = IdentityBatches(records, 12, seed=0, instances=4)
    for epoch in range(5):
        found = list(batches.epoch(epoch))
        assert len(found) == len(batches)
        seen: Counter[int] = Counter()
        for batch in found:
            people = Counter(records[index] for _, index in batch)
            assert len(batch) == 12 and sorted(people.values()) == [4, 4, 4]
            seen.update(index for _, index in batch)
        # 13 groups of 4 (ceil of each count / 4) make 4 batches of 3; one group is left over.
        assert len(found) == 4
        # Records of an identity with a full group come at most once.
        assert all(seen[index] <= 1 for index, person in enumerate(records) if person in (3, 5, 6, 7, 8, 9))
        assert sum(count > 0 for count in seen.values()) >= len(records) - 4
    assert list(batches.epoch(0)) == list(IdentityBatches(records, 12, seed=0, instances=4).epoch(0))
    assert list(batches.epoch(0)) != [[(0, index) for _, index in batch] for batch in batches.epoch(1)]


def test_identity_with_one_record_repeats_it() -> None:
    (batch,) = IdentityBatches([0, 1, 1, 1], 6, seed=0, instances=3).epoch(0)
    assert sorted(index for _, index in batch) == [0, 0, 0, 1, 2, 3]


# Decode cache


def cached_pictures(root: Path) -> list[Source]:
    return [picture(path) for path in sorted((root / "ORBench" / "nir").rglob("*.png"))]


def test_cache_holds_what_pillow_reads_and_is_built_once(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = cached_pictures(root)
    reader, plain = build_cache(paths, (6, 5), tmp_path, threads=2), PillowReader((6, 5))
    assert all(np.array_equal(reader(path), plain(path)) for path in paths)
    outside = picture(root / "ORBench" / "cp" / "0000" / "0.png")
    assert np.array_equal(reader(outside), plain(outside))
    reader(paths[0])[:] = 7
    assert not (reader(paths[0]) == 7).all(), "what is returned is a copy"
    files = sorted(path.name for path in tmp_path.iterdir())
    monkeypatch.setattr(image_cache, "_decode_chunk", lambda chunk: pytest.fail("decoded again"))
    again = build_cache(reversed(paths), (6, 5), tmp_path, threads=1)
    assert (
        np.array_equal(again(paths[3]), plain(paths[3])) and sorted(path.name for path in tmp_path.iterdir()) == files
    )


def test_cache_follows_contents_not_times(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root / "ORBench" / "nir", tmp_path / "images")
    paths = [picture(path) for path in sorted((tmp_path / "images").rglob("*.png"))]
    reader = build_cache(paths, SIZE, tmp_path / "cache", threads=1)
    Path(paths[0].value).touch()
    assert build_cache(paths, SIZE, tmp_path / "cache", threads=1).array_file == reader.array_file
    Image.new("RGB", SIZE[::-1], (200, 100, 50)).save(paths[0].value)
    changed = build_cache(paths, SIZE, tmp_path / "cache", threads=1)
    assert changed.array_file != reader.array_file and changed(paths[0])[:, 0, 0].tolist() == [200, 100, 50]
    assert build_cache(paths, (4, 4), tmp_path / "cache", threads=1).array_file != changed.array_file


def test_cache_keeps_failures_and_survives_damage(root: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"nothing")
    paths = [*cached_pictures(root), *map(picture, (tmp_path / "bad.png", tmp_path / "absent.png", tmp_path))]
    reader = build_cache(paths, SIZE, tmp_path / "cache", threads=1)
    with pytest.raises(UserError, match=r"bad\.png \(entry 5\): not an image"):
        reader(picture(tmp_path / "bad.png", "entry 5"))
    with pytest.raises(UserError, match="no such image"):
        reader(picture(tmp_path / "absent.png"))
    files = sorted((tmp_path / "cache").iterdir())
    assert {file.suffix for file in files} == {".npy", ".json"} and len(files) == 3
    for file, content in ((file, content) for file in files for content in (file.read_bytes()[:50], b"", b"[1]")):
        whole = file.read_bytes()
        file.write_bytes(content)
        again = build_cache(paths, SIZE, tmp_path / "cache", threads=1)
        for path in paths[:-3]:
            assert np.array_equal(again(path), PillowReader(SIZE)(path)), f"{file.name} holds {content!r}"
        with pytest.raises(UserError, match=r"bad\.png \(entry 5\): not an image"):
            again(picture(tmp_path / "bad.png", "entry 5"))
        assert file.read_bytes() == whole, "made anew"


def test_a_picture_of_equal_size_and_another_library_are_decoded_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "one.bmp"
    for colour in ((200, 100, 50), (10, 20, 30)):
        Image.new("RGB", (8, 8), colour).save(file)
        os.utime(file, (1000 + colour[0], 1000 + colour[0]))
        reader = build_cache([picture(file)], SIZE, tmp_path / "cache", threads=1)
        assert reader(picture(file))[:, 0, 0].tolist() == list(colour)
    monkeypatch.setattr(PIL, "__version__", "0.0")
    assert build_cache([picture(file)], SIZE, tmp_path / "cache", threads=1).array_file != reader.array_file


def test_cache_place_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="data.cache_dir"):
        build_cache([], SIZE, tmp_path / "file" / "cache", threads=1)


def test_training_from_the_cache_gives_the_same_batches(root: Path, tmp_path: Path) -> None:
    benchmark = load_orbench(root, need_train=True)
    # Nine visible images, fifteen of each other kind, one in the gallery.
    assert len({source.value for source in image_sources(benchmark)}) == 9 + 3 * 15 + 1
    augment, train = AugmentConfig(flip=0.5, pad_crop=1), TrainConfig(batch_size=4)
    found = []
    for data in (DataConfig(), DataConfig(cache_dir=str(tmp_path))):
        reader = build_source_reader(data, MODEL, benchmark)
        batches = build_batches(benchmark, train, 0)
        loader = build_train_loader(benchmark, data, augment, reader, batches, seed=0, workers=1)
        found.append(list(loader.epoch(1)))
    assert len(list(tmp_path.glob("*.npy"))) == 1
    for plain, cached in zip(*found, strict=True):
        assert all(torch.equal(plain.inputs[modality], cached.inputs[modality]) for modality in plain.inputs)


def test_vocabulary_that_is_too_small_is_refused() -> None:
    with pytest.raises(UserError, match="model.vocab_size = 10"):
        build_source_reader(DataConfig(), Reid5oConfig(vocab_size=10))


def test_records_of_the_benchmark_are_immutable(root: Path) -> None:
    benchmark: Benchmark = load_orbench(root, need_train=True)
    record: Record = benchmark.train[0]
    with pytest.raises(AttributeError):
        record.person_id = 3  # type: ignore[misc]
