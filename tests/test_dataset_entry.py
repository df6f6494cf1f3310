"""Covers: datasets/dataset_entry, datasets/catalogue, datasets/releases/orbench, datasets/releases/joint,
datasets/overlap, datasets/checks/run. Data sets as entries of one table: no other module knows one by name, each has
its own options, and ORBench is one of them: its validation lists, exclusion, joint use and check. The numbers of the
validation lists are those of the reader that ORBench had before it was an entry.
"""

import ast
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from official_trees import TREES
from tiny_orbench import load_orbench, write_orbench
from trees import plant, write_lines

from configs.schema.data import DataConfig
from configs.vocabulary import Modality
from datasets.benchmark import build_from_release
from datasets.build import build_benchmark
from datasets.catalogue import CATALOGUE, dataset_entry, owners_of, read_release
from datasets.checks.run import CheckOptions, run_check
from datasets.dataset_entry import OPTIONS
from datasets.structures import EvalSplit, ReadOptions, Source
from solver.evaluation.result import rule_notes
from utils.errors import UserError
from utils.retrieval.metrics import evaluate

ROOT = Path(__file__).parent.parent
TABLES = {
    "catalogue.py": set(CATALOGUE),
    # What data sets share, and how the authors of OmniReID name the files of each.
    "overlap.py": set(CATALOGUE),
    "formats/datalists.py": set(CATALOGUE),
    # The protocol of that name, and a release that is made of rows.
    "formats/joining.py": {"joint"},
    "formats/manifest_split.py": {"manifest"},
}
"""General modules -> names of data sets that may stand in them."""
NOT_NAMES = {"folders"}
"""Names of data sets that are plain words too."""
VALUES: dict[str, Any] = {"variant": "v1", "merge_val": False, "trial": 2, "members": ("market1501",)}


def test_no_general_module_knows_a_data_set_by_name() -> None:
    offenders = []
    for path in sorted((ROOT / "datasets").rglob("*.py")):
        name = path.relative_to(ROOT / "datasets").as_posix()
        if name.startswith(("releases/", "synthetic/")):
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        known = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and node.value in CATALOGUE}
        offenders += [f"{name}: {word}" for word in known - TABLES.get(name, set()) - NOT_NAMES]
    assert not offenders


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("name", CATALOGUE)
def test_an_option_is_refused_where_it_does_not_belong(tmp_path: Path, name: str, option: str) -> None:
    """The reader is not asked: the refusal comes before it, and names the data sets that have the option."""
    entry, options = dataset_entry(name), ReadOptions(data=DataConfig(**{option: VALUES[option]}))
    with pytest.raises(UserError) as caught:
        read_release(entry, tmp_path / "absent", options)
    refused = str(caught.value).startswith(f"data.{option}=")
    assert refused == (option not in entry.options or (option == "variant" and "v1" not in entry.variants))
    if option not in entry.options:
        assert f"only {', '.join(owners_of(option))} know it; remove the option" in str(caught.value)


def test_what_only_own_and_composed_data_sets_are() -> None:
    entries = [dataset_entry(name) for name in CATALOGUE]
    assert [entry.name for entry in entries if entry.own] == ["manifest", "folders"]
    assert [entry.name for entry in entries if entry.composed] == ["joint"]
    assert [owner for option in OPTIONS for owner in owners_of(option)] == [
        *("msmt17", "cuhk03", "joint", "msmt17", "sysu", "joint"),
        *("regdb", "joint", "omnireid", "joint"),
    ]


def planted_orbench(root: Path) -> Path:
    """Seven training persons with 2 RGB, 3 NIR, 2 CP and 3 SK images each, and two test persons; files are empty."""
    base = root / "ORBench"
    counts = {"vis": 2, "nir": 3, "cp": 2, "sk": 3}
    folders = {f"{number:04d}": number for number in (7, 300, 301, 302, 303, 304, 305)}
    for folder in (*folders, "0900", "0901"):
        for kind, count in counts.items():
            for index in range(count):
                (base / kind / folder).mkdir(parents=True, exist_ok=True)
                (base / kind / folder / f"{index}.jpg").touch()
    train = [
        {"id": person, "file_path": f"vis/{folder}/{index}.jpg", "caption": f"words {person} {index}"}
        for folder, person in folders.items()
        for index in range(2)
    ]
    test = {
        "RGB_GALLERY": [[1, "vis/0900/0.jpg"], [2, "vis/0901/0.jpg"], [2, "vis/0901/1.jpg"]],
        "NIR": [[1, "nir/0900/2.jpg"]],
        "TEXT+NIR": [[2, "a green coat", "nir/0901/2.jpg"]],
    }
    (base / "train_annos.json").write_text(json.dumps(train), encoding="utf-8")
    (base / "test_gallery_and_queries.json").write_text(json.dumps(test), encoding="utf-8")
    return root


def below(root: Path, source: Source) -> str:
    return source.value.removeprefix(f"{root}/ORBench/")


VALIDATION = "541cb6972452b5de37975ade53b2d8594308ab208986265597048aa08031adea"
"""SHA-256 of the 32 validation lists of `planted_orbench`, as the reader before made them: name, persons, sources."""


def test_validation_lists_are_drawn_as_ever(tmp_path: Path) -> None:
    root = planted_orbench(tmp_path)
    val = load_orbench(root, need_train=True, val_fraction=0.3).splits["val"]
    lists = [
        [listed.name, list(listed.person_ids), [[below(root, source) for source in entry] for entry in listed.entries]]
        for listed in val.query_lists
    ]
    assert [below(root, source) for source in val.gallery] == [
        f"vis/{folder}/{index}.jpg" for folder in ("0300", "0302") for index in range(2)
    ]
    assert val.gallery_ids == (300, 300, 302, 302)
    # Two of the seven persons: every caption leads a query, its infrared image is drawn.
    assert next(entry for entry in lists if entry[0] == "TEXT+NIR") == [
        "TEXT+NIR",
        [300, 300, 302, 302],
        [
            ["words 300 0", "nir/0300/0.jpg"],
            ["words 300 1", "nir/0300/1.jpg"],
            ["words 302 0", "nir/0302/0.jpg"],
            ["words 302 1", "nir/0302/2.jpg"],
        ],
    ]
    assert hashlib.sha256(json.dumps(lists).encode()).hexdigest() == VALIDATION


def test_an_image_that_the_gallery_lists_twice_counts_twice(tmp_path: Path) -> None:
    """As in the reference, in every list: both copies are right, and none is left out of the gallery."""
    root = planted_orbench(tmp_path)
    path = root / "ORBench/test_gallery_and_queries.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    content["RGB_GALLERY"].append([1, "vis/0900/0.jpg"])
    path.write_text(json.dumps(content), encoding="utf-8")
    split = load_orbench(root, need_train=False).splits["test"]
    assert split.gallery_ids == (1, 2, 2, 1) and split.gallery[0] == split.gallery[3]
    assert [listed.gallery for listed in split.query_lists] == [None, None]


def test_fingerprints_stay_so_that_results_can_be_told_apart(tmp_path: Path) -> None:
    """ORBench's is computed as the others' are; it was another one before it was an entry, and before its gallery had
    captions for mAP@tau. The others' are those of before.
    """
    assert load_orbench(planted_orbench(tmp_path), need_train=True).fingerprint == "ad786966fb2f0ce6"
    for name, value in (
        ("market1501", "e568d85dd1e4d21e"),
        ("sysu", "f818ea915ea95a9d"),
        ("rstpreid", "d6899119d2af61af"),
    ):
        TREES[name](tmp_path)
        benchmark = build_benchmark(DataConfig(dataset=name, root=str(tmp_path)), select="last", need_train=True)
        assert benchmark.fingerprint == value, name


def test_exclusion_that_takes_the_last_partner_is_refused(tmp_path: Path) -> None:
    root = planted_orbench(tmp_path)
    listing = tmp_path / "out.txt"
    write_lines(listing, "ORBench/cp/0300/0.jpg")
    kept = load_orbench(root, need_train=True, exclude=str(listing)).train
    assert [len(record.partners[Modality.CP]) for record in kept] == [2, 2, 1, 1, *[2] * 10]
    write_lines(listing, "ORBench/cp/0300/0.jpg", "ORBench/cp/0300/1.jpg")
    with pytest.raises(
        UserError, match=r"out.txt line 1: the list leaves train_annos.json entry 2 without CP partners"
    ):
        load_orbench(root, need_train=True, exclude=str(listing))
    # A person that goes whole needs no partners, and a test needs no training records.
    write_lines(
        listing, *(f"ORBench/{path}" for path in ("cp/0300/0.jpg", "cp/0300/1.jpg", "vis/0300/0.jpg", "vis/0300/1.jpg"))
    )
    left = load_orbench(root, need_train=True, exclude=str(listing))
    assert left.num_identities == 6 and len(left.train) == 12
    write_lines(listing, "ORBench/cp/0300/0.jpg", "ORBench/cp/0300/1.jpg")
    assert not load_orbench(root, need_train=False, exclude=str(listing)).train


def market(root: Path) -> None:
    """Persons 4 and 5 in training, 1 and 2 searched: numbers that ORBench's test persons have too."""
    plant(
        root / "market1501",
        "bounding_box_train/0004_c1s1_000001_01.jpg",
        "bounding_box_train/0005_c1s1_000003_01.jpg",
        "query/0001_c1s1_000004_00.jpg",
        "bounding_box_test/0001_c2s1_000006_01.jpg",
        "bounding_box_test/0002_c1s1_000007_01.jpg",
    )


def precision(split: EvalSplit, title: str, order: list[str]) -> float:
    """Average precision of a list's only query that ranks the gallery in this order, best first."""
    listed = next(queries for queries in split.query_lists if queries.name == title)
    names = ["/".join(Path(source.value).parts[-2:]) for source in split.gallery]
    scores = np.array([[-order.index(name) for name in names]], dtype=np.float64)
    result = evaluate(
        scores,
        listed.person_ids,
        split.gallery_ids,
        query_cameras=listed.camera_ids,
        gallery_cameras=split.gallery_camera_ids,
        rule=listed.exclusion_rule,
    )
    return float(result.per_query["mAP"][0]) / 100


def test_orbench_is_a_member_of_a_joint_test(tmp_path: Path) -> None:
    root = planted_orbench(tmp_path)
    for path in root.rglob("*.jpg"):
        path.write_bytes(str(path).encode())
    market(root)
    data = DataConfig(dataset="joint", root=str(root), members=("market1501", "orbench"))
    benchmark = build_benchmark(data, select="last", need_train=True)
    # Two persons of Market and seven of ORBench, whose records keep caption and partners.
    assert benchmark.num_identities == 9 and len(benchmark.train) == 16
    assert set(benchmark.train[-1].sources) == {Modality.RGB, Modality.TEXT} and len(benchmark.train[-1].partners) == 3
    split = benchmark.splits["test"]
    assert [listed.name for listed in split.query_lists] == [
        "joint market1501",
        "joint orbench NIR",
        "joint orbench TEXT+NIR",
    ]
    # Market's persons are 0 to 5, so that ORBench's 1 and 2 become 7 and 8.
    assert split.gallery_ids == (1, 2, 7, 8, 8) and split.gallery_camera_ids == (2, 1, -1, -1, -1)
    text, infrared = split.query_lists[2].entries[0]
    assert (text.value, below(root, infrared)) == ("a green coat", "nir/0901/2.jpg")
    one, two = "bounding_box_test/0001_c2s1_000006_01.jpg", "bounding_box_test/0002_c1s1_000007_01.jpg"
    first, second, third = "0900/0.jpg", "0901/0.jpg", "0901/1.jpg"
    # Person 1 of Market in front is a wrong result; unknown cameras drop nothing: rank 2 of 5.
    assert precision(split, "joint orbench NIR", [one, first, second, two, third]) == pytest.approx(1 / 2)
    assert precision(split, "joint orbench TEXT+NIR", [second, two, third, one, first]) == pytest.approx(
        (1 + 2 / 3) / 2
    )
    assert precision(split, "joint market1501", [first, second, third, one, two]) == pytest.approx(1 / 4)
    alone = build_benchmark(
        DataConfig(dataset="joint", root=str(root), members=("market1501", "orbench"), protocols=("task-free",)),
        select="last",
        need_train=False,
    ).splits["test"]
    assert [(listed.name, listed.group) for listed in alone.query_lists] == [
        ("task-free market1501", ""),
        ("task-free NIR", "task-free ONE_AVER"),
        ("task-free TEXT+NIR", "task-free TWO_AVER"),
    ]


def test_negative_person_numbers_cannot_be_joined(tmp_path: Path) -> None:
    root = planted_orbench(tmp_path)
    path = root / "ORBench/train_annos.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps([{**entry, "id": entry["id"] - 300} for entry in content]), encoding="utf-8")
    assert load_orbench(root, need_train=True).num_identities == 7
    data = DataConfig(dataset="joint", root=str(root), members=("orbench",))
    with pytest.raises(UserError, match=r"train_annos.json entry 0: person -293 of orbench has a negative number, .*"):
        build_benchmark(data, select="last", need_train=True)


def test_the_check_of_orbench_compares_and_leaves_out(tmp_path: Path) -> None:
    root = write_orbench(tmp_path)
    folder = TREES["market1501"](root)
    shutil.copy(root / "ORBench/vis/0015/0.jpg", folder / "query/0001_c1s1_001051_00.jpg")
    # The two images of a person are one picture in these trees: one set of identical files, two to leave out.
    options = CheckOptions(
        dataset="orbench", root=root, reading=ReadOptions(check_files=False), against=(("market1501", root),)
    )
    report, _ = run_check(options)
    copies = [finding for finding in report.findings if finding.kind == "identical_against"]
    assert [finding.level for finding in copies] == ["defect"] and report.exit_code == 1
    assert copies[0].message.startswith("1 images of orbench are also in market1501, byte for byte")
    write_lines(root / "out.txt", "ORBench/vis/0015/0.jpg", "ORBench/vis/0015/1.jpg")
    report, release = run_check(
        CheckOptions(
            dataset="orbench",
            root=root,
            reading=ReadOptions(check_files=False),
            against=(("market1501", root),),
            exclude=str(root / "out.txt"),
        )
    )
    assert not [finding for finding in report.findings if finding.kind == "identical_against"]
    assert dict(report.dropped) == {"records excluded by list": 2} and len(release.parts["gallery"]) == 2
    unmatched = {search.title: dict(search.unmatched) for search in report.searches}
    assert all(sum(reasons.values()) == 2 for reasons in unmatched.values()) and len(unmatched) == 9


def test_a_test_that_mixes_modalities_says_nothing_of_camera_rules(tmp_path: Path) -> None:
    split = load_orbench(write_orbench(tmp_path), need_train=False).splits["test"]
    assert rule_notes(split) == []
    entry = dataset_entry("cuhk-pedes")
    TREES["cuhk-pedes"](tmp_path)
    texts = build_from_release(entry, read_release(entry, tmp_path, ReadOptions(need_train=False)), need_train=False)
    assert rule_notes(texts.splits["test"]) == ["no camera rule applies: cuhk-pedes"]
