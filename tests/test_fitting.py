"""Covers: datasets/fitting, datasets/mixed_queries, solver/search/gallery. What a model and its objective can use of a
data set: partners, what is left aside, mixed queries of own data; and the way from own files to a trained model, its
results and a search.
"""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scripts import exit_code, global_state_kept
from tiny_orbench import load_orbench, write_orbench

from configs.schema.data import DataConfig
from configs.schema.reid5o import Reid5oConfig, Reid5oObjectiveConfig
from configs.schema.vireid import VireidConfig, VireidObjectiveConfig
from configs.vocabulary import Combination, Modality, combination_name
from datasets.build import build_benchmark
from datasets.fitting import ModelNeeds, fit_split, needs_of, pair_records
from datasets.mixed_queries import drawn_searches
from datasets.structures import EvalSplit, QueryList, Record, Source
from solver.search.gallery import own_gallery
from utils.errors import UserError

RGB, NIR, CP, SK, TEXT = Modality
PAIRED = ModelNeeds(paired=True)
ROOT = Path(__file__).resolve().parent.parent


def source(modality: Modality, name: str) -> Source:
    return Source(modality=modality, value=name)


def record(person: int, **named: str) -> Record:
    """record(3, rgb="a", text="a coat")"""
    return Record(
        person_id=person, sources={Modality(kind): source(Modality(kind), name) for kind, name in named.items()}
    )


def partners(found: Record) -> dict[Modality, list[str]]:
    return {modality: [entry.value for entry in sources] for modality, sources in found.partners.items()}


def test_needs_are_those_of_the_sections() -> None:
    assert needs_of(Reid5oConfig(), Reid5oObjectiveConfig()) == ModelNeeds(
        modalities=(RGB, NIR, CP, SK, TEXT), fuses=True, paired=True
    )
    assert needs_of(VireidConfig(), VireidObjectiveConfig()) == ModelNeeds(
        modalities=(RGB, NIR), fuses=False, paired=False
    )


def test_rows_of_one_person_are_partners() -> None:
    records = [
        record(0, rgb="a", text="tall"),
        record(0, rgb="b"),
        record(0, nir="z"),
        record(0, nir="y"),
        record(1, rgb="c"),
        record(1, sk="s"),
        record(2, nir="alone"),
    ]
    paired, notes = pair_records("own", records)
    assert [entry.sources[RGB].value for entry in paired] == ["a", "b", "c"]
    # What a record lists itself stays; the rest is drawn from the person's others, sorted.
    assert partners(paired[0]) == {NIR: ["y", "z"]} and paired[0].sources[TEXT].value == "tall"
    assert partners(paired[1]) == {NIR: ["y", "z"], TEXT: ["tall"]}
    assert partners(paired[2]) == {SK: ["s"]}
    assert notes[0].startswith("1 training identities have no visible image")
    assert [note.split(":")[0] for note in notes[1:]] == [
        "1 of 2 training identities have no NIR",
        "1 of 2 training identities have no SK",
        "1 of 2 training identities have no TEXT",
    ]


def test_partners_that_a_record_has_are_not_replaced() -> None:
    given = replace(record(0, rgb="a"), partners={NIR: (source(NIR, "own"),)})
    paired, _ = pair_records("own", [given, record(0, nir="other"), record(0, sk="s")])
    assert partners(paired[0]) == {NIR: ["own"], SK: ["s"]}


def test_records_that_come_paired_stay_as_they_are(tmp_path: Path) -> None:
    benchmark = load_orbench(write_orbench(tmp_path), need_train=True)
    assert pair_records("orbench", benchmark.train) == (list(benchmark.train), [])


@pytest.mark.parametrize(
    ("records", "words"),
    [
        ([record(0, rgb="a"), record(1, rgb="b")], "hold RGB; train the visible baseline"),
        ([record(0, nir="a"), record(1, rgb="b")], "hold RGB and NIR;"),
        ([record(0, nir="a")], "hold NIR;"),
    ],
)
def test_records_without_any_pair_are_refused(records: list[Record], words: str) -> None:
    with pytest.raises(UserError, match=f"training records of own {words}"):
        pair_records("own", records)


def split(*combinations: Combination, gallery: Modality = RGB) -> EvalSplit:
    lists = [
        QueryList(
            combination=members,
            entries=(tuple(source(member, member.value) for member in members),),
            person_ids=(0,),
            title=combination_name(members),
        )
        for members in combinations
    ]
    return EvalSplit(
        name="test", protocol="", gallery=(source(gallery, "g"),), gallery_ids=(0,), query_lists=tuple(lists)
    )


def test_query_lists_that_a_model_cannot_answer() -> None:
    given = split((NIR,), (TEXT,), (NIR, TEXT))
    infrared = ModelNeeds(modalities=(RGB, NIR), fuses=False)
    kept, notes = fit_split("own", given, infrared, own=True)
    assert [queries.name for queries in kept.query_lists] == ["NIR"]
    able = "this model encodes RGB and NIR only, one of them in a query"
    assert notes == [f"test: 2 query lists are left aside, for {able}: TEXT, NIR+TEXT"]
    alone, _ = fit_split("own", given, ModelNeeds(fuses=False), own=True)
    assert [queries.name for queries in alone.query_lists] == ["NIR", "TEXT"]
    assert fit_split("own", given, PAIRED, own=False) == (given, [])
    for wrong, own, words in (
        (given, False, r"the queries of x hold NIR and TEXT \(TEXT, NIR\+TEXT\)"),
        (split((TEXT,)), True, r"the queries of x hold TEXT \(TEXT\)"),
        (split((NIR,), gallery=CP), True, "the gallery of x holds CP images"),
    ):
        with pytest.raises(UserError, match=f"{words}, and {able};"):
            fit_split("x", wrong, infrared, own)


def test_mixed_queries_of_records_by_hand() -> None:
    """Person 0 has two infrared images and a caption, person 1 a caption only, person 2 no visible image."""
    records = [record(0, nir="n2"), record(0, rgb="a"), record(0, rgb="a"), record(0, nir="n1"), record(0, text="t")]
    records += [record(1, rgb="b"), record(1, text="u"), record(2, nir="m"), record(2, text="v")]
    searches = {search.title: search for search in drawn_searches(records, "p", seed=3)}
    assert list(searches) == ["NIR", "TEXT", "NIR+TEXT", "TEXT+NIR"]
    entries = {
        name: [(entry.person_id, [part.value for part in entry.sources.values()]) for entry in search.query]
        for name, search in searches.items()
    }
    assert entries["NIR"] == [(0, ["n1"]), (0, ["n2"])] and entries["TEXT"] == [(0, ["t"]), (1, ["u"])]
    assert entries["NIR+TEXT"] == [(0, ["n1", "t"]), (0, ["n2", "t"])]
    assert entries["TEXT+NIR"] in ([(0, ["t", "n1"])], [(0, ["t", "n2"])])
    assert [entry.sources[RGB].value for entry in searches["NIR"].gallery] == ["a", "b"]
    twice = drawn_searches(records, "p", seed=3, repeated_items=True)
    assert [entry.sources[RGB].value for entry in twice[0].gallery] == ["a", "a", "b"]
    assert [search.title for search in drawn_searches(records, "p", seed=3, smallest=2)] == ["NIR+TEXT", "TEXT+NIR"]


def called(person: int) -> str:
    return "51" if person == 9 else f"Bob {person}"


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A manifest of twelve persons: three photos each, two captions, an infrared image, a sketch of every second."""
    root = tmp_path_factory.mktemp("own")
    rng = np.random.default_rng(0)
    rows: list[dict[str, str]] = []

    def add(person: int, modality: str, number: int, split: str, caption: str = "") -> None:
        name = f"{modality} {person} {number}.png"
        colour = np.full((16, 8, 3), 20 * person, dtype=np.uint8) + rng.integers(0, 20, (16, 8, 3), dtype=np.uint8)
        Image.fromarray(colour).save(root / name)
        given = {"path": name, "modality": modality, "caption": caption, "split": split}
        rows.append({**given, "person": called(person)})

    for person in range(12):
        kind = "train" if person < 8 else ""
        for number in range(3):
            text = f"person {person} in colour {number}" if number < 2 else ""
            add(person, "rgb", number, kind or "gallery", text)
        add(person, "nir", 0, kind or "query")
        if person % 2:
            add(person, "sk", 0, kind or "query")
        if not kind:
            rows.append({"person": called(person), "modality": "text", "caption": "somebody", "split": "query"})
    with (root / "photos.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, ["path", "person", "modality", "caption", "split"])
        writer.writeheader()
        writer.writerows(rows)
    return root / "photos.csv"


def test_persons_without_a_photograph_are_not_held_out(tmp_path: Path) -> None:
    """Four of ten have photographs and can be held out of a paired training; of another all ten. The manifest is for
    training alone.
    """
    rows = ["path,person,modality,split"]
    for person in range(10):
        for number, modality in enumerate(["nir", "nir", "rgb", "rgb"] if person > 5 else ["nir", "nir"]):
            Image.new("RGB", (4, 8), (person, number, 0)).save(tmp_path / f"{person}-{number}.png")
            rows.append(f"{person}-{number}.png,{person},{modality},train")
    (tmp_path / "own.csv").write_text("\n".join(rows))
    data = DataConfig(dataset="manifest", root=str(tmp_path / "own.csv"), val_fraction=0.5)
    paired = build_benchmark(data, select="val", need_train=True, needs=PAIRED)
    assert "2 of 4 training identities held out" in next(note for note in paired.notes if "held out" in note)
    assert len(set(paired.splits["val"].gallery_ids)) == 2 and paired.num_identities == 2
    assert "test" not in paired.splits and any("not evaluated" in note for note in paired.notes)
    alone = build_benchmark(data, select="val", need_train=True)
    assert "5 of 10 training identities held out" in next(note for note in alone.notes if "held out" in note)


def test_own_data_are_tested_by_the_combinations_they_have(own: Path) -> None:
    found = build_benchmark(DataConfig(dataset="manifest", root=str(own)), select="last", need_train=True, needs=PAIRED)
    lists = {queries.name: queries for queries in found.splits["test"].query_lists}
    counts = {name: len(queries.entries) for name, queries in lists.items()}
    rule = "own-data/no-camera-rule"
    assert counts == {
        **{f"{rule} NIR": 4, f"{rule} SK": 2, f"{rule} TEXT": 4},
        **{"NIR+SK": 2, "SK+NIR": 2, "NIR+TEXT": 4, "TEXT+NIR": 4, "SK+TEXT": 2, "TEXT+SK": 2},
        **{"NIR+SK+TEXT": 2, "SK+NIR+TEXT": 2, "TEXT+NIR+SK": 2},
    }
    assert len(found.train) == 24 and found.num_identities == 8
    assert len(found.splits["test"].gallery) == 12
    assert {len(entry.sources) + len(entry.partners) for entry in found.train} == {3, 4}


def trained(own: Path, folder: Path, config: str, *more: str) -> Path:
    """Train on the own data for one epoch; return the run."""
    where = [f"data.root={own}", "data.dataset=manifest", f"output_dir={folder}", "name=own", "data.workers=0"]
    size = ["model.image_size=[32,16]", "train.epochs=1", "train.batch_size=8", "train.eval_period=1"]
    with global_state_kept():
        assert exit_code("train", "--config", ROOT / "configs" / config, *where, *size, *more) == 0
    return folder / "own"


@pytest.fixture(scope="module")
def fused_run(own: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ReID5o, trained on the own data."""
    folder = tmp_path_factory.mktemp("runs")
    return trained(own, folder, "reid5o/smoke.yaml", "train.select=val", "data.val_fraction=0.25")


def results_of(run: Path) -> list[str]:
    with global_state_kept():
        assert exit_code("test", "--run", run) == 0
    rows = json.loads((run / "results.json").read_text())["rows"]
    return [row["task"] for row in rows]


def test_every_combination_of_own_data_has_a_result(fused_run: Path) -> None:
    tasks = results_of(fused_run)
    assert len(tasks) == 12 and "NIR+SK+TEXT" in tasks and "own-data/no-camera-rule SK" in tasks


def test_the_visible_baseline_leaves_the_rest_aside(own: Path, tmp_path: Path) -> None:
    tiny = ["model.init=random", "model.depth=18", "model.blocks=[1,1,1,1]", "model.width=4", "augment.pad_crop=0"]
    run = trained(own, tmp_path, "baseline/own.yaml", *tiny, "data.val_fraction=0.25")
    assert results_of(run) == ["own-data/no-camera-rule NIR"]


@pytest.mark.parametrize("gallery", [True, False], ids=["manifest", "test gallery"])
def test_persons_keep_the_users_names(own: Path, fused_run: Path, tmp_path: Path, gallery: bool) -> None:
    """A name is found by a text and, where it is a number, by the number; every output has it."""
    asked = [{"nir": str(own.parent / "nir 9 0.png"), "person_id": person} for person in (51, "51", "Bob 8", "Eve")]
    (tmp_path / "asked.json").write_text(json.dumps(asked))
    where = ["--gallery", own] if gallery else []
    output = ["--output", tmp_path / "found.png", "--export", tmp_path / "features.npz", "--top-k", "12"]
    with global_state_kept():
        assert exit_code("infer", "--run", fused_run, "--queries", tmp_path / "asked.json", *where, *output) == 0
    found = json.loads((tmp_path / "found.json").read_text())["queries"]
    assert [row["query"]["person_id"] for row in found] == [51, "51", "Bob 8", "Eve"]
    # Three photographs of each of four persons are searched.
    assert [row["matches_in_gallery"] for row in found] == [3, 3, 3, 0]
    for row, name in zip(found, ("51", "51", "Bob 8", "Eve")):
        assert sorted(entry["person_id"] for entry in row["results"]) == sorted(
            [*["51"] * 3, *["Bob 10"] * 3, *["Bob 11"] * 3, *["Bob 8"] * 3]
        )
        for entry in row["results"]:
            assert entry["match"] == (entry["person_id"] == name)
            shown = int(Path(entry["path"]).stem.split()[1])
            assert entry["person_id"] == called(shown)
    page = (tmp_path / "found.html").read_text()
    assert "person 51" in page and "id Bob 10" in page
    with np.load(tmp_path / "features.npz") as arrays:
        assert arrays["query_person_ids"].tolist() == ["51", "51", "Bob 8", "Eve"]
        assert set(arrays["gallery_person_ids"].tolist()) == {"51", "Bob 8", "Bob 10", "Bob 11"}


def test_a_listed_query_and_the_report_have_the_names(own: Path, fused_run: Path, tmp_path: Path) -> None:
    with global_state_kept():
        output = ["--output", tmp_path / "found.png"]
        assert exit_code("infer", "--run", fused_run, "--task", "NIR+TEXT", *output) == 0
    query = json.loads((tmp_path / "found.json").read_text())["queries"][0]["query"]
    assert query["person_id"] == "51" and query["nir"].endswith("nir 9 0.png")
    results_of(fused_run)
    page = (fused_run / "report.html").read_text()
    assert "id Bob 10" in page and "person Bob 11" in page


def test_a_manifest_as_gallery_by_hand(tmp_path: Path) -> None:
    for name in ("b.png", "a.png", "n.png", "t.png"):
        Image.new("RGB", (4, 8)).save(tmp_path / name)
    lines = ["path,person,modality,split", "b.png,Ann,,gallery", "a.png,7,,test", "n.png,7,nir,test", "t.png,x,,train"]
    (tmp_path / "own.csv").write_text("\n".join(lines))
    gallery = own_gallery(tmp_path / "own.csv")
    visible = gallery.read_as(RGB)
    assert [Path(entry.value).name for entry in visible.sources] == ["a.png", "b.png"]
    assert visible.person_ids == ("7", "Ann") and gallery.read_as(NIR).person_ids == ("7",)
    with pytest.raises(UserError, match="lists RGB and NIR images, and SK ones are searched"):
        gallery.read_as(SK)
    for bad, words in (
        (["t.png,x,,", "t.png,y,,"], "line 3: t.png shows 'y', but bad.csv line 2"),
        (["u.png,x,,"], "no such"),
    ):
        (tmp_path / "bad.csv").write_text("\n".join([lines[0], *bad]))
        with pytest.raises(UserError, match=words):
            own_gallery(tmp_path / "bad.csv")
