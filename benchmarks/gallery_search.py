"""Exact search in a gallery index against a plain sort, and shards that several processes encode.

    python benchmarks/gallery_search.py search --rows 1000000          # about 2.3 GB of disk, a minute
    python benchmarks/gallery_search.py shards --images 10000          # about five minutes

search: unit vectors (float32, 512 dimensions) in an index of shards, on 2 threads: the best 10 of one query and of 100
queries, against the plain way in numpy, a float32 product with the whole gallery in memory and an argsort of all
similarities, with the same BLAS on the same threads, in turns with ours; also our search without the coarse form. All
must find the same rows. --vectors random: independent normal ones, which nothing but chance brings near each other;
clustered: as features of photographs lie, 100 around each person and all around a common direction. --approximate:
codes by faiss, their recall and time at three nprobe. Memory is the growth of the
process's own pages (RssAnon, Linux), so that it holds everything but the map. shards: rendered images, 8 parts, a small
untrained model: one process; two that torchrun starts; two tasks of a job array; two workers of Ray, where it is
installed; and one process that is killed (-9) 20 times at random moments. The files must be equal, bit for bit. Exit
code 1 when something differs or takes more than 512 MiB.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from utils.threads import configure_threads

configure_threads()

import numpy as np  # noqa: E402
import torch  # noqa: E402

from configs.load import load_experiment, save_experiment  # noqa: E402
from model.build import build_model, initialise  # noqa: E402
from solver.gallery.approximate import make, told  # noqa: E402
from solver.gallery.arguments import parse_arguments  # noqa: E402
from solver.gallery.commands import add  # noqa: E402
from solver.gallery.index import open_index  # noqa: E402
from solver.gallery.layout import IndexRow, IndexState  # noqa: E402
from solver.gallery.writing import SHARD_ROWS, ShardContent, writing  # noqa: E402
from utils.checkpoint_io import save_checkpoint  # noqa: E402
from utils.retrieval.exact import FeatureRows, best_rows  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
LIMIT_BYTES = 512 << 20
TOP_K = 10
KILLS = 20
REST = 0.2
"""Seconds."""
PERSONS = 10_000
STATE = IndexState(model={"benchmark": 1}, statistics={}, dimension=512, dtype="float32", instruction={"told": "none"})


def own_bytes() -> int:
    """Memory of this process that is no file's."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) << 10
    return 0


class Peak:
    """The largest growth of the process's own memory during a block, looked at every 2 ms."""

    def __enter__(self) -> Peak:
        self.before, self.added, self._ended = own_bytes(), 0, threading.Event()
        self._watch = threading.Thread(target=self._look)
        self._watch.start()
        return self

    def _look(self) -> None:
        while not self._ended.wait(0.002):
            self.added = max(self.added, own_bytes() - self.before)

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._watch.join()


def in_turns(ways: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each way, called in turns: others use the machine too. Each begins when the threads of the one before
    it, which wait busily for more work, have gone to sleep.
    """
    found: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, call in ways.items():
            time.sleep(REST)
            start = time.perf_counter()
            call()
            found[name].append(time.perf_counter() - start)
    return found


def unit_vectors(kind: str, count: int, generator: np.random.Generator) -> np.ndarray:
    """Vectors (count, D) of length 1. clustered: a person's have cosines of about 0.8, two persons' of about 0.5."""
    rows = generator.standard_normal((count, STATE.dimension), dtype=np.float32)
    if kind == "clustered":
        common = np.random.default_rng(7).standard_normal(STATE.dimension, dtype=np.float32)
        persons = np.random.default_rng(8).standard_normal((PERSONS, STATE.dimension), dtype=np.float32)
        rows = common + 0.77 * persons[generator.integers(0, PERSONS, count)] + 0.63 * rows
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def make_index(folder: Path, rows: int, dtype: str, kind: str) -> None:
    """Keep vectors in shards."""
    generator = np.random.default_rng(0)
    with writing(folder, replace(STATE, dtype=dtype)) as writer:
        for start in range(0, rows, SHARD_ROWS):
            count = min(SHARD_ROWS, rows - start)
            features = unit_vectors(kind, count, generator)
            lines = [IndexRow(path=f"/gallery/{start + row:09d}.jpg", file=[1, 1, 1, 1, ""]) for row in range(count)]
            writer.append(ShardContent(features=features, rows=lines, numbers=range(count)), count)


def plain(queries: np.ndarray, gallery: np.ndarray) -> np.ndarray:
    """The plain way: all similarities, all of them sorted."""
    if len(queries) == 1:
        return np.argsort(-(gallery @ queries[0]))[None, :TOP_K]
    return np.argsort(-(queries @ gallery.T), axis=1)[:, :TOP_K]


def search(options: argparse.Namespace) -> int:
    """Print times, ratios and memory; return 1 when a result differs or takes too much memory."""
    torch.set_num_threads(options.threads)
    failures = []
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name) / "index"
        make_index(folder, options.rows, {"fp32": "float32", "fp16": "float16"}[options.dtype], options.vectors)
        start = time.perf_counter()
        index = open_index(folder, verify=False)
        rows = index.features()
        opening = time.perf_counter() - start
        size = sum(part.numel() * part.element_size() for part in rows.parts)
        shape = f"{options.rows:,} {options.vectors} vectors x {STATE.dimension} {options.dtype}"
        print(
            f"{shape} in {len(rows.parts)} shards ({size / 2**20:,.0f} MiB), "
            f"{options.threads} threads, load {os.getloadavg()[0]:.1f}; opened in {1000 * opening:.0f} ms"
        )
        queries = unit_vectors(options.vectors, max(options.queries), np.random.default_rng(1))
        whole = np.concatenate([part.numpy() for part in rows.parts]).astype(np.float32)
        for count in options.queries:
            asked = queries[:count]
            failures += compare(asked, rows, whole, options.repeats)
        if options.approximate:
            print(told(make(index, options.lists, 64)))
    print("; ".join(failures) or "same rows, within the memory")
    return 1 if failures else 0


def compare(asked: np.ndarray, rows: FeatureRows, whole: np.ndarray, repeats: int) -> list[str]:
    """Measure both ways for some queries, in turns; return what is wrong."""
    queries = torch.from_numpy(asked)
    with Peak() as peak:
        # The first search: what it takes once stays with the process.
        found = best_rows(queries, rows, TOP_K)
    expected = plain(asked, whole)
    whole_rows = replace(rows, coarse=())
    ways = {
        "exact search": lambda: best_rows(queries, rows, TOP_K),
        "without the coarse form": lambda: best_rows(queries, whole_rows, TOP_K),
        "plain argsort of all": lambda: plain(asked, whole),
        "its product alone": lambda: whole @ asked[0] if len(asked) == 1 else asked @ whole.T,
    }
    seconds = in_turns(ways, repeats)
    # The plain way compares last bits of float32 products.
    moved = found.rows != expected
    close = np.abs(found.scores - np.take_along_axis(asked @ whole.T, expected, axis=1)) < 1e-6
    times = ", ".join(f"{name} {median(values):.3f} s ({min(values):.3f})" for name, values in seconds.items())
    ours, theirs = seconds["exact search"], seconds["plain argsort of all"]
    print(
        f"{len(asked):>4} queries: {times}; ratio {median(theirs) / median(ours):.1f} ({min(theirs) / min(ours):.1f}); "
        f"{peak.added / 2**20:.0f} MiB beside the map; load {os.getloadavg()[0]:.1f}",
        flush=True,
    )
    without = best_rows(queries, whole_rows, TOP_K)
    same = np.array_equal(found.rows, without.rows) and np.array_equal(found.scores, without.scores)
    failures = [f"{len(asked)} queries: other rows"] * (not same or bool((moved & ~close).any()))
    return failures + [f"{len(asked)} queries: more than {LIMIT_BYTES >> 20} MiB"] * (peak.added > LIMIT_BYTES)


def make_run(folder: Path) -> None:
    """A run directory of quickstart's model with random weights."""
    config = load_experiment(ROOT / "configs" / "reid5o" / "quickstart.yaml", ["model.init=random", "data.workers=0"])
    torch.manual_seed(0)
    model = build_model(config.family, config.model, 1)
    initialise(config.family, model, config.model)
    folder.mkdir()
    save_experiment(config, folder / "config.yaml")
    content = {"model": model.state_dict(), "config": {}, "family": config.family.value, "num_identities": 1}
    content |= {"epoch": 0, "step": 0, "selected_on": "val", "data_fingerprint": ""}
    save_checkpoint(folder / "best.pth", content)


def render(folder: Path, images: int) -> int:
    """Render so many visible images, and a manifest of them; return how many there are."""
    per_person, persons = 20, -(-images // 20)
    command = [sys.executable, "-m", "datasets.synthetic", "--layout", "market1501", "--root", str(folder / "data")]
    command += ["--identities", str(max(persons // 2, 2)), "--test-identities", str(max(persons - persons // 2, 2))]
    command += ["--images-per-modality", str(per_person), "--image-size", "128x64"]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    found = sorted((folder / "data").rglob("*.jpg"))[:images]
    (folder / "gallery.csv").write_text("\n".join(["path", *map(str, found)]), encoding="utf-8")
    return len(found)


def command_of(folder: Path, index: str, more: Sequence[str] = ()) -> list[str]:
    """The command that encodes the manifest in 8 parts."""
    words = ["add", "--index", str(folder / index), "--run", str(folder / "run"), "--device", "cpu"]
    words += ["--manifest", str(folder / "gallery.csv"), "--shards", "8", *more]
    return [sys.executable, "-m", "solver.gallery", *words]


def timed(name: str, commands: Sequence[list[str]], variables: Sequence[Mapping[str, str]] = ({},)) -> int:
    """Run commands at the same time, each with further variables of its environment; print the time, return the first
    exit code that is not 0.
    """
    begin = time.perf_counter()
    started = [
        subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, **more},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for command, more in zip(commands, variables, strict=True)
    ]
    codes = [process.wait() for process in started]
    print(f"{name}: {time.perf_counter() - begin:.1f} s, exit codes {codes}", flush=True)
    return next((code for code in codes if code), 0)


def two_workers(folder: Path) -> dict[str, int]:
    """Encode the same images by two workers, in each way that there is; return index -> exit code."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "--"]
    tasks = [{"SLURM_ARRAY_TASK_ID": str(task), "SLURM_ARRAY_TASK_COUNT": "2"} for task in range(2)]
    codes = {
        "torchrun": timed("torchrun, two processes", [[*torchrun, *command_of(folder, "torchrun")[2:]]]),
        "array": timed("job array of two tasks", [command_of(folder, "array")] * 2, tasks),
    }
    if importlib.util.find_spec("ray") is None:
        print("ray is not installed (requirements-ray.txt)")
        return codes
    return codes | {"ray": timed("--engine ray", [command_of(folder, "ray", ["--engine", "ray"])])}


def digest(folder: Path) -> str:
    """One digest of all files of an index with their names."""
    total = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        total.update(path.relative_to(folder).as_posix().encode())
        total.update(path.read_bytes())
    return total.hexdigest()


def forked(folder: Path) -> int:
    """Start a worker that shares what this process has imported; return its process id."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, 1)
            os.dup2(null, 2)
            code = add(parse_arguments(command_of(folder, "killed")[3:]))[1]
        finally:
            os._exit(code)
    return child


def seconds_of_a_part(index: Path) -> float:
    """How long one process takes for a part, by the times of its records."""
    times = sorted(path.stat().st_mtime for path in index.rglob("done.json"))
    return (times[-1] - times[0]) / max(len(times) - 1, 1)


def killed_often(folder: Path, seed: int, part_seconds: float) -> tuple[int, list[int]]:
    """Kill a worker 20 times at random moments, on average before it has done a part, and let the last one end; return
    the kills, and how many parts were done at each.
    """
    draw = random.Random(seed)
    done: list[int] = []
    while len(done) < KILLS:
        child = forked(folder)
        time.sleep(draw.uniform(0, 2 * part_seconds))
        os.kill(child, signal.SIGKILL)
        ended = os.waitpid(child, 0)[1]
        if not os.WIFSIGNALED(ended):
            break
        done.append(len(list((folder / "killed").rglob("done.json"))))
    os.waitpid(forked(folder), 0)
    return len(done), done


def shards(options: argparse.Namespace) -> int:
    """Print times and whether all files are equal; return 1 when they are not."""
    # Forked workers inherit no threads.
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        make_run(folder / "run")
        images = render(folder, options.images)
        codes = {"one": timed(f"{images:,} images in 8 parts, one process", [command_of(folder, "one")])}
        codes |= two_workers(folder)
        kills, done = killed_often(folder, options.seed, seconds_of_a_part(folder / "one"))
        print(f"killed {kills} times, with {', '.join(map(str, done))} of 8 parts done, then started once more")
        found = {place: digest(folder / place) for place in (*codes, "killed")}
        count = open_index(folder / "one", verify=True).count
        equal = len(set(found.values())) == 1
        print(f"{count:,} images in the index; the files of {', '.join(found)} {'are' if equal else 'are NOT'} equal")
        shutil.rmtree(folder / "data")
    return 0 if equal and not any(codes.values()) else 1


def main(arguments: list[str]) -> int:
    """Measure what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("search", "shards"))
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dtype", choices=("fp32", "fp16"), default="fp32")
    parser.add_argument("--queries", type=int, nargs="+", default=[1, 100])
    parser.add_argument("--vectors", choices=("random", "clustered"), default="random")
    kept = "make codes by faiss and measure them too"
    parser.add_argument("--approximate", action="store_true", help=kept)
    parser.add_argument("--lists", type=int, default=0, help="coarse centres of the codes, 0 = by the rows")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills")
    parser.add_argument("--folder", default=None, help="where the temporary files go")
    options = parser.parse_args(arguments)
    return {"search": search, "shards": shards}[options.what](options)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
