"""The processes of one run, as torchrun starts them: who this one is, what they tell each other, and how one that fails
ends the others. Imports no torch until processes are joined.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.errors import Interrupted, UserError, first_line

if TYPE_CHECKING:
    import torch
    from torch import Tensor

LONGEST_WAIT = timedelta(hours=12)
"""For what one process does alone (a cache, an evaluation). One that dies is noticed at once, by its connections."""
GRACE_SECONDS = 5.0
"""How long a process whose partner is gone waits for the partner's last words."""
REST_SECONDS = 0.2
"""From the last exchange to the end of the group."""
JOIN_SECONDS = 300.0
"""How long one waits for the others to come: they start together, and load libraries before they do."""
LOOK_SECONDS = 2.0
"""How often one that works alone for long looks whether the others are still there."""
GO_ON = "go on with --resume"
HERE = "here/"
"""Before the number of a process that has come."""
PREFIX = "anyreid"
"""Of all that these processes leave for each other in torchrun's store."""
PR_SET_PDEATHSIG = 1
"""Of Linux."""


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, "")
    return int(text) if text.isdigit() else default


def started_together() -> int:
    """Return of how many processes this one is, 1 without torchrun."""
    return max(1, _number("WORLD_SIZE", 1))


def is_leader() -> bool:
    """Return whether this process is the one that writes and speaks."""
    return started_together() == 1 or _number("RANK", 0) == 0


def local_rank() -> int:
    """Return the number of this process among those of its machine."""
    return _number("LOCAL_RANK", 0)


def processes_here() -> int:
    """Return how many of them share this machine."""
    return max(1, _number("LOCAL_WORLD_SIZE", 1)) if started_together() > 1 else 1


class Processes:
    """One process alone; `Joined` is one of several."""

    rank, count = 0, 1
    first_here = True
    """Whether this is the first process of its machine."""

    @property
    def leader(self) -> bool:
        """Whether this process is the one that writes and speaks."""
        return self.rank == 0

    def told(self, value: Any) -> list[Any]:
        """Return what every process passed, by rank; plain values."""
        return [value]

    def of_leader(self, value: Any) -> Any:
        """Return what the leader passed."""
        return value

    def largest(self, *values: float) -> list[float]:
        """Return the largest of each number over the processes."""
        return list(values)

    def gathered(self, data: Tensor, sizes: Sequence[int]) -> list[Tensor]:
        """Return the bytes (size,) uint8 of every process, by rank. sizes: of each."""
        return [data]

    def exchanged(self, parts: Sequence[Tensor], sizes: Sequence[int]) -> list[Tensor]:
        """Return the bytes (n,) uint8 that every process has for this one, by rank. parts: what this one has for each.
        sizes: of what comes.
        """
        return list(parts)

    def share(self, count: int, step: int = 1, rank: int | None = None) -> slice:
        """Return which of `count` things a process does: neighbours, as many as the others, in whole steps. rank:
        whose share, None = this one's.
        """
        blocks, place = -(-count // step), self.rank if rank is None else rank
        start, stop = (blocks * edge // self.count * step for edge in (place, place + 1))
        return slice(min(start, count), min(stop, count))

    def heed(self) -> None:
        """Raise what ended another process, if one has ended; to be called often where nothing is exchanged for
        long.
        """

    def sum_(self, values: Sequence[Tensor]) -> None:
        """Replace tensors of equal shapes in all processes by their sums, in place."""

    def spread(self, value: Tensor) -> Tensor:
        """Return the leader's tensor."""
        return value

    @contextlib.contextmanager
    def first_one_first(self) -> Iterator[None]:
        """Let the first process of each machine do the block before the others: it makes what they find."""
        yield

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """End with the first process that fails; the error names it and what it said."""
        yield

    @contextlib.contextmanager
    def translated(self) -> Iterator[None]:
        """Turn what another process's end makes of a block into an error that names it."""
        yield


ALONE = Processes()


class Joined(Processes):
    """One of several processes that train or evaluate together."""

    made = False
    """Whether this process has joined the others."""

    def __init__(self, device: torch.device, go_on: str = GO_ON) -> None:
        """Join the others, which must all do so. go_on: what a user does when one has died. Raises UserError when they
        do not come.
        """
        import torch
        import torch.distributed as dist

        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        self._torch, self._dist, self._go_on = torch, dist, go_on
        try:
            store, self.rank, self.count = next(dist.rendezvous("env://", timeout=LONGEST_WAIT))
            self._store = dist.PrefixStore(PREFIX, store)
            self._wait_for_all()
            dist.init_process_group(backend, store=store, rank=self.rank, world_size=self.count, timeout=LONGEST_WAIT)
        except UserError:
            raise
        except (RuntimeError, ValueError) as error:
            raise UserError(
                f"the processes of this run cannot be joined ({first_line(error)}); start them by torchrun"
            ) from error
        self.first_here = local_rank() == 0
        self.device, self._looked = device, time.monotonic()
        Joined.made = True
        self.norm_group = dist.new_group(backend=backend, timeout=LONGEST_WAIT)
        """For statistics of norms: their order does not depend on when gradients are ready."""
        if device.type == "cuda":
            torch.cuda.set_device(device)
        if self.rank:
            # One speaks; what stops another is an error, which the scripts say themselves.
            logging.disable(logging.CRITICAL)
        _end_with_parent()
        self._homes = self.told((socket.gethostname(), os.getpid()))

    def _wait_for_all(self) -> None:
        """Return when all processes have come. Raises UserError when one has ended before that, or does not come."""
        self._store.set(f"{HERE}{self.rank}", "")
        places = [f"{HERE}{rank}" for rank in range(self.count)]
        deadline = time.monotonic() + JOIN_SECONDS
        while not self._store.check(places):
            word = self._word()
            if word is not None:
                raise self._stopped_by(word)
            if time.monotonic() > deadline:
                missing = [str(rank) for rank, place in enumerate(places) if not self._store.check([place])]
                raise UserError(
                    f"process {', '.join(missing)} of {self.count} has not come within {JOIN_SECONDS:.0f} s; look what "
                    "it said, and start all together"
                )
            time.sleep(0.05)

    def told(self, value: Any) -> list[Any]:
        """Return what every process passed, by rank; plain values."""
        found: list[Any] = [None] * self.count
        self._dist.all_gather_object(found, value)
        return found

    def of_leader(self, value: Any) -> Any:
        """Return what the leader passed."""
        box = [value]
        self._dist.broadcast_object_list(box, src=0)
        return box[0]

    def largest(self, *values: float) -> list[float]:
        """Return the largest of each number over the processes."""
        numbers = self._torch.tensor(values, dtype=self._torch.float64)
        self._dist.all_reduce(numbers, op=self._dist.ReduceOp.MAX)
        return [float(value) for value in numbers]

    def gathered(self, data: Tensor, sizes: Sequence[int]) -> list[Tensor]:
        """Return the bytes (size,) uint8 of every process, by rank. sizes: of each."""
        longest = max(sizes)
        padded = self._torch.nn.functional.pad(data, (0, longest - len(data)))
        found = [self._torch.empty_like(padded) for _ in range(self.count)]
        if longest:
            self._dist.all_gather(found, padded)
        return [values[:size] for values, size in zip(found, sizes, strict=True)]

    def exchanged(self, parts: Sequence[Tensor], sizes: Sequence[int]) -> list[Tensor]:
        """Return the bytes (n,) uint8 that every process has for this one, by rank. parts: what this one has for each.
        sizes: of what comes.
        """
        received = parts[0].new_empty(sum(sizes))
        self._dist.all_to_all_single(received, self._torch.cat(list(parts)), list(sizes), [len(part) for part in parts])
        return list(received.split(list(sizes)))

    def heed(self) -> None:
        """Raise what ended another process, if one has ended; to be called often where nothing is exchanged for
        long.
        """
        now = time.monotonic()
        if now - self._looked > LOOK_SECONDS:
            self._looked = now
            failure = self._failure()
            if failure is not None:
                raise failure

    def sum_(self, values: Sequence[Tensor]) -> None:
        """Replace tensors of equal shapes in all processes by their sums, in place."""
        by_kind: dict[object, list[Tensor]] = {}
        for value in values:
            by_kind.setdefault((value.dtype, value.device), []).append(value)
        for alike in by_kind.values():
            joined = self._torch.cat([value.reshape(-1) for value in alike])
            self._dist.all_reduce(joined)
            for value, part in zip(alike, joined.split([value.numel() for value in alike]), strict=True):
                value.copy_(part.view_as(value))

    def spread(self, value: Tensor) -> Tensor:
        """Return the leader's tensor."""
        shared = value.contiguous().clone()
        self._dist.broadcast(shared, src=0)
        return shared

    @contextlib.contextmanager
    def first_one_first(self) -> Iterator[None]:
        """Let the first process of each machine do the block before the others: it makes what they find."""
        if not self.first_here:
            self.told(None)
        yield
        if self.first_here:
            self.told(None)

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """End with the first process that fails; the error names it and what it said. SIGTERM, which torchrun sends to
        those that are left, ends the block with that too.
        """
        with _answering_sigterm():
            try:
                with self.translated():
                    yield
            except BaseException as error:
                _heed_no_sigterm()
                self._leave_word(error)
                raise
            finally:
                # torch 2.6 holds the interpreter while it joins gloo's threads. One that still frees tensors of the
                # last exchange waits for the interpreter, both for ever (torch's issue 56297). Asleep, we do not hold
                # it.
                time.sleep(REST_SECONDS)
                with contextlib.suppress(RuntimeError, ValueError):
                    self._dist.destroy_process_group()

    @contextlib.contextmanager
    def translated(self) -> Iterator[None]:
        """Turn what another process's end makes of a block into an error that names it."""
        try:
            yield
        except RuntimeError as error:
            self._raise_for_another(error)
            raise
        except Interrupted as error:
            failure = self._failure()
            if failure is not None:
                raise failure from error
            raise

    def _leave_word(self, error: BaseException) -> None:
        with contextlib.suppress(RuntimeError):
            # The first word counts: what others say follows from it.
            self._store.compare_set(_failure_place(), "", _word_of(error, self.rank))

    def _raise_for_another(self, error: RuntimeError) -> None:
        """Raise what the process said that ended first, or that it died. Return when none did: the error is ours."""
        deadline = time.monotonic() + GRACE_SECONDS
        while time.monotonic() < deadline:
            failure = self._failure()
            if failure is not None:
                raise failure from error
            time.sleep(0.05)
        if _lost(error):
            raise UserError(
                f"stopped because a process of another machine is gone ({first_line(error)}); {self._go_on}"
            ) from error

    def _failure(self) -> UserError | Interrupted | None:
        """Return what the process said that ended first, or that one of this machine died; None = neither."""
        dead = self._dead()
        # Asked after that: whoever leaves a word does so before it ends.
        word = self._word()
        if word is not None and word["rank"] != self.rank:
            return self._stopped_by(word)
        if dead and word is None:
            return UserError(
                f"stopped because process {dead[0]} of {self.count} died without a word (killed, or out of memory); "
                f"{self._go_on}"
            )
        return None

    def _stopped_by(self, word: Mapping[str, Any]) -> UserError | Interrupted:
        if word["signal"]:
            return Interrupted(word["said"], word["signal"])
        return UserError(f"stopped because process {word['rank']} of {self.count} did: {word['said']}")

    def _word(self) -> dict[str, Any] | None:
        with contextlib.suppress(RuntimeError, ValueError):
            place = _failure_place()
            if self._store.check([place]):
                found = json.loads(self._store.get(place))
                return found if isinstance(found, dict) else None
        return None

    def _dead(self) -> list[int]:
        """Return which processes of this machine have ended."""
        host = socket.gethostname()
        return [
            rank
            for rank, (home, process) in enumerate(self._homes)
            if home == host and rank != self.rank and not _lives(process)
        ]


def _failure_place() -> str:
    """Return where the word of the first that failed is left; torchrun's store outlives its restarts."""
    return f"failure/{_number('TORCHELASTIC_RESTART_COUNT', 0)}"


def _word_of(error: BaseException, rank: int) -> str:
    """Return as JSON what a process leaves for the others when it ends."""
    number = error.signal if isinstance(error, Interrupted) else 0
    if isinstance(error, SystemExit):
        said = f"its command line was refused (exit code {error.code})"
    elif isinstance(error, (UserError, Interrupted)):
        said = str(error)
    else:
        said = f"{type(error).__name__}: {first_line(error)}"
    return json.dumps({"rank": rank, "said": said, "signal": number})


@contextlib.contextmanager
def heard_by_others() -> Iterator[None]:
    """Let the other processes know of an error in the block that comes before this one has joined them: those of
    another machine would wait for it. With others, SIGTERM no longer ends a process that has failed.
    """
    try:
        yield
    except BaseException as error:
        if started_together() > 1:
            _heed_no_sigterm()
            if not Joined.made and isinstance(error, (Exception, SystemExit)):
                _tell_others(error)
        raise


def _tell_others(error: BaseException) -> None:
    # Without torchrun's store the first process holds it, perhaps this one.
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == str(True):
        import torch.distributed as dist

        with contextlib.suppress(RuntimeError, ValueError, OSError):
            store, rank, _ = next(dist.rendezvous("env://", timeout=timedelta(seconds=GRACE_SECONDS)))
            dist.PrefixStore(PREFIX, store).compare_set(_failure_place(), "", _word_of(error, rank))


def _end_with_parent() -> None:
    """Let this process be asked to end when the one that started it, torchrun, is killed: nobody else would."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGTERM))


@contextlib.contextmanager
def _answering_sigterm() -> Iterator[None]:
    """Let SIGTERM raise Interrupted in the block, once; nothing where others answer it, or outside the main thread."""
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, _stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _stop(*_: object) -> None:
    _heed_no_sigterm()
    raise Interrupted("stopped by SIGTERM", signal.SIGTERM)


def _heed_no_sigterm() -> None:
    """Let SIGTERM no longer end this process, which is about to say why it ends: torchrun asks it to at that time. A
    handler of others stays.
    """
    main = threading.current_thread() is threading.main_thread()
    if main and signal.getsignal(signal.SIGTERM) in (signal.SIG_DFL, _stop):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _lost(error: RuntimeError) -> bool:
    text = str(error).lower()
    return any(word in text for word in ("connection", "gloo", "nccl", "timed out", "socket"))


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    # One that nobody has waited for yet is there in name only.
    with contextlib.suppress(OSError, IndexError):
        return (
            Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[0]
            != "Z"
        )
    return True


def agree(processes: Processes, found: Mapping[str, str]) -> None:
    """Raise UserError in every process when one has other values, by what they are of, than the leader."""
    told = processes.told(dict(found))
    for rank, other in enumerate(told):
        differing = [name for name in told[0] if other.get(name) != told[0][name]]
        if differing:
            raise UserError(
                f"process {rank} of {processes.count} has another {differing[0]} than process 0 "
                f"({other.get(differing[0])}, not {told[0][differing[0]]}): give all the same files and options"
            )


def join_processes(device: torch.device, go_on: str = GO_ON) -> Processes:
    """Return the processes that torchrun started this one with. go_on: what a user does when one has died. Raises
    UserError.
    """
    return Joined(device, go_on) if started_together() > 1 else ALONE
