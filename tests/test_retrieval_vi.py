"""Covers: solver/commands/search, solver/search/gallery, solver/search/queries. infer.py across visible and infrared
images against a brute-force ranking by NumPy: which gallery, read as which modality.
"""

import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import official_trees
import pytest
import torch
from PIL import Image

from configs.load import build_experiment, save_experiment
from configs.vocabulary import Modality
from datasets.structures import Source
from model.build import build_model, initialise
from solver.commands.search import SearchOptions, run_search
from solver.runs import open_run
from solver.search.queries import Query, choose_modality
from utils.checkpoint_io import save_checkpoint
from utils.errors import UserError

MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
RGB, NIR = Modality.RGB, Modality.NIR


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SYSU-MM01, RegDB and LLCM in small, every picture noise of its own."""
    root = tmp_path_factory.mktemp("data")
    for write in (official_trees.sysu, official_trees.regdb, official_trees.llcm):
        write(root)
    rng = np.random.default_rng(0)
    for path in sorted(path for path in root.rglob("*.*") if path.suffix in (".jpg", ".bmp")):
        Image.fromarray(rng.integers(0, 256, (5, 3, 3), dtype=np.uint8)).resize(
            (20, 40), Image.Resampling.NEAREST
        ).save(path)
    return root


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    """A run of a network with a stem for each modality, so that it matters as what an image is read."""
    folder = tmp_path_factory.mktemp("run")
    config = build_experiment(
        [
            (
                "test",
                {
                    "family": "vireid",
                    "data": {"root": str(data), "workers": 0, "dataset": "sysu"},
                    "train": {"sampler": "modality"},
                    "model": {
                        "init": "random",
                        "depth": 18,
                        "blocks": [1, 1, 1, 1],
                        "width": 8,
                        "image_size": [32, 16],
                        "stem": "two_stream",
                    },
                },
            )
        ],
        name="small",
    )
    save_experiment(config, folder / "config.yaml")
    torch.manual_seed(0)
    model = build_model(config.family, config.model, 3)
    initialise(config.family, model, config.model)
    save_checkpoint(
        folder / "best.pth",
        {
            "model": model.state_dict(),
            "config": {},
            "family": "vireid",
            "num_identities": 3,
            "epoch": 1,
            "step": 1,
            "selected_on": "val",
            "data_fingerprint": "",
        },
    )
    return folder


@functools.cache
def opened(run: Path) -> Any:
    return open_run(run).model


@torch.no_grad()
def feature(run: Path, modality: Modality, path: str) -> np.ndarray:
    pixels = np.asarray(Image.open(path).convert("RGB").resize((16, 32), Image.Resampling.BILINEAR)) / 255
    return (
        opened(run)
        .encode(modality, torch.from_numpy(((pixels - MEAN) / STD).transpose(2, 0, 1)[None]).float())
        .pooled[0]
        .double()
        .numpy()
    )


def brute_force(
    run: Path, query: tuple[Modality, Path], modality: Modality, paths: Sequence[Path]
) -> tuple[list[str], list[float]]:
    asked = feature(run, query[0], str(query[1]))
    found = []
    for path in paths:
        there = feature(run, modality, str(path))
        found.append((float(asked @ there / np.sqrt((asked @ asked) * (there @ there))), str(path)))
    found.sort(reverse=True)
    return [path for _, path in found], [cosine for cosine, _ in found]


def call(run: Path, folder: Path, *overrides: str, **options: Any) -> dict[str, Any]:
    run_search(
        SearchOptions(
            run=str(run),
            output=str(folder / "out.png"),
            gallery_cache=str(folder / "cache"),
            device="cpu",
            top_k=50,
            overrides=overrides,
            **options,
        )
    )
    return json.loads((folder / "out.json").read_text(encoding="utf-8"))


def check(
    run: Path, document: Mapping[str, Any], query: tuple[Modality, Path], modality: Modality, paths: Sequence[Path]
) -> None:
    assert paths and document["gallery"]["modalities"] == [modality.value]
    expected, cosines = brute_force(run, query, modality, paths)
    results = document["queries"][0]["results"]
    assert [entry["similarity"] for entry in results] == pytest.approx(cosines, abs=2e-6)
    assert [entry["path"] for entry in results] == expected


def sysu(data: Path, cameras: Sequence[int]) -> list[Path]:
    return [
        data / "SYSU-MM01" / f"cam{camera}" / f"000{person}" / "0001.jpg" for camera in cameras for person in (1, 2)
    ]


def test_an_infrared_image_searches_the_visible_gallery_and_back(run: Path, data: Path, tmp_path: Path) -> None:
    infrared, visible = data / "SYSU-MM01/cam3/0001/0001.jpg", data / "SYSU-MM01/cam1/0001/0001.jpg"
    document = call(run, tmp_path, parts={"nir": str(infrared)})
    check(run, document, (NIR, infrared), RGB, sysu(data, (1, 2, 4, 5)))
    assert "no gallery" not in " ".join(document["notes"])
    # Only visible images are in SYSU-MM01's galleries: the infrared test images, which are its queries, are searched.
    document = call(run, tmp_path, parts={"rgb": str(visible)})
    check(run, document, (RGB, visible), NIR, sysu(data, (3, 6)))
    assert any(
        "sysu has no gallery of NIR images: its 4 NIR test queries were searched" in note for note in document["notes"]
    )
    assert {entry["person_id"] for entry in document["queries"][0]["results"]} == {1, 2}
    document = call(run, tmp_path, parts={"rgb": str(visible)}, gallery_modality="rgb")
    check(run, document, (RGB, visible), RGB, sysu(data, (1, 2, 4, 5)))


@pytest.mark.parametrize(
    ("dataset", "folders"),
    [("llcm", {RGB: "LLCM/test_vis", NIR: "LLCM/test_nir"}), ("regdb", {RGB: "RegDB/Visible", NIR: "RegDB/Thermal"})],
)
def test_a_gallery_of_both_modalities_is_divided(
    run: Path, data: Path, tmp_path: Path, dataset: str, folders: dict[Modality, str]
) -> None:
    paths = {
        modality: sorted(
            path for path in (data / folder).rglob("*.*") if dataset == "llcm" or path.parent.name in ("1", "5")
        )
        for modality, folder in folders.items()
    }
    for asked, other in ((RGB, NIR), (NIR, RGB)):
        document = call(run, tmp_path, f"data.dataset={dataset}", parts={asked.value: str(paths[asked][1])})
        check(run, document, (asked, paths[asked][1]), other, paths[other])
        assert f"{other.name} images" in document["gallery"]["name"] and not document["gallery"]["reused"]
        assert not [note for note in document["notes"] if "no gallery" in note]


def test_a_folder_is_read_as_the_other_modality_and_kept_by_modality(run: Path, data: Path, tmp_path: Path) -> None:
    folder, image = data / "LLCM" / "test_nir", data / "LLCM/test_vis/cam1/0005/0005_c01_s1_f1_vis.jpg"
    paths = sorted(folder.rglob("*.jpg"))
    for reused in (False, True):
        for asked, given, read in (("rgb", "", NIR), ("nir", "", RGB), ("rgb", "rgb", RGB), ("nir", "nir", NIR)):
            # No data set is needed for a file against a folder.
            document = call(
                run,
                tmp_path,
                "data.root=/nowhere",
                parts={asked: str(image)},
                gallery=str(folder),
                gallery_modality=given,
            )
            check(run, document, (Modality(asked), image), read, paths)
            assert document["gallery"]["reused"] is (reused or bool(given))
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_a_listed_query_searches_what_its_list_searches(run: Path, data: Path, tmp_path: Path) -> None:
    query = data / "SYSU-MM01/cam6/0001/0001.jpg"
    document = call(run, tmp_path, tasks=("sysu-indoor-single-seeded draw 0",), index=(1,))
    check(run, document, (NIR, query), RGB, sysu(data, (1, 2)))
    assert document["queries"][0]["query"]["person_id"] == 1 and document["queries"][0]["matches_in_gallery"] == 2
    assert "the rule 'sysu'" in document["protocol"] and "draw 0" in document["gallery"]["name"]
    document = call(run, tmp_path, tasks=("sysu-all-single-seeded draw 0",), index=(1,))
    check(run, document, (NIR, query), RGB, sysu(data, (1, 2, 4, 5)))
    document = call(run, tmp_path, tasks=("sysu-indoor-single-seeded draw 0",), index=(1,), gallery_modality="nir")
    check(run, document, (NIR, query), NIR, sysu(data, (3, 6)))
    document = call(run, tmp_path, "data.dataset=llcm", tasks=("llcm-vis-to-ir draw 3",))
    assert document["gallery"]["modalities"] == ["nir"] and len(document["queries"][0]["results"]) == 4
    document = call(
        run, tmp_path, tasks=("sysu-all-single-seeded draw 0",), index=(1,), gallery=str(data / "LLCM" / "test_vis")
    )
    check(run, document, (NIR, query), RGB, sorted((data / "LLCM" / "test_vis").rglob("*.jpg")))


def query(*modalities: Modality) -> Query:
    return Query(name="query", sources=tuple(Source(modality=modality, value="x") for modality in modalities))


def test_the_modality_that_is_searched() -> None:
    every, pair = tuple(Modality), (RGB, NIR)
    cases = [
        ("", query(RGB), every, every, RGB),
        ("", query(NIR), every, every, RGB),
        ("nir", query(RGB), every, every, NIR),
        ("", query(RGB), every, (), RGB),
        ("", query(RGB), every, pair, NIR),
        ("", query(NIR, Modality.TEXT), every, pair, RGB),
        ("", query(RGB), pair, (), NIR),
        ("", query(NIR), pair, pair, RGB),
        ("rgb", query(RGB), pair, pair, RGB),
    ]
    for asked, entry, encoded, present, expected in cases:
        assert choose_modality(asked, [entry], encoded, present) is expected, (asked, entry, encoded, present)
    assert choose_modality("", [query(RGB), query(NIR)], every, every) is RGB
    with pytest.raises(UserError, match="--gallery-modality"):
        choose_modality("", [query(RGB), query(NIR)], pair)
