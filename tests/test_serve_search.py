"""Covers: serve/service, serve/answers, serve/application, serve/examples. The HTTP API over a small model: answers
against the model by hand, what is never served, and errors that are one sentence.
"""

from __future__ import annotations

import dataclasses
import io
import struct
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from served_page import Opened, Oracle, files, open_session, png, served
from small_run import write_run
from starlette.testclient import TestClient
from tiny_orbench import write_orbench

from serve.application import FILES, STATIC
from solver.calibration import Calibration
from solver.search.session import SearchSession
from utils.retrieval.error_rates import Thresholds

TEXT = "a man in a red coat"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_orbench(tmp_path_factory.mktemp("data"), identities=2, test_identities=4, images=2)


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory, data: Path) -> SearchSession:
    run = write_run(tmp_path_factory.mktemp("runs") / "small", data)
    return open_session(run, tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photographs in two folders; of the last two one is a copy of the other."""
    root = tmp_path_factory.mktemp("private") / "photos"
    for number in range(7):
        place = root / ("east" if number < 3 else "west") / f"{number}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(png(min(number, 5)))
    (root / "notes.txt").write_text("secret")
    return root


@pytest.fixture(scope="module")
def page(session: SearchSession, photos: Path) -> Iterator[Opened]:
    with served(session, str(photos)) as opened:
        yield opened


@pytest.fixture
def client(page: Opened) -> TestClient:
    return page[0]


@pytest.fixture(scope="module")
def images(photos: Path) -> list[Path]:
    return sorted(photos.rglob("*.png"))


def found(client: TestClient, data: Any = None, **parts: Any) -> dict[str, Any]:
    answer = client.post("/api/search", data=data or {}, files=files(**parts) or None)
    assert answer.status_code == 200, answer.text
    return answer.json()


def refusal(client: TestClient, data: Any = None, sent: Any = None) -> tuple[int, str]:
    answer = client.post("/api/search", data=data or {}, files=sent)
    assert list(answer.json()) == ["error"]
    return answer.status_code, answer.json()["error"]


@pytest.mark.parametrize(
    "kinds", [("text",), ("rgb",), ("sk",), ("sk", "text"), ("nir", "cp", "sk", "text")], ids="+".join
)
def test_answers_are_the_models(
    client: TestClient, session: SearchSession, images: list[Path], kinds: tuple[str, ...]
) -> None:
    pictures = {kind: png(40 + number) for number, kind in enumerate(kinds) if kind != "text"}
    text = {"text": TEXT} if "text" in kinds else {}
    answer = found(client, {**text, "top_k": "5"}, **pictures)
    oracle = Oracle(session)
    order, cosines = oracle.ranking(oracle.feature({**pictures, **text}), images)
    assert [hit["index"] for hit in answer["results"]] == order[:5]
    assert [hit["similarity"] for hit in answer["results"]] == pytest.approx(cosines[:5], abs=2e-6)
    assert [hit["name"] for hit in answer["results"]] == [
        f"{images[place].parent.name}/{images[place].name}" for place in order[:5]
    ]
    assert answer["count"] == 7 and answer["calibration"] == {"answer": "not calibrated"}
    assert {hit["verdict"] for hit in answer["results"]} == {""}
    # What each part alone finds, and where it has the mix's best image.
    assert [one["part"] for one in answer["alone"]] == (list(kinds) if len(kinds) > 1 else [])
    for one in answer["alone"]:
        own, _ = oracle.ranking(oracle.feature({one["part"]: {**pictures, **text}[one["part"]]}), images)
        assert [hit["index"] for hit in one["results"]] == own[:4]
        assert one["rank_of_best"] == own.index(order[0]) + 1 and one["looked_at"] == 7
        # Of seven images only the best one says something.
        assert one["agrees"] == (own[0] == order[0])


def test_several_pictures_of_one_person_are_averaged_and_that_is_said(
    client: TestClient, session: SearchSession, images: list[Path]
) -> None:
    sketches, oracle = [png(60), png(61), png(62)], Oracle(session)
    answer = found(client, {"text": TEXT}, sk=sketches)
    mean = np.mean([oracle.feature({"sk": sketch, "text": TEXT}) for sketch in sketches], axis=0)
    order, cosines = oracle.ranking(mean / np.linalg.norm(mean), images)
    assert [hit["index"] for hit in answer["results"]] == order
    assert [hit["similarity"] for hit in answer["results"]] == pytest.approx(cosines, abs=2e-6)
    assert any("3 pictures of SK were taken as pictures of one person" in note for note in answer["notes"])
    assert [(part["part"], part["pictures"]) for part in answer["query"]["parts"]] == [("sk", 3), ("text", 1)]
    alone = np.mean([oracle.feature({"sk": sketch}) for sketch in sketches], axis=0)
    sketch = next(one for one in answer["alone"] if one["part"] == "sk")
    assert [hit["index"] for hit in sketch["results"]] == oracle.ranking(alone, images)[0][:4]


def test_more_like_this_is_the_stored_image_itself(
    client: TestClient, session: SearchSession, images: list[Path]
) -> None:
    answer = found(client, {"like": "1"})
    oracle = Oracle(session)
    order, cosines = oracle.ranking(oracle.feature({"rgb": images[1]}), images)
    assert [hit["index"] for hit in answer["results"]] == order and order[0] == 1
    assert answer["results"][0]["own_image"] and answer["results"][0]["similarity"] == pytest.approx(1, abs=1e-6)
    assert answer["query"]["parts"] == [{"part": "like", "pictures": 1, "image": "/api/images/1", "text": "east/1.png"}]


def test_filters_and_folding_leave_out_and_put_together(client: TestClient) -> None:
    whole, west = found(client, {"text": TEXT}), found(client, {"text": TEXT, "folder": "west"})
    assert west["results"] == [
        {**hit, "rank": rank}
        for rank, hit in enumerate((one for one in whole["results"] if one["name"].startswith("west/")), start=1)
    ]
    assert west["count"] == 4 and any("folder west" in note for note in west["notes"])
    folded = found(client, {"text": TEXT, "fold": "0.9999"})
    (pair,) = [hit for hit in folded["results"] if hit["copies"]]
    assert {pair["index"], pair["copies"][0]["index"]} == {5, 6} and len(folded["results"]) == 6
    assert any("1 near-duplicates" in note for note in folded["notes"])


def test_thresholds_answer_at_the_rate_that_is_chosen(
    client: TestClient, session: SearchSession, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    scores = [hit["similarity"] for hit in found(client, {"text": TEXT})["results"]]
    between = float(np.mean(scores[1:3]))
    calibration = Calibration(
        file=tmp_path / "best.calibration.json",
        split="val",
        dataset="orbench",
        thresholds={"TEXT": Thresholds(matching={}, identification={0.01: scores[0] + 0.01, 0.1: between})},
        gallery=frozenset({"rgb"}),
        images={"TEXT": 7.0},
    )
    monkeypatch.setattr(session, "calibration", calibration)
    assert client.get("/api/state").json()["rates"] == [{"mix": ["text"], "rates": [0.01, 0.1]}]
    strict = found(client, {"text": TEXT})
    assert strict["calibration"]["answer"] == "nobody" and {hit["answer"] for hit in strict["results"]} == {"below"}
    loose = found(client, {"text": TEXT, "rate": "0.1"})
    assert loose["calibration"]["answer"] == "somebody" and loose["calibration"]["above"] == 2
    assert [hit["answer"] for hit in loose["results"]] == ["above"] * 2 + ["below"] * 5
    assert found(client, sk=png(1))["calibration"] == {"answer": "not calibrated"}
    status, sentence = refusal(client, {"text": TEXT, "rate": "0.05"})
    assert status == 400 and "0.1" in sentence
    mix = Thresholds(matching={}, identification={0.1: -1.0})
    both = dataclasses.replace(
        calibration,
        thresholds={**calibration.thresholds, "SK+TEXT": mix},
        images={"TEXT": 7.0, "SK+TEXT": 7.0},
    )
    monkeypatch.setattr(session, "calibration", both)
    # Each part alone is answered at the rate that the mix is.
    alone = {one["part"]: one["results"] for one in found(client, {"text": TEXT, "rate": "0.1"}, sk=png(1))["alone"]}
    assert [hit["answer"] for hit in alone["text"]] == ["above"] * 2 + ["below"] * 2
    assert {hit["answer"] for hit in alone["sk"]} == {"not calibrated"}


def test_examples_of_the_test_set_know_right_from_wrong(session: SearchSession, data: Path) -> None:
    with served(session) as (client, service, _):
        state = client.get("/api/state").json()
        assert state["status"] == "ready" and state["gallery"]["images"] == 8 and state["gallery"]["all_known"]
        lists = {"".join(sorted(one)) for one in (["nir"], ["text"], ["nir", "text"], ["nir", "cp", "sk", "text"])}
        drawn = [entry for seed in range(12) for entry in client.get(f"/api/examples?seed={seed}").json()["examples"]]
        assert lists <= {"".join(sorted(part["part"] for part in entry["parts"])) for entry in drawn}
        example = next(entry for entry in drawn if entry["list"] == "TEXT+NIR")
        shown = {part["part"]: part for part in example["parts"]}
        assert shown["text"]["text"].startswith("a person with a")
        with Image.open(io.BytesIO(client.get(shown["nir"]["image"]).content)) as picture:
            assert picture.format == "JPEG"
        text = client.get(shown["nir"]["image"][:-1] + str(example["parts"].index(shown["text"])))
        assert text.status_code == 404 and "has no picture" in text.json()["error"]
        answer = found(client, {"example": example["id"]})
        person = answer["query"]["person"]
        assert [hit["verdict"] for hit in answer["results"]] == [
            "match" if hit["person"] == person else "other" for hit in answer["results"]
        ]
        assert answer["matches_in_gallery"] == 2 and {one["part"] for one in answer["alone"]} == {"nir", "text"}
        # Given by hand, an example finds the same: what is sent of its pictures is what is encoded of them.
        original = client.get(shown["nir"]["image"] + "/original")
        assert original.headers["content-type"] == "image/jpeg" and example["instruction"] is None
        by_hand = found(client, {"text": shown["text"]["text"]}, nir=original.content)
        similarities = [[(hit["name"], hit["similarity"]) for hit in one["results"]] for one in (answer, by_hand)]
        assert similarities[0] == similarities[1]
        nowhere = client.get(f"/api/examples/{example['id']}/{len(example['parts'])}/original")
        assert nowhere.status_code == 404 and "has no picture" in nowhere.json()["error"]
        for wrong in ("99.0", "0.99999"):
            status, sentence = refusal(client, {"example": wrong})
            assert status == 400 and "there is none" in sentence


def test_examples_in_a_gallery_of_others_are_neither_right_nor_wrong(client: TestClient) -> None:
    answer = client.get("/api/examples").json()
    assert "Where they are not in this gallery" in answer["note"]
    hits = found(client, {"example": answer["examples"][0]["id"]})["results"]
    assert {hit["verdict"] for hit in hits} == {""}


def test_lists_are_those_that_infer_writes(client: TestClient) -> None:
    sent = {"text": TEXT, "top_k": "3"}
    shown = found(client, sent)
    document = found(client, {**sent, "format": "list"})
    assert [entry["similarity"] for entry in document["queries"][0]["results"]] == [
        hit["similarity"] for hit in shown["results"]
    ]
    page = client.post("/api/search", data={**sent, "format": "html"}, files=files(sk=png(3)))
    assert page.headers["content-type"].startswith("text/html") and "attachment" in page.headers["content-disposition"]
    assert "sandbox" in page.headers["content-security-policy"] and page.text.count("<figure") == 4
    picture = client.post("/api/search", data={**sent, "format": "png"})
    with Image.open(io.BytesIO(picture.content)) as image:
        assert image.format == "PNG" and picture.headers["content-type"] == "image/png"


def test_pictures_of_one_name_are_not_taken_for_each_other(
    client: TestClient, session: SearchSession, images: list[Path]
) -> None:
    oracle = Oracle(session)
    pages = []
    for seed in (70, 71):
        sent = [("sk", ("same.png", png(seed), "image/png"))]
        answer = client.post("/api/search", files=sent).json()
        assert [hit["index"] for hit in answer["results"]] == oracle.ranking(oracle.feature({"sk": png(seed)}), images)[
            0
        ]
        pages.append(client.post("/api/search", data={"format": "html"}, files=sent).text)
    parts = [
        page.partition('<figure class="part"')[2].partition("</figure>")[0].partition("base64,")[2][:4000]
        for page in pages
    ]
    assert parts[0] and parts[0] != parts[1]


def bomb(width: int, height: int) -> bytes:
    """A small PNG file that claims to be large."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("note.png", b"just a text", "sk: note.png"),
        ("page.png", b"<!DOCTYPE html><script>alert(1)</script>", "no image"),
        ("huge.png", bomb(30_000, 30_000), "pixels"),
        ("cut.png", png(1)[:60], "sk: cut.png"),
        ("../../../etc/passwd", b"root:x:0:0", "sk: passwd"),
        ("/etc/passwd", b"root:x:0:0", "sk: passwd"),
        ("drawing.svg", b"<svg xmlns='http://www.w3.org/2000/svg'/>", "no image"),
        ("deep.eps", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "no image"),
    ],
)
def test_hostile_files_are_refused_in_one_sentence(client: TestClient, name: str, content: bytes, words: str) -> None:
    status, sentence = refusal(client, sent=[("sk", (name, content, "image/png"))])
    assert status == 400 and words in sentence and "\n" not in sentence and "/etc" not in sentence


def test_a_hostile_name_of_a_good_picture_harms_nothing(client: TestClient, photos: Path) -> None:
    before = sorted(photos.parent.rglob("*"))
    for name in ("../../photos/east/0.png", "<img src=x onerror=alert(1)>.png", "a" * 4000, "\u202egnp.exe"):
        answer = client.post("/api/search", data={"format": "html"}, files=[("sk", (name, png(2), "text/html"))])
        assert answer.status_code == 200 and "<img src=x" not in answer.text
    assert sorted(photos.parent.rglob("*")) == before


@pytest.mark.parametrize(
    ("asked", "sent", "words"),
    [
        ({"text": TEXT}, [("rgb", ("a.png", png(1), "image/png"))], "rgb cannot be mixed"),
        ({"rgb": "x"}, None, "send a file"),
        ({"text": TEXT, "instruction": "x"}, None, "no instructions"),
        ({"like": "7"}, None, "no such image"),
        ({"text": TEXT, "camera": "1"}, None, "camera '1'"),
        ({}, None, "send a form"),
    ],
)
def test_what_the_model_or_the_gallery_does_not_take(client: TestClient, asked: Any, sent: Any, words: str) -> None:
    status, sentence = refusal(client, asked, sent)
    assert status == 400 and words in sentence


def test_too_many_mixes_and_too_large_bodies_are_refused(client: TestClient) -> None:
    five = [png(seed) for seed in range(5)]
    status, sentence = refusal(client, sent=files(nir=five, sk=five))
    assert status == 400 and "more than 16 mixes" in sentence
    huge = (b"x" * (1 << 20) for _ in range(65))
    answer = client.post("/api/search", content=huge, headers={"content-type": "multipart/form-data; boundary=x"})
    assert answer.status_code in (400, 413)
    long = client.post("/api/search", files=[("sk", ("a", bytes(65 << 20), "image/png"))])
    assert long.status_code == 413 and "64 MiB" in long.json()["error"]


def test_nothing_but_the_gallery_is_served(client: TestClient, images: list[Path]) -> None:
    whole = client.get("/api/images/3/original")
    assert whole.content == images[3].read_bytes() and whole.headers["content-type"] == "image/png"
    assert (
        whole.headers["x-content-type-options"] == "nosniff" and "sandbox" in whole.headers["content-security-policy"]
    )
    with Image.open(io.BytesIO(client.get("/api/images/3").content)) as picture:
        assert picture.format == "JPEG"
    # The next gallery at this address has other pictures at these numbers.
    assert {client.get(f"/api/images/3{end}").headers["cache-control"] for end in ("", "/original")} == {"no-store"}
    gone = [
        "/api/images/7", "/api/images/-1", "/api/images/99999999999999999999999", "/api/images/notes.txt", "/notes.txt",
        "/api/images/../notes.txt", "/api/images/..%2f..%2fnotes.txt/original", "/%2e%2e/%2e%2e/etc/passwd",
        "/index.html", "/static/app.js", "/serve/command.py", "/api", "/docs", f"/{images[0]}", "/api/examples/0.0/9",
    ]  # fmt: skip
    for path in gone:
        answer = client.get(path)
        assert answer.status_code == 404 and list(answer.json()) == ["error"], path
    assert client.get("/api/search").status_code == 405 and client.post("/api/state").status_code == 405
    for path, (name, kind) in FILES.items():
        answer = client.get(path)
        assert answer.content == (STATIC / name).read_bytes() and answer.headers["content-type"] == kind
    assert {name for name, _ in FILES.values()} == {entry.name for entry in STATIC.iterdir()}


def test_an_image_that_is_gone_or_replaced_is_not_found(session: SearchSession, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(3):
        (folder / f"{number}.png").write_bytes(png(80 + number))
    (tmp_path / "secret.txt").write_text("secret")
    with served(session, str(folder)) as (client, *_):
        (folder / "0.png").unlink()
        (folder / "1.png").unlink()
        (folder / "1.png").symlink_to(tmp_path / "secret.txt")
        for path in ("/api/images/0", "/api/images/0/original", "/api/images/1", "/api/images/1/original"):
            answer = client.get(path)
            assert (
                answer.status_code == 404
                and "secret" not in answer.text
                and str(tmp_path) not in answer.json()["error"]
            )
        assert client.get("/api/images/2").status_code == 200


def test_the_page_says_nothing_that_a_policy_would_have_to_allow() -> None:
    """No script or style in the markup, no address of another host anywhere."""
    markup = (STATIC / "index.html").read_text(encoding="utf-8")
    assert (
        " style=" not in markup
        and "<style" not in markup
        and " on" not in markup.replace(" on", " on", 0).split("<body>")[0]
    )
    for place in STATIC.iterdir():
        text = place.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
        assert "://" not in text and "innerHTML" not in text and "eval(" not in text, place.name
    readme = " ".join((STATIC.parents[1] / "README.md").read_text(encoding="utf-8").split())
    shown = " ".join(markup.split())
    for sentence in (
        "Person re-identification can harm people.",
        "their errors are not the same for all groups of people",
    ):
        assert sentence in shown and sentence in readme


def test_a_crash_of_a_request_ends_only_that_request(
    page: Opened, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    client, service, _ = page
    for error in (RuntimeError("a defect"), MemoryError()):
        with monkeypatch.context() as patch:
            patch.setattr(type(service), "search", lambda *_, error=error: (_ for _ in ()).throw(error))
            answer = client.post("/api/search", data={"text": TEXT})
        assert answer.status_code == 500 and "defect of the program" in answer.json()["error"]
        assert "Traceback" not in answer.text and "Traceback" in caplog.text
    assert found(client, {"text": TEXT})["results"]


def test_a_full_queue_and_a_gallery_that_is_not_ready_say_so(
    page: Opened, session: SearchSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, service, worker = page
    go, started = threading.Event(), threading.Event()
    ordinary = type(service).search

    def slow(*given: Any) -> Any:
        started.set()
        assert go.wait(30)
        return ordinary(*given)

    monkeypatch.setattr(type(service), "search", slow)
    asking = [threading.Thread(target=found, args=(client, {"text": TEXT})) for _ in range(8)]
    for thread in asking:
        thread.start()
    assert started.wait(10)
    while worker.waiting < 8:
        threading.Event().wait(0.01)
    status, sentence = refusal(client, {"text": TEXT})
    go.set()
    for thread in asking:
        thread.join(30)
    assert status == 503 and "8 searches are waiting already" in sentence
    monkeypatch.setattr(service, "table", None)
    monkeypatch.setattr(service, "progress", type(service.progress)(what="encode rgb", done=3, total=7))
    state = client.get("/api/state").json()
    assert state["status"] == "encoding" and state["progress"] == {"what": "encode rgb", "done": 3, "total": 7}
    for answer in (
        client.post("/api/search", data={"text": TEXT}),
        client.get("/api/images/0"),
        client.get("/api/examples"),
    ):
        assert answer.status_code == 503 and "3 of 7 pictures" in answer.json()["error"]
        assert answer.headers["retry-after"]
