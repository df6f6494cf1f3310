"""Covers: solver/gallery/layout, solver/gallery/index, solver/gallery/writing, solver/gallery/adding,
solver/gallery/signatures, utils/locks. The index by itself, without a model: what it holds after each change, killed at
every moment of a change, written by two, damaged file by file.
"""

import json
import os
import re
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from plain_gallery import DIM, STATE, encode, held, photo

from configs.vocabulary import Modality
from solver.gallery.adding import Added, add_images, changed_files, named_ids
from solver.gallery.index import open_index
from solver.gallery.layout import IndexRow, IndexState, key_of, read_state
from solver.gallery.listing import ListedImage
from solver.gallery.writing import IndexWriter, ShardContent, check_same, writing
from utils.errors import UserError
from utils.retrieval.exact import best_rows


def add(folder: Path, images: list[ListedImage], shard_rows: int = 3, state: IndexState = STATE) -> Added:
    with writing(folder, state) as writer:
        return add_images(writer, images, encode, shard_rows)


def names(folder: Path) -> str:
    return "".join(name for _, name in held(open_index(folder)))


@pytest.fixture
def eight(tmp_path: Path) -> list[ListedImage]:
    return [photo(tmp_path / ("x" if name in "abc" else "y"), name) for name in "abcdefgh"]


def test_what_is_added_removed_and_compacted(tmp_path: Path, eight: list[ListedImage]) -> None:
    place = tmp_path / "index"
    assert add(place, eight[:5]).added == 5 and names(place) == "abcde"
    again = add(place, eight)
    assert (again.added, again.unchanged, again.replaced) == (3, 5, 0) and names(place) == "abcdefgh"
    assert len(open_index(place).shards) == 3
    with writing(place) as writer:
        writer.remove(named_ids(writer.read(), [eight[1].path, str(tmp_path / "y")], missing=False))
    assert names(place) == "ac" and open_index(place).count == 2
    # An id is never used again, and what is added again goes to the end.
    assert add(place, [eight[1]]).added == 1
    assert held(open_index(place)) == [(0, "a"), (2, "c"), (8, "b")]
    size = sum(path.stat().st_size for path in (place / "shards").iterdir())
    with writing(place) as writer:
        writer.compact(shard_rows=2)
    assert held(open_index(place)) == [(0, "a"), (2, "c"), (8, "b")]
    assert sum(path.stat().st_size for path in (place / "shards").iterdir()) < size
    assert [shard.entry.rows for shard in open_index(place).shards] == [2, 1] and read_state(place).removed is None
    add(place, eight[3:5])
    assert held(open_index(place))[-2:] == [(9, "d"), (10, "e")]
    with writing(place) as writer:
        writer.remove([identity for identity, _ in writer.read().images()])
        writer.compact()
    assert held(open_index(place)) == [] and add(place, eight).added == 8 and names(place) == "abcdefgh"


def test_a_search_does_not_see_how_the_rows_came(tmp_path: Path, eight: list[ListedImage]) -> None:
    extra = [photo(tmp_path / "z", name) for name in "uvw"]
    queries = torch.from_numpy(np.random.default_rng(0).standard_normal((4, DIM)).astype(np.float32))
    found = []
    for number, rows in enumerate((1, 3, 100)):
        place = tmp_path / f"index{number}"
        add(place, extra[:1], rows)
        for image in (eight[:4], [*extra[1:], *eight[4:]]):
            add(place, image, rows)
        with writing(place) as writer:
            writer.remove(named_ids(writer.read(), [str(tmp_path / "z")], missing=False))
        for compacted in (False, True):
            if compacted:
                with writing(place) as writer:
                    writer.compact(rows + 1)
            index = open_index(place)
            for block in (1, 1 << 20):
                best = best_rows(queries, index.features(), 5, block_bytes=block)
                shown = [[Path(row.path).name for row in index.rows(rows_)] for rows_ in best.rows]
                found.append((shown, best.scores.tolist()))
    assert all(one == found[0] for one in found)
    every = np.stack([encode([image])[0][0] for image in eight]).astype(np.float64)
    cosines = queries.numpy() @ every.T / np.linalg.norm(every, axis=1)
    order = np.argsort(-cosines, axis=1)[:, :5]
    assert found[0][0] == [[eight[place].path[-1] for place in row] for row in order]


def test_half_precision_is_searched_as_it_is_stored(tmp_path: Path, eight: list[ListedImage]) -> None:
    add(tmp_path / "index", eight, state=replace(STATE, dtype="float16"))
    index = open_index(tmp_path / "index")
    rows = np.concatenate([shard.features for shard in index.shards])
    assert rows.dtype == np.float16
    query = torch.from_numpy(rows[2:3].astype(np.float32))
    best = best_rows(query, index.features(), 8)
    wide = rows.astype(np.float64)
    cosines = wide @ wide[2] / np.linalg.norm(wide, axis=1) / np.linalg.norm(wide[2])
    assert best.rows[0].tolist() == np.argsort(-cosines, kind="stable").tolist()
    assert best.scores[0] == pytest.approx(np.sort(cosines)[::-1], abs=1e-7)
    with pytest.raises(UserError, match="beyond the range of fp16"), writing(tmp_path / "index") as writer:
        content = ShardContent(features=np.full((1, DIM), 1e5), rows=[eight[0].row([])], numbers=[0])
        writer.append(content, 1)


def test_changed_and_missing_files_are_noticed(tmp_path: Path, eight: list[ListedImage]) -> None:
    place = tmp_path / "index"
    add(place, eight)
    os.utime(eight[0].path, (1, 1))
    Path(eight[1].path).write_text("other")
    Path(eight[2].path).unlink()
    found = changed_files(row for _, row in open_index(place).images())
    assert (found.changed, found.missing) == ([eight[1].path], [eight[2].path])
    done = add(place, [*eight[:2], *eight[3:]])
    assert (done.added, done.replaced, done.unchanged) == (1, 1, 6)
    with writing(place) as writer:
        writer.remove(named_ids(writer.read(), [], missing=True))
    assert names(place) == "adefghb"
    with pytest.raises(UserError, match="holds no image .*nothing.*, nor any below it"), writing(place) as writer:
        named_ids(writer.read(), [str(tmp_path / "nothing"), eight[0].path], missing=False)


def test_labels_that_are_said_anew_replace_those_before(tmp_path: Path, eight: list[ListedImage]) -> None:
    place = tmp_path / "index"
    add(place, eight)
    unknown = [replace(image, person="", camera="") for image in eight]
    assert add(place, unknown).unchanged == 8, "a folder says nothing of whom it shows"
    assert add(place, [replace(eight[0], person="z")]).replaced == 1
    index = open_index(place)
    assert {text: len(rows) for text, rows in index.find("person", ["z", "a", "b"]).items()} == {"z": 1, "a": 0, "b": 1}
    assert index.rows(index.find("path", [eight[0].path])[eight[0].path])[0].person == "z"


def test_unreadable_images_are_listed_and_tried_again_when_they_change(tmp_path: Path) -> None:
    place = tmp_path / "index"
    images = [
        photo(tmp_path, "a"),
        photo(tmp_path, "b", "damaged"),
        photo(tmp_path, "c"),
        photo(tmp_path, "d", "damaged"),
    ]
    done = add(place, images, 2)
    assert [row.path[-1] for row in done.unreadable] == ["b", "d"] and held(open_index(place)) == [(0, "a"), (2, "c")]
    assert [(identity, row.path[-1]) for identity, row in open_index(place).unreadable()] == [(1, "b"), (3, "d")]
    done = add(place, images)
    assert (done.added, done.unchanged, len(done.unreadable)) == (0, 2, 2)
    Path(images[1].path).write_text("mended")
    assert add(place, images).added == 1 and held(open_index(place))[-1] == (4, "b")
    with writing(place) as writer:
        writer.compact()
    assert [(identity, row.path[-1]) for identity, row in open_index(place).unreadable()] == [(3, "d")]
    with writing(place) as writer:
        writer.remove(named_ids(writer.read(), [images[3].path], missing=False))
    assert not list(open_index(place).unreadable())


def test_nothing_is_left_of_an_index_without_images(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no image can be read, the first: .*damaged"):
        add(tmp_path / "index", [photo(tmp_path, "a", "damaged")])
    assert not (tmp_path / "index").exists()


CHANGES: dict[str, Callable[[IndexWriter, list[ListedImage]], object]] = {
    "add": lambda writer, images: add_images(writer, images, encode, 100),
    "remove": lambda writer, images: writer.remove([0, 3]),
    "compact": lambda writer, images: writer.compact(2),
    "replace": lambda writer, images: writer.replace(
        ShardContent(
            features=encode(images[6:])[0], rows=[image.row([1, 2, 3, 4, "x"]) for image in images[6:]], numbers=[0, 1]
        ),
        2,
    ),
}
AFTER = {"add": "abcdegfh", "remove": "bce", "compact": "abcde", "replace": "fh"}


def killed(work: Callable[[], object], step: float) -> bool:
    """Do some work in another process, which is killed (-9) at the step-th file that is given its name, before it or
    after it; return whether it was killed.
    """
    child = os.fork()
    if child == 0:
        rename, count = os.replace, [0]

        def counted(source: str, target: str) -> None:
            count[0] += 1
            if count[0] == step:
                os.kill(os.getpid(), signal.SIGKILL)
            rename(source, target)
            if count[0] + 0.5 == step:
                os.kill(os.getpid(), signal.SIGKILL)

        def replaced(self: Path, target: str | Path) -> Path:
            counted(str(self), str(target))
            return Path(target)

        Path.replace = replaced  # type: ignore[method-assign, assignment]
        try:
            work()
        finally:
            os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("change", CHANGES)
def test_a_writer_killed_at_any_moment_loses_nothing(tmp_path: Path, eight: list[ListedImage], change: str) -> None:
    images = [*eight[:5], eight[6], eight[5], eight[7]]
    seen = set()
    for step in (half / 2 for half in range(2, 60)):
        place = tmp_path / f"index{step}"
        add(place, images[:5], 2)

        def work(place: Path = place) -> None:
            with writing(place) as writer:
                CHANGES[change](writer, images)

        ended = killed(work, step)
        now = "".join(row.path[-1] for _, row in open_index(place, verify=True).images())
        assert now in ("abcde", AFTER[change]), step
        seen.add(now)
        if not ended:
            assert now == AFTER[change]
            break
        # Whoever comes next finds no lock, goes on, and removes what was left.
        work()
        assert "".join(row.path[-1] for _, row in open_index(place, verify=True).images()) == AFTER[change]
        named = {f"{shard.name}{end}" for shard in read_state(place).shards for end in shard.files}
        removed = read_state(place).removed
        left = {f"shards/{path.name}" for path in (place / "shards").iterdir()}
        assert left - named <= ({removed[0]} if removed else set())
    else:
        raise AssertionError("the work did not come to its end")
    assert seen == {"abcde", AFTER[change]}


def test_a_second_writer_is_refused_and_readers_are_not(tmp_path: Path, eight: list[ListedImage]) -> None:
    place = tmp_path / "index"
    add(place, eight)

    def other() -> str:
        """What another process is told that wants to write."""
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                with writing(place):
                    os.write(write, b"written")
            except UserError as error:
                os.write(write, str(error).encode())
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        os.close(write)
        with os.fdopen(read) as stream:
            return stream.read()

    with writing(place) as writer:
        assert re.match(rf"{place} is being written by another process; wait", other())
        reader = open_index(place)
        writer.remove([0])
        writer.compact()
        # What was open stays whole when its files are deleted.
        assert len(reader.features().gather(np.arange(8))) == 8
    assert other() == "written" and names(place) == "bcdefgh"


def spoil(place: Path, pattern: str, change: Callable[[bytes], bytes]) -> Path:
    file = next(path for path in sorted(place.rglob("*")) if path.match(pattern))
    file.write_bytes(change(file.read_bytes()))
    return file


@pytest.mark.parametrize("pattern", ["*.features.npy", "*.keys.npy", "*.rows.jsonl", "*.bad.jsonl", "removed-*.npy"])
@pytest.mark.parametrize(
    "change",
    [lambda data: data[:-1], lambda data: b"", lambda data: data[:-2] + bytes([data[-2] ^ 1]) + data[-1:], None],
    ids=["cut", "empty", "one bit", "absent"],
)
def test_a_broken_shard_is_named(tmp_path: Path, pattern: str, change: Callable[[bytes], bytes] | None) -> None:
    place = tmp_path / "index"
    add(place, [photo(tmp_path, name, "damaged" if name == "b" else "") for name in "abcd"], 9)
    with writing(place) as writer:
        writer.remove([0])
    if change is None:
        file = next(path for path in sorted(place.rglob("*")) if path.match(pattern))
        file.unlink()
    else:
        file = spoil(place, pattern, change)
    with pytest.raises(UserError, match=f"{re.escape(str(file))} of the gallery index is damaged"):
        open_index(place)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "is damaged"),
        ("[]", "is damaged"),
        ("{}", "is damaged"),
        ('{"kind": 1, "kind": 2}', "stands twice"),
        ("[" * 100_000, "is damaged"),
        (None, "it has no index.json"),
        ({"format": 99}, "of format 99"),
        ({"next_id": 0}, "not what was written"),
        ({"kind": "other"}, "is no gallery index"),
    ],
)
def test_a_damaged_state_is_refused(tmp_path: Path, eight: list[ListedImage], content: object, words: str) -> None:
    place = tmp_path / "index"
    add(place, eight)
    file = place / "index.json"
    if content is None:
        file.unlink()
    else:
        text = content if isinstance(content, str) else json.dumps(json.loads(file.read_text()) | content)
        file.write_text(text)
    with pytest.raises(UserError, match=words):
        open_index(place)
    if content is not None:
        with pytest.raises(UserError, match=words):
            add(place, eight)


def test_other_folders_and_other_models_are_refused(tmp_path: Path, eight: list[ListedImage]) -> None:
    with pytest.raises(UserError, match="no such gallery index"):
        open_index(tmp_path / "none")
    with pytest.raises(UserError, match=r"holds other files \(x\) and is no gallery index"):
        add(tmp_path, eight)
    add(tmp_path / "index", eight)
    state = read_state(tmp_path / "index")
    check_same(state, STATE.model, tmp_path, "R")
    for other in ({**STATE.model, "weights": "v"}, {"family": "none"}, {**STATE.model, "more": 1}):
        with pytest.raises(UserError, match="made with another model than R"):
            check_same(state, other, tmp_path, "R")


def test_a_row_keeps_everything_that_is_known(tmp_path: Path) -> None:
    row = IndexRow(
        path="/p/\udcff.jpg",
        modality=Modality.NIR,
        person=7,
        camera="c",
        clothes="k",
        file=[1, 2, 3, 4, "s"],
        number=3,
        reason="r",
    )
    assert IndexRow.read(row.line()) == row and row.line().isascii()
    assert IndexRow.read(replace(row, person="7").line()).person == "7"
    for wrong in (
        "[]",
        "{}",
        '{"path": 3, "modality": "rgb"}',
        '{"path": "a", "modality": "rgb", "file": [1]}',
        "1",
        "",
    ):
        with pytest.raises((ValueError, TypeError, KeyError)):
            IndexRow.read(wrong)
    assert key_of("a") != key_of("b") and 0 < key_of("") < 1 << 64
