"""Covers: datasets/loading/readers, datasets/checks/files. Images as a viewer shows them: transparent grounds are
white, pictures stand upright, in every reader and cache; the check counts both.
"""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from trees import plant

from configs.vocabulary import Modality
from datasets.checks.run import CheckOptions, run_check
from datasets.loading.image_cache import build_cache
from datasets.loading.readers import PillowReader, open_image, show_image
from datasets.structures import ReadOptions, Source

HEIGHT, WIDTH = 6, 4
INK = np.zeros((HEIGHT, WIDTH), dtype=bool)
INK[1:5, 2] = True
DRAWN = np.where(INK[..., None], 0, 255).astype(np.uint8).repeat(3, axis=2)
"""Black strokes on white: what a viewer shows of each file below."""


def write_drawing(path: Path, kind: str) -> Path:
    """Black strokes on a transparent ground, whose hidden colour is black too."""
    alpha = Image.fromarray(np.where(INK, 255, 0).astype(np.uint8))
    black = Image.new("L", alpha.size, 0)
    numbered = Image.fromarray(INK.astype(np.uint8))
    if kind.startswith("rgba"):
        Image.merge("RGBA", (black, black, black, alpha)).save(path, lossless=True)
    elif kind == "la.png":
        Image.merge("LA", (black, alpha)).save(path)
    elif kind == "palette.png":
        numbered.putpalette([0] * 6)
        numbered.save(path, transparency=0)
    elif kind == "grey.png":
        Image.fromarray(np.where(INK, 0, 9).astype(np.uint8)).save(path, transparency=9)
    else:
        Image.merge("RGB", [Image.fromarray(np.where(INK, 0, 9).astype(np.uint8))] * 3).save(
            path, transparency=(9, 9, 9)
        )
    return path


@pytest.mark.parametrize(
    "kind", ["rgba.png", "rgba.webp", "rgba.tif", "rgba.gif", "la.png", "palette.png", "grey.png", "rgb.png"]
)
def test_a_transparent_ground_is_white(tmp_path: Path, kind: str) -> None:
    path = write_drawing(tmp_path / f"drawing{Path(kind).suffix}", kind)
    assert np.array_equal(np.asarray(open_image(path)), DRAWN)
    assert show_image(path).transparent and not show_image(path).turned
    source, size = Source(modality=Modality.SK, value=str(path)), (HEIGHT, WIDTH)
    for reader in (PillowReader(size), build_cache([source], size, tmp_path / "cache", 1)):
        assert np.array_equal(reader(source), DRAWN.transpose(2, 0, 1))


def test_half_transparent_pixels_are_mixed_and_opaque_ones_kept(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 4), dtype=np.uint8)
    pixels[..., 3] = 255
    Image.fromarray(pixels).save(tmp_path / "opaque.png")
    opaque = show_image(tmp_path / "opaque.png")
    assert np.array_equal(np.asarray(opaque.picture), pixels[..., :3]) and not opaque.transparent
    Image.new("RGBA", (2, 2), (0, 100, 200, 51)).save(tmp_path / "veil.png")
    # A fifth of the colour on four fifths of white.
    assert np.abs(np.asarray(open_image(tmp_path / "veil.png")).astype(int) - (204, 224, 244)).max() <= 1


# What the stored pixels (rows top to bottom) must become, by the definition of tag 274: the 0th row and column are the
# named sides of the picture.
UPRIGHT = {
    1: [[1, 2], [3, 4], [5, 6]],  # row 0 top, column 0 left
    2: [[2, 1], [4, 3], [6, 5]],  # top, right
    3: [[6, 5], [4, 3], [2, 1]],  # bottom, right
    4: [[5, 6], [3, 4], [1, 2]],  # bottom, left
    5: [[1, 3, 5], [2, 4, 6]],  # left, top
    6: [[5, 3, 1], [6, 4, 2]],  # right, top
    7: [[6, 4, 2], [5, 3, 1]],  # right, bottom
    8: [[2, 4, 6], [1, 3, 5]],  # left, bottom
}


@pytest.mark.parametrize("suffix", ["png", "webp", "tif"])
@pytest.mark.parametrize("orientation", UPRIGHT)
def test_pictures_stand_upright(tmp_path: Path, orientation: int, suffix: str) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    stored = np.array(UPRIGHT[1], dtype=np.uint8) * 40
    Image.fromarray(np.stack([stored] * 3, axis=2)).save(tmp_path / f"a.{suffix}", exif=exif, lossless=True)
    shown = show_image(tmp_path / f"a.{suffix}")
    assert (np.asarray(shown.picture)[..., 0] // 40).tolist() == UPRIGHT[orientation]
    assert shown.turned == (orientation > 1) and not shown.transparent


def test_a_photograph_of_a_held_camera_stands_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[274] = 6
    left_dark = np.full((32, 64, 3), 255, dtype=np.uint8)
    left_dark[:, :32] = 0
    Image.fromarray(left_dark).save(tmp_path / "a.jpg", exif=exif, quality=95)
    pixels = np.asarray(open_image(tmp_path / "a.jpg"))
    # A quarter turn clockwise: what was left is on top.
    assert pixels.shape == (64, 32, 3) and pixels[:24].max() < 60 and pixels[40:].min() > 195


def test_a_damaged_exif_table_leaves_the_picture_as_stored(tmp_path: Path) -> None:
    Image.new("RGB", (2, 3), (10, 20, 30)).save(tmp_path / "a.png")
    content = (tmp_path / "a.png").read_bytes()
    table = b"II*\0\xff\xff\xff\x7f"
    chunk = struct.pack(">I", len(table)) + b"eXIf" + table + struct.pack(">I", zlib.crc32(b"eXIf" + table))
    end = content.index(b"IDAT") - 4
    (tmp_path / "a.png").write_bytes(content[:end] + chunk + content[end:])
    shown = show_image(tmp_path / "a.png")
    assert np.asarray(shown.picture).reshape(-1, 3).tolist() == [[10, 20, 30]] * 6 and not shown.turned


def findings(name: str, root: Path) -> dict[str, tuple[str, int, str]]:
    report, _ = run_check(CheckOptions(dataset=name, root=root, reading=ReadOptions(need_train=False)))
    return {found.kind: (found.level, found.count, found.message) for found in report.findings}


def test_the_check_counts_what_stored_pixels_do_not_say(tmp_path: Path) -> None:
    plant(tmp_path, "query/0001_c1s1_000001_00.jpg", "bounding_box_test/0001_c2s1_000001_00.jpg")
    plant(tmp_path, "bounding_box_test/0001_c2s1_000003_00.jpg", "bounding_box_test/0001_c2s1_000005_00.jpg")
    exif = Image.Exif()
    exif[274] = 3
    Image.new("RGB", (8, 16), (1, 2, 3)).save(tmp_path / "bounding_box_test/0001_c2s1_000003_00.jpg", exif=exif)
    write_drawing(tmp_path / "a.png", "rgba.png").rename(tmp_path / "bounding_box_test/0001_c2s1_000005_00.jpg")
    found = findings("market1501", tmp_path)
    for kind in ("turned_images", "transparent_images"):
        level, count, message = found[kind]
        assert (level, count) == ("warning", 1) and "1 of 4 images" in message and "reference code" in message
    own = tmp_path / "own.csv"
    own.write_text("path,person\nquery/0001_c1s1_000001_00.jpg,a\nbounding_box_test/0001_c2s1_000003_00.jpg,a\n")
    level, count, message = findings("manifest", own)["turned_images"]
    assert (level, count) == ("note", 1) and "reference" not in message
