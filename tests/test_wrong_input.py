"""Covers: train, test, infer, solver/commands/opening, utils/errors. Wrong input given to the three scripts: one
sentence with culprit and remedy, exit code 2, nothing written. And what is handled.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from scripts import ROOT, Place, Run, make_base_run, refused
from tiny_orbench import write_orbench
from trees import Bomb, small_disk

SMOKE = str(ROOT / "configs" / "reid5o" / "smoke.yaml")
SHORT = ["train.epochs=1", "train.max_steps=1", "train.batch_size=4", "data.workers=0"]


@pytest.fixture(scope="module")
def base_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained run beside a folder data/, made once."""
    folder = tmp_path_factory.mktemp("made")
    write_orbench(folder / "data")
    return make_base_run(folder, SMOKE, SHORT)


@dataclass
class OrbenchPlace(Place):
    """A copy of the data that may be broken."""

    @property
    def orbench(self) -> Path:
        return self.root / "ORBench"

    def edit(self, name: str, change: Callable[[Any], Any]) -> None:
        path = self.orbench / name
        content = json.loads(path.read_text())
        path.write_text(json.dumps(change(content) or content))


@pytest.fixture
def place(base_run: Path, tmp_path: Path, call_script: Run) -> OrbenchPlace:
    shutil.copytree(base_run.parent.parent / "data", tmp_path / "data")
    return OrbenchPlace(call_script, tmp_path, SMOKE, SHORT, tmp_path / "data", base_run)


TRAIN, TEST = "train_annos.json", "test_gallery_and_queries.json"


@pytest.mark.parametrize(
    ("up", "words"),
    [
        ("..", ["one level too high"]),
        ("data/ORBench/vis", ["too low"]),
        ("nowhere", ["no such data root"]),
    ],
)
def test_wrong_root(place: OrbenchPlace, up: str, words: list[str]) -> None:
    root = place.folder if up == ".." else place.folder / up
    refused(place, place.train(root=root), *words, "set data.root")


@pytest.mark.parametrize("name", [TRAIN, TEST])
def test_missing_and_truncated_annotations(place: OrbenchPlace, name: str) -> None:
    path = place.orbench / name
    path.write_bytes(path.read_bytes()[:-20])
    refused(place, place.train(), name, "not valid JSON")
    path.unlink()
    refused(place, place.train(), name, "restore it" if name == TEST else "no such file")


def test_test_lists_missing_for_the_other_scripts(place: OrbenchPlace) -> None:
    (place.orbench / TEST).unlink()
    refused(place, place.test(), TEST, "missing; restore it")
    refused(place, place.infer("--task", "NIR"), TEST, "missing; restore it")


def test_annotations_of_another_shape(place: OrbenchPlace) -> None:
    place.edit(TRAIN, lambda rows: rows[3].update(caption=["a coat"]))
    refused(place, place.train(), "train_annos.json entry 3", "caption", "a list")
    place.edit(TRAIN, lambda rows: rows[3].update(caption="a coat"))
    place.edit(TEST, lambda table: table["NIR+TEXT"].__setitem__(1, [100, "only one"]))
    refused(place, place.test(), "NIR+TEXT entry 1", "2 item")


def test_identities(place: OrbenchPlace) -> None:
    rows = json.loads((place.orbench / TRAIN).read_text())
    folder = rows[0]["file_path"].split("/")[1]
    shutil.rmtree(place.orbench / "sk" / folder)
    refused(place, place.train(), folder, "SK", "partners")
    place.edit(TRAIN, lambda content: content[2:4])
    refused(place, place.train(), "one training identity only")


def test_overlap_and_escape(place: OrbenchPlace) -> None:
    rows = json.loads((place.orbench / TRAIN).read_text())
    place.edit(TEST, lambda table: table["RGB_GALLERY"].append([1, rows[0]["file_path"]]))
    refused(place, place.train(), "must not overlap", rows[0]["file_path"].split("/")[1])
    place.edit(TEST, lambda table: table["RGB_GALLERY"].__setitem__(-1, [1, "vis/../../../secret/x.jpg"]))
    refused(place, place.test(), "RGB_GALLERY entry", "inside ORBench")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, ["no such image"]),
        (b"words", ["not an image"]),
    ],
)
def test_images_that_cannot_be_read(place: OrbenchPlace, content: bytes | None, words: list[str]) -> None:
    name = json.loads((place.orbench / TEST).read_text())["NIR"][1][1]
    path = place.orbench / name
    path.unlink() if content is None else path.write_bytes(content)
    refused(place, place.test(), str(path), "NIR entry 1", *words)
    skipped = place.test("data.on_error=skip")
    assert skipped.code == 0, skipped.err
    document = json.loads((place.folder / "out" / "results.json").read_text())
    assert document["counts"]["unreadable_sources"] == 1
    assert (
        name in document["unreadable_sources"][0]["reason"]
        and "NIR entry 1" in document["unreadable_sources"][0]["record"]
    )
    rows = {row["task"]: row["queries"] for row in document["rows"]}
    assert rows["NIR"] == 3 and rows["CP"] == 4
    assert any("1 unreadable sources were skipped" in note for note in document["notes"])


def test_training_stops_at_or_skips_an_unreadable_image(place: OrbenchPlace) -> None:
    rows = json.loads((place.orbench / TRAIN).read_text())
    for row in rows[:2]:
        (place.orbench / row["file_path"]).write_bytes(b"")
    stopped = place.train("train.max_steps=0")
    assert stopped.code == 2 and "an empty file" in stopped.error and "train_annos.json entry" in stopped.error
    assert not list((place.folder / "runs").rglob("*.pth"))
    done = place.train("train.max_steps=0", "data.on_error=skip", "train.select=test", "--overwrite")
    assert done.code == 0, done.err
    log = (place.folder / "runs" / "new" / "train.log").read_text()
    assert log.count("skipped: ") == 2 and "2 unreadable images skipped so far" in log
    assert all(row["file_path"] in log for row in rows[:2])


def test_training_evaluates_around_an_unreadable_image(place: OrbenchPlace) -> None:
    name = json.loads((place.orbench / TEST).read_text())["RGB_GALLERY"][0][1]
    (place.orbench / name).write_bytes(b"")
    done = place.train("data.on_error=skip", "train.select=test")
    assert done.code == 0, done.err
    log = (place.folder / "runs" / "new" / "train.log").read_text()
    assert name in log and "1 unreadable sources were skipped" in log


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["train.epoch=3"], ["'train.epoch'", "'epochs'"]),
        (["train.precision=fp8"], ["fp32"]),
        (["data.dataset=orbensh"], ["'orbench'"]),
        (["objective.losses={mm_sdn: 1}"], ["'mm_sdm'"]),
        (["data.root=${oc.env:HOME}"], ["interpolations are off"]),
        (["model.init=absent.pt"], ["absent.pt"]),
        (["train.init_from=absent"], ["absent"]),
        (["train.freeze=[nothing]"], ["'nothing'"]),
        (["model.vision_heads=7"], ["model.vision_heads"]),
        (["train.batch_size=64", "train.drop_last=true"], ["train.batch_size = 64"]),
        (["train.select=val", "data.val_fraction=0.9"], ["data.val_fraction"]),
        (["optimizer.betas=[2, 3]"], ["optimizer.betas"]),
        (["--device", "tpu"], ["'tpu'", "cpu"]),
        (["--device", "cuda:77"], ["cuda:77"]),
        (["key"], ["key.sub=value"]),
        (["output_dir=" + SMOKE], ["smoke.yaml"]),
        (["data.cache_dir=" + SMOKE], ["data.cache_dir"]),
    ],
)
def test_options_of_training(place: OrbenchPlace, more: list[str], words: list[str]) -> None:
    refused(place, place.train(*more), *words)


@pytest.mark.slow
def test_compile_without_compiler(place: OrbenchPlace, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor import config as inductor

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(place.folder / "inductor"))
    torch._dynamo.reset()
    with inductor.patch("cpp.cxx", (None, str(place.folder / "absent-compiler"))):
        refused(place, place.train("train.compile=true"), "train.compile=false", "C++ compiler")


def test_configuration_files(place: OrbenchPlace) -> None:
    bad = place.folder / "bad.yaml"
    for text, word in (
        ("train: {epochs: 1", "not a readable YAML"),
        ("data: !!python/object/apply:os.getcwd []", "not a readable YAML"),
        ("seed: 1\nseed: 1", "duplicate"),
        ("bases: x.yaml", "'base'"),
    ):
        bad.write_text(text)
        refused(place, place.run("train", "--config", bad), "bad.yaml", word)
    refused(
        place, place.run("train", "--config", ROOT / "configs" / "reid5o" / "smok.yaml"), "did you mean 'smoke.yaml'"
    )


def test_checkpoints(place: OrbenchPlace) -> None:
    good = place.base_run / "best.pth"
    bad, trace = place.folder / "bad.pth", place.folder / "executed"
    payload = torch.load(good, weights_only=True)
    bad.write_bytes(good.read_bytes()[:3000])
    for outcome in (place.test("--checkpoint", bad), place.infer("--checkpoint", bad, "--text", "a coat")):
        refused(place, outcome, "bad.pth", "truncated")
    for content, word in (
        ({**payload, "family": "irm"}, "family irm"),
        (payload["model"], "not a checkpoint of this project"),
        ({**payload, "model": {}}, "missing"),
        ({**payload, "extra": Bomb(trace)}, "posix.mkdir"),
    ):
        torch.save(content, bad)
        refused(place, place.test("--checkpoint", bad), "bad.pth", word)
    assert not trace.exists()
    refused(place, place.test("--checkpoint", "absent.pth"), "absent.pth", "there: best.pth, last.pth")
    refused(place, place.test("model.embed_dim=16"), "best.pth", "of another shape")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--run", "absent"], ["no such run directory", "absent"]),
        (["--run", "configs"], ["not a run directory"]),
        (["--config", SMOKE, "--checkpoint", "absent.pth"], ["absent.pth"]),
        (["--compare", "absent.json", SMOKE], ["absent.json"]),
    ],
)
def test_models_that_are_not_there(place: OrbenchPlace, arguments: list[str], words: list[str]) -> None:
    refused(place, place.run("test", *arguments), *words)


def test_results_into_a_file(place: OrbenchPlace) -> None:
    refused(place, place.test("--output", SMOKE), "--output", "smoke.yaml", "not a folder")


def test_searches(place: OrbenchPlace) -> None:
    empty, words = place.folder / "empty", place.folder / "words.json"
    empty.mkdir()
    refused(place, place.infer("--text", "a coat", "--gallery", empty), str(empty), "no image")
    refused(place, place.infer("--text", "a coat", "--gallery", place.folder / "absent"), "no such gallery folder")
    (empty / "a.jpg").write_bytes(b"words")
    refused(place, place.infer("--text", "a coat", "--gallery", empty), "a.jpg", "not an image")
    refused(place, place.infer("--text", "a coat", "--top-k", 0), "--top-k 0")
    refused(place, place.infer("--nir", "absent.jpg"), "absent.jpg", "key nir")
    refused(place, place.infer("--nir", SMOKE), "smoke.yaml", "not an image")
    refused(place, place.infer("--rgb", "a.jpg", "--text", "a coat"), "rgb cannot be mixed")
    refused(place, place.infer("--task", "NIR+FOO"), "NIR+FOO", "did you mean")
    refused(place, place.infer("--task", "NIR", "--index", 99), "--index 99", "0 to 3")
    for content, word in (
        ("[", "not valid JSON"),
        ("[]", "at least one query"),
        ('[{"nirr": "a"}]', "'nir'"),
        ('[{"text": 5}]', "entry 0"),
        ("[{}]", "entry 0"),
    ):
        words.write_text(content)
        refused(place, place.infer("--queries", words), "words.json", word)


def test_a_real_process_ends_the_same_way(place: OrbenchPlace) -> None:
    command = [
        sys.executable,
        "train.py",
        "--config",
        SMOKE,
        f"data.root={place.folder / 'nowhere'}",
        f"output_dir={place.folder / 'runs'}",
    ]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert found.returncode == 2 and not found.stdout
    assert (
        found.stderr.splitlines()[-1]
        == f"error: no such data root: {place.folder / 'nowhere'}; set data.root to the folder that contains ORBench/"
    )
    assert not place.written()


def test_usage_errors_exit_with_2(place: OrbenchPlace) -> None:
    for name, arguments in (
        ("train", []),
        ("test", ["--config", SMOKE]),
        ("infer", ["--run", "x"]),
        ("infer", ["--run", "x", "--text", "a", "--task", "NIR"]),
        ("infer", ["--run", "x", "--text", "a", "--top-k", "many"]),
    ):
        outcome = place.run(name, *arguments)
        assert outcome.code == 2 and "usage:" in outcome.err and "error:" in outcome.err


# Handled


def test_missing_query_lists_are_left_out_and_said(place: OrbenchPlace) -> None:
    outcome = place.test()
    assert outcome.code == 0
    document = json.loads((place.folder / "out" / "results.json").read_text())
    # The tiny tree has 4 + 3 + 1 + 1 lists.
    assert len(document["rows"]) == 9 and len(document["missing_lists"]) == 23
    assert [(row["lists"], row["expected_lists"]) for row in document["averages"]] == [
        (4, 4),
        (3, 12),
        (1, 12),
        (1, 4),
        (9, 32),
    ]
    assert "TWO_AVER (over 3 of 12)" in outcome.out and "23 query lists are missing" in outcome.out


@pytest.mark.parametrize("text", ["", "word " * 5000, "vis/0001/a.jpg", "\U0001f600 \u202e coat"])
def test_odd_captions_are_searched_for(place: OrbenchPlace, text: str) -> None:
    outcome = place.infer("--text", text, "--top-k", 2)
    assert outcome.code == 0, outcome.err
    assert len(json.loads((place.folder / "out" / "found.json").read_text())["queries"][0]["results"]) == 2


def test_odd_captions_in_the_lists(place: OrbenchPlace) -> None:
    place.edit(
        TRAIN,
        lambda rows: (
            [row.update(caption=text) for row, text in zip(rows, ("", "word " * 5000, "a.jpg", "half \ud800"))] and None
        ),
    )
    place.edit(TEST, lambda table: table["TEXT"][0].__setitem__(1, ""))
    assert place.train("train.max_steps=0").code == 0
    assert place.test().code == 0


def test_top_k_beyond_the_gallery_is_clamped(place: OrbenchPlace) -> None:
    outcome = place.infer("--task", "NIR+TEXT", "--index", 1, "--top-k", 1000)
    assert outcome.code == 0 and "top-k 1000 is larger than the gallery" in outcome.out
    document = json.loads((place.folder / "out" / "found.json").read_text())
    assert document["top_k"] == {"requested": 1000, "listed": 4} and document["notes"]


def test_unreadable_gallery_images_are_skipped_and_listed(place: OrbenchPlace) -> None:
    folder = place.folder / "gallery"
    shutil.copytree(next((place.orbench / "vis").iterdir()), folder)
    (folder / "bad.jpg").write_bytes(b"words")
    outcome = place.infer("--text", "a coat", "--gallery", folder, "data.on_error=skip")
    assert outcome.code == 0 and "1 unreadable gallery images were skipped" in outcome.out
    (entry,) = json.loads((place.folder / "out" / "found.json").read_text())["gallery"]["unreadable"]
    assert entry["path"].endswith("bad.jpg") and "not an image" in entry["reason"]


@pytest.mark.root
def test_disk_that_fills_up_while_saving(place: OrbenchPlace) -> None:
    with small_disk(place.folder / "runs", "45m") as small:
        # A state of 21 MB and checkpoints of 7 MB fit, a second state beside them does not.
        outcome = place.train("train.epochs=2", "train.max_steps=0")
        assert outcome.code == 2 and "space" in outcome.error
        kept = sorted(path.name for path in (small / "new").rglob("*.pth*"))
        assert kept == ["last.pth", "step-000000002.pth"]
        assert all("model" in torch.load(path, weights_only=True) for path in (small / "new").glob("*.pth"))
