"""Covers: solver/gallery/__main__, solver/gallery/arguments, solver/gallery/commands, solver/gallery/encoding,
solver/gallery/listing, solver/gallery/jobs, datasets/formats/manifest_rows. python -m solver.gallery with a small
model: what is encoded, by one process or by several, and what is refused.
"""

import dataclasses
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from parts_model import PartsModel
from PIL import Image
from plain_gallery import STATE, encode, photo
from scripts import global_state_kept
from small_run import write_run
from tiny_orbench import write_orbench

from configs.vocabulary import Modality
from datasets.structures import Source
from solver.gallery import __main__, arguments, commands
from solver.gallery.arguments import parse_arguments, worker_place
from solver.gallery.encoding import instruction_record, kept_form, told_with
from solver.gallery.index import open_index
from solver.gallery.jobs import Job, encode_part, finished, run_job
from solver.gallery.layout import read_state
from solver.gallery.listing import listed_images
from solver.gallery.writing import writing
from solver.runs import open_run
from utils.errors import UserError, run_script
from utils.locks import locked_folder

MEAN, STD = np.array([0.48145466, 0.4578275, 0.40821073]), np.array([0.26862954, 0.26130258, 0.27577711])
Call = Callable[..., tuple[int, str]]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = write_orbench(tmp_path_factory.mktemp("data"), identities=2, test_identities=3, images=1)
    return write_run(tmp_path_factory.mktemp("runs") / "small", data)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for number in range(9):
        path = tmp_path / "photos" / f"p{number // 3}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(number).integers(0, 256, (20, 9, 3), dtype=np.uint8)
        Image.fromarray(noise).save(path)
    (tmp_path / "photos" / "p1" / "bad.png").write_bytes(b"no image")
    return tmp_path / "photos"


@pytest.fixture
def call(run: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Iterator[Call]:
    def called(command: str, *words: object) -> tuple[int, str]:
        more = ["--run", str(run), "--device", "cpu"] if command == "add" and "--run" not in words else []
        monkeypatch.setattr("sys.argv", ["solver.gallery", command, *map(str, words), *more])
        with pytest.raises(SystemExit) as caught:
            run_script(__main__.main)
        out, err = capfd.readouterr()
        code = int(caught.value.code or 0)
        return code, out if code != 2 else err.strip().splitlines()[-1]

    with global_state_kept():
        yield called


def features(folder: Path) -> dict[str, np.ndarray]:
    index = open_index(folder)
    paths = [Path(row.path).name for _, row in index.images()]
    kept = [
        part[torch.from_numpy(mask)] if mask is not None else part
        for part, mask in zip(index.features().parts, index.kept)
    ]
    return dict(zip(paths, torch.cat(kept).numpy(), strict=True))


def test_features_are_those_of_the_images_encoded_alone(run: Path, photos: Path, tmp_path: Path, call: Call) -> None:
    place = tmp_path / "index"
    code, said = call("add", "--index", place, photos / "p0", "eval.batch_size=2")
    assert code == 0 and "3 images added, 0 of them for changed ones; 0 were there; 3 in all" in said
    code, said = call("add", "--index", place, photos)
    assert "6 images added, 0 of them for changed ones; 3 were there; 9 in all" in said
    assert "1 images cannot be read and are left out, the first: " in said and "bad.png" in said
    # It is left out already: the sentence says no other way to leave it out.
    assert said.rstrip().endswith("not an image; restore the file")
    model = open_run(run).model
    for name, kept in features(place).items():
        path = photos / f"p{int(name[0]) // 3}" / name
        pixels = np.asarray(Image.open(path).resize((16, 32), Image.Resampling.BILINEAR)) / 255
        inputs = torch.from_numpy(((pixels - MEAN) / STD).transpose(2, 0, 1)[None]).float()
        with torch.no_grad():
            alone = model.encode(Modality.RGB, inputs).pooled[0].double().numpy()
        assert kept == pytest.approx(alone / np.linalg.norm(alone), abs=1e-5)
    assert call("remove", "--index", place, photos / "p0", photos / "p1" / "bad.png")[1].startswith(
        f"{place}: 4 images removed, 6"
    )
    assert list(features(place)) == ["3.png", "4.png", "5.png", "6.png", "7.png", "8.png"]
    code, said = call("info", "--index", place)
    assert code == 0 and "6 images (RGB), 3 removed, 0 unreadable" in said and "features: 64 x float32" in said
    assert call("compact", "--index", place)[0] == 0 and len(features(place)) == 6
    (photos / "p2" / "6.png").unlink()
    shutil.copy(photos / "p2" / "8.png", photos / "p2" / "7.png")
    code, said = call("info", "--index", place, "--check")
    assert code == 1 and f"1 images are changed: {photos}/p2/7.png" in said
    assert f"1 images are missing: {photos}/p2/6.png" in said
    assert call("remove", "--index", place, "--missing")[1].startswith(f"{place}: 1 images removed, 5")
    assert "1 images added, 1 of them for changed ones" in call("add", "--index", place, photos / "p2")[1]
    assert call("info", "--index", place, "--check")[0] == 0


def write_manifest(photos: Path, name: str = "m.csv") -> Path:
    rows = [
        f"photos/p{number // 3}/{number}.png,{'' if number == 2 else f'anna{number % 2}'},{number % 3}"
        for number in (8, 2, *range(2), *range(3, 8))
    ]
    (photos.parent / name).write_text("\n".join(["path,person,camera", *rows, "photos/p1/bad.png,,"]))
    return photos.parent / name


def tree(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_several_workers_make_the_files_of_one(
    photos: Path, tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = write_manifest(photos)
    code, said = call("add", "--index", tmp_path / "one", "--manifest", manifest, "--shards", 4)
    assert code == 0 and "4 parts encoded" in said and "9 images in all, 1 of this job unreadable" in said
    assert list(features(tmp_path / "one")) == [f"{number}.png" for number in (8, 2, 0, 1, 3, 4, 5, 6, 7)]
    index = open_index(tmp_path / "one")
    assert index.find("person", ["anna0"])["anna0"].tolist() == [0, 2, 5, 7]
    assert [row.person for _, row in index.images()][1] is None and index.persons_known
    # Two workers, of which the second one dies in its second part; whoever is left does its parts.
    real = commands.encoder

    def failing(*given: Any) -> Any:
        encode, count = real(*given), [0]

        def counted(images: Sequence[Any]) -> Any:
            count[0] += 1
            if count[0] == 2:
                raise KeyboardInterrupt
            return encode(images)

        return counted

    monkeypatch.setattr(commands, "encoder", failing)
    assert call("add", "--index", tmp_path / "two", "--manifest", manifest, "--shards", 4, "--part", "1/2")[0] == 130
    monkeypatch.setattr(commands, "encoder", real)
    with pytest.raises(UserError, match="not a gallery index"):
        read_state(tmp_path / "two")
    (job,) = (tmp_path / "two" / "jobs").iterdir()
    assert len(list(job.glob("*/done.json"))) == 1
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    code, said = call("add", "--index", tmp_path / "two", "--manifest", manifest, "--shards", 4)
    assert code == 0 and "worker 0 of 2: 3 parts encoded" in said and "9 images in all" in said
    assert tree(tmp_path / "one") == tree(tmp_path / "two")
    record = json.loads(next((tmp_path / "two").rglob("00003/done.json")).read_text())
    assert (record["images"], record["read"], record["unreadable"]) == (3, 2, 1)
    assert record["first_unreadable"][0]["path"].endswith("bad.png")
    # What is done is not done again, and what is there is replaced.
    assert "were added before" in call("add", "--index", tmp_path / "two", "--manifest", manifest, "--shards", 4)[1]
    assert "9 were there; 9 in all" in call("add", "--index", tmp_path / "two", "--manifest", manifest)[1]
    code, said = call("add", "--index", tmp_path / "two", "--manifest", manifest, "--shards", 2)
    assert code == 0 and "9 images in all" in said and read_state(tmp_path / "two").next_id == 20
    assert call("compact", "--index", tmp_path / "two")[0] == 0 and not list((tmp_path / "two" / "jobs").iterdir())
    assert len(features(tmp_path / "two")) == 9 and len(read_state(tmp_path / "two").jobs) == 2


def test_a_part_that_another_worker_holds_is_left_to_it(tmp_path: Path) -> None:
    images = [photo(tmp_path, name) for name in "abcdef"]
    job = Job(folder=tmp_path / "index", state=STATE, images=images, shards=3, model="R")
    (job.folder / job.part_name(1)).mkdir(parents=True)
    child_holds = locked_folder(job.folder / job.part_name(1), "")
    with child_holds:
        said = run_job(job, encode, 0, 1)
        assert said == "worker 0 of 1: 2 parts encoded; 1 of 3 parts are being encoded by others, who add them all"
        assert not (job.folder / "index.json").exists()
        # A writer of the index meanwhile leaves the job alone.
        with writing(job.folder, STATE) as writer:
            writer.tidy()
    assert run_job(job, encode, 0, 1).endswith("6 images in all, 0 of this job unreadable")
    with pytest.raises(UserError, match="--shards 7: there are 6 images"):
        run_job(dataclasses.replace(job, shards=7), encode, 0, 1)
    damaged = [photo(tmp_path / "bad", name, "damaged") for name in "ab"]
    for place in (job.folder, tmp_path / "new"):
        before = sorted(job.folder.rglob("*"))
        again = dataclasses.replace(job, folder=place, images=damaged, shards=2)
        with pytest.raises(UserError, match=r"no image of 2 can be read, the first: .*a: damaged"):
            run_job(again, encode, 0, 1)
        # Nothing is left that would say so again when the images are mended.
        assert sorted(job.folder.rglob("*")) == before and not (tmp_path / "new").exists()
        assert not encode_part(again, 0, encode)
        with pytest.raises(UserError, match="no image of 2 can be read, as another worker has said"):
            finished(again, "")


def test_workers_at_the_same_time_make_the_files_of_one(tmp_path: Path) -> None:
    images = [photo(tmp_path, name, "damaged" if name == "h" else "") for name in "abcdefghijklmnopqrst"]
    job = Job(folder=tmp_path / "one", state=STATE, images=images, shards=7, model="R")
    run_job(job, encode, 0, 1)
    children = []
    for worker in range(3):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                run_job(dataclasses.replace(job, folder=tmp_path / "three"), encode, worker, 3)
                code = 0
            finally:
                os._exit(code)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0]
    assert tree(tmp_path / "one") == tree(tmp_path / "three") and len(features(tmp_path / "three")) == 19


def test_a_damaged_record_is_named(tmp_path: Path) -> None:
    images = [photo(tmp_path, name) for name in "abcdef"]
    job = Job(folder=tmp_path / "index", state=STATE, images=images, shards=3, model="R")
    (job.folder / job.part_name(0)).mkdir(parents=True)
    for text, words in (("{}", "is damaged"), ("[]", "is damaged"), ("{", "not valid JSON")):
        (job.folder / job.part_name(0) / "done.json").write_text(text)
        with pytest.raises(UserError, match=f"done.json.*{words}"):
            run_job(job, encode, 0, 1)


def test_whose_worker_this_is() -> None:
    assert worker_place({}) == (0, 1)
    assert worker_place(
        {"RANK": "3", "WORLD_SIZE": "8", "SLURM_ARRAY_TASK_ID": "1", "SLURM_ARRAY_TASK_COUNT": "2"}
    ) == (3, 8)
    assert worker_place(
        {
            "SLURM_ARRAY_TASK_ID": "7",
            "SLURM_ARRAY_TASK_COUNT": "4",
            "SLURM_ARRAY_TASK_MIN": "3",
            "SLURM_ARRAY_TASK_STEP": "2",
        }
    ) == (2, 4)
    assert worker_place({"SLURM_ARRAY_TASK_ID": "1", "SLURM_ARRAY_TASK_COUNT": "2"}) == (1, 2)
    # Some tasks of an array again: numbered from the least of them.
    some = {"SLURM_ARRAY_TASK_ID": "5", "SLURM_ARRAY_TASK_COUNT": "2", "SLURM_ARRAY_TASK_MIN": "2"}
    assert worker_place(some) == (3, 2)
    for wrong, named in (
        ({"RANK": "x", "WORLD_SIZE": "2"}, "RANK='x' of the environment: must be a whole number from 0 on; unset it"),
        ({"RANK": "0", "WORLD_SIZE": ""}, "WORLD_SIZE='' of the environment"),
        ({**some, "SLURM_ARRAY_TASK_COUNT": "0"}, "SLURM_ARRAY_TASK_COUNT='0' of .* from 1 on"),
        ({**some, "SLURM_ARRAY_TASK_STEP": "-1"}, "SLURM_ARRAY_TASK_STEP='-1' of"),
    ):
        with pytest.raises(UserError, match=named):
            worker_place(wrong)
    assert arguments.worker("2/3") == (2, 3)
    assert commands.own_device("cuda:1", 3, 4) == "cuda:1" and commands.own_device("auto", 0, 1) == "auto"


def test_photos_and_options_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a=b.png").write_bytes(b"")
    options = parse_arguments(["add", "--index", "i", "--run", "r", "a=b.png", "data.on_error=skip", "p", "name=x"])
    assert (options.photos, options.overrides) == (["a=b.png", "p"], ["data.on_error=skip", "name=x"])


WRONG: dict[str, tuple[Sequence[str], str]] = {
    "nothing to add": (("add",), "nothing to add"),
    "no such place": (("add", "gone"), "no such image, folder or manifest: gone"),
    "no image": (("add", "m.csv", "notes.txt"), "notes.txt is no image that is read"),
    "empty folder": (("add", "empty"), "holds no image"),
    "unknown option": (("add", "photos", "eval.precison=bf16"), "'precision'"),
    "another precision": (("add", "photos", "eval.precision=bf16"), "precision 'fp32' there, 'bf16' here"),
    "another form": (("add", "photos", "--dtype", "fp16"), "keeps features as float32; leave --dtype fp16 out"),
    "an instruction": (
        ("add", "photos", "--instruction", "x"),
        "were told nothing, and these would be told a text: 'x'",
    ),
    "both instructions": (("add", "photos", "--instruction", "x", "--instruction-image", "y"), "give one of both"),
    "crop and text": (
        ("add", "photos", "--gallery-instruction", "crop", "--instruction", "x"),
        "leave the instruction",
    ),
    "part alone": (("add", "photos", "--part", "0/2"), "--part needs it"),
    "ray alone": (("add", "photos", "--engine", "ray"), "--engine ray needs --shards"),
    "ray and a part": (
        ("add", "photos", "--shards", "2", "--engine", "ray", "--part", "0/2"),
        "leave --part out",
    ),
    "part beyond": (("add", "photos", "--shards", "2", "--part", "2/2"), "'2/2' is no I/N, worker I of N from 0"),
    "other files": (("add", "photos", "--shards", "2", "--index", "photos"), "photos holds other files (p0) and is no"),
    "too many parts": (("add", "photos", "--shards", "99"), "there are 10 images; give at most so many"),
    "remove nothing": (("remove",), "nothing to remove"),
    "remove an option": (("remove", "data.root=x"), "takes no options"),
    "remove what is not there": (("remove", "gone.png"), "holds no image gone.png"),
    "no command": (("show",), "invalid choice"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_input_is_refused_and_changes_nothing(
    name: str, photos: Path, tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_manifest(photos)
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("x")
    assert call("add", "--index", "index", "photos/p0")[0] == 0
    before = tree(tmp_path)
    (command, *words), message = WRONG[name]
    code, said = call(command, "--index", "index", *words)
    assert code == 2 and message in said, said
    assert {path: text for path, text in tree(tmp_path).items() if not path.startswith("index/jobs")} == before


def test_an_instruction_needs_a_model_that_follows_it(photos: Path, tmp_path: Path, call: Call) -> None:
    code, said = call("add", "--index", tmp_path / "new", photos, "--instruction", "in red")
    assert code == 2 and "this model tells gallery images nothing" in said and not (tmp_path / "new").exists()
    shown = Source(modality=Modality.RGB, value=str(photos / "p0" / "0.png"))
    told = Source(modality=Modality.TEXT, value="in red")
    assert instruction_record(None, False) == {"told": "none"} and instruction_record(None, True) == {"told": "crop"}
    assert instruction_record(told, False) == {"told": "text", "text": "in red"}
    assert len(instruction_record(shown, False)["sha256"]) == 64
    assert told_with(told, False, [shown, shown]) == (told, told) and told_with(None, False, [shown]) == ()
    assert [one.crop for one in told_with(None, True, [shown]) if one is not None] == ["box"]
    with pytest.raises(UserError, match=r"gone\.png"):
        instruction_record(dataclasses.replace(shown, value=str(tmp_path / "gone.png")), False)


def test_only_whole_cosines_are_kept_at_length_1(run: Path) -> None:
    values = torch.tensor([[3.0, 4.0], [0.0, 0.0]])
    assert kept_form(values, open_run(run).model).tolist() == [[pytest.approx(0.6), pytest.approx(0.8)], [0.0, 0.0]]
    for similarity in ("cosine", "euclidean"):
        model = PartsModel(similarity)
        assert torch.equal(kept_form(torch.ones(1, model.embed_dim), model), torch.ones(1, model.embed_dim))


def test_other_modalities_are_refused(photos: Path, tmp_path: Path, call: Call) -> None:
    images = listed_images([str(photos)], "", Modality.NIR)
    assert {image.source.modality for image in images} == {Modality.NIR} and len(images) == 10
    assert call("add", "--index", tmp_path / "nir", photos / "p0", "--modality", "nir")[0] == 0
    assert open_index(tmp_path / "nir").modalities == (Modality.NIR,)
    # Where both are in one index, a search looks at those of one.
    assert call("add", "--index", tmp_path / "nir", photos / "p1")[0] == 0
    index = open_index(tmp_path / "nir")
    assert index.modalities == (Modality.RGB, Modality.NIR)
    assert [index.features(modality).searched for modality in (Modality.NIR, Modality.RGB, None)] == [3, 3, 6]
