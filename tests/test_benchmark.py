"""Covers: datasets/benchmark, datasets/validation, datasets/published_counts, datasets/build. From a release to a
benchmark: labels, test split, validation identities, notes, fingerprint, refusals; readers stand in memory.
"""

import dataclasses
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from official_trees import TREES
from trees import plant

from configs.schema.data import DataConfig, InstructionConfig
from configs.vocabulary import AnnotationKind, Modality, Task
from datasets.benchmark import build_from_release
from datasets.build import build_benchmark
from datasets.dataset_entry import Count, DatasetEntry
from datasets.fitting import ModelNeeds
from datasets.instructions import BANK, InstructionMaker
from datasets.protocols import Protocol, Search, plain_protocol, protocol_table
from datasets.structures import Benchmark, Record, Release, Source
from utils.errors import UserError

ROOT = Path("somewhere")


def image(
    person: int, camera: int, number: int, modality: Modality = Modality.RGB, clothes: int = -1, task: Task = Task.TRAD
) -> Record:
    name = f"{modality.value}/{person:03d}_c{camera}_{number}.jpg"
    return Record(
        person_id=person,
        sources={modality: Source(modality=modality, value=str(ROOT / name), record=name)},
        camera_id=camera,
        clothes_id=clothes,
        dataset="made-up",
        task=task,
        name=name,
    )


def images(
    persons: Sequence[int], cameras: Sequence[int] = (1, 2), each: int = 2, modality: Modality = Modality.RGB
) -> tuple[Record, ...]:
    return tuple(
        image(person, camera, number, modality) for person in persons for camera in cameras for number in range(each)
    )


def captioned(person: int, number: int) -> tuple[Record, ...]:
    """Two records of one image, one for each of its captions."""
    picture = image(person, -1, number)
    return tuple(
        dataclasses.replace(
            picture,
            task=Task.T2I,
            sources={
                **picture.sources,
                Modality.TEXT: Source(modality=Modality.TEXT, value=f"caption {word} of {person} {number}"),
            },
        )
        for word in ("one", "two")
    )


def entry_of(protocols: Sequence[Protocol] = (), **changes: Any) -> DatasetEntry:
    table = protocol_table(protocols)
    entry = DatasetEntry(
        name="made-up",
        title="Made up",
        task=Task.TRAD,
        read=lambda root, options: release_of(),
        protocols=table,
        default=tuple(table)[:1],
        recognise=lambda root: False,
    )
    return dataclasses.replace(entry, **changes)


def release_of(**parts: Sequence[Record]) -> Release:
    return Release(name="made-up", root=ROOT, parts={name: tuple(records) for name, records in parts.items()})


CAMERA = plain_protocol("camera-rule", "by camera", exclusion_rule="same_camera")
PLAIN = plain_protocol("no-rule", "without a rule")
WHOLE = {
    "train": images([7, 30, 4, 9, 11, 12, 13, 14, 15, 16]),
    "query": images([100, 200], cameras=[1], each=1),
    "gallery": images([100, 200, 300], cameras=[2]),
}


def build(entry: DatasetEntry | None = None, **options: Any) -> Benchmark:
    return build_from_release(entry or entry_of([CAMERA, PLAIN]), release_of(**WHOLE), **options)


def test_labels_are_those_of_the_sorted_ids_and_test_ids_stay_raw() -> None:
    found = build()
    raw = [record.person_id for record in WHOLE["train"]]
    assert [record.person_id for record in found.train] == [sorted(set(raw)).index(person) for person in raw]
    assert found.num_identities == 10 and list(found.splits) == ["test"]
    split = found.splits["test"]
    assert [(queries.name, queries.exclusion_rule, queries.protocol) for queries in split.query_lists] == [
        ("camera-rule", "same_camera", "camera-rule")
    ]
    assert split.query_lists[0].person_ids == (100, 200) and set(split.gallery_ids) == {100, 200, 300}
    assert split.query_lists[0].camera_ids == (1, 1) and set(split.gallery_camera_ids) == {2}
    assert "by camera" in split.protocol


def test_protocols_are_chosen_by_name_and_stamped() -> None:
    both = build(protocols=["no-rule", "camera-rule", "no-rule"]).splits["test"]
    assert [queries.protocol for queries in both.query_lists] == ["no-rule", "camera-rule"]
    assert both.protocol == "no-rule: without a rule; camera-rule: by camera"
    with pytest.raises(UserError, match=r"no protocol 'camera_rule', did you mean 'camera-rule'"):
        build(protocols=["camera_rule"])


def test_a_test_needs_no_training_part_and_training_needs_one() -> None:
    tested = build_from_release(
        entry_of([CAMERA]), release_of(query=WHOLE["query"], gallery=WHOLE["gallery"]), need_train=False
    )
    assert tested.train == () and tested.num_identities == 0 and len(tested.splits["test"].gallery) == 6
    with pytest.raises(UserError, match="Made up at somewhere has no training part"):
        build_from_release(entry_of([CAMERA]), release_of(query=WHOLE["query"], gallery=WHOLE["gallery"]))
    trained = build_from_release(entry_of(), release_of(train=WHOLE["train"]))
    assert trained.splits == {} and any("has no test part" in note for note in trained.notes)
    with pytest.raises(UserError, match="Made up has no test part, so no protocol"):
        build_from_release(entry_of(), release_of(train=WHOLE["train"]), protocols=["camera-rule"])


def test_a_missing_part_and_an_empty_side_are_named() -> None:
    with pytest.raises(
        UserError, match="protocol camera-rule of made-up needs the part 'gallery', which somewhere lacks"
    ):
        build_from_release(entry_of([CAMERA]), release_of(train=WHOLE["train"], query=WHOLE["query"]))
    with pytest.raises(UserError, match="camera-rule has no queries"):
        build_from_release(entry_of([CAMERA]), release_of(train=WHOLE["train"], query=(), gallery=WHOLE["gallery"]))


def test_persons_in_train_and_test_are_refused_unless_numbered_apart() -> None:
    parts = release_of(**{**WHOLE, "gallery": (*WHOLE["gallery"], image(9, 3, 0))})
    with pytest.raises(
        UserError, match=r"1 persons of made-up are in train and in test, for instance 9 \(rgb/009_c1_0.jpg\)"
    ):
        build_from_release(entry_of([CAMERA]), parts)
    assert build_from_release(entry_of([CAMERA], separate_ids=True), parts).num_identities == 10
    assert build_from_release(entry_of([CAMERA]), dataclasses.replace(parts, shared_persons=True)).num_identities == 10


def test_validation_identities_are_held_out_whole() -> None:
    found = build(select_val=True, val_fraction=0.3)
    split, search = found.splits["val"], found.splits["val"].query_lists[0]
    held = set(split.gallery_ids)
    assert len(held) == 3 and found.num_identities == 7 and held < {record.person_id for record in WHOLE["train"]}
    assert held == set(build(select_val=True, val_fraction=0.3).splits["val"].gallery_ids)
    pictures = {source.value for source in split.gallery} | {source.value for (source,) in search.entries}
    assert pictures.isdisjoint(source.value for record in found.train for source in record.sources.values())
    # 2 persons' cameras each with 2 images: one of each is a query.
    assert Counter(zip(search.person_ids, search.camera_ids)) == {
        (person, camera): 1 for person in held for camera in (1, 2)
    }
    assert (
        len(split.gallery) == 6
        and search.exclusion_rule == "same_camera"
        and any("3 of 10" in note for note in found.notes)
    )


@pytest.mark.parametrize(("fraction", "held"), [(0.01, 1), (0.24, 2), (0.26, 3), (0.8, 8)])
def test_the_held_out_share_is_rounded_to_the_nearest_number(fraction: float, held: int) -> None:
    split = build(select_val=True, val_fraction=fraction).splits["val"]
    assert len(set(split.gallery_ids)) == held


def test_validation_follows_the_default_rule_where_its_labels_are_known() -> None:
    clothed = tuple(
        dataclasses.replace(record, clothes_id=record.person_id * 1000 + record.camera_id) for record in WHOLE["train"]
    )
    changed = plain_protocol("changed", "", exclusion_rule="same_camera_or_clothes", cmc="identity")
    for train, rule in ((clothed, "same_camera_or_clothes"), (WHOLE["train"], "same_camera")):
        parts = release_of(**{**WHOLE, "train": train})
        search = (
            build_from_release(entry_of([changed]), parts, select_val=True, val_fraction=0.2)
            .splits["val"]
            .query_lists[0]
        )
        assert (search.exclusion_rule, search.cmc) == (rule, "identity")
    blind = tuple(dataclasses.replace(record, camera_id=-1) for record in WHOLE["train"])
    search = (
        build_from_release(
            entry_of([changed]), release_of(**{**WHOLE, "train": blind}), select_val=True, val_fraction=0.2
        )
        .splits["val"]
        .query_lists[0]
    )
    assert search.exclusion_rule == "none" and len(search.entries) == 2


def test_a_person_with_one_image_is_no_validation_query() -> None:
    lonely = tuple(image(person, 1, 0) for person in range(4)) + tuple(
        image(person, camera, 0) for person in (4, 5) for camera in (1, 2)
    )
    found = build_from_release(
        entry_of([CAMERA]), release_of(**{**WHOLE, "train": lonely}), select_val=True, val_fraction=0.6
    )
    split, search = found.splits["val"], found.splits["val"].query_lists[0]
    assert set(search.person_ids) <= {4, 5} and all(person in split.gallery_ids for person in search.person_ids)
    assert len(split.gallery) + len(search.entries) == sum(
        record.person_id in {*split.gallery_ids} for record in lonely
    )


def test_texts_and_infrared_images_search_in_validation() -> None:
    texts = tuple(record for person in range(6) for number in range(2) for record in captioned(person, number))
    split = build_from_release(
        entry_of([PLAIN]), release_of(**{**WHOLE, "train": texts}), select_val=True, val_fraction=0.5
    ).splits["val"]
    assert split.query_lists[0].combination == (Modality.TEXT,) and len(split.query_lists[0].entries) == 3 * 4
    assert len(split.gallery) == 3 * 2 and {source.modality for source in split.gallery} == {Modality.RGB}
    both = images(range(6)) + images(range(6), cameras=[3], modality=Modality.NIR)
    split = build_from_release(
        entry_of([CAMERA]), release_of(**{**WHOLE, "train": both}), select_val=True, val_fraction=0.5
    ).splits["val"]
    assert (
        split.query_lists[0].combination == (Modality.NIR,)
        and len(split.query_lists[0].entries) == 3 * 2
        and len(split.gallery) == 3 * 4
    )
    # A camera rule is added where images search images of their own kind, and nowhere else.
    split = build_from_release(
        entry_of([PLAIN]), release_of(**{**WHOLE, "train": both}), select_val=True, val_fraction=0.5
    ).splits["val"]
    assert split.query_lists[0].exclusion_rule == "none"


def test_validation_parts_of_the_data_set() -> None:
    others = images([50, 51])
    # SYSU-MM01's form: other persons, which train when validation is not asked for.
    parts = release_of(**WHOLE, val=others)
    assert build_from_release(entry_of([CAMERA]), parts).num_identities == 12
    found = build_from_release(entry_of([CAMERA]), parts, select_val=True)
    assert found.num_identities == 10 and set(found.splits["val"].gallery_ids) == {50, 51}
    # LaST's form: queries and gallery; they never train.
    parts = release_of(**WHOLE, val_query=others[:2], val_gallery=others[2:])
    assert build_from_release(entry_of([CAMERA]), parts).num_identities == 10
    found = build_from_release(entry_of([CAMERA]), parts, select_val=True)
    assert len(found.splits["val"].gallery) == 6 and found.splits["val"].query_lists[0].exclusion_rule == "same_camera"
    # PRCC's form: more images of the training persons, which are neither.
    parts = release_of(**WHOLE, val=images([7, 9], cameras=[3]))
    assert len(build_from_release(entry_of([CAMERA]), parts).train) == len(WHOLE["train"])
    with pytest.raises(UserError, match="needs data.val_fraction > 0, because Made up has no validation identities"):
        build_from_release(entry_of([CAMERA]), parts, select_val=True)
    assert build_from_release(entry_of([CAMERA]), parts, select_val=True, val_fraction=0.1).num_identities == 9


def test_counts_beside_the_published_ones() -> None:
    published = {
        "": {
            "train": Count(images=40, persons=10),
            "query": Count(images=3, persons=2),
            "gallery": Count(persons=9, confirmed=False),
        }
    }
    notes = build(entry_of([CAMERA], published=published)).notes
    assert (
        "2 of 5 counts differ from the published ones of Made up: query images 2 (published 3), gallery persons 3 "
        "(published 9, unconfirmed)"
    ) in notes
    agreed = {"": {"train": Count(images=40, persons=10)}}
    assert "all 2 counts equal the published ones of Made up" in build(entry_of([CAMERA], published=agreed)).notes
    # Captions are counted as images once.
    texts = release_of(**{**WHOLE, "train": captioned(1, 0) + captioned(2, 0)})
    counted = build_from_release(entry_of([PLAIN], published={"": {"train": Count(images=2, persons=2)}}), texts)
    assert "all 2 counts equal the published ones of Made up" in counted.notes


def test_what_was_dropped_and_the_readers_findings_are_notes() -> None:
    parts = dataclasses.replace(release_of(**WHOLE), dropped={"junk images": 1234}, notes=("a finding",))
    notes = build_from_release(entry_of([CAMERA]), parts).notes
    assert "a finding" in notes and "left out by the data set's own rules: junk images: 1,234" in notes


def changed(**parts: Sequence[Record]) -> str:
    return build_from_release(entry_of([CAMERA, PLAIN]), release_of(**{**WHOLE, **parts})).fingerprint


def test_the_fingerprint_covers_records_labels_and_options_but_not_the_place() -> None:
    plain = build().fingerprint
    first, *rest = WHOLE["gallery"]
    others = {
        build(protocols=["no-rule"]).fingerprint,
        build(select_val=True, val_fraction=0.1).fingerprint,
        changed(gallery=(dataclasses.replace(first, camera_id=5), *rest)),
        changed(gallery=(dataclasses.replace(first, clothes_id=5), *rest)),
        changed(gallery=rest),
        changed(train=WHOLE["train"][1:]),
        changed(train=(dataclasses.replace(WHOLE["train"][0], camera_id=9), *WHOLE["train"][1:])),
        changed(
            gallery=(
                dataclasses.replace(first, sources={Modality.RGB: Source(modality=Modality.RGB, value="other.jpg")}),
                *rest,
            )
        ),
        build(maker=InstructionMaker(InstructionConfig(test_sentence=3))).fingerprint,
        # What is measured differs, the words do not.
        build(entry_of([plain_protocol("camera-rule", "by camera"), PLAIN])).fingerprint,
        build(
            entry_of([plain_protocol("camera-rule", "by camera", exclusion_rule="same_camera", cmc="identity"), PLAIN])
        ).fingerprint,
    }
    assert len(others) == 11 and plain not in others and build().fingerprint == plain
    moved = {
        name: [
            dataclasses.replace(
                record,
                sources={
                    modality: dataclasses.replace(source, value=source.value.replace("somewhere", "elsewhere"))
                    for modality, source in record.sources.items()
                },
            )
            for record in records
        ]
        for name, records in WHOLE.items()
    }
    release = dataclasses.replace(release_of(**moved), root=Path("elsewhere"))
    assert build_from_release(entry_of([CAMERA, PLAIN]), release).fingerprint == plain


def test_instructions_and_annotations_reach_the_split() -> None:
    split = build(maker=InstructionMaker(InstructionConfig(test_sentence=4))).splits["test"]
    wanted = BANK[Task.TRAD][4]
    assert (
        {source.value for source in split.gallery_instructions if source is not None}
        == {wanted}
        == {source.value for source in split.query_lists[0].instructions if source is not None}
    )
    # What counts as right does not follow what the model is told.
    assert {annotations[AnnotationKind.SENTENCE].value for annotations in split.gallery_annotations} == {
        BANK[Task.TRAD][0]
    }


def test_titles_are_made_unique() -> None:
    twice = Protocol(
        name="twice",
        summary="",
        searches=lambda release: (
            [Search(title="same", protocol="twice", query=release.parts["query"], gallery=release.parts["gallery"])] * 2
        ),
    )
    split = build_from_release(entry_of([twice]), release_of(**WHOLE)).splits["test"]
    assert [queries.name for queries in split.query_lists] == ["same (1)", "same (2)"]


def market(root: Path) -> Path:
    """Ten training persons, two test persons, junk and a distractor, in the official layout."""
    names = [
        f"bounding_box_train/{person:04d}_c{camera}s1_000{number}01_00.jpg"
        for person in range(2, 22, 2)
        for camera in (1, 2)
        for number in (1, 2)
    ]
    names += [f"query/{person:04d}_c1s1_000151_00.jpg" for person in (1, 3)]
    names += [
        f"bounding_box_test/{name}"
        for person in (1, 3)
        for name in (f"{person:04d}_c1s1_000151_01.jpg", f"{person:04d}_c2s1_000151_01.jpg")
    ]
    names += ["bounding_box_test/-1_c1s1_000401_03.jpg", "bounding_box_test/0000_c3s1_000401_03.jpg"]
    return plant(root, *(f"Market-1501-v15.09.15/{name}" for name in names))


def test_a_data_set_of_the_table_is_built_by_name(tmp_path: Path) -> None:
    data = DataConfig(dataset="market1501", root=str(market(tmp_path)), val_fraction=0.2)
    found = build_benchmark(data, select="val", need_train=True)
    assert found.name == "market1501" and found.num_identities == 8 and set(found.splits) == {"test", "val"}
    assert sorted(found.splits["test"].gallery_ids) == [0, 1, 1, 3, 3]
    assert build_benchmark(data, select="test", need_train=True).num_identities == 10
    told = build_benchmark(
        data, select="test", need_train=False, instruction=InstructionConfig(sentences="released")
    ).splits["test"]
    assert told.gallery_instructions[0] is not None and told.gallery_instructions[0].value == "do not change clothes"
    with pytest.raises(UserError, match="unknown data set 'market' .data.dataset.: did you mean 'market1501'"):
        build_benchmark(dataclasses.replace(data, dataset="market"), select="test", need_train=False)


def test_the_box_of_clothes_reaches_the_reader(tmp_path: Path) -> None:
    """COCAS+ Real2 ships no clothes images of its gallery: without a box it cannot be read."""
    data = DataConfig(dataset="cocas", root=str(TREES["cocas"](tmp_path)))
    build_benchmark(data, select="test", need_train=False)
    with pytest.raises(UserError, match="set instruction.crop=box"):
        build_benchmark(data, select="test", need_train=False, instruction=InstructionConfig(crop="none"))


def test_listed_images_are_left_out(tmp_path: Path) -> None:
    listing = tmp_path / "exclude.txt"
    listing.write_text(
        "Market-1501-v15.09.15/bounding_box_test/0000_c3s1_000401_03.jpg\n"
        "Market-1501-v15.09.15/bounding_box_train/0002_c1s1_000101_00.jpg\n",
        encoding="utf-8",
    )
    data = DataConfig(dataset="market1501", root=str(market(tmp_path)), exclude=str(listing))
    trained, tested = (build_benchmark(data, select="test", need_train=need_train) for need_train in (True, False))
    assert len(trained.train) == 39 and sorted(trained.splits["test"].gallery_ids) == [1, 1, 3, 3] == sorted(
        tested.splits["test"].gallery_ids
    )
    listing.write_text("nowhere.jpg\n", encoding="utf-8")
    with pytest.raises(UserError, match="exclude.txt line 1"):
        build_benchmark(data, select="test", need_train=False)


def test_held_out_persons_do_not_depend_on_the_order_of_records() -> None:
    shuffled = list(WHOLE["train"])
    random.Random(5).shuffle(shuffled)
    one, other = (
        build_from_release(
            entry_of([CAMERA]), release_of(**{**WHOLE, "train": train}), select_val=True, val_fraction=0.3
        ).splits["val"]
        for train in (WHOLE["train"], shuffled)
    )
    assert one == other


def test_validation_tells_the_gallery_only_what_a_model_takes() -> None:
    for told in (True, False):
        needs = ModelNeeds(told_gallery=told)
        entry, maker = entry_of([CAMERA]), InstructionMaker(InstructionConfig(gallery="none"))
        release = release_of(**WHOLE)
        found = build_from_release(entry, release, select_val=True, val_fraction=0.3, maker=maker, needs=needs)
        split = found.splits["val"]
        assert any(split.gallery_instructions) == told and all(split.query_lists[0].instructions)
        assert found.splits["test"].query_lists[0].name == "camera-rule [gallery alone]"
