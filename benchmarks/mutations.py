"""500 damaged configurations, and 500 damaged data sets and stored files: what the scripts answer to each.

    python -m benchmarks.mutations
    python -m benchmarks.mutations --cases 40 --json mutations.json
    python -m benchmarks.mutations --only "data sets/orbench/folder/17" --keep FOLDER

A case passes when the command succeeds, or ends in one sentence and exit code 2. It fails on a traceback, a sentence
that asks for a report, a death, no end within --limit seconds, or a silent change:

- a configuration that is accepted and is not what its file says, see benchmarks.mutation.configurations;
- data or a stored file under which the answer is another one although nothing was said, that is no line on standard
  error that the whole data give not, and the same data fingerprint. Not counted: a picture that can still be decoded
  (`other pixels`: no format that people use for pictures has a checksum of them), and files that people write, whose
  content is theirs.

Data are rendered, models tiny, every case is drawn from --seed and its own name, and runs in a forked process. Exit
code 1 when a case fails.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import json
import random
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from benchmarks.mutation import configurations, stored, trees
from benchmarks.mutation.contain import ROOT, Command, Job, Outcome, import_all, run_jobs, run_one
from configs.load import experiment_to_dict, load_experiment
from utils.checkpoint_io import load_tensors
from utils.files import write_json
from utils.tables import format_table
from utils.threads import available_cores, configure_threads

FAMILIES = tuple(
    str(ROOT / name)
    for name in (
        "configs/reid5o/smoke.yaml",
        "configs/vireid/smoke.yaml",
        "configs/irm/smoke.yaml",
        "configs/irmpp/smoke.yaml",
    )
)
LAYOUT_OF = {"reid5o": "orbench", "vireid": "sysu", "irm": "omnireid", "irmpp": "omnireid"}
SHORT = ("train.max_steps=1", "train.epochs=1")
SMALL = ("--identities", "8", "--test-identities", "12", "--image-size", "32x16", "--images-per-modality", "2")
COMPLETED = (
    "data.root",
    "output_dir",
    "data.cache_dir",
    "data.exclude",
    "train.init_from",
    "model.tokenizer",
    "model.init",
)
VERDICTS = ("refused", "same", "said", "other pixels", "accepted", "FAILED")


@dataclass(frozen=True, kw_only=True)
class Case:
    """One damage. prepare: makes it in a folder, drawing from a generator, and returns the command and what was done.
    judge: what a success is: same, said, other pixels, accepted, or what is wrong.
    """

    name: str
    prepare: Callable[[Path, random.Random], tuple[Command, str]]
    judge: Callable[[Path, Outcome], str]
    finds: bool = False
    """Exit code 1 says that something was found."""


def said(outcome: Outcome) -> set[str]:
    """Return the lines that were printed, but those of tables, without times, numbers and places."""
    lines = [line for line in f"{outcome.err}\n{outcome.out}".splitlines() if not line.startswith(("|", "+"))]
    plain = [re.sub(r"^\d\d:\d\d:\d\d ", "", line) for line in lines]
    return {re.sub(r"\d+", "#", re.sub(r"\S*/\S*", "PATH", line)) for line in plain}


class Bench:
    """What the cases start from: rendered data, trained runs, and the answers to undamaged ones."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data = {name: folder / f"data-{name}" for name in trees.LAYOUTS}
        self.stored = stored.Stored(folder / "stored", self.data["orbench"])
        self.whole: dict[str, tuple[Any, set[str]]] = {}
        """Answer, and lines said, of an undamaged case."""

    def make(self) -> None:
        """Render the data, train the runs, and ask for the answers to undamaged ones."""
        for name, layout in trees.LAYOUTS.items():
            where = ["--layout", name, "--root", str(self.data[name]), *SMALL, *layout.rendered, "--processes", "1"]
            run_one(self.folder / f"render-{name}", "datasets.synthetic", where, 300)
            for script in ("train", "test"):
                log, output = self.folder / f"whole-{name}-{script}", self.folder / f"whole-{name}"
                command = self.on_data(name, script, self.data[name], output)
                outcome = run_one(log, command.script, command.arguments, 300)
                self.whole[f"{name}/{script}"] = (self.data_answer(script, output), said(outcome))
        self.stored.make()
        for name, target in self.stored.targets().items():
            place, out = self.folder / f"whole-{name}", self.folder / f"out-{name}"
            stored.copied(self.stored.folder / target.place, place)
            command = target.command(place, out)
            outcome = run_one(self.folder / f"log-{name}", command.script, command.arguments, 300)
            answer = stored.answer(command.script, list(command.arguments), outcome.out, place, out)
            self.whole[name] = (answer, said(outcome))

    def on_data(self, name: str, script: str, root: Path, output: Path, skip: bool = False) -> Command:
        """Return a training of one step with its evaluation, or the test of a trained run, on a tree."""
        layout = trees.LAYOUTS[name]
        options = [f"data.root={root}", *(["data.on_error=skip"] if skip else [])]
        if script == "datasets.check":
            dataset = next((word[13:] for word in layout.options if word.startswith("data.dataset=")), name)
            return Command(script=script, arguments=["--dataset", dataset, "--root", str(root)])
        if script == "test":
            run = self.folder / f"whole-{name}" / "run"
            return Command(
                script="test", arguments=["--run", str(run), "--device", "cpu", "--output", str(output), *options]
            )
        place = [f"output_dir={output}", "name=run", "train.select=test", *SHORT]
        return Command(
            script="train",
            arguments=["--config", str(ROOT / layout.config), "--device", "cpu", *layout.options, *options, *place],
        )

    def data_answer(self, script: str, output: Path) -> tuple[Any, str]:
        """Return what was found, and the fingerprint of the data."""
        if script == "test":
            file = output / "results.json"
            return stored.results_of(file), json.loads(file.read_text(encoding="utf-8"))["data"]["fingerprint"]
        return stored.trained(output / "run"), load_tensors(output / "run" / "last.pth")["data_fingerprint"]


def configuration_case(bench: Bench, group: str, number: int) -> Case:
    """Return a damaged configuration, trained on for one step."""
    file = FAMILIES[number % len(FAMILIES)]
    family = Path(file).parent.name
    root = bench.data[LAYOUT_OF[family]]

    def prepare(folder: Path, rng: random.Random) -> tuple[Command, str]:
        options = experiment_to_dict(load_experiment(file, [f"data.root={root}", *SHORT, "train.select=last"]))
        options |= {"output_dir": str(folder / "runs"), "name": "run"}
        path = folder / "config.yaml"
        what = configurations.damaged(rng, group, options, path)
        return Command(script="train", arguments=["--config", str(path), "--device", "cpu"]), what

    def judge(folder: Path, outcome: Outcome) -> str:
        """Accepted, or what is not as the file says."""
        # A damaged option may name another place; ../../x is the farthest of them.
        found = [
            path for path in sorted(folder.parent.parent.glob("x/*/config.yaml")) + sorted(folder.rglob("config.yaml"))
        ]
        found = [path for path in found if path != folder / "config.yaml" and path.is_file()]
        if not found:
            return "accepted, and no run is to be found"
        resolved = yaml.safe_load(found[0].read_text(encoding="utf-8"))
        defaults = configurations.defaults_of(resolved["family"])
        return configurations.unlike(folder / "config.yaml", resolved, defaults, COMPLETED) or "accepted"

    return Case(name=f"configurations/{group}/{number}", prepare=prepare, judge=judge)


def tree_case(bench: Bench, kind: str, number: int) -> Case:
    """Return a damaged data set, trained on, tested on or checked."""
    layout = list(trees.LAYOUTS)[number % len(trees.LAYOUTS)]
    script = ("train", "test", "train", "test", "datasets.check")[number // len(trees.LAYOUTS) % 5]

    def prepare(folder: Path, rng: random.Random) -> tuple[Command, str]:
        root = folder / "data"
        trees.copy_linked(bench.data[layout], root)
        what = trees.KINDS[kind](rng, root)
        return bench.on_data(layout, script, root, folder / "out", rng.random() < 0.3), f"{script}: {what}"

    def judge(folder: Path, outcome: Outcome) -> str:
        """Compare with what the whole data gave."""
        if script == "datasets.check":
            return "accepted"
        (before, print_before), lines = bench.whole[f"{layout}/{script}"]
        after, print_after = bench.data_answer(script, folder / "out")
        if after == before:
            return "same"
        if print_after != print_before or said(outcome) - lines:
            return "said"
        return "other pixels" if kind in trees.OTHER_PIXELS else "SILENT: another answer, and nothing was said"

    name = f"data sets/{layout}/{kind}/{number}"
    return Case(name=name, prepare=prepare, judge=judge, finds=script == "datasets.check")


def stored_case(bench: Bench, name: str, number: int) -> Case:
    """Return a damaged file of the project's own making."""
    target = bench.stored.targets()[name]

    def prepare(folder: Path, rng: random.Random) -> tuple[Command, str]:
        place = stored.copied(bench.stored.folder / target.place, folder / "place")
        file = rng.choice(sorted(path for path in place.glob(target.file) if path.is_file()))
        what = stored.damage_stored(rng, file, bench.stored.folder / "other")
        return target.command(place, folder / "out"), f"{file.relative_to(place)}: {what}"

    def judge(folder: Path, outcome: Outcome) -> str:
        """Compare with what the whole file gave."""
        before, lines = bench.whole[name]
        place = folder / "place"
        command = target.command(place, folder / "out")
        after = stored.answer(command.script, list(command.arguments), outcome.out, place, folder / "out")
        if after == before:
            return "same"
        if said(outcome) - lines:
            return "said"
        return "SILENT: another answer, and nothing was said" if target.judged else "accepted"

    return Case(name=f"stored files/{name}/{number}", prepare=prepare, judge=judge)


def cases_of(bench: Bench, count: int) -> list[Case]:
    """Return so many damaged configurations, and as many data sets and stored files."""
    targets = list(bench.stored.targets())
    found = [configuration_case(bench, configurations.GROUPS[i % len(configurations.GROUPS)], i) for i in range(count)]
    half = count // 2
    found += [tree_case(bench, list(trees.KINDS)[i // len(trees.LAYOUTS) % len(trees.KINDS)], i) for i in range(half)]
    return found + [stored_case(bench, targets[i % len(targets)], i) for i in range(count - half)]


def jobs_of(cases: Sequence[Case], folder: Path, seed: int) -> Iterator[Job]:
    """Yield the jobs of the cases."""
    for number, case in enumerate(cases):
        place = folder / f"case-{number}"

        def prepare(case: Case = case, place: Path = place) -> Command:
            command, what = case.prepare(place, random.Random(f"{seed}/{case.name}"))
            write_json(place / "case.json", {"what": what, "command": [command.script, *command.arguments]})
            return command

        yield Job(folder=place, prepare=prepare, about=case)


def verdict_of(case: Case, folder: Path, outcome: Outcome) -> tuple[str, str]:
    """Return one of VERDICTS, and what is wrong where it is the last."""
    if outcome.code == 1 and case.finds and not outcome.broken:
        return "said", ""
    if outcome.problem:
        return "FAILED", outcome.problem
    if outcome.refused:
        return "refused", ""
    try:
        found = case.judge(folder, outcome)
    except Exception as error:  # whatever the answer lacks is a fault of the command that succeeded
        found = f"succeeded without an answer: {type(error).__name__} {error}"
    return (found, "") if found in VERDICTS else ("FAILED", found)


def run_cases(cases: Sequence[Case], folder: Path, parsed: argparse.Namespace) -> list[dict[str, Any]]:
    """Run the cases and return one row of plain values for each, in their order; folders of failures are kept."""
    rows = {}
    for job, outcome in run_jobs(jobs_of(cases, folder, parsed.seed), parsed.processes, parsed.limit):
        verdict, problem = verdict_of(job.about, job.folder, outcome)
        about = job.folder / "case.json"
        what = json.loads(about.read_text(encoding="utf-8"))["what"] if about.is_file() else "not damaged yet"
        rows[job.about.name] = {
            "case": job.about.name,
            "what": what,
            "verdict": verdict,
            "problem": problem,
            "code": outcome.code,
            "seconds": round(outcome.seconds, 2),
            "said": (outcome.err.strip().splitlines() or [""])[-1],
        }
        if problem:
            print(f"FAILED {job.about.name} ({what}): {problem}", flush=True)
        elif not parsed.keep:
            shutil.rmtree(job.folder, ignore_errors=True)
    return [rows[case.name] for case in cases]


def table_of(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the counts of verdicts by group and kind of damage, and their sums."""
    counts: dict[str, collections.Counter[str]] = {}
    for row in rows:
        group, *rest = row["case"].split("/")
        kind = rest[1] if group == "data sets" else rest[0]
        for name in (f"{group}: {kind}", f"{group}, all"):
            counts.setdefault(name, collections.Counter())[row["verdict"]] += 1
    names = sorted(counts, key=lambda name: (name.split(",")[0].split(":")[0], name.endswith(", all")))
    return [
        {"damage": name, "cases": counts[name].total(), **{verdict: counts[name][verdict] for verdict in VERDICTS}}
        for name in names
    ]


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=500, help="of configurations, and as many of data and files (500)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=float, default=400.0, help="seconds after which a case hangs (400)")
    parser.add_argument("--processes", type=int, default=available_cores(), help="cases at once (the cores)")
    parser.add_argument("--only", default="", metavar="REGEX", help="cases whose name is of this form")
    parser.add_argument("--json", default="", metavar="FILE", help="also write every case and the counts")
    parser.add_argument("--keep", default="", metavar="FOLDER", help="an empty folder to work in that is not removed")
    parsed = parser.parse_args()
    configure_threads()
    import_all()
    started = time.perf_counter()
    with contextlib.ExitStack() as stack:
        folder = Path(parsed.keep or stack.enter_context(tempfile.TemporaryDirectory())).resolve()
        bench = Bench(folder / "whole")
        bench.make()
        print(f"prepared in {time.perf_counter() - started:.0f} s", flush=True)
        cases = [case for case in cases_of(bench, parsed.cases) if re.search(parsed.only, case.name)]
        rows = run_cases(cases, folder / "cases", parsed)
    table = table_of(rows)
    print(format_table(table))
    failed = [row for row in rows if row["verdict"] == "FAILED"]
    seconds = time.perf_counter() - started
    print(f"{len(rows)} cases, seed {parsed.seed}: {len(failed)} failed, {seconds:.0f} s")
    if parsed.json:
        write_json(parsed.json, {"seed": parsed.seed, "counts": table, "cases": rows, "seconds": round(seconds)})
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
