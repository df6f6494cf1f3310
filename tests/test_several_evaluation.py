"""Covers: solver/evaluation/sharing, solver/commands/evaluate, utils/processes. Several processes evaluate as one does,
to the bit.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_evaluator
import torch
from parts_model import split_of
from protocol_oracle import ToyReader
from several import forked, in_processes
from small_run import write_run
from test_evaluator import SmallModel, make_split
from test_relevance_albef import albef, pictures, small_bert, small_vit
from test_rescoring import MatchingModel
from tiny_orbench import write_orbench
from torch import Tensor

from configs.schema.evaluation import EvalConfig
from configs.vocabulary import AnnotationKind, Modality
from datasets.loading.readers import open_source
from datasets.structures import EvalSplit, QueryList, Source
from solver.commands.evaluate import run_test, together
from solver.evaluation import albef_annotations, annotation_encoders, relevance, sharing
from solver.evaluation.evaluator import evaluate_split
from solver.evaluation.relevance import relevance_of
from solver.evaluation.result import EvaluationResult
from solver.evaluation.sharing import dealt
from solver.evaluation.spec import EvaluationSpec
from utils.errors import UserError
from utils.processes import ALONE, Joined, Processes

pytestmark = pytest.mark.threads(1)
CPU = torch.device("cpu")
RGB, TEXT = Modality.RGB, Modality.TEXT


def plain(result: EvaluationResult) -> dict[str, Any]:
    """Everything that is measured, and the features behind it."""
    numbers: dict[str, Any] = {"features": result.ranked.features}
    for listed in result.lists:
        for name, values in listed.per_query.items():
            numbers[f"{listed.task} {name}"] = torch.from_numpy(values)
        numbers[f"{listed.task} first"] = torch.from_numpy(listed.first_rank)
        for tau, at in listed.thresholds.items():
            numbers[f"{listed.task} {tau}"] = torch.from_numpy(at.values)
            numbers[f"{listed.task} {tau} kept"] = torch.tensor([at.mean, at.queries, at.kept, at.pairs])
    said = [result.counts, result.cache["stored"], [entry.reason for entry in result.skipped], result.relevance]
    return {"numbers": numbers, "said": json.dumps(said, sort_keys=True)}


def assert_same(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    assert found["said"] == wanted["said"]
    assert list(found["numbers"]) == list(wanted["numbers"])
    for name, value in wanted["numbers"].items():
        other: Tensor = found["numbers"][name]
        assert other.dtype == value.dtype and other.shape == value.shape
        assert other.numpy().tobytes() == value.numpy().tobytes(), name


def fused(processes: Processes, **options: Any) -> EvaluationResult:
    """32 lists of ReID5o's kind in batches of six, two sources of which are damaged."""
    split = make_split(people=3, seed=4)
    damaged = {split.gallery[5].value, split.query_lists[3].entries[1][0].value}
    test_evaluator.DAMAGED.update(damaged)
    try:
        config = EvalConfig(batch_size=6, flip=True, rerank=True, rerank_k1=6, rerank_k2=3, ap_topk=7, **options)
        spec = EvaluationSpec(config=config, skip_unreadable=True, processes=processes)
        return evaluate_split(SmallModel(), split, test_evaluator.read, spec, CPU)
    finally:
        test_evaluator.DAMAGED.clear()


def rescored(processes: Processes) -> EvaluationResult:
    """Captions whose best images a matching head scores again, masks of texts among what it reads."""
    spec = EvaluationSpec(config=EvalConfig(batch_size=5, rescore=6), processes=processes)
    return evaluate_split(MatchingModel(), split_of(), ToyReader(), spec, CPU)


def annotated(processes: Processes) -> EvaluationResult:
    """Texts as annotations, mAP at thresholds of their likeness."""
    split = make_split([(RGB,), (Modality.NIR, TEXT)])
    told = {number: Source(modality=TEXT, value=f"a {word} coat") for number, word in enumerate(("red", "blue", "red"))}
    lists = tuple(
        dataclasses.replace(
            listed,
            annotations=tuple(told[number % 3] for number in range(len(listed.entries))),
            annotation_kinds=(AnnotationKind.DESCRIPTION,) * len(listed.entries),
        )
        for listed in split.query_lists
    )
    gallery = tuple({AnnotationKind.DESCRIPTION: told[number % 2]} for number in range(len(split.gallery)))
    split = dataclasses.replace(split, query_lists=lists, gallery_annotations=gallery)
    spec = EvaluationSpec(
        config=EvalConfig(batch_size=3, thresholds=(0.5, 1.0), relevance="tfidf"), processes=processes
    )
    return evaluate_split(SmallModel(), split, test_evaluator.read, spec, CPU)


def smallest(processes: Processes) -> EvaluationResult:
    """Fewer sources than processes."""
    source = Source(modality=RGB, value="only", record="only")
    query = QueryList(combination=(RGB,), entries=((source,),), person_ids=(0,), group="one", draws=False)
    split = EvalSplit(
        name="test", protocol="made up", gallery=(source,), gallery_ids=(0,), query_lists=(query,), groups=("one",)
    )
    return evaluate_split(SmallModel(), split, test_evaluator.read, EvaluationSpec(processes=processes), CPU)


def on_disk(processes: Processes) -> EvaluationResult:
    """Tokens on the disk, unprepared."""
    return fused(processes, cache_device_mb=0, cache_host_mb=0)


CASES: dict[str, Callable[[Processes], EvaluationResult]] = {
    case.__name__: case for case in (fused, on_disk, rescored, annotated, smallest)
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ALBEF's checkpoint and pictures of clothes, data and the run of a small ReID5o."""
    place = tmp_path_factory.mktemp("place")
    albef(place, small_bert(), small_vit(128))
    for number, picture in enumerate(pictures(5)):
        picture.save(place / f"{number}.png")
    write_orbench(place / "data", identities=3, images=2)
    write_run(place / "run", place / "data", eval={"batch_size": 3, "verification": True})
    return place


def vectors(place: Path, processes: Processes) -> dict[str, Any]:
    """Annotation vectors by ALBEF's encoders, more batches than one of each kind."""
    clothes = [Source(modality=RGB, value=str(place / f"{number}.png")) for number in range(5)]
    texts = [Source(modality=TEXT, value=text) for text in ("red coat", "a person in red", "blue", "coat")]
    image = Source(modality=RGB, value="x.jpg")
    offered = [{AnnotationKind.CLOTHES: one, AnnotationKind.DESCRIPTION: other} for one in clothes for other in texts]
    query = QueryList(
        combination=(RGB,),
        entries=((image,), (image,)),
        person_ids=(0, 1),
        group="one",
        draws=False,
        annotations=(clothes[0], texts[0]),
        annotation_kinds=(AnnotationKind.CLOTHES, AnnotationKind.DESCRIPTION),
    )
    split = EvalSplit(
        name="test",
        protocol="p",
        gallery=(image,) * len(offered),
        gallery_ids=(0,) * len(offered),
        gallery_annotations=tuple(offered),
        query_lists=(query,),
        groups=("one",),
    )
    found = relevance_of(split, encoder=f"albef:{place}/ALBEF.pth", read_clothes=open_source, processes=processes)
    numbers = {kind: torch.from_numpy(np.asarray(one.vectors)) for kind, one in found.gallery.items()}
    return {"numbers": numbers, "said": found.checksum}


def everything(place: Path, processes: Processes) -> dict[str, Any]:
    """All cases, of which this process does its part."""
    with pytest.MonkeyPatch.context() as patch:
        # Few annotations are several batches, and batches of tokens several rounds.
        for module, name in ((annotation_encoders, "CLS"), (albef_annotations, "CLOTHES"), (relevance, "CLOTHES")):
            patch.setattr(module, f"{name}_BATCH", 2)
        patch.setattr(sharing, "ROUND_BYTES", 20_000)
        return {name: plain(case(processes)) for name, case in CASES.items()} | {"vectors": vectors(place, processes)}


def whole_test(place: Path, output: Path, processes: Processes) -> str:
    """A test as it is run, with all that it writes."""
    return run_test(
        run=str(place / "run"),
        config="",
        checkpoint="",
        output=str(output),
        device="cpu",
        overrides=["eval.flip=true"],
        export=str(output / "features"),
        processes=processes,
    )


@pytest.fixture(scope="module")
def alone(place: Path) -> dict[str, Any]:
    return everything(place, ALONE)


@pytest.mark.parametrize("count", [2, 3])
def test_all_that_is_measured_is_what_one_process_measures(count: int, place: Path, alone: dict[str, Any]) -> None:
    def work(_: int) -> dict[str, Any]:
        found: dict[str, Any] = {}

        def command(processes: Processes) -> str:
            found.update(everything(place, processes))
            return whole_test(place, place / "shared", processes) if count == 2 else "done"

        return {"text": together("cpu", command), **found}

    for rank, found in enumerate(forked(count, place / f"answers-{count}", work)):
        assert isinstance(found, dict), found
        assert bool(found["text"]) is (rank == 0)
        for name, wanted in alone.items():
            assert_same(found[name], wanted)
    if count == 2:
        whole_test(place, place / "alone", ALONE)
        assert_same_files(place / "shared", place / "alone")


def assert_same_files(ours: Path, theirs: Path) -> None:
    assert {path.name for path in ours.iterdir()} == {path.name for path in theirs.iterdir()}
    for name in ("features.npz", "per_query.npz"):
        first, second = np.load(ours / name), np.load(theirs / name)
        assert all(np.array_equal(first[key], second[key]) for key in second.files) and first.files == second.files
    one, other = (json.loads((folder / "results.json").read_text(encoding="utf-8")) for folder in (ours, theirs))
    own = {"seconds", "made"}
    assert one.keys() == other.keys()
    assert [key for key in one if key not in own and one[key] != other[key]] == []
    assert one["token_cache"]["mb"]["device"] > 0 and one["verification"]["own_thresholds"]["error_rates"]


def test_an_image_that_one_process_cannot_read_stops_all(tmp_path: Path) -> None:
    def work(processes: Joined) -> None:
        split = make_split([(RGB,)])
        test_evaluator.DAMAGED.add(split.gallery[-1].value)
        spec = EvaluationSpec(config=EvalConfig(batch_size=2), processes=processes)
        evaluate_split(SmallModel(), split, test_evaluator.read, spec, CPU)

    found = in_processes(2, tmp_path, work)
    assert all(isinstance(error, UserError) for error in found)
    texts = [str(error) for error in found]
    reader = next(rank for rank, text in enumerate(texts) if not text.startswith("stopped"))
    assert texts[reader].endswith("number 3: damaged")
    assert texts[1 - reader] == f"stopped because process {reader} of 2 did: {texts[reader]}"


def test_one_that_works_alone_notices_a_death_by_itself_and_when_torchrun_ends_it(tmp_path: Path) -> None:
    said: list[str] = []

    def work(processes: Joined) -> None:
        processes.told(None)
        if processes.rank:
            os.kill(os.getpid(), signal.SIGKILL)
        deadline = time.monotonic() + 20
        try:
            while time.monotonic() < deadline:
                processes.heed()
                time.sleep(0.05)
        except UserError as error:
            said.append(str(error))
        assert said and said[0].startswith("stopped because process 1 of 2 died without a word")
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)

    first, second = in_processes(2, tmp_path, work)
    assert second is None and isinstance(first, UserError), first
    assert str(first).startswith("stopped because process 1 of 2 died without a word")


def test_shares_cover_everything_once_in_whole_steps() -> None:
    for count in range(1, 5):
        for length in range(12):
            for step in (1, 3):
                parts = []
                for rank in range(count):
                    one = Processes()
                    one.rank, one.count = rank, count
                    part = one.share(length, step)
                    assert part.start % step == 0 or part.start == length
                    parts.append(list(range(length))[part])
                assert [entry for part in parts for entry in part] == list(range(length))
                whole = [-(-len(part) // step) for part in parts]
                assert max(whole) - min(whole) <= 1


def test_batches_go_to_who_has_least_to_do() -> None:
    loads = [5, 0, 0]
    assert dealt([4, 4, 4, 1], loads) == [1, 2, 1, 2] and loads == [5, 8, 5]
