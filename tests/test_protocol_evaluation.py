"""Covers: solver/evaluation/evaluator, solver/evaluation/ranking, solver/evaluation/ranked_split,
solver/evaluation/list_result, solver/evaluation/labels, solver/evaluation/result, utils/retrieval/exclusion. Evaluation
of protocols against the plain way: rules, draws, pooled groups, parts of galleries, texts, instructions, stamps.
"""

import dataclasses
import itertools
import json
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from protocol_oracle import Feature, ToyModel, ToyReader, plain_feature, plain_metrics, plain_queries, read

from configs.schema.evaluation import EvalConfig
from configs.vocabulary import AnnotationKind, Modality, Task
from datasets.protocols import Search, assemble_split, image_source
from datasets.structures import Benchmark, EvalSplit, Record, Source
from solver.evaluation.evaluator import evaluate_split
from solver.evaluation.plan import plan_evaluation
from solver.evaluation.result import METRICS, EvaluationResult
from solver.evaluation.spec import EvaluationSpec
from solver.reports.examples_page import choose_queries, write_report
from solver.reports.figures import has_combinations
from solver.reports.results import Provenance, compare_files, format_result, read_per_query, read_results, write_results
from solver.search.gallery import split_gallery
from solver.search.queries import find_list, find_lists, listed_query
from utils.errors import UserError
from utils.retrieval.metrics import evaluate
from utils.retrieval.rerank import rerank_distances

CPU = torch.device("cpu")
PROVENANCE = Provenance(
    checkpoint="c.pth", checkpoint_fingerprint="f", selected_on="val", dataset="made up", data_fingerprint="d"
)


def record(
    person: int,
    camera: int,
    number: int,
    *,
    modality: Modality = Modality.RGB,
    clothes: int = -1,
    text: str = "",
    description: str = "",
) -> Record:
    name = f"{modality.value}/{person}_c{camera}_{number}.jpg"
    source = (
        Source(modality=Modality.TEXT, value=text, record=name)
        if text
        else Source(modality=modality, value=name, record=name)
    )
    annotations = {AnnotationKind.DESCRIPTION: Source(modality=Modality.TEXT, value=description)} if description else {}
    return Record(
        person_id=person,
        sources={source.modality: source},
        camera_id=camera,
        clothes_id=clothes,
        task=Task.LI if description else Task.TRAD,
        annotations=annotations,
        name=name,
    )


def crowd(
    persons: Iterable[int], cameras: Sequence[int], each: int, modality: Modality = Modality.RGB, start: int = 0
) -> list[Record]:
    return [
        record(person, camera, number, modality=modality, clothes=person * 10 + (camera + number) % 2)
        for person, camera, number in itertools.product(persons, cameras, range(start, start + each))
    ]


def split_of(*searches: Search, instruct: object = None) -> EvalSplit:
    summaries = {search.protocol: f"{search.protocol} in words" for search in searches}
    return assemble_split("test", searches, summaries, instruct)  # type: ignore[arg-type]


def run(split: EvalSplit, model: ToyModel | None = None, **options: Any) -> EvaluationResult:
    return evaluate_split(
        model or ToyModel(), split, ToyReader(), EvaluationSpec(config=EvalConfig(batch_size=7, **options)), CPU
    )


def simple(model: ToyModel) -> Feature:
    return lambda entry: plain_feature(model, next(iter(entry.sources.values())))


def assert_rows(result: EvaluationResult, searches: Sequence[Search], stamp: str = "", **changes: Any) -> None:
    """Every list of a stamp equals the plain way, query by query and in its means."""
    model = ToyModel()
    lists = [entry for entry in result.lists if entry.stamp == stamp]
    assert len(lists) == len(searches)
    for entry, search in zip(lists, searches):
        found = plain_queries(search, changes.get("feature", simple(model)), topk=changes.get("topk"))
        assert entry.first_rank.tolist() == [0 if row is None else row["rank"] for row in found]
        wanted = [np.nan if row is None else 100 * row["AP"] for row in found]
        assert entry.per_query["mAP"] == pytest.approx(wanted, abs=1e-5, nan_ok=True)
        assert entry.metrics() == pytest.approx(plain_metrics(found), abs=1e-5)


def market(rule: str = "same_camera", **changes: Any) -> Search:
    """Persons in some cameras each; person 90 is not in the gallery, person 5 in the query's camera only, 0 is a
    distractor.
    """
    query = [record(person, camera, 9, clothes=person * 10) for person in (1, 2, 3, 4) for camera in (1, 2)] + [
        record(90, 1, 9),
        record(5, 3, 9),
    ]
    gallery = [*crowd((1, 2, 3, 4), (1, 2, 3), 3), *crowd([0], (2, 4), 4), record(5, 3, 1), record(6, 1, 1)]
    return dataclasses.replace(
        Search(title="market", protocol="market", query=query, gallery=gallery, exclusion_rule=rule), **changes
    )


def test_the_camera_rule_and_why_queries_have_no_match() -> None:
    search = market()
    result = run(split_of(search))
    assert_rows(result, [search])
    absent = result.lists[0].absent
    assert result.lists[0].without_match.tolist() == [8, 9]
    assert absent is not None and absent.tolist() == [False] * 8 + [True, False]
    assert (
        "market: 2 of 10 queries have no valid match and are left out of every mean: 1 ask for a person who is not "
        "searched, 1 lose all matches to the rule same_camera; for instance rgb/90_c1_9.jpg, rgb/5_c3_9.jpg"
    ) in result.notes()
    assert not any("camera rule" in note for note in result.notes())


@pytest.mark.parametrize(
    "rule", ["none", "same_camera_or_clothes", "same_camera_or_other_clothes", "same_clothes", "other_clothes"]
)
def test_clothes_rules(rule: str) -> None:
    search = market(rule)
    result = run(split_of(search))
    assert_rows(result, [search])
    free = "cameras" not in {"none": (), "same_clothes": "clothes", "other_clothes": "clothes"}.get(rule, "cameras")
    assert ("no camera rule applies: market" in result.notes()) is free


def test_several_rules_and_unknown_labels_in_one_split() -> None:
    blind = [dataclasses.replace(entry, camera_id=-1) for entry in market().query]
    dressed = [dataclasses.replace(entry, clothes_id=entry.clothes_id + 1) for entry in market().query]
    searches = [
        market(),
        market("same_camera_or_clothes", title="clothes"),
        market(title="blind", query=blind),
        market("same_camera_or_clothes", title="other clothes", query=dressed),
        market(title="by person", cmc="identity"),
    ]
    result = run(split_of(*searches))
    assert_rows(result, searches)
    assert result.lists[0].metrics() != pytest.approx(result.lists[2].metrics())
    assert "the camera rule drops nothing, because cameras are unknown: blind" in result.notes()
    blank = [dataclasses.replace(entry, camera_id=-1) for entry in market().gallery]
    pooled = [dataclasses.replace(search, group="both") for search in (market(), market(title="blank", gallery=blank))]
    assert "the camera rule drops nothing, because cameras are unknown: blank" in run(split_of(*pooled)).notes()
    assert (
        "the camera rule drops nothing, because cameras are unknown: both"
        in run(split_of(*(dataclasses.replace(search, query=blind) for search in pooled))).notes()
    )


def sysu(draws: int = 3) -> list[Search]:
    """Infrared queries of cameras 3 and 6; per draw one visible image of each person and camera; two modes."""
    query = crowd(range(1, 7), (3, 6), 3, Modality.NIR)
    pool = crowd(range(1, 7), (1, 2, 4), 4)
    draw = np.random.default_rng(2)
    found = []
    for mode, cameras in (("all", (1, 2, 4)), ("indoor", (1, 2))):
        for number in range(draws):
            keep = [entry for entry in pool if entry.camera_id in cameras and draw.integers(2)]
            found.append(
                Search(
                    title=f"sysu-{mode} draw {number}",
                    protocol=f"sysu-{mode}",
                    query=query,
                    gallery=keep,
                    exclusion_rule="sysu",
                    cmc="identity",
                    group=f"sysu-{mode}",
                )
            )
    return found


def test_draws_with_identity_cmc_mean_and_sample_deviation() -> None:
    searches, model = sysu(), ToyModel()
    result = run(split_of(*searches), model)
    assert_rows(result, searches)
    by_image = [dataclasses.replace(search, cmc="image") for search in searches]
    assert any(entry.metrics()["R1"] <= entry.metrics()["R5"] < 100 for entry in result.lists)
    assert [plain_metrics(plain_queries(search, simple(model)))["R5"] for search in by_image] != pytest.approx(
        [entry.metrics()["R5"] for entry in result.lists]
    )
    rows = {row.task: row for row in result.averages()}
    assert list(rows) == ["sysu-all", "sysu-indoor", "ALL_AVER"]
    for mode in ("all", "indoor"):
        measured = [
            plain_metrics(plain_queries(search, simple(model))) for search in searches if search.group == f"sysu-{mode}"
        ]
        for name in METRICS:
            values = [row[name] for row in measured]
            assert rows[f"sysu-{mode}"].metrics[name] == pytest.approx(statistics.mean(values), abs=1e-5)
            assert rows[f"sysu-{mode}"].deviation[name] == pytest.approx(statistics.stdev(values), abs=1e-4)
    assert rows["ALL_AVER"].metrics["mAP"] == pytest.approx(
        sum(rows[f"sysu-{mode}"].metrics["mAP"] for mode in ("all", "indoor")) / 2
    )
    assert result.average() == rows["ALL_AVER"].metrics["mAP"]
    # Each image once, whatever the number of draws and modes.
    assert model.rows == len(
        {next(iter(entry.sources.values())) for search in searches for entry in (*search.query, *search.gallery)}
    )


def test_pooled_groups_count_every_query_once() -> None:
    few, many = (
        market(group="joint", pooled=True, title="few", protocol="a"),
        market("none", group="joint", pooled=True, title="many", protocol="b"),
    )
    few = dataclasses.replace(few, query=few.query[:2])
    result = run(split_of(few, many))
    assert_rows(result, [few, many])
    row = next(row for row in result.averages() if row.task == "joint")
    every = [entry for search in (few, many) for entry in plain_queries(search, simple(ToyModel()))]
    deep = 100 * statistics.mean(entry["rank"] <= 20 for entry in every if entry is not None)
    assert (
        row.metrics == pytest.approx({**plain_metrics(every), "R20": deep}, abs=1e-5)
        and deep < 100
        and row.pooled
        and not row.deviation
    )
    assert row.protocol == "a; b"
    shown = [line.split("|")[1].strip() for line in format_result(result).splitlines() if line.startswith("|")][1:]
    assert shown == ["few", "many", "joint"]
    plain_mean = sum(entry.metrics()["mAP"] for entry in result.lists) / 2
    assert row.metrics["mAP"] != pytest.approx(plain_mean, abs=1e-3)


def test_an_image_never_finds_itself() -> None:
    everyone = crowd(range(1, 5), (1, 2), 2)
    infrared = crowd(range(1, 5), (3,), 2, Modality.NIR)
    searches = [
        Search(title="one set", protocol="p", query=everyone, gallery=everyone),
        Search(
            title="to infrared",
            protocol="p",
            query=everyone,
            gallery=[*infrared, *everyone],
            exclusion_rule="same_camera",
            cmc="identity",
        ),
        Search(title="to visible", protocol="p", query=infrared, gallery=everyone),
    ]
    result = run(split_of(*searches))
    assert_rows(result, searches)
    split = result.ranked.split
    for entry in range(len(everyone)):
        places, _ = result.ranked.search("one set", entry, 100)
        assert len(places) == len(everyone) - 1 and image_source(everyone[entry]) not in [
            split.gallery[place] for place in places
        ]
        places, _ = result.ranked.search("to infrared", entry, 100)
        assert {(split.gallery_ids[place], split.gallery_camera_ids[place]) for place in places}.isdisjoint(
            {(everyone[entry].person_id, everyone[entry].camera_id)}
        )


def test_texts_search_images() -> None:
    texts = [
        record(person, -1, number, text=f"words {person} {number}") for person in range(1, 6) for number in range(2)
    ]
    search = Search(title="text", protocol="text", query=texts, gallery=crowd(range(1, 6), (1,), 3))
    assert_rows(run(split_of(search)), [search])


def test_lists_without_group_among_groups_enter_the_total_once() -> None:
    searches = [market(), *sysu(draws=2)]
    result = run(split_of(*searches))
    groups = [row.metrics["mAP"] for row in result.averages()[:-1]]
    assert result.average() == pytest.approx((result.lists[0].metrics()["mAP"] + sum(groups)) / 3) and len(groups) == 2


def said(entry: Record) -> Source | None:
    """An instruction by camera; none in camera 2."""
    return None if entry.camera_id == 2 else Source(modality=Modality.TEXT, value=f"camera {entry.camera_id}")


def test_instructions_make_features_of_their_own_for_models_that_follow_them() -> None:
    searches = [
        market("none"),
        dataclasses.replace(
            market("none"), title="moved", query=[dataclasses.replace(entry, camera_id=7) for entry in market().query]
        ),
    ]
    model = ToyModel(follows=True)
    result = run(split_of(*searches, instruct=said), model)

    def feature(entry: Record) -> np.ndarray:
        return plain_feature(model, next(iter(entry.sources.values())), said(entry))

    assert_rows(result, searches, feature=feature)
    # Queries: 10 images under their camera's sentence, and again under the sentence of camera 7.
    assert model.rows == len(searches[0].gallery) + 20
    # Two batches of instructed images (the first rows probe the shapes), each with its distinct sentences once.
    assert model.told < 20 < model.rows
    deaf = ToyModel()
    assert_rows(run(split_of(*searches, instruct=said), deaf), searches)
    assert deaf.rows == len(searches[0].gallery) + 10


def test_an_unreadable_instruction_leaves_its_image_out() -> None:
    pictures = {3: "broken.jpg", 1: "fine.jpg"}

    def picture(entry: Record) -> Source | None:
        return Source(modality=Modality.RGB, value=pictures[entry.camera_id]) if entry.camera_id in pictures else None

    class Strict(ToyReader):
        def __call__(self, source: Source) -> torch.Tensor:
            if source.value in ("broken.jpg", "rgb/2_c1_1.jpg"):
                raise UserError(f"{source.value}: damaged")
            return read(source)

    strict = Strict()
    search = market()
    split = split_of(search, instruct=picture)
    with pytest.raises(UserError, match="jpg: damaged"):
        evaluate_split(ToyModel(follows=True), split, strict, EvaluationSpec(), CPU)
    result = evaluate_split(ToyModel(follows=True), split, strict, EvaluationSpec(skip_unreadable=True), CPU)
    assert result.lists[0].gallery == sum(camera != 3 for camera in split.gallery_camera_ids) - 1 and result.lists[
        0
    ].unreadable.tolist() == [9]
    model = ToyModel(follows=True)

    def feature(entry: Record) -> np.ndarray:
        return plain_feature(model, next(iter(entry.sources.values())), picture(entry))

    readable = [
        entry for entry in search.gallery if entry.camera_id != 3 and image_source(entry).value != "rgb/2_c1_1.jpg"
    ]
    found = plain_queries(dataclasses.replace(search, query=search.query[:9], gallery=readable), feature)
    assert result.lists[0].metrics() == pytest.approx(plain_metrics(found), abs=1e-5)


def test_crops_are_sources_of_their_own_and_one_picture() -> None:
    gallery = crowd(range(1, 4), (1, 2), 2)
    cropped = [
        dataclasses.replace(entry, sources={Modality.RGB: dataclasses.replace(image_source(entry), crop="box")})
        for entry in gallery
    ]
    split = split_of(Search(title="crop", protocol="p", query=cropped, gallery=gallery))
    assert len(plan_evaluation([split]).table) == 24
    result = run(split)
    assert all(len(result.ranked.search("crop", entry, 99)[0]) == 11 for entry in range(12))


def test_flip_and_ap_topk_are_rows_of_their_own() -> None:
    searches, model = [market(), *sysu(draws=2)], ToyModel()
    result = run(split_of(*searches), flip=True, ap_topk=6)
    assert_rows(result, searches)
    assert_rows(result, searches, "ap_topk=6", topk=6)
    assert list(result.stamps) == ["ap_topk=6", "flip"] and any(
        note.startswith("rows [flip]: ") for note in result.notes()
    )

    def both(entry: Record) -> np.ndarray:
        source = next(iter(entry.sources.values()))
        mean = plain_feature(model, source) + plain_feature(model, source, mirror=True)
        return mean / np.linalg.norm(mean)

    assert_rows(result, searches, "flip", feature=both)
    assert {entry.task for entry in result.lists if entry.stamp == "flip"} == {
        f"{search.title} [flip]" for search in searches
    }
    assert {entry.protocol for entry in result.lists if entry.stamp} == {
        f"{name} [{stamp}]" for name in ("market", "sysu-all", "sysu-indoor") for stamp in ("flip", "ap_topk=6")
    }
    assert [row.task for row in result.averages()] == [
        f"{name}{stamp}"
        for stamp in ("", " [ap_topk=6]", " [flip]")
        for name in ("sysu-all", "sysu-indoor", "ALL_AVER")
    ]
    plain = run(split_of(*searches))
    assert plain.average() == result.average() and [row.task for row in plain.averages()] == [
        "sysu-all",
        "sysu-indoor",
        "ALL_AVER",
    ]


def test_re_ranked_rows_use_every_query_and_the_lists_own_gallery() -> None:
    searches, model = sysu(draws=2), ToyModel()
    half = dataclasses.replace(searches[0], title="half", query=searches[0].query[::2])
    searches.append(half)
    result = run(split_of(*searches), rerank=True, rerank_k1=4, rerank_k2=2, rerank_lambda=0.4)
    assert_rows(result, searches)
    for entry, search in zip((entry for entry in result.lists if entry.stamp == "re-ranked"), searches):
        sides = [
            torch.tensor(np.array([simple(model)(item) for item in side]), dtype=torch.float32)
            for side in (search.query, search.gallery)
        ]
        distances = torch.cat([block for _, block in rerank_distances(*sides, k1=4, k2=2, weight=0.4)])
        wanted = evaluate(
            -distances,
            *([item.person_id for item in side] for side in (search.query, search.gallery)),
            rule="sysu",
            cmc="identity",
            query_cameras=[item.camera_id for item in search.query],
            gallery_cameras=[item.camera_id for item in search.gallery],
        )
        assert entry.metrics() == pytest.approx({name: wanted[name] for name in METRICS}, abs=1e-4)
    with pytest.raises(
        UserError,
        match=r"eval.rerank: sysu-all draw 0 with 36 queries and \d+ gallery images takes up to .* eval.memory_mb=1;",
    ):
        run(split_of(*searches), rerank=True, memory_mb=1)


def described(rule: str = "none") -> Search:
    """Queries ask for a description; gallery images have it, another one, or none."""
    query = [record(person, 1, 9, description=f"alpha{person} beta gamma") for person in range(1, 5)]
    gallery = [
        record(person, camera, number, description=(f"alpha{person} beta gamma", "delta epsilon", "")[number])
        for person in range(1, 5)
        for camera in (2, 3)
        for number in range(3)
    ]
    return Search(title="language", protocol="language", query=query, gallery=gallery, exclusion_rule=rule)


def test_map_at_thresholds_and_the_share_they_keep() -> None:
    search, feature = described(), simple(ToyModel())
    result = run(split_of(search), thresholds=(-1.0, 0.5, 1.5))
    entry = result.lists[0]
    values = entry.all_metrics()

    def same_words(query: Record, item: Record) -> bool:
        return item.annotations.get(AnnotationKind.DESCRIPTION) == query.annotations[AnnotationKind.DESCRIPTION]

    wanted = plain_metrics(plain_queries(search, feature, relevant=same_words))["mAP"]
    assert values["mAP@0.5"] == pytest.approx(wanted, abs=1e-5) and values["kept@0.5"] == pytest.approx(1 / 3)
    assert values["mAP@1.5"] == 0 and values["kept@1.5"] == 0
    assert values["kept@-1"] == pytest.approx(2 / 3), "an image without a description is above no threshold"
    assert entry.metrics() == pytest.approx(plain_metrics(plain_queries(search, feature)), abs=1e-5)
    assert any(note.startswith("mAP@tau by annotations, encoded by description: ") for note in result.notes())
    assert "8 of 24 matches have no annotation of their query's kind; no tau keeps them" in result.notes()
    assert result.relevance["checksum"] and "mAP@0.5" in format_result(result) and "kept@0.5" in format_result(result)
    # What a model is told changes nothing; a list without annotations is named.
    told = run(split_of(search, market(), instruct=said), ToyModel(follows=True), thresholds=(0.5,))
    assert told.lists[0].thresholds[0.5].share == entry.thresholds[0.5].share and not told.lists[1].thresholds
    assert "mAP@tau is not measured where queries have no annotations: market" in told.notes()


def test_one_image_may_ask_for_two_things() -> None:
    first = described()
    again = [
        dataclasses.replace(
            entry, annotations={AnnotationKind.DESCRIPTION: Source(modality=Modality.TEXT, value="delta epsilon")}
        )
        for entry in first.query
    ]
    search = dataclasses.replace(first, query=[*first.query, *again])
    entry = run(split_of(search), thresholds=(0.5,)).lists[0]
    values = entry.thresholds[0.5].values
    assert entry.thresholds[0.5].pairs == 48 and not np.allclose(values[:4], values[4:])


def test_pooled_thresholds_are_weighted_by_queries_and_matches() -> None:
    small = dataclasses.replace(
        described(),
        query=described().query[:1],
        gallery=described().gallery[:12:2],
        group="joint",
        pooled=True,
        title="small",
    )
    large = dataclasses.replace(described(), group="joint", pooled=True)
    result = run(split_of(small, large), thresholds=(0.5,))
    row = next(row for row in result.averages() if row.task == "joint")
    parts = [entry.thresholds[0.5] for entry in result.lists]
    assert row.metrics["mAP@0.5"] == pytest.approx((parts[0].mean + 4 * parts[1].mean) / 5)
    assert row.metrics["kept@0.5"] == pytest.approx((parts[0].kept + parts[1].kept) / (parts[0].pairs + parts[1].pairs))


def test_tables_fold_draws_and_files_hold_all_of_them(tmp_path: Path) -> None:
    result = run(split_of(market(), *sysu()), flip=True)
    path = write_results(tmp_path / "out", result, PROVENANCE)
    document = json.loads(path.read_text())
    assert len(document["rows"]) == 14 and all({"protocol", "R20"} <= set(row) for row in document["rows"])
    assert {row["stamp"] for row in document["rows"][7:]} == {"flip"} and "sysu-all: sysu-all in words" in document[
        "protocol"
    ]
    group = next(row for row in document["averages"] if row["task"] == "sysu-all")
    members = [row["mAP"] for row in document["rows"] if row.get("group") == "sysu-all" and "stamp" not in row]
    assert group["mAP"] == pytest.approx(sum(members) / 3) and group["mAP sd"] == pytest.approx(
        statistics.stdev(members)
    )
    text = format_result(result)
    assert (
        "\nsysu-indoor: sysu-indoor in words; cosine similarity; equal similarities" in text
        and "\nsysu-all: sysu-all in words\n" in text
    )
    cells = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")
    ]
    assert [row[0] for row in cells[1:]] == [
        "market",
        "sysu-all (mean of 3)",
        "sysu-indoor (mean of 3)",
        "market [flip]",
        "sysu-all [flip] (mean of 3)",
        "sysu-indoor [flip] (mean of 3)",
        "ALL_AVER",
        "ALL_AVER [flip]",
    ]
    assert cells[2][4] == f"{statistics.mean(members):.3f} ± {statistics.stdev(members):.3f}" and "n - 1" in text
    header = (tmp_path / "out" / "results.csv").read_text().splitlines()[0].split(",")
    assert {"task", "mAP", "protocol", "group", "stamp", "R20", "mAP sd"} <= set(header)
    arrays = read_per_query(path, read_results(path))
    assert set(arrays) == {entry.task for entry in result.lists} and len(arrays["market [flip]"]["person_ids"]) == 10
    other = write_results(tmp_path / "b", run(split_of(market(), *sysu()), flip=True, ap="trapezoid"), PROVENANCE)
    compared = compare_files(path, other)
    assert "different ap: sum and trapezoid" in compared and "| sysu-all " in compared and "market [flip]: " in compared
    assert not has_combinations(document)


def test_a_group_of_one_list_with_its_name_hides_nothing() -> None:
    search = dataclasses.replace(sysu(draws=1)[0], title="sysu-all")
    result = run(split_of(search))
    assert [row.task for row in result.averages()] == ["sysu-all mean", "ALL_AVER"]
    assert format_result(result).count("| sysu-all") == 1 and "ALL_AVER" not in format_result(result)


def on_disk(folder: Path, searches: Sequence[Search]) -> list[Search]:
    """The searches with pictures that exist."""

    def real(entry: Record) -> Record:
        source = image_source(entry)
        path = folder / source.value
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            # Each is another picture: a query does not find a byte copy of itself.
            Image.new("RGB", (8, 16), (40, len(list(folder.rglob("*.*"))), 200)).save(path)
        return dataclasses.replace(entry, sources={source.modality: dataclasses.replace(source, value=str(path))})

    return [
        dataclasses.replace(search, query=list(map(real, search.query)), gallery=list(map(real, search.gallery)))
        for search in searches
    ]


def test_the_page_shows_what_counts(tmp_path: Path) -> None:
    result = run(split_of(*on_disk(tmp_path, [market(), *sysu(draws=2)])), flip=True)
    page = write_report(tmp_path / "out", result, PROVENANCE).read_text(encoding="utf-8")
    assert "sysu-all (mean of 2)" in page and "±" in page and "market [flip]" in page
    first_matches = set()
    for number, index in choose_queries(result, 0)["Worst"]:
        listed, queries = result.plain_lists[number], result.ranked.split.query_lists[number]
        places, _ = result.ranked.search(listed.task, index, 1000)
        hits = [result.ranked.split.gallery_ids[place] == queries.person_ids[index] for place in places]
        persons = [result.ranked.split.gallery_ids[place] for place in places[: hits.index(True) + 1]]
        first_matches.add(hits.index(True) + 1)
        assert f"first match at rank {hits.index(True) + 1} ({sum(hits)} in the gallery)" in page
        assert listed.first_rank[index] == (hits.index(True) + 1 if queries.cmc == "image" else len(set(persons)))
    assert max(first_matches) > 5


def test_a_query_is_found_by_the_name_of_its_row() -> None:
    split = split_of(*sysu(draws=2))
    query = listed_query(split, find_list(split, "SYSU-all draw 1"), 4)
    assert query.name == "sysu-all draw 1 entry 4" and query.sources == split.query_lists[1].entries[4]
    with pytest.raises(UserError, match="did you mean 'sysu-all draw 1'"):
        find_list(split, "sysu-all draw 7")


def test_lists_of_one_search_share_a_gallery() -> None:
    split = split_of(*sysu(draws=2))
    found = find_lists(split, ["SYSU-all draw 0", "sysu-all draw 0"])
    assert found == (split.query_lists[0],)
    with pytest.raises(UserError, match="--task sysu-all draw 1: searches another gallery than sysu-all draw 0"):
        find_lists(split, ["sysu-all draw 0", "sysu-all draw 1"])


def test_the_gallery_of_a_search_is_the_splits() -> None:
    split = split_of(*sysu(draws=2))
    gallery = split_gallery(Benchmark(name="b", train=(), num_identities=0, splits={}, fingerprint="f"), split)
    assert gallery.sources == split.gallery and gallery.protocol.startswith(
        "no exclusion, the galleries of all protocols"
    )
