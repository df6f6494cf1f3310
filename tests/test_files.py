"""Covers: utils/files, utils/checkpoint_io, utils/errors, utils/threads, utils/device. Files that are whole or absent,
checkpoints that run no code, threads within the cores, errors as exit codes.
"""

import errno
import hashlib
import os
import pickle
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from trees import Bomb, small_disk

from utils import checkpoint_io, device, threads
from utils.checkpoint_io import fingerprint_state, load_checkpoint, load_tensors, save_checkpoint
from utils.errors import UserError, nearest, run_script
from utils.files import atomic_path, fingerprint, read_json, sha256_of, write_json, write_text

PAYLOAD: dict[str, Any] = {
    "model": {"weight": torch.arange(4.0)},
    "config": {"seed": 1},
    "family": "reid5o",
    "num_identities": 3,
}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "new" / "a.txt"
    write_text(target, "first")
    with pytest.raises(ZeroDivisionError), atomic_path(target) as temporary:
        temporary.write_text("half")
        assert target.read_text() == "first" and temporary.suffix == ".txt" and temporary.parent == target.parent
        raise ZeroDivisionError
    assert target.read_text() == "first" and names(target.parent) == ["a.txt"]
    with target.open() as open_before:
        write_text(target, "second")
        # Whoever has the old file open reads it to its end: the new one took its name, not its place.
        assert open_before.read() == "first" and target.read_text() == "second"

    def refuse(self: Path, other: Path) -> None:
        raise OSError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(UserError, match="cannot write .*what was there before is unchanged"):
        write_text(target, "third")
    assert target.read_text() == "second" and names(target.parent) == ["a.txt"]


def test_permissions_follow_the_umask(tmp_path: Path) -> None:
    mask = os.umask(0o027)
    try:
        write_text(tmp_path / "a", "x")
    finally:
        os.umask(mask)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("keep")
    (tmp_path / "folder" / "x").mkdir(parents=True)
    for target in (tmp_path / "file" / "a.txt", tmp_path / "folder", tmp_path / ("n" * 300)):
        with pytest.raises(UserError, match="cannot write"):
            write_text(target, "x")
    assert names(tmp_path) == ["file", "folder"] and (tmp_path / "file").read_text() == "keep"


def test_writers_in_several_threads_leave_one_whole_file(tmp_path: Path) -> None:
    texts = [str(number) * 10_000 for number in range(8)]
    running = [threading.Thread(target=write_text, args=(tmp_path / "a", text)) for text in texts]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    assert (tmp_path / "a").read_text() in texts and names(tmp_path) == ["a"]


def test_json_is_strict_both_ways(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"name": "é", "values": [1, None]})
    assert (tmp_path / "a.json").read_bytes() == b'{\n  "name": "\xc3\xa9",\n  "values": [\n    1,\n    null\n  ]\n}\n'
    with pytest.raises(ValueError):
        write_json(tmp_path / "a.json", float("nan"))
    assert read_json(tmp_path / "a.json", "a thing") == {"name": "é", "values": [1, None]}
    (tmp_path / "b.json").write_text('{"name": ')
    with pytest.raises(UserError, match=r"b\.json \(a thing\) is not valid JSON.*truncated"):
        read_json(tmp_path / "b.json", "a thing")
    with pytest.raises(UserError, match="cannot read"):
        read_json(tmp_path, "a thing")
    (tmp_path / "c.json").write_text('[{"a": {"b": 1}, "c": 2}, {"a": {"b": 1, "d": 2, "b": 1}}]')
    with pytest.raises(UserError, match=r"c\.json \(a thing\): the key 'b' stands twice in one object; remove one"):
        read_json(tmp_path / "c.json", "a thing")


def test_digests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_bytes(b"abc" * 1_000_000)
    expected = hashlib.sha256(b"abc" * 1_000_000).hexdigest()
    assert sha256_of(tmp_path / "a") == expected
    # Python 3.10 has no hashlib.file_digest.
    monkeypatch.delattr(hashlib, "file_digest", raising=False)
    assert sha256_of(tmp_path / "a") == expected
    assert fingerprint([1, "a"]) == hashlib.sha256(b'1\n"a"\n').hexdigest()[:16]
    assert len({fingerprint(parts) for parts in ([1, 2], [[1, 2]], [2, 1], ["1", "2"], [12])}) == 5
    assert len(fingerprint(["\ud800"])) == 16
    assert fingerprint([{"a": 1, "b": 2}]) == fingerprint([{"b": 2, "a": 1}]) != fingerprint([{"a": 2, "b": 1}])


# Checkpoints


def test_checkpoint_round_trip(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "a.pth", PAYLOAD)
    loaded = load_checkpoint(tmp_path / "a.pth")
    assert loaded["config"] == {"seed": 1} and torch.equal(loaded["model"]["weight"], torch.arange(4.0))
    assert names(tmp_path) == ["a.pth"]


@pytest.mark.parametrize("plain", [True, False])
def test_code_in_a_checkpoint_is_refused_and_never_executed(tmp_path: Path, plain: bool) -> None:
    path, trace = tmp_path / "a.pth", tmp_path / "executed"
    content = {**PAYLOAD, "extra": Bomb(trace)}
    path.write_bytes(pickle.dumps(content)) if plain else torch.save(content, path)
    with pytest.raises(UserError, match=r"a\.pth"):
        load_checkpoint(path)
    assert not trace.exists()
    # The bomb is live: it goes off where nothing stops it.
    pickle.loads(pickle.dumps(Bomb(trace)))
    assert trace.exists()


@pytest.mark.parametrize("kept", [0, 1, 100, 0.5, 0.99, -1])
def test_truncated_checkpoint(tmp_path: Path, kept: float) -> None:
    torch.save({**PAYLOAD, "model": {"weight": torch.randn(1000)}}, tmp_path / "whole.pth")
    content = (tmp_path / "whole.pth").read_bytes()
    (tmp_path / "a.pth").write_bytes(content[: int(len(content) * kept) if 0 < kept < 1 else int(kept)])
    with pytest.raises(UserError, match=r"a\.pth") as caught:
        load_checkpoint(tmp_path / "a.pth")
    assert "\n" not in str(caught.value)


def test_damaged_bytes_are_refused_or_leave_a_checkpoint(tmp_path: Path) -> None:
    torch.save(PAYLOAD, tmp_path / "whole.pth")
    content = (tmp_path / "whole.pth").read_bytes()
    path, refused, whole = tmp_path / "a.pth", 0, 0
    for place in range(0, len(content), 7):
        path.write_bytes(content[:place] + bytes([content[place] ^ 0x55]) + content[place + 1 :])
        try:
            loaded = load_checkpoint(path)
        except UserError as error:
            assert str(error).startswith(f"{path} ") and "\n" not in str(error)
            refused += 1
        else:
            # What is let through was no part of the content.
            assert all(torch.equal(loaded["model"][name], tensor) for name, tensor in PAYLOAD["model"].items())
            assert {**loaded, "model": None} == {**PAYLOAD, "model": None}
            whole += 1
    # A third of the bytes are padding and what an archive says twice.
    assert refused > len(content) / 7 / 2 and whole > len(content) / 7 / 5


@pytest.mark.parametrize(
    "content",
    [
        torch.zeros(3),
        [1, 2],
        {"state_dict": {}},
        {**PAYLOAD, "model": [1]},
        {**PAYLOAD, "model": {"a": 3}},
        {**PAYLOAD, "model": {3: torch.zeros(1)}},
        {**PAYLOAD, "num_identities": "many"},
        {**PAYLOAD, "num_identities": 0},
    ],
)
def test_other_content_is_no_checkpoint_of_ours(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "a.pth")
    load_tensors(tmp_path / "a.pth")
    with pytest.raises(UserError, match=r"a\.pth is not a checkpoint of this project"):
        load_checkpoint(tmp_path / "a.pth")
    with pytest.raises(UserError, match="no such checkpoint"):
        load_checkpoint(tmp_path / "no.pth")


@pytest.mark.parametrize(
    "failure",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0"),
    ],
)
def test_full_disk_leaves_the_previous_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: Exception
) -> None:
    save_checkpoint(tmp_path / "a.pth", PAYLOAD)
    before = (tmp_path / "a.pth").read_bytes()

    def fail(payload: object, path: Path) -> None:
        Path(path).write_bytes(b"half")
        raise failure

    monkeypatch.setattr(checkpoint_io.torch, "save", fail)
    with pytest.raises(UserError, match="a.pth.*unchanged"):
        save_checkpoint(tmp_path / "a.pth", PAYLOAD)
    assert (tmp_path / "a.pth").read_bytes() == before and names(tmp_path) == ["a.pth"]


@pytest.mark.root
def test_disk_that_is_really_full(tmp_path: Path) -> None:
    with small_disk(tmp_path / "small", "256k") as place:
        save_checkpoint(place / "a.pth", PAYLOAD)
        before = (place / "a.pth").read_bytes()
        with pytest.raises(UserError, match="a.pth"):
            save_checkpoint(place / "a.pth", {**PAYLOAD, "model": {"weight": torch.zeros(200_000)}})
        with pytest.raises(UserError, match="cannot write"):
            write_text(place / "b.txt", "x" * 1_000_000)
        assert (place / "a.pth").read_bytes() == before and names(place) == ["a.pth"]


def test_state_fingerprint_sees_names_shapes_types_and_values() -> None:
    base = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor(3)}
    variants = [
        base,
        {"c": base["a"], "b": base["b"]},
        {**base, "a": base["a"].view(1, 2)},
        {**base, "a": base["a"].double()},
        {**base, "a": torch.tensor([1.0, 2.5])},
        # The same bytes, read as other numbers.
        {**base, "a": torch.tensor([1.0, 2.0]).view(torch.int32)},
    ]
    assert len({fingerprint_state(state) for state in variants}) == 6
    swapped = [{"a": torch.zeros(2), "b": torch.ones(2)}, {"a": torch.ones(2), "b": torch.zeros(2)}]
    assert len({fingerprint_state(state) for state in swapped}) == 2
    assert fingerprint_state(dict(reversed(base.items()))) == fingerprint_state(base)
    assert fingerprint_state({"a": torch.ones(2, dtype=torch.bfloat16)})


# Exit codes, names, threads, devices


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (None, 0, ""),
        (UserError("the file is wrong"), 2, "error: the file is wrong\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ],
)
def test_exit_codes(error: BaseException | None, code: int, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    def main() -> None:
        if error is not None:
            raise error

    with pytest.raises(SystemExit) as caught:
        run_script(main)
    assert caught.value.code == code and capsys.readouterr().err == text


def test_nearest_names() -> None:
    assert nearest("cosin", ["cosine", "linear"]) == "did you mean 'cosine'?"
    assert nearest("xyz", ["cosine", "linear"]) == "valid names: cosine, linear"


@pytest.mark.parametrize(
    ("cores", "limit", "kind", "asked", "expected"),
    [
        (1, "", "cpu", -1, (1, 0)),
        (2, "", "cpu", -1, (2, 0)),
        (8, "", "cpu", -1, (6, 2)),
        (16, "", "cuda", -1, (4, 12)),
        (4, "", "cuda", -1, (1, 3)),
        (2, "", "cpu", 0, (2, 0)),
        (8, "2", "cpu", 3, (2, 3)),
        (4, "", "cpu", 100, (1, 3)),
        (1, "", "cpu", 4, (1, 1)),
        (4, "junk", "cpu", 1, (3, 1)),
    ],
)
def test_threads_and_workers_stay_within_the_cores(
    monkeypatch: pytest.MonkeyPatch, cores: int, limit: str, kind: str, asked: int, expected: tuple[int, int]
) -> None:
    monkeypatch.setattr(threads, "available_cores", lambda: cores)
    monkeypatch.setenv("OMP_NUM_THREADS", limit)
    plan = threads.plan_threads(kind, asked)
    assert (plan.threads, plan.workers) == expected
    assert f"{plan.threads} compute threads + {plan.workers} loader processes on {cores} cores" in plan.describe()


@pytest.mark.parametrize(("load", "busy"), [(0.2, False), (2.4, False), (2.6, True), (11.3, True)])
def test_a_busy_machine_is_named(monkeypatch: pytest.MonkeyPatch, load: float, busy: bool) -> None:
    monkeypatch.setattr(threads, "available_cores", lambda: 2)
    monkeypatch.setattr(os, "getloadavg", lambda: (load, 0.0, 0.0))
    note = threads.busy_note()
    assert (f"load average {load} on 2 cores" in note) == busy and bool(note) == busy
    monkeypatch.delattr(os, "getloadavg")
    assert not threads.busy_note()


def test_waiting_policy_is_set_unless_the_user_did(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    threads.configure_threads()
    assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE" and "GOMP_SPINCOUNT" in os.environ
    monkeypatch.delenv("GOMP_SPINCOUNT")
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    threads.configure_threads()
    assert os.environ["OMP_WAIT_POLICY"] == "ACTIVE" and "GOMP_SPINCOUNT" not in os.environ


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("gpu", "unknown device 'gpu'"),
        ("cuda:99", "not available here"),
        ("cuda:x", "unknown device"),
        ("", "unknown device"),
    ],
)
def test_devices_that_are_not_there(text: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        device.resolve_device(text)
    assert device.resolve_device("cpu") == torch.device("cpu")
