"""Covers: utils/identical, datasets/checks/copies, datasets/checks/matches, solver/evaluation/plan,
solver/evaluation/labels, solver/search/ranked. A byte copy is the same picture, whatever it is called: in every
protocol, in a search, and in the check.
"""

import dataclasses
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from protocol_oracle import ToyModel, ToyReader

from configs.schema.evaluation import EvalConfig
from configs.vocabulary import Modality
from datasets.checks.report import Report
from datasets.checks.run import CheckOptions, run_check
from datasets.protocols import Search, assemble_split
from datasets.structures import EvalSplit, QueryList, ReadOptions, Record, Source
from solver.evaluation.evaluator import evaluate_split
from solver.evaluation.labels import counted
from solver.evaluation.plan import plan_evaluation
from solver.evaluation.result import EvaluationResult
from solver.evaluation.spec import EvaluationSpec
from solver.reports.grid import word_of
from solver.search.gallery import Gallery
from solver.search.queries import Query
from solver.search.ranked import EncodedQueries, Verdict, search
from solver.search.searched import EncodedGallery
from utils import identical
from utils.errors import UserError
from utils.identical import crossing, identical_files
from utils.retrieval.exclusion import RULES
from utils.retrieval.metrics import evaluate


def noise(path: Path, seed: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (16, 8, 3), dtype=np.uint8)
    # Uncompressed: all files are of one size.
    Image.fromarray(pixels).save(path, "BMP")
    return path


def record(path: Path, person: int, modality: Modality = Modality.RGB, camera: int = -1) -> Record:
    source = Source(modality=modality, value=str(path), record=path.name)
    return Record(person_id=person, sources={modality: source}, camera_id=camera, clothes_id=person, name=path.name)


def test_files_are_told_by_content_and_read_only_where_it_can_matter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("a", "b", "c", "d")
    one, two, three, four = (str(noise(tmp_path / f"{name}.bmp", seed)) for name, seed in zip(names, (1, 2, 1, 3)))
    (tmp_path / "empty1").write_bytes(b"")
    (tmp_path / "empty2").write_bytes(b"")
    os.mkfifo(tmp_path / "pipe")
    os.link(four, tmp_path / "linked.bmp")
    others = [str(tmp_path / name) for name in ("absent", "empty1", "empty2", "pipe", "")]
    linked = str(tmp_path / "linked.bmp")
    assert identical_files([two, four, one, three, linked, one, *others]) == [(four, linked), (one, three)]
    read: list[str] = []
    monkeypatch.setattr(identical, "sha256_of", read.append)
    longer = tmp_path / "longer.bmp"
    longer.write_bytes(Path(one).read_bytes() + b"x")
    assert identical_files([one, str(longer)]) == [] and not read
    assert identical_files([one, two], crossing([one, two], [four])) == [] and not read


def searches(tmp_path: Path, rule: str, copied: bool) -> Search:
    """Four persons, a query and three images each; the first image of each is the query's bytes, or left out."""
    query, gallery = [], []
    for person in range(1, 5):
        asked = noise(tmp_path / f"query/{person}.bmp", person)
        query.append(record(asked, person, camera=1))
        if copied:
            gallery.append(record(tmp_path / f"gallery/{person}_copy.bmp", person, camera=person % 3))
            (tmp_path / "gallery").mkdir(exist_ok=True)
            shutil.copy(asked, tmp_path / f"gallery/{person}_copy.bmp")
        for number in range(2):
            other = noise(tmp_path / f"gallery/{person}_{number}.bmp", 10 * person + number)
            gallery.append(record(other, person, camera=number + 2))
    return Search(title="s", protocol="p", query=query, gallery=gallery, exclusion_rule=rule)


def measured(search: Search, **options: object) -> EvaluationResult:
    split = assemble_split("test", [search], {"p": "in words"}, None)
    spec = EvaluationSpec(config=EvalConfig(batch_size=7, **options))  # type: ignore[arg-type]
    return evaluate_split(ToyModel(), split, ToyReader(), spec, torch.device("cpu"))


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule != "sysu"])
def test_a_copy_of_a_query_counts_in_no_protocol(tmp_path: Path, rule: str) -> None:
    with_copies, without = (measured(searches(tmp_path / str(copied), rule, copied)) for copied in (True, False))
    # The first of three images of each person is the copy; for the other persons it is an image like any other.
    own = [place for place in range(12) if place % 3 == 0]
    for entry in range(4):
        places, _ = with_copies.ranked.search("s", entry, 100)
        assert own[entry] not in places and set(own) - {own[entry]} <= set(places.tolist())
    (note,) = [note for note in with_copies.notes() if "byte copies" in note]
    assert note.startswith("4 gallery images are byte copies of queries, for instance ")
    assert not [note for note in without.notes() if "byte copies" in note]


def test_what_remains_is_measured_as_if_the_copy_were_not_there(tmp_path: Path) -> None:
    with_copies = searches(tmp_path, "none", copied=True)
    for entry, asked in enumerate(with_copies.query):
        alone = dataclasses.replace(with_copies, query=[asked])
        rest = dataclasses.replace(
            alone, gallery=[item for place, item in enumerate(alone.gallery) if place != 3 * entry]
        )
        assert measured(alone).lists[0].metrics() == measured(rest).lists[0].metrics()
        assert measured(alone, rerank=True, rerank_k1=2, rerank_k2=1).lists[1].first_rank[0] > 0


def test_a_query_whose_only_match_is_its_copy_is_left_out(tmp_path: Path) -> None:
    both = [noise(tmp_path / "a.bmp", 1), tmp_path / "b.bmp", noise(tmp_path / "c.bmp", 2)]
    shutil.copy(both[0], both[1])
    gallery = [record(both[1], 1), record(both[2], 2)]
    result = measured(Search(title="s", protocol="p", query=[record(both[0], 1)], gallery=gallery))
    assert result.lists[0].without_match.tolist() == [0]
    assert "1 are the only image of their person" in "".join(result.notes())


def test_a_copy_is_a_part_of_a_mixed_query_and_of_another_modality(tmp_path: Path) -> None:
    """A query of an infrared picture and a text; the gallery holds these bytes as a photograph."""
    asked, other = noise(tmp_path / "nir.bmp", 1), noise(tmp_path / "other.bmp", 2)
    shutil.copy(asked, tmp_path / "copy.bmp")
    sources = (
        Source(modality=Modality.NIR, value=str(asked)),
        Source(modality=Modality.TEXT, value="a person"),
    )
    lists = tuple(
        QueryList(combination=tuple(source.modality for source in entry), entries=(entry,), person_ids=(1,))
        for entry in (sources, sources[1:], sources[:1])
    )
    gallery = tuple(Source(modality=Modality.RGB, value=str(path)) for path in (tmp_path / "copy.bmp", other))
    split = EvalSplit(name="s", protocol="p", gallery=gallery, gallery_ids=(1, 1), query_lists=lists)
    plan = plan_evaluation([split]).splits[0]
    found = [counted(plan, listed, 0, np.arange(2)).tolist() for listed in plan.lists]
    assert found == [[False, True], [True, True], [False, True]]
    assert plan.copies == ((str(asked), str(tmp_path / "copy.bmp")),)


def test_items_of_several_pictures_in_the_public_function() -> None:
    """Gallery 10, 11, 12; query 0 consists of 10 and 12, query 1 of 11 alone."""
    items: dict[str, Any] = {"query_items": np.array([[10, 12], [11, -1]]), "gallery_items": np.array([10, 11, 12])}
    result = evaluate(np.array([[3.0, 2.0, 1.0], [3.0, 2.0, 1.0]]), [1, 1], [1, 1, 1], **items)
    # Query 0 keeps image 11; query 1 keeps 10 and 12.
    assert result.first_rank.tolist() == [1, 1] and result.per_query["mAP"].tolist() == [100.0, 100.0]
    alone = evaluate(np.array([[3.0, 2.0, 1.0]]), [1], [1, 2, 1], **{**items, "query_items": np.array([[10, 12]])})
    assert alone.first_rank.tolist() == [0]
    with pytest.raises(UserError, match="gallery_items"):
        evaluate(np.ones((1, 3)), [1], [1, 1, 1], query_items=[1], gallery_items=np.ones((3, 2), dtype=int))


def test_a_search_marks_the_query_itself(tmp_path: Path) -> None:
    asked = noise(tmp_path / "q.bmp", 1)
    paths = [noise(tmp_path / f"g{number}.bmp", 5 + number) for number in range(3)]
    shutil.copy(asked, paths[1])
    gallery = EncodedGallery(
        gallery=Gallery(
            name="g",
            location="g",
            sources=tuple(Source(modality=Modality.RGB, value=str(path)) for path in [*paths, asked]),
            person_ids=(7, 7, 8, 7),
        ),
        features=torch.tensor([[0.6, 0.8], [1.0, 0.0], [0.8, 0.6], [1.0, 0.0]]),
        positions=np.array([0, 1, 2, 3]),
        failures={},
        reused=False,
    )
    query = Query(name="q", sources=(Source(modality=Modality.RGB, value=str(asked)),), person_id=7)
    text = Query(name="t", sources=(Source(modality=Modality.TEXT, value=str(asked)),), person_id=7)
    encoded = EncodedQueries(queries=(query, text), features=torch.tensor([[1.0, 0.0], [1.0, 0.0]]), failures=())
    found, said = search(encoded, gallery, 4)
    assert [(image.index, image.own_image, image.verdict) for image in found.results] == [
        (1, True, Verdict.UNKNOWN),
        (3, True, Verdict.UNKNOWN),
        (2, False, Verdict.OTHER),
        (0, False, Verdict.MATCH),
    ]
    assert (found.matches, found.first_match, found.own_images) == (1, 4, 2)
    assert [word_of(image) for image in found.results] == ["own image", "own image", "other", "match"]
    assert (said.matches, said.first_match, said.own_images) == (3, 1, 0)


def checked(root: Path, name: str = "folders", **options: Any) -> Report:
    asked = CheckOptions(dataset=name, root=root, reading=ReadOptions(need_train=False), **options)
    return run_check(asked)[0]


def found(report: Report) -> dict[str, tuple[str, int]]:
    return {finding.kind: (finding.level, finding.count) for finding in report.findings}


def own_folders(root: Path) -> Path:
    for person in range(3):
        noise(root / f"query/p{person}/q.bmp", person)
        for number in range(2):
            noise(root / f"gallery/p{person}/{number}.bmp", 10 * person + number + 5)
    return root


def test_the_check_finds_copies_of_queries(tmp_path: Path) -> None:
    root = own_folders(tmp_path)
    clean = found(checked(root))
    assert not {"query_copy_in_gallery", "copies_within", "picture_of_two_persons", "identical_images"} & set(clean)
    shutil.copy(root / "query/p0/q.bmp", root / "gallery/p0/again.bmp")
    assert found(checked(root))["query_copy_in_gallery"] == ("warning", 1)
    # Names alone say nothing.
    assert "query_copy_in_gallery" not in found(checked(root, open_images=False))
    for number in range(2):
        (root / f"gallery/p0/{number}.bmp").unlink()
    report = checked(root)
    assert report.searches[0].unmatched == {"own_image_only": 1}


def test_the_check_finds_copies_within_a_part_and_under_two_persons(tmp_path: Path) -> None:
    root = own_folders(tmp_path)
    shutil.copy(root / "gallery/p1/0.bmp", root / "gallery/p1/9.bmp")
    assert found(checked(root))["copies_within"] == ("warning", 1)
    shutil.copy(root / "gallery/p1/0.bmp", root / "gallery/p2/9.bmp")
    report = checked(root)
    assert found(report)["copies_within"] == ("warning", 2) and report.exit_code == 1
    (finding,) = [finding for finding in report.findings if finding.kind == "picture_of_two_persons"]
    assert (finding.level, finding.count) == ("defect", 1)
    assert "gallery/p1/0.bmp" in finding.examples[0] and "gallery/p2/9.bmp" in finding.examples[0]


def test_the_check_finds_a_caption_of_two_persons(tmp_path: Path) -> None:
    lines = ["path,person,split,caption,modality"]
    for person, caption in enumerate(("A man in red.", "a man  in RED.", "a woman in blue")):
        noise(tmp_path / f"g{person}.bmp", person)
        lines += [f"g{person}.bmp,{person},gallery,,", f',{person},query,"{caption}",text']
    (tmp_path / "own.csv").write_text("\n".join(lines))
    assert found(checked(tmp_path / "own.csv", "manifest"))["caption_of_two_persons"] == ("warning", 1)


def test_copies_across_sides_of_own_data(tmp_path: Path) -> None:
    for side, persons in {"train": (1, 2), "val": (3, 4), "test": (5, 6)}.items():
        for person in persons:
            for number in range(2):
                noise(tmp_path / f"{side}/{person}/{number}.bmp", person * 10 + number)
    shutil.copy(tmp_path / "train/1/0.bmp", tmp_path / "val/3/copy.bmp")
    report = run_check(CheckOptions(dataset="folders", root=tmp_path))[0]
    assert [(one.level, one.message[:34]) for one in report.findings if one.kind == "identical_images"] == [
        ("warning", "1 images of train are also in val,")
    ]
    shutil.copy(tmp_path / "train/1/0.bmp", tmp_path / "test/5/copy.bmp")
    report = run_check(CheckOptions(dataset="folders", root=tmp_path))[0]
    levels = {one.message.split(", byte")[0]: one.level for one in report.findings if one.kind == "identical_images"}
    assert levels == {
        "1 images of train are also in test": "defect",
        "1 images of val are also in test": "warning",
        "1 images of train are also in val": "warning",
    }


def test_sets_of_identical_files_are_in_the_order_of_their_first_paths(tmp_path: Path) -> None:
    paths = []
    for number, content in enumerate([b"x", b"two", b"two", b"y", b"y", b"z", b"z"]):
        (tmp_path / f"p{number}").write_bytes(content)
        paths.append(str(tmp_path / f"p{number}"))
    sets = [tuple(Path(path).name for path in same) for same in identical_files(paths)]
    assert sets == [("p1", "p2"), ("p3", "p4"), ("p5", "p6")]
    # One of each side, though more have the size.
    only = identical_files(paths, crossing([paths[3]], [paths[4], paths[5], paths[6]]))
    assert only == [(paths[3], paths[4])]
