"""Covers: serve/asked, serve/folding, serve/pictures, serve/table. What a request may say, and the parts of an answer
that need no model.
"""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from configs.vocabulary import Modality
from datasets.structures import Source
from serve.asked import MOST_LETTERS, MOST_PICTURES, Asked, Filters, Upload, read_asked
from serve.folding import fold
from serve.pictures import SMALL, original, small, whole
from serve.table import Table
from solver.search.gallery import Gallery
from solver.search.queries import Query
from solver.search.ranked import RankedImage, RankedQuery
from solver.search.searched import EncodedGallery
from utils.errors import UserError

FILE = Upload("a.png", b"bytes")


def test_a_form_becomes_one_search() -> None:
    fields: list[tuple[str, str | Upload]] = [
        ("text", " a red\r\n coat "), ("sk", FILE), ("sk", Upload("b.png", b"other")), ("top_k", "7"),
        ("rate", "0.01"), ("camera", "c1"), ("folder", "x/y"), ("known", "no"), ("fold", "0.99"), ("format", "list"),
        ("instruction", " "),
    ]  # fmt: skip
    assert read_asked(fields) == Asked(
        texts={"text": "a red coat"},
        pictures={"sk": (FILE, Upload("b.png", b"other"))},
        top_k=7,
        rate=0.01,
        filters=Filters(camera="c1", folder="x/y", known=False),
        fold=0.99,
        format="list",
    )
    assert read_asked([("sk", FILE), ("text", "x")]).parts == ("sk", "text")
    assert read_asked([("like", "0")]).like == 0 and read_asked([("example", "3.12")]).example == (3, 12)
    assert read_asked([("text", "x")]).top_k == 20


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ([], "nothing to search for"),
        ([("text", "  ")], "nothing to search for"),
        ([("texd", "x")], "did you mean 'text'"),
        ([("text", FILE)], "text is a file; give a text"),
        ([("sk", "a.png")], "sk is a text; send a file"),
        ([("sk", "../../etc/passwd")], "sk is a text; send a file"),
        ([("sk", Upload("empty.png", b""))], "sk: empty.png"),
        ([("text", "x"), ("text", "y")], "given twice"),
        ([("text", "x" * (MOST_LETTERS + 1))], "2,001 letters"),
        ([("sk", FILE)] * (MOST_PICTURES + 1), "9 pictures, and at most 8"),
        ([("rgb", FILE), ("instruction_image", FILE), ("instruction_image", FILE)], "at most 1"),
        ([("rgb", FILE), ("instruction", "x"), ("instruction_image", FILE)], "not both"),
        ([("like", "1"), ("instruction", "x")], "leave it out"),
        ([("like", "1"), ("text", "x")], "three kinds of query"),
        ([("like", "-1")], "like '-1'"),
        ([("like", "1e3")], "like '1e3'"),
        ([("like", "٣")], "like '٣'"),
        ([("like", "9" * 40)], "whole number"),
        ([("text", "x"), ("top_k", "0")], "from 1 to 200"),
        ([("text", "x"), ("top_k", "201")], "from 1 to 200"),
        ([("text", "x"), ("rate", "nan")], "a number from 0 to 1"),
        ([("text", "x"), ("rate", "two")], "a number from 0 to 1"),
        ([("text", "x"), ("fold", "0.2")], "a number from 0.5 to 1"),
        ([("text", "x"), ("known", "maybe")], "yes or no"),
        ([("text", "x"), ("format", "exe")], "format 'exe'"),
        ([("example", "../1")], "LIST.ENTRY"),
    ],
)
def test_wrong_forms_are_refused_in_one_sentence(fields: list[tuple[str, str | Upload]], words: str) -> None:
    with pytest.raises(UserError) as caught:
        read_asked(fields)
    assert words in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 250


def test_names_of_uploads_are_for_reading_only() -> None:
    hostile = ("../../etc/passwd", "C:\\x\\passwd", "<b>passwd", "a\n\x1b[31mpasswd", "passwd" * 50, "", ".")
    for name in hostile:
        label = Upload(name, b"x").label
        assert not set(label) & set("/\\<>\n\x1b") and len(label) < 80 and label.rpartition(" ")[2] == "2d711642b7"
    # The digest keeps pictures of one name apart, wherever their names serve as keys.
    assert Upload("a", b"x").label != Upload("a", b"y").label


def folded(scores: list[list[float]], top_k: int, cosine: float | None) -> list[tuple[int, list[int]]]:
    """(number, near-duplicates) of every result; scores: features (N, D) in their ranking."""
    features = np.array(scores, dtype=np.float64)
    images = [RankedImage(rank=place + 1, index=10 + place, path="", similarity=0.0) for place in range(len(features))]
    query = Query(name="q", sources=(Source(modality=Modality.RGB, value="q"),))
    found = fold(
        lambda count: RankedQuery(query=query, results=tuple(images[:count])),
        lambda results: features[[image.index - 10 for image in results]],
        top_k=top_k,
        cosine=cosine,
    )
    return [(image.index - 10, [copy.index - 10 for copy in found.copies[image.index]]) for image in found.row.results]


def test_near_duplicates_are_shown_with_the_better_one() -> None:
    x, y, z = [1.0, 0, 0], [0, 2.0, 0], [0, 0, 3.0]
    near = [5.0, 0.1, 0]  # cosine 0.9998 with x
    ranking = [x, near, y, x, near, near, z, y]
    assert folded(ranking, 2, 0.999) == [(0, [1, 3]), (2, [])]  # looked at 4, of which 2 are kept
    for top_k in (3, 9):
        assert folded(ranking, top_k, 0.999) == [(0, [1, 3, 4, 5]), (2, [7]), (6, [])]
    assert folded(ranking, 4, None) == [(0, []), (1, []), (2, []), (3, [])]
    assert [place for place, _ in folded(ranking, 9, 0.99999)] == [0, 1, 2, 6]
    # What is near a near-duplicate but not near the leader stands for itself: no chains.
    chain = [[np.cos(angle), np.sin(angle), 0] for angle in (0, 0.1, 0.2, 0.3)]
    assert folded(chain, 9, float(np.cos(0.15))) == [(0, [1]), (2, [3])]
    assert folded([[0.0, 0, 0], [0.0, 0, 0]], 9, 0.9) == [(0, []), (1, [])]


def plain_table(root: Path) -> Table:
    """Six images of two cameras in three folders; the one of place 2 is unreadable; persons of three are known."""
    paths = [root / name for name in ("a/0.png", "a/1.png", "a/2.png", "ab/3.png", "b/c/4.png", "b/c/5.png", "b/6.png")]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 8), "red").save(path)
    gallery = Gallery(
        name="six",
        location="six",
        sources=tuple(Source(modality=Modality.RGB, value=str(path)) for path in paths),
        person_ids=("p", None, None, "q", None, "p", None),  # type: ignore[arg-type]
        cameras=("1", "1", "", "2", "2", "1", ""),
    )
    features = torch.eye(6)
    positions = np.array([0, 1, 3, 4, 5, 6])
    return Table.of(
        EncodedGallery(gallery=gallery, features=features, positions=positions, failures={2: "x"}, reused=False)
    )


def test_images_are_known_by_number_and_filters_leave_a_part(tmp_path: Path) -> None:
    table = plain_table(tmp_path)
    assert table.root == str(tmp_path) and table.folders == ("a", "ab", "b", "b/c") and table.cameras == ("1", "2")
    assert table.known == 3 and [table.row(number) for number in (0, 1, 2, 3, 6, 7, -1)] == [
        0,
        1,
        None,
        2,
        5,
        None,
        None,
    ]
    image = table.image(4)
    assert image is not None and table.name(image.path) == "b/c/4.png" and table.image(2) is None
    left = {
        Filters(folder="a"): [0, 1],
        Filters(folder="b"): [4, 5, 6],
        Filters(folder="b/c/"): [4, 5],
        Filters(camera="1"): [0, 1, 5],
        Filters(known=True): [0, 3, 5],
        Filters(known=False): [1, 4, 6],
        Filters(camera="2", folder="b", known=False): [4],
    }
    for filters, numbers in left.items():
        part = table.passing(filters)
        assert part.numbers(part.every).tolist() == numbers and part.count == len(numbers)
        assert table.passing(filters) is part
    assert table.passing(Filters()) is table.gallery
    for filters in (Filters(camera="3"), Filters(folder="c"), Filters(folder="../.."), Filters(camera="2", folder="a")):
        with pytest.raises(UserError):
            table.passing(filters)


def test_small_pictures_are_made_anew_and_files_are_what_they_hold(tmp_path: Path) -> None:
    place = tmp_path / "a.png"
    Image.new("RGB", (600, 300), "blue").save(place)
    source = Source(modality=Modality.RGB, value=str(place))
    with Image.open(io.BytesIO(small(source))) as picture:
        assert picture.format == "JPEG" and picture.size == (SMALL[0], 100)
    before = place.stat().st_mtime_ns
    Image.new("RGB", (10, 10), "red").save(place)
    os.utime(place, ns=(before + 1, before + 1))
    with Image.open(io.BytesIO(small(source))) as picture:
        assert picture.convert("RGB").getpixel((5, 5))[0] > 200
    page = tmp_path / "b.png"
    page.write_text("<script>alert(1)</script>")
    Image.new("RGB", (4, 4)).save(tmp_path / "c.html", format="BMP")
    assert original(str(tmp_path / "c.html")) == ((tmp_path / "c.html").read_bytes(), "image/bmp")
    for gone in (page, tmp_path / "none.png", tmp_path):
        with pytest.raises(UserError):
            original(str(gone))
        with pytest.raises(UserError):
            small(Source(modality=Modality.RGB, value=str(gone)))


def test_a_part_of_an_image_is_sent_alone(tmp_path: Path) -> None:
    place = tmp_path / "a.jpg"
    picture = Image.new("RGB", (20, 100), "blue")
    picture.paste("red", (0, 15, 20, 55))
    picture.save(place, quality=95)
    assert whole(Source(modality=Modality.RGB, value=str(place))) == (place.read_bytes(), "image/jpeg")
    content, kind = whole(Source(modality=Modality.RGB, value=str(place), crop="box"))
    with Image.open(io.BytesIO(content)) as part:
        assert kind == "image/png" and part.size == (20, 40)
        assert all(red > 200 and blue < 90 for red, _, blue in (part.getpixel((10, 3)), part.getpixel((10, 36))))
    place.unlink()
    for crop in ("", "box"):
        with pytest.raises(UserError):
            whole(Source(modality=Modality.RGB, value=str(place), crop=crop))
