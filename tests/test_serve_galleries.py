"""Covers: serve/service, serve/table, serve/answers, serve/examples. The HTTP API over an index that lost images, over
a family that is told something with its images, and before and while a gallery is encoded.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from instructed_family import RGB, TEXT, experiment, feature, register, write_data
from scripts import global_state_kept
from served_page import Oracle, files, open_session, png, served
from small_run import write_run
from starlette.testclient import TestClient
from tiny_orbench import write_orbench

from datasets.structures import Source
from serve.service import GalleryChoice, Service, Stopped
from serve.work import Worker
from solver.commands.train import run_training
from solver.gallery.arguments import GalleryOptions
from solver.gallery.commands import add, remove
from solver.search.session import SearchSession
from utils.errors import UserError


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("run")
    return write_run(place / "small", write_orbench(place / "data", identities=2, test_identities=2, images=1))


@pytest.fixture(scope="module")
def session(run: Path, tmp_path_factory: pytest.TempPathFactory) -> SearchSession:
    return open_session(run, tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def index(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight images of three cameras, the person of some known, a namesake of one of the test set; 1 and 4 were
    removed again.
    """
    place = tmp_path_factory.mktemp("photos")
    rows = ["path,person,camera"]
    for number in range(8):
        (place / f"{number}.png").write_bytes(png(200 + number))
        rows.append(f"{number}.png,{'102' if number in (2, 4, 7) else ''},c{number % 3}")
    (place / "photos.csv").write_text("\n".join(rows))
    options: dict[str, Any] = {"index": str(place / "photos.index"), "run": str(run), "device": "cpu"}
    with global_state_kept():
        assert add(GalleryOptions(command="add", manifest=str(place / "photos.csv"), **options))[1] == 0
        gone = [str(place / "1.png"), str(place / "4.png")]
        assert remove(GalleryOptions(command="remove", photos=gone, index=options["index"]))[1] == 0
    return place


def found(client: TestClient, sent: Any = None, **asked: str) -> dict[str, Any]:
    answer = client.post("/api/search", data=asked, files=sent)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_an_index_is_served_by_the_ids_of_its_images(session: SearchSession, index: Path) -> None:
    left = [0, 2, 3, 5, 6, 7]
    with served(session, str(index / "photos.index")) as (client, *_):
        gallery = client.get("/api/state").json()["gallery"]
        assert gallery["images"] == 6 and gallery["cameras"] == ["c0", "c1", "c2"]
        assert gallery["persons_known"] and not gallery["all_known"]
        oracle = Oracle(session)
        order, _ = oracle.ranking(oracle.feature({"text": "a coat"}), [index / f"{number}.png" for number in left])
        hits = found(client, text="a coat")["results"]
        assert [hit["index"] for hit in hits] == [left[place] for place in order]
        for hit in hits:
            number = hit["index"]
            assert (hit["name"], hit["camera"]) == (f"{number}.png", f"c{number % 3}")
            assert hit["person"] == ("102" if number in (2, 7) else None)
            assert client.get(hit["original"]).content == (index / f"{number}.png").read_bytes()
        for gone in (1, 4, 8):
            assert client.get(f"/api/images/{gone}").status_code == 404
            assert client.post("/api/search", data={"like": str(gone)}).status_code == 400
        assert {hit["index"] for hit in found(client, text="a coat", camera="c2")["results"]} == {2, 5}
        assert {hit["index"] for hit in found(client, text="a coat", known="yes")["results"]} == {2, 7}
        assert {hit["index"] for hit in found(client, text="a coat", known="no", camera="c0")["results"]} == {0, 3, 6}
        # A person of the test set is nobody of this gallery, whatever both are called.
        drawn = [entry for seed in range(9) for entry in client.get(f"/api/examples?seed={seed}").json()["examples"]]
        assert len({entry["id"].partition(".")[2] for entry in drawn}) == 2, "both persons"
        for entry in drawn:
            assert {hit["verdict"] for hit in found(client, example=entry["id"])["results"]} == {""}
        # More like an image whose person is known says who is right.
        like = found(client, like="7")
        assert like["results"][0]["index"] == 7 and like["results"][0]["own_image"] and like["matches_in_gallery"] == 1
        verdicts = {hit["index"]: hit["verdict"] for hit in like["results"]}
        assert verdicts[2] == "match" and verdicts[3] == "other" and verdicts[7] == ""


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[SearchSession, Path]]:
    """A family that follows instructions, and its photographs."""
    with pytest.MonkeyPatch.context() as patch:
        family = register(patch).value
        data, output = write_data(tmp_path_factory.mktemp("lists")), tmp_path_factory.mktemp("runs")
        with global_state_kept():
            run_training(experiment(family, data, output), device="cpu", overwrite=False)
        yield open_session(output / "told", output / "cache"), data / "real2"


def test_an_image_is_searched_with_what_is_told_and_without(told: tuple[SearchSession, Path]) -> None:
    session, photos = told
    model: Any = session.trained.model
    places = sorted((photos / "g").iterdir())
    image, coat = photos / "q" / "11_1.png", photos / "c" / "0.png"

    def by_hand(instruction: Source | None) -> list[str]:
        with torch.no_grad():
            query = feature(model, Source(modality=RGB, value=str(image)), instruction)
            plain = [feature(model, Source(modality=RGB, value=str(place)), None) for place in places]
        cosines = torch.cosine_similarity(query[None], torch.stack(plain))
        return [places[place].name for place in cosines.argsort(descending=True, stable=True).tolist()]

    with served(session, str(photos / "g")) as (client, *_):
        takes = client.get("/api/state").json()["takes"]
        assert takes == {"modalities": ["rgb"], "combinations": [["rgb"]], "instruction": True}
        sent = files(rgb=image.read_bytes())
        plain = found(client, sent)
        assert [hit["name"] for hit in plain["results"]] == by_hand(None) and not plain["alone"]
        said = found(client, sent, instruction="a person in red")
        assert [hit["name"] for hit in said["results"]] == by_hand(Source(modality=TEXT, value="a person in red"))
        (alone,) = said["alone"]
        assert alone["label"] == "without the instruction" and alone["part"] == ""
        assert [hit["name"] for hit in alone["results"]] == by_hand(None)[:4]
        assert said["query"]["parts"][1] == {"part": "instruction", "text": "a person in red", "pictures": 1}
        shown = found(client, files(rgb=image.read_bytes(), instruction_image=coat.read_bytes()))
        assert [hit["name"] for hit in shown["results"]] == by_hand(Source(modality=RGB, value=str(coat)))
        broken = client.post("/api/search", files=files(rgb=image.read_bytes(), instruction_image=b"no image"))
        assert broken.status_code == 400 and "instruction_image: instruction_image0.png" in broken.json()["error"]
        refused = client.post("/api/search", data={"text": "a coat"})
        assert refused.status_code == 400 and "encodes RGB only" in refused.json()["error"]


def test_an_example_says_its_instruction(told: tuple[SearchSession, Path]) -> None:
    with served(told[0]) as (client, *_):
        drawn = [entry for seed in range(9) for entry in client.get(f"/api/examples?seed={seed}").json()["examples"]]
        kinds = set()
        assert len(client.get("/api/examples").json()["examples"]) > 1, "several of the only mix"
        assert len({entry["id"] for entry in drawn[:6]}) == len(drawn[:6])
        for entry in drawn:
            (part,), instruction = entry["parts"], entry["instruction"]
            sent = {"rgb": client.get(f"{part['image']}/original").content}
            if "image" in instruction:
                sent["instruction_image"] = client.get(f"{instruction['image']}/original").content
                assert not client.get(instruction["image"]).headers["content-type"].endswith("png")
            fields = {key: instruction[key] for key in ("text",) if key in instruction}
            by_hand = found(client, files(**sent), **({"instruction": fields["text"]} if fields else {}))
            example = found(client, example=entry["id"])
            assert [hit["similarity"] for hit in by_hand["results"]] == [
                hit["similarity"] for hit in example["results"]
            ]
            kinds |= set(instruction)
        assert kinds == {"image", "text"}


def test_progress_is_told_and_an_end_of_the_server_stops_the_encoding(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(70):
        (tmp_path / f"{number:02d}.png").write_bytes(png(number))
    worker, session = Worker(), open_session(run, tmp_path / "cache")
    service = Service(session=session, choice=GalleryChoice(place=str(tmp_path)), stopping=worker.stopping)
    seen: list[tuple[int, int]] = []
    half = threading.Event()
    ordinary = Service._watch

    def watch(self: Service, what: str, done: int, total: int) -> None:
        ordinary(self, what, done, total)
        seen.append((self.progress.done, self.progress.total))
        if done < total:
            half.set()
            # The next step comes after the stop.
            assert worker.stopping.wait(30)

    monkeypatch.setattr(Service, "_watch", watch)
    preparing = worker.submit(service.prepare)
    assert half.wait(60)
    worker.stop()
    with pytest.raises(Stopped):
        preparing.result(30)
    assert {total for _, total in seen} == {70} and service.table is None
    assert not list((tmp_path / "cache").rglob("index.json")), "nothing half-written"


def test_a_gallery_that_cannot_be_served_says_why(session: SearchSession, tmp_path: Path) -> None:
    (tmp_path / "0.png").write_text("no image")
    with pytest.raises(UserError, match=r"0\.png"), served(session, str(tmp_path)):
        raise AssertionError("it is not served")
