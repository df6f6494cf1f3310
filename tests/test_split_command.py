"""Covers: datasets/split, datasets/formats/manifest_split. python -m datasets.split: disjoint persons, queries that can
find something, the same file for the same seed.
"""

import csv
import json
import sys
from collections import defaultdict
from pathlib import Path

import pytest
from PIL import Image

from datasets import split
from datasets.releases.manifest import DATASET as MANIFEST
from datasets.structures import ReadOptions
from utils.errors import run_script

Rows = list[dict[str, str]]


def write_source(folder: Path, lines: list[str], header: str = "path,person,camera") -> Path:
    for line in lines:
        path = folder / line.split(",")[0]
        if path != folder:
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 16)).save(path)
    source = folder / "own.csv"
    source.write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")
    return source


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["split", *map(str, arguments)])
    with pytest.raises(SystemExit) as caught:
        run_script(split.main)
    return int(caught.value.code or 0)


def table(path: Path) -> Rows:
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def people(rows: Rows, *splits: str) -> set[str]:
    return {row["person"] for row in rows if row["split"] in splits}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Twenty persons: p00 has one image, p01 one camera, the others 4 images of 2 cameras."""
    lines = ["i/p00.png,p00,1", *(f"i/p01_{n}.png,p01,1" for n in range(4))]
    lines += [f"i/p{p:02d}_{n}.png,p{p:02d},{n % 2}" for p in range(2, 20) for n in range(4)]
    return write_source(tmp_path, lines)


def test_queries_and_gallery_of_a_person_stand_in_listed_order(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which images become queries is drawn by seed; their order in the file is not."""
    for seed in range(4):
        output = tmp_path / f"{seed}.csv"
        arguments = ("--test", 0.8, "--val", 0, "--queries-per-person", 2, "--seed", seed)
        assert run(monkeypatch, "--source", source, "--output", output, *arguments) == 0
        rows = table(output)
        for role in ("query", "gallery"):
            for person in people(rows, role):
                paths = [row["path"] for row in rows if row["person"] == person and row["split"] == role]
                assert paths == sorted(paths), (seed, role, person)


@pytest.mark.parametrize("seed", range(4))
def test_disjoint_persons_and_queries_with_a_match(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    output = tmp_path / "split.csv"
    assert (
        run(
            monkeypatch,
            "--source",
            source,
            "--output",
            output,
            "--val",
            0.2,
            "--test",
            0.4,
            "--queries-per-person",
            2,
            "--seed",
            seed,
        )
        == 0
    )
    rows = table(output)
    train, val, test = people(rows, "train"), people(rows, "val"), people(rows, "query", "gallery")
    assert (len(train), len(val), len(test)) == (8, 4, 8) and len(train | val | test) == 20
    assert sorted(row["path"] for row in rows) == sorted(row["path"] for row in table(source))
    gallery = defaultdict(set)
    for row in rows:
        if row["split"] == "gallery":
            gallery[row["person"]].add(row["camera"])
    queries = [row for row in rows if row["split"] == "query"]
    assert all(gallery[row["person"]] - {row["camera"]} for row in queries)
    assert people(rows, "query") == test - {"p00", "p01"} and all(
        sum(row["person"] == person for row in queries) == 2 for person in people(rows, "query")
    )


def test_shares_are_of_persons_and_halves_round_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # 0.5 x 5 = 2.5 -> 3 and 0.5 x 9 = 4.5 -> 5; to the nearest even number they would be 2 and 4.
    for persons, tested in ((5, 3), (9, 5)):
        (tmp_path / str(persons)).mkdir()
        lines = [f"{p}_{n}.png,{p}" for p in "abcdefghi"[:persons] for n in range(2)]
        source = write_source(tmp_path / str(persons), lines, "path,person")
        output = tmp_path / f"{persons}.csv"
        assert run(monkeypatch, "--source", source, "--output", output, "--val", 0, "--test", 0.5) == 0
        rows = table(output)
        counts = (len(people(rows, "train")), len(people(rows, "val")), len(people(rows, "query", "gallery")))
        assert counts == (persons - tested, 0, tested)
        out = capsys.readouterr().out
        assert f"{100 * tested / persons:.2f} %" in out and "test 0.5" in out


def test_distractors_are_listed(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed in range(40):
        assert (
            run(
                monkeypatch,
                "--source",
                source,
                "--output",
                tmp_path / "s.csv",
                "--test",
                0.8,
                "--val",
                0,
                "--seed",
                seed,
                "--overwrite",
            )
            == 0
        )
        out = capsys.readouterr().out
        rows = table(tmp_path / "s.csv")
        if {"p00", "p01"} <= people(rows, "gallery"):
            assert (
                "2 test persons have no query and are distractors in the gallery: p00 (one image), p01 (one camera)"
                in out
            )
            return
    pytest.fail("no seed puts both into the test")


def test_the_same_seed_gives_the_same_file(tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seed in (("a.csv", 3), ("b.csv", 3), ("c.csv", 4)):
        assert run(monkeypatch, "--source", source, "--output", tmp_path / name, "--seed", seed) == 0
    a, b, c = ((tmp_path / name).read_bytes() for name in ("a.csv", "b.csv", "c.csv"))
    assert a == b != c
    third, fourth = (table(tmp_path / name) for name in ("a.csv", "c.csv"))
    assert people(third, "query", "gallery") != people(fourth, "query", "gallery"), "other persons are tested"
    # The order of the source's rows does not matter.
    lines = source.read_text(encoding="utf-8").splitlines()
    source.write_text("\n".join([lines[0], *reversed(lines[1:])]), encoding="utf-8")
    assert run(monkeypatch, "--source", source, "--output", tmp_path / "d.csv", "--seed", 3) == 0
    assert (tmp_path / "d.csv").read_bytes() == a


def test_the_seed_draws_the_queries_within_a_person(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, str]] = []
    for seed in range(4):
        output = tmp_path / f"{seed}.csv"
        arguments = ("--test", 0.8, "--val", 0, "--seed", seed)
        assert run(monkeypatch, "--source", source, "--output", output, *arguments) == 0
        asked.append({row["person"]: row["path"] for row in table(output) if row["split"] == "query"})
    both = set.intersection(*map(set, asked))
    assert len(both) > 3 and any(len({queries[person] for queries in asked}) > 1 for person in both)


def test_what_is_written_can_be_read_from_elsewhere(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "lists" / "deep" / "split.jsonl"
    assert run(monkeypatch, "--source", source, "--output", output) == 0
    release = MANIFEST.read(output, ReadOptions())
    assert json.loads(output.read_text(encoding="utf-8").splitlines()[0])["path"].startswith("../../i/")
    assert {part: len({record.person_id for record in records}) for part, records in release.parts.items()}[
        "train"
    ] == 8
    (search,) = MANIFEST.protocols["own-data"].searches(release)
    assert search.protocol == "own-data/same-camera"


def test_a_folder_per_person(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_source(tmp_path / "photos", [f"{p}/{n}.png,{p}" for p in "abcdef" for n in range(3)], "path,person")
    (tmp_path / "photos" / "own.csv").unlink()
    output = tmp_path / "photos.csv"
    assert run(monkeypatch, "--source", tmp_path / "photos", "--output", output, "--val", 0.2, "--test", 0.4) == 0
    rows = table(output)
    assert (
        list(rows[0]) == ["path", "person", "split"]
        and len(people(rows, "query")) == 2
        and rows[0]["path"].startswith("photos/")
    )
    assert all(
        sum(row["person"] == person and row["split"] == "gallery" for row in rows) == 2
        for person in people(rows, "query")
    )


def test_captions_become_text_queries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_source(
        tmp_path, [f"{p}_{n}.png,{p},caption {p}{n}" for p in "abcdef" for n in range(2)], "path,person,caption"
    )
    for name, more, wanted in (("a.csv", [], True), ("b.csv", ["--no-caption-queries"], False)):
        assert (
            run(monkeypatch, "--source", source, "--output", tmp_path / name, "--val", 0.2, "--test", 0.4, *more) == 0
        )
        rows = table(tmp_path / name)
        texts = [row["caption"] for row in rows if row.get("modality") == "text" and row["split"] == "query"]
        tested = people(rows, "gallery")
        assert sorted(texts) == (sorted(f"caption {p}{n}" for p in tested for n in range(2)) if wanted else [])
        MANIFEST.read(tmp_path / name, ReadOptions())


def test_infrared_images_are_queries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [
        f"{p}_{kind}{n}.png,{p},{kind},{camera}"
        for p in "abcdef"
        for kind, camera in (("rgb", 1), ("nir", 2))
        for n in range(2)
    ]
    source = write_source(tmp_path, lines, "path,person,modality,camera")
    assert run(monkeypatch, "--source", source, "--output", tmp_path / "o.csv", "--val", 0.2, "--test", 0.4) == 0
    rows = table(tmp_path / "o.csv")
    # Both visible images are of camera 1: only infrared ones can be queries, one of two per person.
    assert [row["modality"] for row in rows if row["split"] == "query"] == ["nir", "nir"]
    assert [row["modality"] for row in rows if row["split"] == "gallery"] == ["rgb"] * 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--test", "1.5"], "--test is 1.5"),
        (["--val", "-1"], "--val is -1"),
        (["--val", "0.6"], "leave nobody to train on"),
        (["--queries-per-person", "0"], "give at least 1"),
        (["--test", "0.01"], "too few"),
        (["--output", "x.txt"], "ends in .csv or .jsonl"),
        (["--source", "absent"], "no such file or folder: absent"),
    ],
)
def test_wrong_arguments(
    tmp_path: Path,
    source: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(monkeypatch, "--source", source, "--output", "o.csv", *arguments) == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith("error: ") and error.count("\n") == 1 and not Path("o.csv").exists()


def test_nothing_is_replaced_unasked(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "o.csv"
    assert run(monkeypatch, "--source", source, "--output", output) == 0
    assert run(monkeypatch, "--source", source, "--output", output) == 2 and "--overwrite" in capsys.readouterr().err
    assert (
        run(monkeypatch, "--source", output, "--output", tmp_path / "p.csv") == 2
        and "has a split already" in capsys.readouterr().err
    )
    assert run(monkeypatch, "--source", output, "--output", tmp_path / "p.csv", "--resplit") == 0
    assert table(tmp_path / "p.csv") == table(output)


def test_no_query_at_all_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_source(tmp_path, [f"{p}_{n}.png,{p},1" for p in "abcdefgh" for n in range(2)])
    assert run(monkeypatch, "--source", source, "--output", tmp_path / "o.csv") == 2
    assert "there is no query" in capsys.readouterr().err
