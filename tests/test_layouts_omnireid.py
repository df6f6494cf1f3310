"""Covers: datasets/synthetic/layouts/omnireid, datasets/synthetic/templates. The rendered population as the tree of
OmniReID's authors: files, lists, instructions, read back by the reader.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny_layouts import laid_out, matched

from configs.schema.data import DataConfig
from datasets.catalogue import dataset_entry
from datasets.releases.cocas import in_target_outfit
from datasets.structures import ReadOptions
from datasets.synthetic.arguments import LAYOUTS, RenderArguments, parse_members
from datasets.synthetic.person import Membership, membership
from datasets.synthetic.render import render
from utils.errors import UserError

OMNI: dict[str, Any] = {
    "identities": 6,
    "test_identities": 5,
    "seed": 3,
    "image_size": (32, 16),
    "images_per_modality": 2,
}
LISTS = {
    "market": "datalist/{}.txt",
    "msmt": "datalist/{}.txt",
    "cuhk": "datalist/{}.txt",
    "ltcc": "datalist/{}.txt",
    "prcc": "datalist/{}.txt",
    "vc_clothes": "datalist/{}.txt",
    "real1": "datalist/{}.txt",
    "real2": "datalist/{}.txt",
    "llcm": "{}.txt",
    "CUHK-Pedes": "{}_t2i_v2.txt",
}
NAMES = {
    "ltcc": ("train", "query_sc", "gallery_sc", "query_cc", "gallery_cc", "query_general", "gallery_general"),
    "real1": ("train_ctcc", "train_attr"),
    "real2": ("query", "gallery", "query_attr", "gallery_attr"),
}
# By hand, for 6 training and 5 test persons with 2 pictures each, 3 outfits where clothes change.
LENGTHS = {
    "real1": {"train_ctcc": 6 * 3 * 3, "train_attr": 6 * 3 * 3},
    "real2": {"query": 15, "gallery": 30, "query_attr": 15, "gallery_attr": 30},
    "llcm": {"train": 24, "query": 10, "gallery": 10},
    "prcc": {"train": 6 * 3 * 2, "query": 10, "gallery": 10},
    "cuhk": {"train": 12, "query": 10, "gallery": 10},
    "msmt": {"train": 12, "query": 10, "gallery": 10},
}


@pytest.fixture(scope="module")
def omnireid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tree of OmniReID's authors, rendered small."""
    return render("omnireid", tmp_path_factory.mktemp("omni"), processes=1, **OMNI).folder


def listed_in(folder: Path, member: str, name: str) -> list[list[str]]:
    return [line.split(" ") for line in (folder / member / LISTS[member].format(name)).read_text().splitlines()]


def omnireid_lists(folder: Path) -> dict[tuple[str, str], list[list[str]]]:
    return {
        (member, name): listed_in(folder, member, name)
        for member in LISTS
        for name in NAMES.get(member, ("train", "query", "gallery"))
    }


def test_omnireid_tree_and_lists(omnireid: Path) -> None:
    assert {path.name for path in omnireid.iterdir()} == {*LISTS, "manifest.json"}
    lists = omnireid_lists(omnireid)
    assert len(list(omnireid.rglob("datalist/*.txt"))) + 6 == len(lists)
    for member, lengths in LENGTHS.items():
        assert {name: len(lists[member, name]) for name in NAMES.get(member, ("train", "query", "gallery"))} == lengths
    for (member, name), lines in lists.items():
        assert lines and all(len(line) == (4 if member == "CUHK-Pedes" else 5) for line in lines), (member, name)
        assert all(
            (omnireid / member / line[0]).is_file() and int(line[2]) >= 0 and int(line[3]) >= 0 for line in lines
        )
        if member in ("ltcc", "prcc", "vc_clothes"):
            assert all((omnireid / member / line[1]).is_file() for line in lines)
            assert {line[1] == "white_shirt.jpg" for line in lines} == {name != "train"}
    for member, folder in (
        ("ltcc", "templates"),
        ("prcc", "prcc_A_templates"),
        ("real1", "COCAS/templates"),
        ("real2", "real_reid_image_face_blur/templates"),
    ):
        with Image.open(next((omnireid / member / folder).iterdir())) as template:
            assert template.size == (16, 16)
    with Image.open(omnireid / "ltcc/white_shirt.jpg") as shirt:
        assert shirt.size == (16, 16) and min(shirt.getpixel((8, 9))) > 240 > 160 > max(shirt.getpixel((1, 14)))
    crop = next((omnireid / "vc_clothes/croped_image/train").iterdir())
    with Image.open(crop) as upper, Image.open(omnireid / "vc_clothes/train" / crop.name) as whole:
        assert upper.size == (16, 13) and np.abs(np.asarray(upper).astype(int) - np.asarray(whole)[5:18]).mean() < 12


def test_omnireid_persons_are_apart_and_where_they_belong() -> None:
    plan = importlib.import_module(LAYOUTS["omnireid"]).plan(RenderArguments("omnireid", **OMNI))
    shots = {shot.path: shot for shot in plan.shots}
    blocks = {
        "market": 1,
        "msmt": 2,
        "cuhk": 3,
        "prcc": 4,
        "ltcc": 5,
        "vc_clothes": 6,
        "llcm": 9,
        "CUHK-Pedes": 12,
        "real1": 15,
        "real2": 15,
    }
    for path, shot in shots.items():
        assert shot.person % 10_000_000 // 100_000 == blocks[path.split("/")[0]]
    for path, text in plan.texts.items():
        member, name = path.split("/")[0], path.split("/")[-1]
        if "/idx/" in path or "/info/" in path or name.startswith("list_"):
            continue
        person_of: dict[str, int] = {}
        for line in text.splitlines():
            image, _, pid, clothes, *camera = line.split(" ")
            shot = shots[f"{member}/{image}"]
            assert membership(shot.person) is (Membership.TRAIN if name.startswith("train") else Membership.TEST), path
            assert pid == "0" and member == "market" or person_of.setdefault(pid, shot.person) == shot.person
            assert not camera or int(camera[0]) == shot.camera
            if member not in ("real1", "real2"):
                assert int(clothes) == shot.outfit


def test_omnireid_instructions(omnireid: Path) -> None:
    plan = importlib.import_module(LAYOUTS["omnireid"]).plan(RenderArguments("omnireid", **OMNI))
    worn = {shot.path: (shot.person, shot.outfit) for shot in plan.shots}
    for name in ("train_ctcc", "train_attr"):
        for image, second, _, clothes, _ in listed_in(omnireid, "real1", name):
            # Its own annotation: of the outfit that it shows.
            assert worn[f"real1/{image}"][1] == int(clothes) and worn[f"real1/{second}"] == worn[f"real1/{image}"]
            assert ("templates" in second) == (name == "train_ctcc") and (second == image) == (name == "train_attr")
    for member, name in (("real2", "query"), ("real2", "gallery")):
        for image, second, _, clothes, _ in listed_in(omnireid, member, name):
            assert worn[f"{member}/{second}"] == (worn[f"{member}/{image}"][0], int(clothes))
            if name == "gallery":
                assert second == image
            elif name == "query":
                assert "templates" in second and worn[f"{member}/{image}"][1] != int(clothes)
    for member in ("real1", "real2"):
        captions = json.loads((omnireid / member / f"datalist/runner_{member}_v1_gpt.json").read_text())
        for name in NAMES[member]:
            if name.endswith("_attr"):
                for image, key, _, clothes, _ in listed_in(omnireid, member, name):
                    assert key in captions and worn[f"{member}/{key}"] == (worn[f"{member}/{image}"][0], int(clothes))
    captions = json.loads((omnireid / "CUHK-Pedes/caption_t2i_v2.json").read_text())
    keys = [line[1] for name in ("train", "query") for line in listed_in(omnireid, "CUHK-Pedes", name)]
    assert len(set(keys)) == len(keys) == len(captions) - 1 and set(keys) < set(captions)
    assert (
        {line[1] for line in listed_in(omnireid, "CUHK-Pedes", "gallery")} == {"001_1_c5_015874.png"} <= set(captions)
    )


@pytest.mark.parametrize(
    ("member", "query", "gallery"),
    [(member, "query", "gallery") for member in LISTS if member not in ("ltcc", "real1")]
    + [("real2", "query_attr", "gallery_attr")]
    + [("ltcc", f"query_{kind}", f"gallery_{kind}") for kind in ("sc", "cc", "general")],
)
def test_omnireid_queries_have_matches(member: str, query: str, gallery: str, omnireid: Path) -> None:
    items = listed_in(omnireid, member, gallery)
    for line in listed_in(omnireid, member, query):
        found = [item for item in items if item[2] == line[2] and (len(line) == 4 or item[4] != line[4])]
        if query == "query_cc":
            assert all(item[3] != line[3] for item in found)
        elif query == "query_sc":
            assert all(item[3] == line[3] for item in found)
        elif member == "real2":
            found = [item for item in found if item[3] == line[3]]
        assert found, line


def test_omnireid_reads_back(omnireid: Path) -> None:
    entry = dataset_entry("omnireid")
    assert entry.recognise(omnireid)
    release = entry.read(omnireid.parent, ReadOptions())
    names = {"cuhk": "cuhk03", "CUHK-Pedes": "cuhk_pedes"}
    expected = {}
    for (member, name), lines in omnireid_lists(omnireid).items():
        part = (
            f"{names.get(member, member)}{name[5:]}/train"
            if member == "real1"
            else f"{names.get(member, member)}/{name}"
        )
        expected[part.replace("/query_attr", "_attr/query").replace("/gallery_attr", "_attr/gallery")] = len(lines)
    assert {part: len(records) for part, records in release.parts.items() if part != "train"} == expected
    assert len(release.parts["train"]) == sum(count for part, count in expected.items() if part.endswith("/train"))
    trained = {record.person_id for record in release.parts["train"]}
    # The persons of nine folders, in none of the test parts.
    assert len(trained) == 9 * 6
    for name, protocol in entry.protocols.items():
        for search in protocol.searches(release):
            assert matched(search) == len(search.query) > 0, (name, search.title)
            assert trained.isdisjoint(record.person_id for record in (*search.query, *search.gallery))


def test_right_is_the_person_in_the_outfit_asked_for(omnireid: Path) -> None:
    entry, release = dataset_entry("omnireid"), dataset_entry("omnireid").read(omnireid, ReadOptions())
    searches = list(entry.protocols["lists-target"].searches(release))
    assert [search.title for search in searches] == ["real2 target", "real2_attr target"]
    for search, suffix in zip(searches, ("", "_attr")):
        lists = {role: listed_in(omnireid, "real2", role + suffix) for role in ("query", "gallery")}
        for line, query in zip(lists["query"], search.query, strict=True):
            right = [item[2:4] == line[2:4] for item in lists["gallery"]]
            assert right == [item.person_id == query.person_id for item in search.gallery] and sum(right) == 2
    free = [search for search in entry.protocols["task-free"].searches(release) if search.title.endswith(" target")]
    assert [search.title for search in free] == ["task-free real2 target", "task-free real2_attr target"]
    for one, other in zip(searches, free):
        assert one.query == other.query and one.gallery == other.gallery and not other.gallery_instructions
    market = entry.read(omnireid, ReadOptions(data=DataConfig(members=("market",))))
    with pytest.raises(UserError, match="lists-target needs a test set whose queries ask for an outfit"):
        list(entry.protocols["lists-target"].searches(market))
    assert all(" target" not in search.title for search in entry.protocols["task-free"].searches(market))
    with pytest.raises(UserError, match="line 1: its clothes id is unknown"):
        in_target_outfit([dataclasses.replace(release.parts["real2/query"][0], clothes_id=-1)])


@pytest.mark.parametrize(("images", "outfits", "persons"), [(1, 2, 1), (3, 4, 4)])
def test_omnireid_of_other_sizes_has_matches(images: int, outfits: int, persons: int, tmp_path: Path) -> None:
    laid_out("omnireid", tmp_path, images_per_modality=images, outfits=outfits, test_identities=persons)
    entry = dataset_entry("omnireid")
    for search in entry.protocols["lists"].searches(entry.read(tmp_path, ReadOptions())):
        assert matched(search) == len(search.query) > 0, search.title


def test_members_alone_are_those_of_the_whole_tree() -> None:
    layout = importlib.import_module(LAYOUTS["omnireid"])
    # A person who is in real1 and in real2 has no picture twice.
    shared = {**OMNI, "shared_persons": 2}
    whole = layout.plan(RenderArguments("omnireid", **shared))
    for members in (("market", "real2"), ("real1", "CUHK-Pedes", "llcm"), ("vc_clothes", "prcc", "msmt", "cuhk")):
        found = layout.plan(RenderArguments("omnireid", **shared, members=members))
        assert {shot.path.split("/")[0] for shot in found.shots} == set(members)
        for name in ("annotations", "texts", "binaries"):
            kept = {path: value for path, value in getattr(whole, name).items() if path.split("/")[0] in members}
            assert getattr(found, name) == kept
        assert set(found.shots) == {shot for shot in whole.shots if shot.path.split("/")[0] in members}


def test_without_ltcc_there_is_room_for_more_persons(tmp_path: Path) -> None:
    asked = parse_members("CUHK-Pedes, market,prcc,real1,real2,llcm,market")
    assert asked == ("market", "prcc", "real1", "real2", "llcm", "CUHK-Pedes")
    many: dict[str, Any] = {"identities": 300, "test_identities": 100, "images_per_modality": 1}
    laid_out("omnireid", tmp_path, **many, members=asked)
    release = dataset_entry("omnireid").read(tmp_path, ReadOptions())
    # Real1's persons have two lists.
    assert len({record.person_id for record in release.parts["train"]}) == 6 * 300 - 300
    persons = {
        part: len({record.person_id for record in records})
        for part, records in release.parts.items()
        if part.endswith("/query")
    }
    assert persons == {f"{name}/query": 100 for name in ("market", "prcc", "real2", "real2_attr", "llcm", "cuhk_pedes")}
    with pytest.raises(UserError, match="400 identities are too many for ltcc"):
        RenderArguments("omnireid", **{**OMNI, **many}).layout_module().plan(
            RenderArguments("omnireid", **{**OMNI, **many})
        )


def test_wrong_members_and_a_tree_of_others(omnireid: Path) -> None:
    with pytest.raises(UserError, match="--members names 'Market', no member of omnireid: did you mean 'market'"):
        RenderArguments("omnireid", **OMNI, members=parse_members("prcc,Market"))
    with pytest.raises(UserError, match="--members is prcc, but the layout prcc has no members"):
        RenderArguments("prcc", **OMNI, members=("prcc",))
    with pytest.raises(UserError, match="was rendered with members = 'market,msmt.*', now it is 'real2'"):
        render("omnireid", omnireid.parent, processes=1, **OMNI, members=("real2",))
    # A tree of before there was a choice: real1's lists were others.
    manifest = json.loads((omnireid / "manifest.json").read_text())
    assert manifest.pop("members") == ",".join(LISTS)
    older = omnireid.parent / "older" / "OmniReID"
    older.mkdir(parents=True)
    (older / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="was rendered with members = ''"):
        render("omnireid", older.parent, processes=1, **OMNI)
