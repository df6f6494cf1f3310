"""Covers: datasets/releases/joint, datasets/releases/cocas, datasets/formats/joining, datasets/protocols. COCAS+ Real2
in the target outfit, gallery images without instructions, and several test sets in one gallery, worked by hand.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from infrared_trees import SYSU_SINGLE, sysu_tree
from measure import measure_orders, stem
from measure import read as read_release
from official_trees import TREES
from trees import plant, write_lines

from configs.vocabulary import AnnotationKind, Modality, Task
from datasets.benchmark import build_from_release
from datasets.catalogue import dataset_entry
from datasets.formats.joining import Offset, merge_images, offsets_of, shifted
from datasets.instructions import BANK, InstructionMaker, annotate_release
from datasets.protocols import Search, assemble_split
from datasets.structures import EvalSplit, Record, Release, Source
from datasets.synthetic.render import render
from utils.errors import UserError
from utils.retrieval.result import RetrievalResult

CLOTHES, DESCRIPTION, SENTENCE = AnnotationKind.CLOTHES, AnnotationKind.DESCRIPTION, AnnotationKind.SENTENCE
RGB, NIR, TEXT = Modality.RGB, Modality.NIR, Modality.TEXT


def real2(root: Path, delimiter: str = " ") -> Path:
    """Two persons with two outfits each; the queries ask for one of them in one outfit."""
    plant(
        root,
        *(f"images/{name}.jpg" for name in ("q1", "q2", "q3", "q4", "q5", "g1", "g2", "g3", "g4", "g5")),
        *(f"templates/t{number}.jpg" for number in range(4)),
    )
    gallery = [("g1", 1, 0, 1), ("g2", 1, 1, 2), ("g3", 2, 0, 1), ("g4", 1, 0, 2), ("g5", 2, 1, 1)]
    queries = [
        ("q1", "t0", 1, 0, 3),
        ("q2", "t1", 1, 1, 2),
        ("q3", "t2", 2, 0, 1),
        ("q4", "t0", 1, 0, 1),
        ("q5", "t3", 2, 1, 3),
    ]
    write_lines(
        root / "gallery.txt", *(delimiter.join(map(str, (f"images/{name}.jpg", *rest))) for name, *rest in gallery)
    )
    write_lines(
        root / "query.txt",
        *(
            delimiter.join(map(str, (f"images/{name}.jpg", f"templates/{template}.jpg", *rest)))
            for name, template, *rest in queries
        ),
    )
    return root


def describe(root: Path, **texts: str) -> None:
    (root / "runner_real2_v1_gpt.json").write_text(
        json.dumps({f"images/{name}.jpg": text for name, text in texts.items()}), encoding="utf-8"
    )


read = functools.partial(read_release, need_train=False)


def split_of(release: Release, *names: str, maker: InstructionMaker = InstructionMaker()) -> EvalSplit:
    return build_from_release(
        dataset_entry(release.name), release, protocols=names, need_train=False, maker=maker
    ).splits["test"]


ORDERS = {
    "q1": "g2 g1 g3 g4 g5",
    "q2": "g2 g1 g4 g3 g5",
    "q3": "g3 g5 g1 g2 g4",
    "q4": "g1 g2 g4 g3 g5",
    "q5": "g3 g5 g1 g2 g4",
}


def average_precisions(result: RetrievalResult) -> list[float | None]:
    return [None if np.isnan(value) else round(float(value) / 100, 6) for value in result.per_query["mAP"]]


def test_right_is_the_person_in_the_target_outfit(tmp_path: Path) -> None:
    result = measure_orders(
        split_of(read("cocas", real2(tmp_path)), "cocas-target"), "cocas-target", "g1 g2 g3 g4 g5", ORDERS
    )
    # q1 wants person 1 in outfit 0 (g1, g4): g2 shows her in outfit 1 and stays, a wrong result at rank 1: (1/2 + 2/4)
    # / 2.
    # q2 wants g2, of its own camera: dropped, nothing left. q3 wants g3, of its own camera too: g5, the right person in
    # other clothes, does not help.
    # q4 wants g1 and g4; g1 is of its camera, so g2 (wrong) leads and g4 is second: 1/2. q5 wants g5, second behind g3:
    # 1/2.
    assert average_precisions(result) == [0.5, None, None, 0.5, 0.5]
    assert result.unmatched == (1, 2)


def test_right_is_the_person_in_any_clothes(tmp_path: Path) -> None:
    result = measure_orders(
        split_of(read("cocas", real2(tmp_path)), "cocas-pid"), "cocas-pid", "g1 g2 g3 g4 g5", ORDERS
    )
    # q1: ranks 1, 2, 4: (1 + 1 + 3/4) / 3. q2 without g2 and g4 (camera 2): g1 leads: 1. q3 without g3 and g5: nothing.
    # q4 without g1: ranks 1, 2: 1. q5: ranks 1, 2: 1.
    assert average_precisions(result) == [round(2.75 / 3, 6), 1.0, None, 1.0, 1.0]


def test_both_labellings_in_one_split_and_one_picture(tmp_path: Path) -> None:
    split = split_of(read("cocas", real2(tmp_path)), "cocas-target", "cocas-pid")
    assert [stem(source) for source in split.gallery] == ["g1", "g2", "g3", "g4", "g5"] * 2
    assert split.gallery_ids == (1000, 1001, 2000, 1000, 2001, 1, 1, 2, 1, 2)
    assert [queries.gallery for queries in split.query_lists] == [(0, 1, 2, 3, 4), (5, 6, 7, 8, 9)]
    assert [stem(source) for source in split.query_lists[0].instructions] == ["t0", "t1", "t2", "t0", "t3"]
    assert {source.crop for source in split.gallery_instructions} == {"box"}  # type: ignore[union-attr]
    assert split.query_lists[0].annotation_kinds == (CLOTHES,) * 5


@pytest.mark.parametrize("delimiter", [",", ", ", "\t", " ", "  "])
def test_delimiters_of_the_lists(tmp_path: Path, delimiter: str) -> None:
    release = read("cocas", real2(tmp_path / "Real2", delimiter))
    assert [(record.person_id, record.clothes_id, record.camera_id) for record in release.parts["query"]] == [
        (1, 1000, 3),
        (1, 1001, 2),
        (2, 2000, 1),
        (1, 1000, 1),
        (2, 2001, 3),
    ]
    assert read("cocas", tmp_path).parts == release.parts and list(release.parts) == ["query", "gallery"]
    assert any("cocas-li needs" in note for note in release.notes) and any(
        "Real1 exists as the authors' datalists only" in note for note in release.notes
    )


def test_paths_may_be_relative_to_the_picture_folders(tmp_path: Path) -> None:
    before = read("cocas", real2(tmp_path)).parts
    for name in ("query.txt", "gallery.txt"):
        text = (tmp_path / name).read_text()
        (tmp_path / name).write_text(text.replace("images/", "").replace("templates/", ""))
    assert read("cocas", tmp_path).parts == before


def test_descriptions_make_the_language_task(tmp_path: Path) -> None:
    real2(tmp_path)
    with pytest.raises(UserError, match="cocas-li needs descriptions, .* put runner_real2_v1_gpt.json .* into"):
        split_of(read("cocas", tmp_path), "cocas-li")
    describe(tmp_path, g1="One", g2="Two", g3="Three", g4="Four", g5="Five", q1="Unused")
    release = read("cocas", tmp_path)
    asked = [record.annotations[DESCRIPTION].value for record in release.parts["query_li"]]
    # Of the images in the wanted outfit those of another camera: q2 and q3 have one of their own camera only.
    assert asked[1:] == ["Two", "Three", "Four", "Five"] and asked[0] in ("One", "Four")
    # Right is the person in the outfit that is described: the same images as for the template of that outfit.
    target = measure_orders(split_of(release, "cocas-li-target"), "cocas-li-target", "g1 g2 g3 g4 g5", ORDERS)
    assert average_precisions(target) == [0.5, None, None, 0.5, 0.5]
    split = split_of(release, "cocas-li")
    assert [stem(source) for source in split.gallery_instructions] == ["One", "Two", "Three", "Four", "Five"]
    assert split.query_lists[0].annotation_kinds == (DESCRIPTION,) * 5 and split.query_lists[0].person_ids == (
        1,
        1,
        2,
        1,
        2,
    )


def test_drawn_descriptions_do_not_depend_on_the_place(tmp_path: Path) -> None:
    drawn = []
    for place in ("here", "there/below"):
        root = real2(tmp_path / place)
        names = [f"{kind}{number}" for kind in "ab" for number in range(12)]
        plant(root, *(f"images/{name}.jpg" for name in names))
        write_lines(root / "gallery.txt", *(f"images/a{number}.jpg 1 0 1" for number in range(12)))
        write_lines(root / "query.txt", *(f"images/b{number}.jpg templates/t0.jpg 1 0 2" for number in range(12)))
        describe(root, **{name: f"Text {name}" for name in names[:12]})
        drawn.append([record.annotations[DESCRIPTION].value for record in read("cocas", root).parts["query_li"]])
    assert drawn[0] == drawn[1] and len(set(drawn[0])) > 3


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        (
            "query.txt",
            " 1 0 3",
            " 1 0",
            "query.txt line 1: expected 5 fields .image, template, pid, clothes_id, camera_id. .* found 4",
        ),
        ("gallery.txt", " 1 1 2", " 1 1 2 2", "gallery.txt line 2: expected 4 fields"),
        ("gallery.txt", " 1 1 2", " 1 x 2", "line 2: clothes_id = 'x' is not a whole number"),
        ("gallery.txt", "g2", "g9", "gallery.txt line 2: no such image"),
        ("query.txt", "t3", "t9", "query.txt line 5: no such image: .*t9.jpg"),
        ("gallery.txt", "g2", "g1", "gallery.txt line 2: .*g1.jpg is listed in gallery.txt line 1 too"),
        ("runner_real2_v1_gpt.json", "g4", "g8", "gallery.txt line 4: .* has no description of 'images/g4.jpg'"),
    ],
)
def test_damaged_real2(tmp_path: Path, name: str, old: str, new: str, message: str) -> None:
    describe(real2(tmp_path), g1="One", g2="Two", g3="Three", g4="Four", g5="Five")
    text = (tmp_path / name).read_text()
    (tmp_path / name).write_text(text.replace(old, new, 1))
    with pytest.raises(UserError, match=message):
        read("cocas", tmp_path)


def test_what_real2_does_not_ship(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="ships no clothes images of its gallery; set instruction.crop=box"):
        read("cocas", real2(tmp_path), crop="none")
    with pytest.raises(UserError, match="one level too low: .*Real1 exists as datalists only: data.dataset=omnireid"):
        read("cocas", tmp_path / "images")


def market(root: Path) -> Path:
    plant(
        root,
        *(
            f"market1501/{path}"
            for path in (
                "bounding_box_train/0004_c1s1_000001_01.jpg",
                "bounding_box_train/0004_c2s1_000002_01.jpg",
                "bounding_box_train/0005_c1s1_000003_01.jpg",
                "query/0001_c1s1_000004_00.jpg",
                "query/0002_c2s1_000005_00.jpg",
                "bounding_box_test/0001_c2s1_000006_01.jpg",
                "bounding_box_test/0002_c1s1_000007_01.jpg",
                "bounding_box_test/0000_c1s1_000008_01.jpg",
            )
        ),
    )
    return root


def both(root: Path) -> Path:
    real2(root / "Real2")
    describe(root / "Real2", g1="One", g2="Two", g3="Three", g4="Four", g5="Five")
    return market(root)


def test_members_are_recognised_and_kept_apart(tmp_path: Path) -> None:
    release = read("joint", both(tmp_path), need_train=True)
    assert {part.partition("/")[0] for part in release.parts} == {"market1501", "cocas", "train"}
    persons = {part: {record.person_id for record in records} for part, records in release.parts.items()}
    cameras = {part: {record.camera_id for record in records} for part, records in release.parts.items()}
    # Market has persons 0 to 5 and cameras 1 and 2: Real2's persons 1, 2 become 7, 8, its cameras 1 to 3 become 4 to 6.
    assert (
        persons["market1501/gallery"] == {0, 1, 2}
        and persons["train"] == {4, 5}
        and persons["cocas/query"] == persons["cocas/gallery_li"] == {7, 8}
    )
    assert cameras["market1501/query"] == {1, 2} and cameras["cocas/query"] == {4, 5, 6}
    assert {record.clothes_id for record in release.parts["cocas/gallery"]} == {7000, 7001, 8000, 8001}
    assert any(note.startswith("cocas: 10 images of 2 persons") for note in release.notes)
    assert set(read("joint", tmp_path, members=("cocas",)).parts) == {
        "cocas/query",
        "cocas/gallery",
        "cocas/query_li",
        "cocas/gallery_li",
    }


def test_task_free_galleries_have_images_alone(tmp_path: Path) -> None:
    split = split_of(read("joint", both(tmp_path)), "task-free")
    assert [queries.name for queries in split.query_lists] == [
        "task-free market1501",
        "task-free cocas-target",
        "task-free cocas-pid",
        "task-free cocas-li",
        "task-free cocas-li-target",
    ]
    assert set(split.gallery_instructions) == {None} and all(split.gallery_annotations)
    by_name = {queries.name: queries for queries in split.query_lists}
    assert {stem(source) for source in by_name["task-free market1501"].instructions} == {BANK[Task.TRAD][0]}
    assert [stem(source) for source in by_name["task-free cocas-target"].instructions] == ["t0", "t1", "t2", "t0", "t3"]
    # The single sets keep their own labels and rules: the result is that of the set by itself.
    found = measure_orders(split, "task-free cocas-target", "g1 g2 g3 g4 g5", ORDERS)
    assert average_precisions(found) == [0.5, None, None, 0.5, 0.5]
    # cocas-pid and cocas-li search the same five pictures, which are one item each, with an annotation of either kind.
    assert by_name["task-free cocas-pid"].gallery == by_name["task-free cocas-li"].gallery
    place = by_name["task-free cocas-li"].gallery[0]  # type: ignore[index]
    assert set(split.gallery_annotations[place]) == {CLOTHES, DESCRIPTION} and len(split.gallery) == 3 + 5 + 5


def test_an_image_with_two_instructions_is_two_items(tmp_path: Path) -> None:
    release = annotate_release(read("cocas", both(tmp_path) / "Real2"), InstructionMaker())
    summaries = {name: protocol.summary for name, protocol in dataset_entry("cocas").protocols.items()}
    searches = [
        search
        for name in ("cocas-pid", "cocas-li")
        for search in dataset_entry("cocas").protocols[name].searches(release)
    ]
    assert len(assemble_split("test", searches, summaries).gallery) == 5
    split = assemble_split("test", searches, summaries, InstructionMaker().for_test)
    assert len(split.gallery) == 10 and [queries.gallery for queries in split.query_lists] == [
        tuple(range(5)),
        tuple(range(5, 10)),
    ]
    mixed = [searches[0], replace(searches[0], title="free", gallery_instructions=False)]
    split = assemble_split("test", mixed, summaries, InstructionMaker().for_test)
    assert [source is None for source in split.gallery_instructions] == [False] * 5 + [True] * 5


def test_two_tasks_on_one_image_keep_their_own_sentence(tmp_path: Path) -> None:
    """LTCC's cc and sc lists search the same images; mAP at a threshold compares each with the sentence of its own
    task.
    """
    plant(tmp_path / "ltcc", "query/1.png", "test/1.png")
    for kind in ("cc", "sc"):
        write_lines(tmp_path / f"ltcc/datalist/query_{kind}.txt", "query/1.png query/1.png 1 0 1")
        write_lines(tmp_path / f"ltcc/datalist/gallery_{kind}.txt", "test/1.png test/1.png 1 0 2")
    split = split_of(read("omnireid", tmp_path), "task-free")
    assert [queries.name for queries in split.query_lists] == ["task-free ltcc cc", "task-free ltcc sc"]
    for queries, task in zip(split.query_lists, (Task.CC, Task.TRAD)):
        places = range(len(split.gallery)) if queries.gallery is None else queries.gallery
        assert [source.value for source in queries.annotations] == [BANK[task][0]]  # type: ignore[union-attr]
        assert [split.gallery_annotations[place][AnnotationKind.SENTENCE].value for place in places] == [BANK[task][0]]


def item(
    name: str, person: int, camera: int = -1, task: Task = Task.TRAD, modality: Modality = RGB, **annotations: str
) -> Record:
    kinds = {AnnotationKind(kind): Source(modality=TEXT, value=value) for kind, value in annotations.items()}
    return Record(
        person_id=person,
        camera_id=camera,
        sources={modality: Source(modality=modality, value=name)},
        task=task,
        name=name,
        annotations=kinds,
    )


def test_five_queries_against_the_union_of_all_galleries(tmp_path: Path) -> None:
    split = split_of(read("joint", both(tmp_path), members=("market1501", "cocas")), "joint")
    assert split.pooled_groups == ("joint",) and {queries.group for queries in split.query_lists} == {"joint"}
    assert [queries.name for queries in split.query_lists] == ["joint market1501", "joint cocas ctcc", "joint cocas li"]
    assert {queries.exclusion_rule for queries in split.query_lists} == {"same_camera"} and set(
        split.gallery_instructions
    ) == {None}
    names = "0000_c1s1_000008_01 0001_c2s1_000006_01 0002_c1s1_000007_01 g1 g2 g3 g4 g5"
    zero, one, two = names.split()[:3]
    assert [stem(source) for source in split.gallery] == names.split() and all(
        queries.gallery is None for queries in split.query_lists
    )
    found = measure_orders(
        split,
        "joint market1501",
        names,
        {
            # Person 1 of Market is not person 1 of Real2, and camera 2 of Market is not its camera 2: nothing of Real2
            # is right or dropped.
            "0001_c1s1_000004_00": f"g1 {one} g2 g3 g4 g5 {zero} {two}",
            "0002_c2s1_000005_00": f"g3 g5 {zero} {two} {one} g1 g2 g4",
        },
    )
    assert average_precisions(found) == [0.5, 0.25]
    # The orders of cocas-pid with three of Market's images in front of all: an identity is a person here, whatever the
    # clothes.
    found = measure_orders(
        split, "joint cocas ctcc", names, {name: f"{zero} {one} {two} {order}" for name, order in ORDERS.items()}
    )
    assert average_precisions(found) == [
        round((1 / 4 + 2 / 5 + 3 / 7) / 3, 6),
        0.25,
        None,
        round((1 / 4 + 2 / 5) / 2, 6),
        round((1 / 4 + 2 / 5) / 2, 6),
    ]
    assert all(set(annotations) >= {CLOTHES, DESCRIPTION} for annotations in split.gallery_annotations[3:])


def test_both_directions_of_llcm_and_a_query_that_is_a_gallery_image(tmp_path: Path) -> None:
    paths = {
        "nir": "LLCM/test_nir/cam{c}/000{p}/000{p}_c0{c}_s1_f{f}_nir.jpg",
        "vis": "LLCM/test_vis/cam{c}/000{p}/000{p}_c0{c}_s1_f{f}_vis.jpg",
    }
    lines = {
        word: [
            (paths[word].format(p=person, c=camera, f=frame), person, camera)
            for frame, (person, camera) in enumerate(listed)
        ]
        for word, listed in {"nir": [(1, 1), (1, 2), (2, 2)], "vis": [(1, 1), (2, 4)]}.items()
    }
    for word, name in (("nir", "query"), ("vis", "gallery")):
        plant(tmp_path / "llcm", *(path for path, _, _ in lines[word]))
        write_lines(
            tmp_path / f"llcm/{name}.txt", *(f"{path} - {person} 0 {camera}" for path, person, camera in lines[word])
        )
    split = split_of(read("omnireid", tmp_path), "joint", "lists")
    assert [
        (queries.name, len(queries.entries), queries.gallery and len(queries.gallery)) for queries in split.query_lists
    ] == [("joint llcm NIR", 3, 5), ("joint llcm RGB", 2, 5), ("llcm", 3, 2), ("llcm reversed", 2, 3)]
    n1, n2, n3, v1, v2 = (
        "0001_c01_s1_f0_nir",
        "0001_c02_s1_f1_nir",
        "0002_c02_s1_f2_nir",
        "0001_c01_s1_f0_vis",
        "0002_c04_s1_f1_vis",
    )
    gallery = f"{v1} {v2} {n1} {n2} {n3}"
    # n1 finds neither itself nor v1 (its camera): n2 at rank 2 of the rest. n2 (camera 2): v1 at rank 1, n1 at rank 3.
    # n3: v2 at rank 3.
    found = measure_orders(
        split,
        "joint llcm NIR",
        gallery,
        {n1: f"{n1} {v2} {v1} {n2} {n3}", n2: f"{n2} {v1} {v2} {n1} {n3}", n3: f"{n3} {v1} {n1} {v2} {n2}"},
    )
    assert average_precisions(found) == [0.5, round((1 + 2 / 3) / 2, 6), round(1 / 3, 6)]
    # v1 drops itself and n1 (camera 1): n2 is second. v2 finds n3 first.
    found = measure_orders(
        split, "joint llcm RGB", gallery, {v1: f"{v1} {n1} {v2} {n2} {n3}", v2: f"{v2} {n3} {n1} {n2} {v1}"}
    )
    assert average_precisions(found) == [0.5, 1.0]


def test_offsets_leave_unknown_things_unknown() -> None:
    sources = {"a": [item("a1", 3, 2), item("a2", 0)], "b": [item("b1", 5)], "c": [item("c1", 0, 0)]}
    offsets = offsets_of(sources)
    assert offsets == {"a": Offset(), "b": Offset(persons=4, cameras=3), "c": Offset(persons=10, cameras=3)}
    found = shifted(replace(item("b1", 5), clothes_id=5007), offsets["b"])
    assert (found.person_id, found.camera_id, found.clothes_id) == (9, -1, 9007)
    assert shifted(found, offsets["b"].negative()) == replace(item("b1", 5), clothes_id=5007)
    assert shifted(item("c1", 0, 0), offsets["c"]).camera_id == 3


def test_merged_images_have_one_annotation_per_kind() -> None:
    first, second = item("x", 1, -1, description="one"), item("x", 1, 4, sentence="s", description="two")
    merged = merge_images([first, item("y", 2), second, second])
    assert [
        (record.name, record.camera_id, {kind.value: source.value for kind, source in record.annotations.items()})
        for record in merged
    ] == [("x", 4, {"description": "one", "sentence": "s"}), ("y", -1, {})]
    with pytest.raises(UserError, match="x shows person 1 in x and 3 in x; correct one of the lists"):
        merge_images([first, item("x", 3)])


def test_identical_images_are_refused_in_joint_use_and_can_be_excluded(tmp_path: Path) -> None:
    both(tmp_path)
    stolen = tmp_path / "Real2/images/g2.jpg"
    stolen.write_bytes((tmp_path / "market1501/query/0001_c1s1_000004_00.jpg").read_bytes())
    release = read("joint", tmp_path)
    with pytest.raises(
        UserError,
        match=r"1 image.s. with identical bytes .*/0001_c1s1_000004_00.jpg .market1501. and .*g2.jpg .cocas.; .* "
        r"data.exclude",
    ):
        split_of(release, "joint")
    # By themselves the test sets may share images.
    assert len(split_of(release, "task-free").query_lists) == 5
    kept = replace(
        release,
        parts={
            part: tuple(record for record in records if record.sources[RGB].value != str(stolen))
            for part, records in release.parts.items()
        },
    )
    assert len(split_of(kept, "joint").gallery) == 7
    # The same picture of a shirt may serve two sets.
    both(tmp_path)
    (tmp_path / "Real2/templates/t1.jpg").write_bytes(
        (tmp_path / "market1501/query/0001_c1s1_000004_00.jpg").read_bytes()
    )
    assert len(split_of(read("joint", tmp_path), "joint").gallery) == 8


def test_training_on_several_sets_compares_their_training_images(tmp_path: Path) -> None:
    for name, person in (("market", 1), ("msmt", 2)):
        plant(tmp_path, f"{name}/I/t.jpg", f"{name}/I/q.jpg", f"{name}/I/g.jpg")
        write_lines(tmp_path / name / "datalist/train.txt", f"I/t.jpg - {person} 0 1")
        write_lines(tmp_path / name / "datalist/query.txt", "I/q.jpg - 5 0 1")
        write_lines(tmp_path / name / "datalist/gallery.txt", "I/g.jpg - 5 0 2")
    entry = dataset_entry("omnireid")
    benchmark = build_from_release(entry, read("omnireid", tmp_path, need_train=True))
    assert [record.person_id for record in benchmark.train] == [0, 1] and benchmark.num_identities == 2
    (tmp_path / "market/I/t.jpg").write_bytes((tmp_path / "msmt/I/t.jpg").read_bytes())
    with pytest.raises(
        UserError,
        match="with identical bytes are in .* for instance .*market/I/t.jpg .market. and .*msmt/I/t.jpg .msmt.",
    ):
        build_from_release(entry, read("omnireid", tmp_path, need_train=True))
    assert build_from_release(entry, read("omnireid", tmp_path), need_train=False).splits["test"].query_lists[
        0
    ].person_ids == (5,)


def test_validation_persons_join_training_unless_told_otherwise(tmp_path: Path) -> None:
    """SYSU-MM01's tree has two training persons and one of validation, Market-1501's one more."""
    sysu_tree(tmp_path, *SYSU_SINGLE)
    names = (
        "bounding_box_train/0009_c1s1_000001_00",
        "query/0001_c1s1_000002_00",
        "bounding_box_test/0001_c2s1_000003_00",
    )
    plant(tmp_path / "market1501", *(f"{name}.jpg" for name in names))
    counts = []
    for options in ({}, {"merge_val": False}):
        release = read("joint", tmp_path, need_train=True, members=("market1501", "sysu"), **options)
        counts.append(build_from_release(dataset_entry("joint"), release).num_identities)
    assert counts == [4, 3]


def test_wrong_joint_roots(tmp_path: Path) -> None:
    both(tmp_path)
    plant(tmp_path, "market1501/query/0004_c3s1_000009_00.jpg")
    cases: Iterable[tuple[Path, Sequence[str], str]] = (
        (tmp_path / "none", (), "no such data root"),
        (tmp_path / "Real2/images", (), "no folder in .* is recognised as a data set"),
        (tmp_path, ("market",), "'market' is no data set that can be joined: did you mean 'market1501'"),
        (tmp_path, ("omnireid",), "'omnireid' is no data set that can be joined"),
        (tmp_path, ("prcc",), "holds no PRCC"),
    )
    for root, members, message in cases:
        with pytest.raises(UserError, match=message):
            read("joint", root, members=tuple(members))
    for options in ({"variant": "v2"}, {"trial": 2}, {"merge_val": False}):
        with pytest.raises(UserError, match=r"belongs to none of the members \(market1501, cocas\); remove the option"):
            read("joint", tmp_path, **options)
    with pytest.raises(UserError, match="person 4 of market1501 is in train and in test"):
        split_of(read("joint", tmp_path, need_train=True), "joint")


def test_draws_of_a_member_take_part_once(tmp_path: Path) -> None:
    plant(
        tmp_path / "prcc/rgb",
        *(f"test/{room}/{person:03d}/{name}.jpg" for room in "ABC" for person in (1, 2) for name in ("x", "y")),
    )
    release = read("joint", tmp_path)
    split = split_of(release, "joint")
    # Four protocols with ten draws of two of them search the same eight images from B and C in the four images of A.
    assert [(queries.name, len(queries.entries)) for queries in split.query_lists] == [("joint prcc", 8)] and len(
        split.gallery
    ) == 4
    groups = {queries.group for queries in split_of(release, "task-free").query_lists}
    assert groups == {"", "task-free prcc-cc-single", "task-free prcc-sc-single"}


def test_searches_of_one_image_under_two_persons_are_not_mixed_up() -> None:
    searches = [
        Search(title=name, protocol="p", query=[item("q", person)], gallery=[item("x", person), item("y", 7)])
        for name, person in (("one", 1), ("two", 2))
    ]
    split = assemble_split("test", searches, {"p": ""})
    assert split.gallery_ids == (1, 7, 2) and [queries.gallery for queries in split.query_lists] == [(0, 1), (2, 1)]


def test_the_authors_tree_beside_the_originals_is_no_member(tmp_path: Path) -> None:
    """Its folders of LTCC and VC-Clothes would be taken for the originals."""
    TREES["market1501"](tmp_path)
    render(
        "omnireid", tmp_path, identities=4, test_identities=4, images_per_modality=1, image_size=(16, 16), processes=1
    )
    assert sorted(read("joint", tmp_path).members) == ["market1501"]  # type: ignore[attr-defined]
