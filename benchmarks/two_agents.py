"""Two agents of torchrun on this machine stand for two machines: one is killed, both go on, and the end is compared.

    python -m benchmarks.two_agents [--kills 3 key.sub=value ...]

A run of two agents that nobody kills is compared with one whose agents are killed with -9 by turns, some seconds after
training has begun: the agent alone, whose process torchrun's end ends, or the agent with its process, as when a machine
is lost. The other agent must end within a minute and say a sentence; both start again with --resume. Weights, metrics
and files of the end must be bit-equal. Data are rendered, the model is tiny. Exit code 1 when a run differs, an agent
hangs or says nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from benchmarks.kill_and_resume import OPTIONS, differences, modified
from solver.run_directory import LOG_FILE, OUTCOME_FILE

LONGEST = 300.0
MINUTE = 60.0
SENTENCES = ("stopped because", "stopped by")


@dataclass(frozen=True)
class Agents:
    """Two agents and what they say."""

    started: tuple[subprocess.Popen[bytes], subprocess.Popen[bytes]]
    said: tuple[Path, Path]

    @classmethod
    def start(cls, root: Path, output: Path, overrides: list[str]) -> Agents:
        """Start the run in two agents with a process each, or go on with it."""
        with closing(socket.socket()) as found:
            found.bind(("127.0.0.1", 0))
            port = found.getsockname()[1]
        options = [f"data.root={root}", f"output_dir={output}", "name=run", *OPTIONS, *overrides]
        script = ["train.py", "--config", "configs/reid5o/smoke.yaml", "--device", "cpu", "--resume", *options]
        output.mkdir(exist_ok=True)
        started, said = [], []
        for number in range(2):
            said.append(output / f"agent-{number}.log")
            agent = f"--nnodes 2 --nproc-per-node 1 --node-rank {number} --rdzv-backend c10d".split()
            meet = ["--rdzv-endpoint", f"127.0.0.1:{port}"]
            with said[-1].open("wb") as stream:
                command = [sys.executable, "-m", "torch.distributed.run", *agent, *meet, *script]
                started.append(subprocess.Popen(command, stdout=stream, stderr=stream))
        return cls((started[0], started[1]), (said[0], said[1]))

    def wait(self, seconds: float) -> bool:
        """Return whether both end in time."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            for agent in self.started:
                agent.wait(seconds)
            return True
        return False

    def kill(self, number: int, whole: bool) -> None:
        """Kill an agent; whole: its process too."""
        agent = self.started[number]
        for process in (agent.pid, *(_children(agent.pid) if whole else ())):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        agent.wait()

    def end(self) -> None:
        """Kill whatever is left."""
        for number in range(2):
            self.kill(number, whole=True)

    def sentence(self, number: int) -> str:
        """Return what the process of an agent said when it stopped, empty = nothing."""
        lines = self.said[number].read_text(encoding="utf-8", errors="replace").splitlines()
        return next((line for line in lines if any(word in line for word in SENTENCES)), "")


def _children(process: int) -> list[int]:
    found = Path(f"/proc/{process}/task/{process}/children")
    return [int(number) for number in found.read_text(encoding="ascii").split()] if found.is_file() else []


def wait_for_training(run: Path, before: int, seconds: float) -> None:
    """Wait until the log of a run has been written anew, and then for some seconds."""
    deadline = time.monotonic() + LONGEST
    while modified(run / LOG_FILE) == before and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(seconds)


def kill_once(root: Path, output: Path, overrides: list[str], number: int, rng: random.Random) -> str:
    """Start or go on, kill an agent, wait for the other; return what was wrong, empty = nothing."""
    before = modified(output / "run" / LOG_FILE)
    agents = Agents.start(root, output, overrides)
    try:
        wait_for_training(output / "run", before, rng.uniform(0.0, 4.0))
        if (output / "run" / OUTCOME_FILE).is_file():
            agents.wait(LONGEST)
            return ""
        whole = rng.random() < 0.5
        agents.kill(number, whole)
        started = time.monotonic()
        left = 1 - number
        with contextlib.suppress(subprocess.TimeoutExpired):
            agents.started[left].wait(MINUTE)
        seconds, sentence = time.monotonic() - started, agents.sentence(left)
        what = "agent and process" if whole else "agent"
        print(f"{what} {number} killed, the other ended after {seconds:.1f} s: {sentence or 'nothing'}", flush=True)
        if agents.started[left].poll() is None:
            return f"agent {left} hangs"
        return "" if sentence else f"agent {left} said nothing"
    finally:
        agents.end()


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value")
    parsed = parser.parse_intermixed_args()
    rng, wrong = random.Random(parsed.seed), []
    with tempfile.TemporaryDirectory() as folder:
        root, whole, killed = (Path(folder) / name for name in ("data", "whole", "killed"))
        made = ["--layout", "orbench", "--root", str(root), "--identities", "24", "--test-identities", "8"]
        subprocess.run([sys.executable, "-m", "datasets.synthetic", *made, "--image-size", "64x32"], check=True)
        for place in (whole, killed):
            for number in range(parsed.kills if place is killed else 0):
                wrong.append(kill_once(root, place, parsed.overrides, number % 2, rng))
            agents = Agents.start(root, place, parsed.overrides)
            wrong.append("" if agents.wait(LONGEST) else "a run hangs")
            agents.end()
            if not (place / "run" / OUTCOME_FILE).is_file():
                print(agents.said[0].read_text(encoding="utf-8", errors="replace")[-2000:])
                wrong.append(f"the run {place.name} did not finish")
        if not any(wrong):
            wrong += differences(whole / "run", killed / "run")
    found = [what for what in wrong if what]
    print(f"{parsed.kills} kills: {'; '.join(found) or 'bit-equal, no leftover'}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
