"""Which records form a batch. A batch is a list of (epoch, index): the worker needs no other state to draw from.

Batches of an epoch depend on (seed, epoch) alone. The rows of a whole batch are decided first and then shared out among
processes, so that a batch is the same for any number of them.
"""

from __future__ import annotations

import hashlib
import logging
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from utils.errors import UserError, shortened
from utils.seeding import stream, stream_seed

logger = logging.getLogger(__name__)

Key = tuple[int, int]
SHOWN_PERSONS = 20


def process_share(batch: Sequence[Key], rank: int, world_size: int) -> list[Key]:
    """Return the rows of one process: consecutive ones, whose numbers differ by at most one between processes."""
    bounds = [len(batch) * number // world_size for number in (rank, rank + 1)]
    return list(batch[slice(*bounds)])


class Batches(ABC):
    """Batches of an epoch, and the position inside one.

    What has been used is known to the consumer alone, because loader processes read ahead: it calls `used`. Loading a
    state makes the next iteration of that epoch start behind the batches that were used.
    """

    def __init__(self, *identity: object) -> None:
        """identity: whatever decides the batches; a saved position is accepted by an equal sampler only."""
        self._identity = identity
        self._position, self._resumed = (0, 0), (0, 0)

    @abstractmethod
    def __len__(self) -> int:
        """Batches of every epoch."""

    @abstractmethod
    def whole_epoch(self, epoch: int, first: int = 0) -> Iterator[list[Key]]:
        """Yield the batches of one epoch from number `first` on, all rows of each."""

    def epoch(self, epoch: int, *, rank: int = 0, world_size: int = 1) -> Iterator[list[Key]]:
        """Yield the rows that one process has of the batches of an epoch, after a resumption only those not yet
        used.
        """
        first = self.resumes_at(epoch)
        self._resumed = (0, 0)
        for batch in self.whole_epoch(epoch, first):
            yield process_share(batch, rank, world_size) if world_size > 1 else batch

    def used(self, epoch: int, batches: int) -> None:
        """Note that the first `batches` batches of an epoch have been used."""
        self._position = (epoch, batches) if batches < len(self) else (epoch + 1, 0)

    def resumes_at(self, epoch: int) -> int:
        """Return the number of the batch with which the next iteration of an epoch starts: 0, or where a loaded state
        says.
        """
        return self._resumed[1] if self._resumed[0] == epoch else 0

    @property
    def position(self) -> Key:
        """Epoch and number of the batch that comes next."""
        return self._position

    def state_dict(self) -> dict[str, Any]:
        """Return the position and a digest of what decides the batches, as plain numbers and strings."""
        return {
            "sampler": type(self).__name__,
            "digest": self.digest(),
            "epoch": self._position[0],
            "batch": self._position[1],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Return to a saved position. Raises UserError when the state is of other batches."""
        own = self.state_dict()
        if any(state.get(name) != own[name] for name in ("sampler", "digest")):
            raise UserError(
                f"the saved position is of another sampler ({state.get('sampler')}) than this one ({own['sampler']}), "
                "or the training records, the seed or the batch size have changed; start a new run"
            )
        self._position = self._resumed = (int(state["epoch"]), int(state["batch"]))

    def digest(self) -> str:
        """Return 16 hex digits of what decides the batches."""
        found = hashlib.sha256()
        for part in self._identity:
            found.update(part.tobytes() if isinstance(part, np.ndarray) else repr(part).encode("utf-8"))
            found.update(b"\n")
        return found.hexdigest()[:16]


class RandomBatches(Batches):
    """Each epoch a permutation of all records, cut into batches."""

    def __init__(self, person_ids: Sequence[int], batch_size: int, seed: int, drop_last: bool) -> None:
        super().__init__(np.asarray(person_ids), batch_size, seed, drop_last)
        self.count, self.batch_size, self.seed, self.drop_last = len(person_ids), batch_size, seed, drop_last

    def __len__(self) -> int:
        whole, rest = divmod(self.count, self.batch_size)
        return whole + (1 if rest and not self.drop_last else 0)

    def whole_epoch(self, epoch: int, first: int = 0) -> Iterator[list[Key]]:
        """Yield the batches of one epoch from number `first` on."""
        order = np.random.default_rng(stream_seed(self.seed, "order", epoch)).permutation(self.count)
        for batch in range(first, len(self)):
            yield [(epoch, int(index)) for index in order[batch * self.batch_size : (batch + 1) * self.batch_size]]


class GroupBatches(Batches):
    """Batches of P groups of different persons. Each epoch every person offers a fixed number of freshly drawn groups.

    Persons with most groups left go first, equal ones in random order: no other choice gives more batches. Groups that
    are left when fewer than P persons have one are dropped for that epoch.
    """

    def __init__(self, groups: Mapping[int, int], persons: int, seed: int, *identity: object) -> None:
        """groups: person -> groups of an epoch. persons: P."""
        super().__init__(persons, seed, *identity)
        self.persons, self.seed = persons, seed
        self._offered = dict(sorted(groups.items()))
        self._length = most_batches(self._offered.values(), persons)

    def __len__(self) -> int:
        return self._length

    @abstractmethod
    def draw_groups(self, person: int, epoch: int) -> list[list[int]]:
        """Return the groups of one person in an epoch; each is a list of record indices."""

    def whole_epoch(self, epoch: int, first: int = 0) -> Iterator[list[Key]]:
        """Yield the batches of one epoch from number `first` on."""
        drawn: dict[int, list[list[int]]] = {}
        for number, people in enumerate(self._people(epoch)):
            taken = []
            for person in people:
                if person not in drawn:
                    drawn[person] = self.draw_groups(person, epoch)
                taken.append(drawn[person].pop())
            if number >= first:
                yield [(epoch, index) for group in taken for index in group]

    def _people(self, epoch: int) -> Iterator[list[int]]:
        """Yield the P persons of each batch."""
        rng = stream(self.seed, "identities", epoch)
        by_left: dict[int, list[int]] = {}
        for person, groups in self._offered.items():
            by_left.setdefault(groups, []).append(person)
        for _ in range(len(self)):
            chosen: list[tuple[int, int]] = []
            for left in sorted(by_left, reverse=True):
                people = by_left[left]
                for _ in range(min(self.persons - len(chosen), len(people))):
                    # The last one fills the gap: taking from the middle of a long list would move all that follow.
                    place = rng.randrange(len(people))
                    people[place], people[-1] = people[-1], people[place]
                    chosen.append((people.pop(), left - 1))
                if len(chosen) == self.persons:
                    break
            by_left = {left: people for left, people in by_left.items() if people}
            for person, left in chosen:
                if left:
                    by_left.setdefault(left, []).append(person)
            yield [person for person, _ in chosen]


def most_batches(groups: Sequence[int] | Any, persons: int) -> int:
    """Return the largest number B of batches of P different persons: the groups, at most B of each person, must fill P
    x B.
    """
    counts = Counter(groups)
    best, total = 0, sum(count * number for count, number in counts.items())
    low, high = 0, total // persons
    while low <= high:
        tried = (low + high) // 2
        if sum(min(count, tried) * number for count, number in counts.items()) >= persons * tried:
            best, low = tried, tried + 1
        else:
            high = tried - 1
    return best


def fill_up(drawn: Sequence[int], size: int, pool: Sequence[int], rng: Any) -> list[int]:
    """Return `drawn` with further records of `pool` up to `size`; those not yet in it where there are any."""
    others = [index for index in pool if index not in drawn] or list(pool)
    return [*drawn, *(rng.choice(others) for _ in range(size - len(drawn)))]


def by_person(person_ids: Sequence[int]) -> dict[int, list[int]]:
    """Return the record indices of each person."""
    found: dict[int, list[int]] = {}
    for index, person in enumerate(person_ids):
        found.setdefault(int(person), []).append(index)
    return found


class IdentityBatches(GroupBatches):
    """P identities x K records each. An epoch visits each identity's records in shuffled groups of K.

    An identity's last, short group is filled up with records of the same identity drawn again. Identities with fewer
    than K records are named once in the log.
    """

    def __init__(
        self,
        person_ids: Sequence[int],
        batch_size: int,
        seed: int,
        instances: int,
        names: Mapping[int, str] | None = None,
    ) -> None:
        """instances: K. names: of persons, for the log; empty = their labels."""
        self.instances = instances
        self.records = by_person(person_ids)
        self.resampled = tuple(sorted(person for person, records in self.records.items() if len(records) < instances))
        groups = {person: -(-len(records) // instances) for person, records in self.records.items()}
        super().__init__(groups, batch_size // instances, seed, "identity", instances, np.asarray(person_ids))
        _tell(self.resampled, names, f"have fewer than {instances} records, which are drawn more than once")

    def draw_groups(self, person: int, epoch: int) -> list[list[int]]:
        """Return the records of one person in shuffled groups of K."""
        rng = stream(self.seed, "groups", epoch, person)
        indices = list(self.records[person])
        rng.shuffle(indices)
        groups = [indices[start : start + self.instances] for start in range(0, len(indices), self.instances)]
        groups[-1] = fill_up(groups[-1], self.instances, indices, rng)
        return groups


class ModalityBatches(GroupBatches):
    """P identities x (K infrared + K visible) records; in a batch the 2 K rows of an identity follow each other,
    infrared first.

    An epoch pairs the shuffled records of the two modalities, so the surplus of the longer one waits for another epoch.
    An identity with fewer than K of a modality has its records drawn again up to K, in either modality. One that lacks
    a modality is left out. Both are named once in the log.
    Source: reference (IV-REID). Departure: that code fails on infrared identities with fewer than K images or no
    visible one.
    """

    def __init__(
        self,
        person_ids: Sequence[int],
        infrared: Sequence[bool],
        batch_size: int,
        seed: int,
        instances: int,
        names: Mapping[int, str] | None = None,
    ) -> None:
        """infrared: which records are. instances: K. names: of persons, for the log; empty = their labels."""
        self.instances = instances
        infrared_of = np.asarray(infrared, dtype=bool)
        records = by_person(person_ids)
        self.sides = {
            person: tuple([index for index in indices if infrared_of[index] == wanted] for wanted in (True, False))
            for person, indices in records.items()
        }
        self.left_out = tuple(sorted(person for person, sides in self.sides.items() if not all(sides)))
        self.resampled = tuple(
            sorted(person for person, sides in self.sides.items() if all(sides) and min(map(len, sides)) < instances)
        )
        groups = {
            person: max(min(map(len, sides)), instances) // instances
            for person, sides in self.sides.items()
            if all(sides)
        }
        super().__init__(
            groups, batch_size // (2 * instances), seed, "modality", instances, np.asarray(person_ids), infrared_of
        )
        _tell(self.left_out, names, "are left out of training because they lack infrared or visible images")
        _tell(
            self.resampled,
            names,
            f"have fewer than {instances} infrared or visible images, which are drawn more than once",
        )

    def draw_groups(self, person: int, epoch: int) -> list[list[int]]:
        """Return the groups of one person, K infrared and then K visible records each."""
        rng = stream(self.seed, "groups", epoch, person)
        sides = []
        for records in self.sides[person]:
            indices = list(records)
            rng.shuffle(indices)
            sides.append(fill_up(indices, self.instances, indices, rng) if len(indices) < self.instances else indices)
        return [
            [*sides[0][start : start + self.instances], *sides[1][start : start + self.instances]]
            for start in range(0, self._offered[person] * self.instances, self.instances)
        ]


def _tell(people: Sequence[int], names: Mapping[int, str] | None, what: str) -> None:
    if not people:
        return
    labels = [names[person] if names else str(person) for person in people]
    logger.warning("%d identities %s: %s", len(people), what, shortened(labels, SHOWN_PERSONS))
