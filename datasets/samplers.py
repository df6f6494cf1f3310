"""Which records form a batch. A batch is a list of (epoch, index): the worker needs no other state to draw from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from utils.seeding import stream, stream_seed

Key = tuple[int, int]


class RandomBatches:
    """Each epoch a permutation of all records, cut into batches; from (seed, epoch) alone."""

    def __init__(self, person_ids: Sequence[int], batch_size: int, seed: int, drop_last: bool) -> None:
        self.count, self.batch_size, self.seed, self.drop_last = len(person_ids), batch_size, seed, drop_last

    def __len__(self) -> int:
        whole, rest = divmod(self.count, self.batch_size)
        return whole + (1 if rest and not self.drop_last else 0)

    def epoch(self, epoch: int) -> Iterator[list[Key]]:
        """Yield the batches of one epoch."""
        order = np.random.default_rng(stream_seed(self.seed, "order", epoch)).permutation(self.count)
        for batch in range(len(self)):
            yield [(epoch, int(index)) for index in order[batch * self.batch_size:(batch + 1) * self.batch_size]]


class IdentityBatches:
    """P identities x K records each. An epoch visits each identity's records in shuffled groups of K.

    An identity's last, short group is filled up with records of the same identity drawn again; a batch never holds an
    identity twice unless fewer than P are left. Leftover identities that cannot fill a batch are dropped.
    """

    def __init__(self, person_ids: Sequence[int], batch_size: int, seed: int, instances: int) -> None:
        self.instances, self.identities, self.seed = instances, batch_size // instances, seed
        self.records: dict[int, list[int]] = {}
        for index, person in enumerate(person_ids):
            self.records.setdefault(person, []).append(index)
        self._length = sum(1 for _ in self.epoch(0))

    def __len__(self) -> int:
        return self._length

    def epoch(self, epoch: int) -> Iterator[list[Key]]:
        """Yield the batches of one epoch."""
        groups = {person: self._groups(person, epoch) for person in sorted(self.records)}
        rng = stream(self.seed, "identities", epoch)
        while len(groups) >= self.identities:
            # Identities with most groups left go first, so that as few as possible are dropped at the end.
            order = sorted(groups, key=lambda person: (-len(groups[person]), rng.random()))[:self.identities]
            yield [(epoch, index) for person in order for index in groups[person].pop()]
            groups = {person: left for person, left in groups.items() if left}

    def _groups(self, person: int, epoch: int) -> list[list[int]]:
        rng = stream(self.seed, "groups", epoch, person)
        indices = list(self.records[person])
        rng.shuffle(indices)
        groups = [indices[start:start + self.instances] for start in range(0, len(indices), self.instances)]
        short = self.instances - len(groups[-1])
        others = [index for index in indices if index not in groups[-1]] or indices
        groups[-1] += [rng.choice(others) for _ in range(short)]
        return groups
