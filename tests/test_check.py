"""Covers: datasets/check, datasets/checks/run, datasets/checks/contents, datasets/checks/files,
datasets/checks/matches, datasets/checks/report, datasets/overlap. python -m datasets.check: what it finds in whole and
in spoilt copies, its exit code, its JSON; overlap and exclusion.
"""

import json
import random
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from official_trees import TREES, root_of
from tiny_orbench import write_orbench
from trees import plant, write_lines

from configs.vocabulary import AnnotationKind, Modality
from datasets import check, overlap
from datasets.catalogue import dataset_entry
from datasets.checks import files
from datasets.checks.contents import coverage_findings
from datasets.checks.matches import find_unmatched
from datasets.checks.run import CheckOptions, run_check
from datasets.protocols import Search
from datasets.structures import ReadOptions, Record, Release, Source
from utils.errors import UserError, run_script

KEYS = {
    "format",
    "dataset",
    "title",
    "root",
    "variant",
    "parts",
    "searches",
    "coverage",
    "findings",
    "access",
    "images_opened",
    "dropped",
    "exit_code",
}
Outcome = tuple[int, str, str]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Call the command; (exit code, standard output, standard error)."""

    def call(*arguments: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["check", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            run_script(check.main)
        return (int(caught.value.code or 0), *capsys.readouterr())

    return call


def report(name: str, root: Path, **options: Any):
    return run_check(CheckOptions(dataset=name, root=root, reading=ReadOptions(check_files=False), **options))[0]


def kinds(result, *levels: str) -> dict[str, int]:
    return {
        finding.kind: finding.count for finding in result.findings if finding.level in (levels or ("defect", "warning"))
    }


@pytest.mark.parametrize("name", TREES)
def test_whole_copies_are_clean(tmp_path: Path, name: str) -> None:
    made = TREES[name](tmp_path)
    result = report(name, root_of(name, made, tmp_path))
    # OmniReID's reader warns that CUHK-PEDES reuses images of Market-1501.
    assert (
        result.exit_code == 0
        and result.searches
        and set(kinds(result)) <= {"counts_differ", *(["reader"] if name == "omnireid" else [])}
    )
    # Market-1501's image of nobody is no part; val of MSMT17 is in train.
    on_disk = sum(path.suffix in (".jpg", ".png", ".bmp") for path in tmp_path.rglob("*"))
    assert result.images_opened == on_disk - (1 if name == "market1501" else 0)


def test_the_report_in_numbers(tmp_path: Path, run) -> None:
    TREES["market1501"](tmp_path)
    code, out, err = run("--dataset", "market1501", "--root", tmp_path, "--json", tmp_path / "report.json")
    assert code == 0 and not err and "clean, 1 warning; 9 images opened" in out and "12,936" in out
    content = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert set(content) == KEYS and content["format"] == 1 and content["exit_code"] == 0
    assert [
        (part["part"], part["images"], part["persons"], part["cameras"], part["published_images"])
        for part in content["parts"]
    ] == [("train", 4, 2, 2, 12936), ("query", 2, 2, 2, 3368), ("gallery", 3, 3, 3, 15913)]
    (search,) = content["searches"]
    assert search == {
        "protocol": "market1501",
        "title": "market1501",
        "rule": "same_camera",
        "queries": 2,
        "gallery": 3,
        "unmatched": {},
    }
    assert content["coverage"][0] == {
        "side": "train",
        "persons": 2,
        "modalities": {"RGB": {"persons": 2, "items": 4}},
        "images": 4,
        "captioned_images": 0,
    }
    assert [finding["kind"] for finding in content["findings"]] == ["counts_differ"] and content["dropped"] == {
        "junk images, pid -1": 1
    }
    code, out, _ = run("--dataset", "market1501", "--root", tmp_path, "--json", "-", "--no-images")
    assert code == 0 and set(json.loads(out)) == KEYS and json.loads(out)["images_opened"] is None


def test_orbench_is_checked_too(tmp_path: Path) -> None:
    write_orbench(tmp_path)
    result = report("orbench", tmp_path)
    assert not kinds(result, "defect") and {search.title for search in result.searches} == {
        "NIR",
        "CP",
        "SK",
        "TEXT",
        "NIR+TEXT",
        "TEXT+NIR",
        "CP+SK",
        "NIR+CP+SK",
        "TEXT+NIR+CP+SK",
    }
    assert result.images_opened == 48 and result.coverage[0].modalities["SK"] == {"persons": 4, "items": 8}


def broken(folder: Path, name: str) -> None:
    folder.joinpath(name).write_bytes(folder.joinpath(name).read_bytes()[:-30])


def test_files_are_opened_and_listed(tmp_path: Path, run) -> None:
    folder = TREES["msmt17"](tmp_path)
    broken(folder, "test/0000/0000_000_07_0303morning_0015_0.jpg")
    (folder / "test/0001/0001_000_08_0303morning_0015_0.jpg").write_bytes(b"")
    (folder / "train/0001/0001_000_02_0303morning_0015_0.jpg").unlink()
    code, out, err = run("--dataset", "msmt17", "--root", tmp_path)
    assert code == 1 and not err and out.rstrip().splitlines()[-1] == "2 defects, 1 warning; 6 images opened"
    found = [line for line in out.splitlines() if line.startswith("defect: ")]
    assert found[0].startswith("defect: 1 of 7 listed images do not exist") and found[1].startswith(
        "defect: 2 of 7 images cannot be read"
    )
    assert any("0000_000_07_0303morning_0015_0.jpg: cannot be decoded" in line for line in out.splitlines())
    # Without opening, absence is still seen.
    assert kinds(report("msmt17", tmp_path, open_images=False), "defect") == {"missing_images": 1}


def test_processes_say_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = TREES["msmt17"](tmp_path)
    broken(folder, "test/0000/0000_000_07_0303morning_0015_0.jpg")
    alone = report("msmt17", tmp_path)
    monkeypatch.setattr(files, "WORTH_PROCESSES", 1)
    assert report("msmt17", tmp_path, processes=2) == alone and kinds(alone, "defect") == {"unreadable_images": 1}


def test_persons_in_train_and_test(tmp_path: Path) -> None:
    folder = TREES["ltcc"](tmp_path)
    plant(folder, "train/2_1_c1_000009.png")
    result = report("ltcc", tmp_path)
    (finding,) = (finding for finding in result.findings if finding.kind == "identity_overlap")
    assert finding.level == "defect" and finding.examples == (
        "person 2: train/2_1_c1_000009.png and query/2_1_c2_000001.png",
    )


def test_the_same_bytes_in_train_and_test(tmp_path: Path) -> None:
    folder = TREES["msmt17"](tmp_path)
    shutil.copy(
        folder / "train/0001/0001_000_02_0303morning_0015_0.jpg",
        folder / "test/0000/0000_000_07_0303morning_0015_0.jpg",
    )
    result = report("msmt17", tmp_path)
    # The ids are numbered separately: persons 0 and 1 of both sides are others.
    assert kinds(result, "defect") == {"identical_images": 1}


def image(value: str, person: int, camera: int = -1, clothes: int = -1, modality: Modality = Modality.RGB) -> Record:
    return Record(
        person_id=person,
        camera_id=camera,
        clothes_id=clothes,
        name=value,
        sources={modality: Source(modality=modality, value=value)},
    )


def test_why_a_query_has_no_match() -> None:
    """Five queries, five gallery images; worked out by hand."""
    gallery = [
        image("g1", 1, camera=1, clothes=10),
        image("g2", 2, camera=1, clothes=20),
        image("g3", 2, camera=2, clothes=20),
        image("g4", 3, camera=5, clothes=30),
        image("g5", 4, camera=1, clothes=41),
    ]
    queries = [
        image("q1", 1, camera=1, clothes=11),
        image("q2", 2, camera=3, clothes=20),
        image("g4", 3, camera=5, clothes=30),
        image("q4", 9, camera=1),
        image("q5", 4, camera=2, clothes=40),
    ]
    expected = {
        "none": {"own_image_only": ["g4"], "person_absent": ["q4"]},
        "same_camera": {"same_camera_only": ["q1"], "own_image_only": ["g4"], "person_absent": ["q4"]},
        "same_clothes": {"same_clothes_only": ["q2"], "own_image_only": ["g4"], "person_absent": ["q4"]},
        "other_clothes": {"other_clothes_only": ["q1", "q5"], "own_image_only": ["g4"], "person_absent": ["q4"]},
        "same_camera_or_clothes": {
            "same_camera_only": ["q1"],
            "same_clothes_only": ["q2"],
            "own_image_only": ["g4"],
            "person_absent": ["q4"],
        },
    }
    for rule, wanted in expected.items():
        search = Search(title="t", protocol="t", query=queries, gallery=gallery, exclusion_rule=rule)
        assert {
            reason: [record.name for record in records]
            for reason, records in find_unmatched(search, {}).queries.items()
        } == wanted, rule
    narrow = Search(title="t", protocol="t", query=queries[:1], gallery=gallery[1:])
    assert list(find_unmatched(narrow, {Modality.RGB: frozenset({1})}).queries) == ["outside_this_gallery"]
    assert list(find_unmatched(narrow, {Modality.NIR: frozenset({1})}).queries) == ["person_absent"]


def whole_matrix(queries: Sequence[Record], gallery: Sequence[Record], rule: str) -> set[str]:
    """Names of queries without a match, from full matrices of equal labels."""
    columns = [
        [np.array([getattr(record, name) for record in side]) for side in (queries, gallery)]
        for name in ("person_id", "camera_id", "clothes_id")
    ]
    person, camera, clothes = (left[:, None] == right[None] for left, right in columns)
    known = [(left >= 0)[:, None] & (right >= 0)[None] for left, right in columns]
    dropped = {
        "none": np.zeros_like(person),
        "same_camera": camera & known[1],
        "same_clothes": clothes & known[2],
        "same_camera_or_clothes": (camera & known[1]) | (clothes & known[2]),
        "other_clothes": ~clothes & known[2],
        "same_camera_or_other_clothes": (camera & known[1]) | (~clothes & known[2]),
        "sysu": (columns[1][0] == 3)[:, None] & (columns[1][1] == 2)[None],
    }[rule]
    own = np.array([record.name for record in queries])[:, None] == np.array([record.name for record in gallery])[None]
    return {record.name for record, found in zip(queries, (person & ~dropped & ~own).any(1)) if not found}


@pytest.mark.parametrize(
    "rule",
    [
        "none",
        "same_camera",
        "same_clothes",
        "other_clothes",
        "same_camera_or_clothes",
        "same_camera_or_other_clothes",
        "sysu",
    ],
)
def test_unmatched_queries_equal_the_whole_matrix(rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.checks.matches.ROWS", 2)
    generator = random.Random(5)
    for _ in range(20):
        gallery = [
            image(f"x{n}", generator.randrange(6), generator.randrange(-1, 4), generator.randrange(-1, 3))
            for n in range(12)
        ]
        queries = [
            image(f"y{n}", generator.randrange(6), generator.randrange(-1, 4), generator.randrange(-1, 3))
            for n in range(6)
        ] + gallery[:4]
        found = find_unmatched(Search(title="t", protocol="t", query=queries, gallery=gallery, exclusion_rule=rule), {})
        assert {record.name for records in found.queries.values() for record in records} == whole_matrix(
            queries, gallery, rule
        )


def test_queries_whose_person_is_absent_are_a_defect(tmp_path: Path, run) -> None:
    folder = TREES["market1501"](tmp_path)
    plant(folder, "query/0020_c1s1_001051_00.jpg", "query/0001_c3s1_001051_00.jpg")
    result = report("market1501", tmp_path)
    assert kinds(result) == {"query_person_absent": 1, "query_same_camera_only": 1, "counts_differ": 5}
    absent = next(finding for finding in result.findings if finding.kind == "query_person_absent")
    assert (
        absent.level == "defect"
        and absent.examples == ("query/0020_c1s1_001051_00.jpg",)
        and "add images" in absent.message
    )
    assert run("--dataset", "market1501", "--root", tmp_path)[0] == 1


def test_a_search_without_any_match_is_a_defect(tmp_path: Path) -> None:
    plant(tmp_path, *(f"{person}{number}.jpg" for person in "ab" for number in range(3)))
    write_lines(
        tmp_path / "own.csv", "path,person,camera,split", "a0.jpg,a,1,query", "a1.jpg,a,1,gallery", "b0.jpg,b,1,train"
    )
    result = report("manifest", tmp_path / "own.csv")
    assert kinds(result, "defect") == {"search_without_match": 1} and kinds(result, "warning") == {
        "query_same_camera_only": 1,
        "one_person": 1,
    }
    said = next(finding.message for finding in result.findings if finding.kind == "query_same_camera_only")
    assert "own-data/no-camera-rule" in said
    assert report("manifest", tmp_path / "own.csv", protocols=("own-data/no-camera-rule",)).exit_code == 0


def test_own_data_without_a_split_and_with_too_few_modalities(tmp_path: Path) -> None:
    plant(tmp_path, *(f"{person}{number}.jpg" for person in "abc" for number in range(2)))
    write_lines(
        tmp_path / "own.csv",
        "path,person",
        *(f"{person}{number}.jpg,{person}" for person in "abc" for number in range(2)),
    )
    result = report("manifest", tmp_path / "own.csv")
    assert kinds(result) == {"no_split": 1} and "datasets.split" in result.findings[0].message
    write_lines(
        tmp_path / "own.csv",
        "path,person,modality,caption,split",
        "a0.jpg,a,nir,,train",
        "a1.jpg,a,rgb,red,train",
        "b0.jpg,b,rgb,,train",
        "b1.jpg,b,rgb,,val",
        "c0.jpg,c,rgb,,test",
        "c1.jpg,c,rgb,,test",
    )
    result = report("manifest", tmp_path / "own.csv")
    expected = {"identity_overlap": 1, "modality_missing": 1, "caption_missing": 2, "one_person": 2}
    assert kinds(result) == expected
    assert next(finding.examples for finding in result.findings if finding.kind == "modality_missing") == ("person b",)


def test_own_data_may_be_for_training_or_for_testing_alone(tmp_path: Path, run) -> None:
    plant(tmp_path, *(f"{person}{number}.jpg" for person in "abc" for number in range(2)))
    for split, kind in (("train", {"no_test_part": 1}), ("test", {})):
        write_lines(
            tmp_path / "own.csv",
            "path,person,split",
            *(f"{person}{number}.jpg,{person},{split}" for person in "abc" for number in range(2)),
        )
        code, out, err = run("--dataset", "manifest", "--root", tmp_path / "own.csv", "--json")
        assert (
            code == 0
            and not err
            and {entry["kind"]: 1 for entry in json.loads(out)["findings"] if entry["kind"] != "reader"} == kind
        )
    write_lines(tmp_path / "own.csv", "path,person,split", "a0.jpg,a,query", "a1.jpg,a,query")
    code, _, err = run("--dataset", "manifest", "--root", tmp_path / "own.csv")
    assert code == 2 and "no gallery images" in err


def test_a_line_that_is_listed_twice_is_told(tmp_path: Path) -> None:
    folder = TREES["llcm"](tmp_path)
    listing = folder / "idx/train_vis.txt"
    line = listing.read_text(encoding="utf-8").splitlines()[0]
    assert "listed_twice" not in kinds(report("llcm", tmp_path))
    write_lines(listing, *listing.read_text(encoding="utf-8").splitlines(), line)
    result = report("llcm", tmp_path)
    assert kinds(result, "warning")["listed_twice"] == 1 and any(
        finding.message.startswith("train: 1 of ") for finding in result.findings
    )


def test_empty_captions_are_told() -> None:
    texts = [
        Record(person_id=0, name=f"entry {n}", sources={Modality.TEXT: Source(modality=Modality.TEXT, value=value)})
        for n, value in enumerate(["red", " "])
    ]
    release = Release(name="x", root=Path("x"), parts={"query": (*texts, image("a", 0), image("b", 1))})
    assert {(finding.kind, finding.count, finding.examples) for finding in coverage_findings(release)} == {
        ("caption_empty", 1, ("entry 1",)),
        ("caption_missing", 1, ("person 1",)),
        ("modality_missing", 0, ()),
    } - {("modality_missing", 0, ())}


@pytest.mark.parametrize(
    ("there", "asked"), [("msmt17", "market1501"), ("ltcc", "vc-clothes"), ("sysu", "llcm"), ("rstpreid", "cuhk-pedes")]
)
def test_another_data_set_is_recognised(tmp_path: Path, run, there: str, asked: str) -> None:
    folder = TREES[there](tmp_path)
    for root in (tmp_path, folder):
        code, out, err = run("--dataset", asked, "--root", root)
        assert (
            code == 2
            and not out
            and err.startswith("error: ")
            and err.count("\n") == 1
            and f"use --dataset {there}" in err
        )
    if there == "msmt17":
        (folder / "list_train.txt").unlink()
        assert {"looks_like", "same_grammar"} <= set(kinds(report("folders", folder), "warning"))


def test_data_sets_in_joint_use(tmp_path: Path, run) -> None:
    folder = TREES["msmt17"](tmp_path)
    TREES["icfg-pedes"](tmp_path)
    shutil.copy(folder / "test/0000/0000_000_07_0303morning_0015_0.jpg", tmp_path / "ICFG-PEDES/imgs/cam_a/d.jpg")
    code, out, _ = run("--dataset", "icfg-pedes", "--root", tmp_path, "--against", f"msmt17:{tmp_path}")
    assert code == 1 and "warning: icfg-pedes and msmt17: ICFG-PEDES consists of images of MSMT17" in out
    assert "defect: 1 images of icfg-pedes are also in msmt17, byte for byte" in out and "d.jpg and " in out
    write_lines(tmp_path / "out.txt", "# shared with MSMT17", "ICFG-PEDES/imgs/cam_a/d.jpg")
    code, out, _ = run(
        "--dataset",
        "icfg-pedes",
        "--root",
        tmp_path,
        "--against",
        f"msmt17:{tmp_path}",
        "--exclude",
        tmp_path / "out.txt",
    )
    assert "byte for byte" not in out and "records excluded by list: 1" in out
    assert run("--dataset", "icfg-pedes", "--root", tmp_path, "--against", "msmt17")[0] == 2


def test_identical_files_in_two_members_are_a_defect(tmp_path: Path, run) -> None:
    one, other = TREES["market1501"](tmp_path), TREES["vc-clothes"](tmp_path)
    assert run("--dataset", "joint", "--root", tmp_path)[0] == 0
    shutil.copy(next((one / "bounding_box_test").glob("0*.jpg")), next((other / "gallery").iterdir()))
    code, out, _ = run("--dataset", "joint", "--root", tmp_path)
    assert (
        code == 1
        and "defect: protocol joint is not possible: 1 image(s) with identical bytes" in out
        and "data.exclude" in out
    )


def test_identical_files_are_found_by_bytes(tmp_path: Path) -> None:
    plant(tmp_path, *(f"{group}/{number}.jpg" for group in "abc" for number in range(3)))
    shutil.copy(tmp_path / "a/0.jpg", tmp_path / "b/9.jpg")
    shutil.copy(tmp_path / "a/0.jpg", tmp_path / "a/8.jpg")
    shutil.copy(tmp_path / "c/1.jpg", tmp_path / "c/7.jpg")
    for group in "bc":
        (tmp_path / group / "empty.jpg").write_bytes(b"")
    groups = {group: sorted((tmp_path / group).iterdir()) for group in "abc"}
    (found,) = overlap.find_identical({**groups, "c": [*groups["c"], tmp_path / "absent.jpg"]})
    assert {group: [Path(path).name for path in paths] for group, paths in found.paths.items()} == {
        "a": ["0.jpg", "8.jpg"],
        "b": ["9.jpg"],
    }
    assert overlap.find_identical({"x": groups["a"], "y": groups["a"][1:2]}) == []


def test_known_overlaps_and_grammars() -> None:
    assert overlap.known_overlaps(["msmt17", "ltcc"]) == []
    assert [
        sentence.split(":")[0] for sentence in overlap.known_overlaps(["orbench", "sysu", "rstpreid", "msmt17"])
    ] == ["rstpreid and msmt17", "orbench and sysu"]
    patterns = {name: dataset_entry(name).name_pattern for name in ("market1501", "msmt17", "sysu", "ltcc")}
    market = [f"x/{n:04d}_c1s1_000151_01.jpg" for n in range(9)]
    assert (
        overlap.grammar_of([*market, "x/other.jpg"], patterns) == ["market1501"]
        and overlap.grammar_of([*market[:8], "x/a.jpg", "b.jpg"], patterns) == []
    )
    # A name is the data set's as a whole: what was made of its images is not.
    assert overlap.grammar_of([f"{path}.png" for path in market], patterns) == []
    # Plain numbers, SYSU-MM01's form, say nothing.
    assert overlap.grammar_of(["a/0001.jpg"], patterns) == [] and overlap.grammar_of([], patterns) == []


def test_exclusion_by_list(tmp_path: Path) -> None:
    folder = TREES["market1501"](tmp_path)
    entry = dataset_entry("market1501")
    release = entry.read(tmp_path, ReadOptions())
    write_lines(
        tmp_path / "out.txt",
        "Market-1501-v15.09.15/query/0001_c1s1_001051_00.jpg",
        "",
        "./Market-1501-v15.09.15/bounding_box_train/0002_c1s1_000151_01.jpg",
    )
    left = overlap.apply_exclusions(release, overlap.load_exclusions(tmp_path / "out.txt", tmp_path))
    assert {part: len(records) for part, records in left.parts.items()} == {
        "train": 3,
        "query": 1,
        "gallery": 3,
    } and left.dropped["records excluded by list"] == 2
    for text, message in (
        ("query/0001_c1s1_001051_00.jpg", "out.txt line 2: .* is no image of market1501 .*paths count from data.root"),
        ("Market-1501-v15.09.15/query/0001_c1s1_001051_01.jpg", "did you mean .*0001_c1s1_001051_00.jpg"),
    ):
        write_lines(tmp_path / "out.txt", "# a comment", text)
        with pytest.raises(UserError, match=message):
            overlap.apply_exclusions(release, overlap.load_exclusions(tmp_path / "out.txt", tmp_path))
    write_lines(tmp_path / "out.txt", *(f"{folder.name}/query/{path.name}" for path in (folder / "query").iterdir()))
    with pytest.raises(UserError, match="leaves nothing of the part query"):
        overlap.apply_exclusions(release, overlap.load_exclusions(tmp_path / "out.txt", tmp_path))


def test_an_excluded_picture_of_clothes_is_gone_too(tmp_path: Path) -> None:
    record = Record(
        person_id=1,
        sources={Modality.RGB: Source(modality=Modality.RGB, value=str(tmp_path / "a.jpg"))},
        annotations={
            AnnotationKind.CLOTHES: Source(modality=Modality.RGB, value=str(tmp_path / "shirt.jpg")),
            AnnotationKind.DESCRIPTION: Source(modality=Modality.TEXT, value="shirt.jpg"),
        },
    )
    release = Release(name="made-up", root=tmp_path, parts={"query": (record,)})
    write_lines(tmp_path / "out.txt", "shirt.jpg")
    left = overlap.apply_exclusions(release, overlap.load_exclusions(tmp_path / "out.txt", tmp_path))
    (kept,) = left.parts["query"]
    assert list(kept.annotations) == [AnnotationKind.DESCRIPTION] and kept.sources == record.sources


def test_datalists_are_written(tmp_path: Path, run) -> None:
    TREES["market1501"](tmp_path)
    code, out, _ = run(
        "--dataset", "market1501", "--root", tmp_path, "--write-datalists", tmp_path / "lists", "--no-images"
    )
    assert code == 0 and out.count("written: ") == 3
    assert (
        (tmp_path / "lists" / "query.txt")
        .read_text(encoding="utf-8")
        .splitlines()[0]
        .startswith("query/0001_c1s1_001051_00.jpg ")
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dataset", "markt1501"], "did you mean 'market1501'"),
        (["--dataset", "orbnch"], "did you mean 'orbench'"),
        (["--dataset", "market1501", "--protocols", "msmt17"], "has no protocol 'msmt17'"),
        (["--dataset", "market1501", "--variant", "v1"], "only msmt17, cuhk03"),
    ],
)
def test_wrong_arguments(tmp_path: Path, run, arguments: list[str], message: str) -> None:
    TREES["market1501"](tmp_path)
    code, out, err = run("--root", tmp_path, *arguments)
    assert code == 2 and not out and message in err and err.count("\n") == 1


def test_a_damaged_list_of_another_trial_is_a_defect(tmp_path: Path, run) -> None:
    folder = TREES["regdb"](tmp_path)
    assert run("--dataset", "regdb", "--root", tmp_path)[0] == 0
    (folder / "idx" / "train_thermal_7.txt").write_text("Thermal/4/male_front_t_00001_4.bmp x\n", encoding="utf-8")
    code, out, _ = run("--dataset", "regdb", "--root", tmp_path)
    assert code == 1 and "trial 7" in out and "train_thermal_7.txt" in out
