"""Covers: utils/cache_folders, utils/identical, datasets/cache, datasets/loading/image_cache,
solver/search/gallery_cache, configs/schema/data. Caches answer for the files that are there, and for no others; they
have a size, an age and a command that clears them.
"""

import os
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from protocol_oracle import ToyModel, ToyReader

from configs.schema.data import DataConfig
from configs.vocabulary import Modality
from datasets import cache
from datasets.loading.image_cache import build_cache
from datasets.loading.readers import PillowReader
from datasets.structures import Source
from solver.evaluation.spec import EvaluationSpec
from solver.search.gallery import Gallery, folder_gallery
from solver.search.gallery_cache import GalleryEncoder
from utils.cache_folders import cache_entries, clear, tidy
from utils.errors import UserError, run_script

SIZE = (16, 8)
DAY = 86_400


def noise(path: Path, seed: int) -> Source:
    """An uncompressed picture: all are of one size, and here of one time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (*SIZE, 3), dtype=np.uint8)).save(path)
    os.utime(path, (1.7e9, 1.7e9))
    return Source(modality=Modality.RGB, value=str(path))


def exchange(one: Source, other: Source) -> None:
    """Give two files each other's names."""
    spare = f"{one.value}.spare"
    for source, target in ((one.value, spare), (other.value, one.value), (spare, other.value)):
        Path(source).rename(target)


def overwrite(source: Source, seed: int) -> None:
    """Other content in the same file, of the same size and modification time."""
    content = noise(Path(source.value).parent / "other.bmp", seed)
    with Path(source.value).open("r+b") as stream:
        stream.write(Path(content.value).read_bytes())
    Path(content.value).unlink()
    os.utime(source.value, (1.7e9, 1.7e9))


@pytest.mark.parametrize("change", ["exchange", "overwrite"])
def test_the_decode_cache_notices_files_of_equal_size_and_time(tmp_path: Path, change: str) -> None:
    sources = [noise(tmp_path / f"{name}.bmp", seed) for seed, name in enumerate("abc")]
    build_cache(sources, SIZE, tmp_path / "cache", 1)
    if change == "exchange":
        exchange(*sources[:2])
    else:
        overwrite(sources[0], 9)
    found = [Path(source.value).stat() for source in sources]
    assert len({(status.st_size, status.st_mtime) for status in found}) == 1
    reader, plain = build_cache(sources, SIZE, tmp_path / "cache", 1), PillowReader(SIZE)
    assert all(np.array_equal(reader(source), plain(source)) for source in sources)


@pytest.mark.parametrize("change", ["exchange", "overwrite"])
def test_an_encoded_gallery_notices_files_of_equal_size_and_time(tmp_path: Path, change: str) -> None:
    sources = [noise(tmp_path / "photos" / f"{name}.bmp", seed) for seed, name in enumerate("abc")]

    def reused() -> bool:
        found = plain_encoder(tmp_path / "cache").encode(folder_gallery(tmp_path / "photos"))
        alone = [plain_encoder(tmp_path / "none").encode(gallery_of(source)).features[0] for source in sources]
        assert torch.allclose(found.features, torch.stack(alone), atol=1e-6), "whatever was kept, of these files"
        shutil.rmtree(tmp_path / "none")
        return found.reused

    assert not reused() and reused()
    # A copy of the same content with another inode is the same image.
    content = Path(sources[2].value).read_bytes()
    Path(sources[2].value).unlink()
    Path(sources[2].value).write_bytes(content)
    assert reused()
    if change == "exchange":
        exchange(*sources[:2])
    else:
        overwrite(sources[0], 9)
    assert not reused() and reused()


def gallery_of(source: Source) -> Gallery:
    return Gallery(name="one", location=source.value, sources=(source,))


def plain_encoder(folder: Path, gigabytes: float = 0, days: float = 0) -> GalleryEncoder:
    return GalleryEncoder(
        ToyModel(),
        ToyReader(),
        EvaluationSpec(),
        torch.device("cpu"),
        identity={},
        cache=folder,
        limits=(gigabytes, days),
    )


def entry(folder: Path, name: str, size: int, age: float) -> None:
    folder.mkdir(exist_ok=True)
    for suffix in (".npy", ".json"):
        (folder / f"{name * 16}{suffix}").write_bytes(b"x" * (size // 2))
        os.utime(folder / f"{name * 16}{suffix}", (time.time() - age * DAY,) * 2)


def names(folder: Path) -> str:
    return "".join(found.name[0] for found in cache_entries(folder))


def test_what_was_used_longest_ago_goes_first(tmp_path: Path) -> None:
    for name, age in {"a": 50, "b": 3, "c": 20, "d": 1}.items():
        entry(tmp_path, name, 1000, age)
    (tmp_path / "hashes.json").write_text("{}")
    (tmp_path / "mine.npy").write_text("mine")
    assert names(tmp_path) == "acbd" and tidy(tmp_path, gigabytes=0, days=0) == []
    assert [gone.name[0] for gone in tidy(tmp_path, gigabytes=0, days=30)] == ["a"]
    # 3,000 bytes: the limit of 1,500 leaves one.
    assert [gone.name[0] for gone in tidy(tmp_path, gigabytes=1.5e-6, days=0, keep=["c" * 16])] == ["b", "d"]
    assert names(tmp_path) == "c" and (tmp_path / "hashes.json").exists()
    assert [gone.size for gone in clear(tmp_path)] == [1000]
    assert [path.name for path in tmp_path.iterdir()] == ["mine.npy"]
    assert cache_entries(tmp_path / "absent") == []


def test_the_decode_cache_keeps_its_limits(tmp_path: Path) -> None:
    sources = [noise(tmp_path / f"{name}.bmp", seed) for seed, name in enumerate("ab")]
    one = 3 * SIZE[0] * SIZE[1] / 1e9
    with pytest.raises(UserError, match="data.cache_gb = .*2 decoded images take .* GB; raise it"):
        build_cache(sources, SIZE, tmp_path / "cache", 1, gigabytes=one)
    assert not (tmp_path / "cache").exists()
    first = build_cache(sources[:1], SIZE, tmp_path / "cache", 1, gigabytes=10 * one)
    second = build_cache(sources, SIZE, tmp_path / "cache", 1, gigabytes=3 * one)
    assert not first.array_file.exists() and second.array_file.exists()
    # Whoever had it open or not: what is gone is decoded.
    assert np.array_equal(first(sources[0]), PillowReader(SIZE)(sources[0]))
    old = time.time() - 40 * DAY
    for path in (tmp_path / "cache").iterdir():
        os.utime(path, (old, old))
    build_cache(sources[1:], SIZE, tmp_path / "cache", 1, days=30)
    assert not second.array_file.exists()
    # Use counts, not age.
    again = build_cache(sources[1:], SIZE, tmp_path / "cache", 1)
    os.utime(again.array_file, (old, old))
    os.utime(again.array_file.with_suffix(".json"), (old, old))
    build_cache(sources[1:], SIZE, tmp_path / "cache", 1)
    assert tidy(tmp_path / "cache", gigabytes=0, days=30) == []


def test_encoded_galleries_keep_their_limits(tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    galleries: list[Gallery] = []
    for place in ("one", "two"):
        noise(tmp_path / place / "a.bmp", len(galleries))
        galleries.append(folder_gallery(tmp_path / place))

    def encoder(gigabytes: float, days: float) -> GalleryEncoder:
        return plain_encoder(folder, gigabytes, days)

    for gallery in galleries:
        assert not encoder(0, 0).encode(gallery).reused and encoder(0, 0).encode(gallery).reused
    assert len(cache_entries(folder)) == 2
    encoder(1e-9, 0).encode(galleries[0])
    assert [found.name for found in cache_entries(folder)] == [encoder(0, 0).path(galleries[0]).stem]
    os.utime(encoder(0, 0).path(galleries[0]), (time.time() - 9 * DAY,) * 2)
    encoder(0, 8).encode(galleries[1])
    assert [found.name for found in cache_entries(folder)] == [encoder(0, 0).path(galleries[1]).stem]


def test_the_command_shows_and_clears(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "cache"
    for name, age in {"a": 50, "b": 3, "c": 20}.items():
        entry(folder, name, 1000, age)

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["cache", *arguments])
        with pytest.raises(SystemExit) as caught:
            run_script(cache.main)
        return (int(caught.value.code or 0), *capsys.readouterr())

    code, out, _ = call(str(folder))
    assert code == 0 and out.splitlines()[-1].endswith("3 entries, 0.000 GB; removed 0, 0.000 GB") and "a" * 16 in out
    assert call(str(folder), "--older-than", "30")[0] == 0 and names(folder) == "cb"
    assert call(str(folder), "--largest", "1e-6")[0] == 0 and names(folder) == "b"
    code, out, _ = call(str(folder), "--clear")
    assert code == 0 and "0 entries" in out and not list(folder.iterdir())
    (folder / "photo.png").write_bytes(b"mine")
    code, _, err = call(str(folder), "--clear")
    assert code == 2 and "holds other files too" in err and (folder / "photo.png").exists()
    assert call(str(tmp_path / "absent"))[0] == 2 and call(str(folder), "--older-than", "-1")[0] == 2


def test_limits_are_options() -> None:
    for wrong in ({"cache_gb": -1.0}, {"cache_days": -0.5}):
        with pytest.raises(ValueError, match=f"data.{next(iter(wrong))}"):
            DataConfig(**wrong)  # type: ignore[arg-type]
