"""Exact search in a gallery index against a plain sort, and shards that several processes encode.

    python benchmarks/gallery_search.py search --rows 1000000          # about 2.3 GB of disk, a minute
    python benchmarks/gallery_search.py shards --images 10000          # about five minutes

search: random unit vectors (float32, 512 dimensions) in an index of shards, on 2 threads: the best 10 of one query and
of 100 queries, against the plain way in numpy, a matrix product with the whole gallery in memory and an argsort of all
similarities, with the same BLAS on the same threads. Both must find the same rows. Memory is the growth of the
process's own pages (RssAnon, Linux), so that it holds everything but the map. shards: rendered images, 8 parts, a small
untrained model: one process, two processes, and one that is killed (-9) 20 times at random moments; the files must be
equal, bit for bit. Exit code 1 when something differs or takes more than 512 MiB.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

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


def best_seconds(call: Callable[[], object], repeats: int) -> float:
    """The shortest of several calls: others use the machine too."""
    found = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        found.append(time.perf_counter() - start)
    return min(found)


def make_index(folder: Path, rows: int, dtype: str) -> None:
    """Keep random unit vectors in shards."""
    generator = np.random.default_rng(0)
    with writing(folder, replace(STATE, dtype=dtype)) as writer:
        for start in range(0, rows, SHARD_ROWS):
            count = min(SHARD_ROWS, rows - start)
            features = generator.standard_normal((count, STATE.dimension), dtype=np.float32)
            features /= np.linalg.norm(features, axis=1, keepdims=True)
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
        make_index(folder, options.rows, {"fp32": "float32", "fp16": "float16"}[options.dtype])
        start = time.perf_counter()
        index = open_index(folder, verify=False)
        rows = index.features()
        opening = time.perf_counter() - start
        size = sum(part.numel() * part.element_size() for part in rows.parts)
        shape = f"{options.rows:,} x {STATE.dimension} {options.dtype}"
        print(
            f"{shape} in {len(rows.parts)} shards ({size / 2**20:,.0f} MiB), "
            f"{options.threads} threads, load {os.getloadavg()[0]:.1f}; opened in {1000 * opening:.0f} ms"
        )
        queries = np.random.default_rng(1).standard_normal((max(options.queries), STATE.dimension)).astype(np.float32)
        queries /= np.linalg.norm(queries, axis=1, keepdims=True)
        whole = np.concatenate([part.numpy() for part in rows.parts]).astype(np.float32)
        for count in options.queries:
            asked = queries[:count]
            failures += compare(asked, rows, whole, options.repeats)
        if options.approximate:
            print(told(make(index, 0, 64)))
    print("; ".join(failures) or "same rows, within the memory")
    return 1 if failures else 0


def compare(asked: np.ndarray, rows: FeatureRows, whole: np.ndarray, repeats: int) -> list[str]:
    """Measure both ways for some queries, in turns; return what is wrong."""
    queries = torch.from_numpy(asked)
    with Peak() as peak:
        # The first search: what it takes once stays with the process.
        found = best_rows(queries, rows, TOP_K)
    expected = plain(asked, whole)
    ours = min(best_seconds(lambda: best_rows(queries, rows, TOP_K), 1) for _ in range(repeats))
    theirs = min(best_seconds(lambda: plain(asked, whole), 1) for _ in range(repeats))
    product = best_seconds(lambda: whole @ asked[0] if len(asked) == 1 else asked @ whole.T, repeats)
    # The plain way compares last bits of float32 products.
    moved = found.rows != expected
    close = np.abs(found.scores - np.take_along_axis(asked @ whole.T, expected, axis=1)) < 1e-6
    print(
        f"{len(asked):>4} queries: exact search {ours:7.3f} s, plain argsort of all {theirs:7.3f} s, ratio "
        f"{theirs / ours:5.1f} (its product alone {product:.3f} s); {peak.added / 2**20:.0f} MiB beside the map"
    )
    failures = [f"{len(asked)} queries: other rows"] if (moved & ~close).any() else []
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


def start(command: list[str]) -> subprocess.Popen[bytes]:
    """Start a worker that says nothing."""
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


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
        begin = time.perf_counter()
        subprocess.run(command_of(folder, "one"), cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        one = time.perf_counter() - begin
        begin = time.perf_counter()
        workers = [start(command_of(folder, "two", ["--part", f"{place}/2"])) for place in range(2)]
        codes = [worker.wait() for worker in workers]
        two = time.perf_counter() - begin
        print(f"{images:,} images in 8 parts: one process {one:.1f} s, two processes {two:.1f} s; codes {codes}")
        kills, done = killed_often(folder, options.seed, seconds_of_a_part(folder / "one"))
        print(f"killed {kills} times, with {', '.join(map(str, done))} of 8 parts done, then started once more")
        found = {place: digest(folder / place) for place in ("one", "two", "killed")}
        count = open_index(folder / "one", verify=True).count
        equal = len(set(found.values())) == 1
        print(
            f"{count:,} images in the index; files of one, two and killed workers {'are' if equal else 'are NOT'} equal"
        )
        shutil.rmtree(folder / "data")
    return 0 if equal and not any(codes) else 1


def main(arguments: list[str]) -> int:
    """Measure what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("search", "shards"))
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dtype", choices=("fp32", "fp16"), default="fp32")
    parser.add_argument("--queries", type=int, nargs="+", default=[1, 100])
    kept = "make codes by faiss and measure them too"
    parser.add_argument("--approximate", action="store_true", help=kept)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills")
    parser.add_argument("--folder", default=None, help="where the temporary files go")
    options = parser.parse_args(arguments)
    return {"search": search, "shards": shards}[options.what](options)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
