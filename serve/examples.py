"""Example queries of the run's test set, so that a newcomer sees the search work with one click."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np

from datasets.modalities import MODALITIES
from datasets.structures import QueryList, Source
from solver.search.queries import Query, listed_query
from solver.search.session import SearchSession
from utils.errors import UserError

SHOWN = 6
FOREIGN = "Persons of the run's test set. Where they are not in this gallery, the answer should be nobody."


@dataclass(frozen=True, kw_only=True, slots=True)
class Examples:
    """Entries of the lists of a test set, by two numbers."""

    session: SearchSession
    lists: tuple[QueryList, ...]
    """Those that the model can answer."""
    foreign: bool
    """The gallery is not that of the test set, so that nothing in it is right or wrong."""
    note: str
    """For readers; empty = nothing."""

    @classmethod
    def of(cls, session: SearchSession, *, foreign: bool) -> Examples:
        """Read the test set. Where there is none, there are no examples, and the note says why."""
        try:
            names = set(session.tasks())
            lists = tuple(found for found in session.test_split.query_lists if found.name in names and found.entries)
        except UserError as error:
            return cls(session=session, lists=(), foreign=foreign, note=f"No examples: {error}")
        return cls(session=session, lists=lists, foreign=foreign, note=FOREIGN if foreign and lists else "")

    def query(self, number: int, entry: int) -> Query:
        """Return an entry of a list, both counted from 0. Raises UserError."""
        if not (number < len(self.lists) and entry < len(self.lists[number].entries)):
            raise UserError(f"example {number}.{entry}: there is none; take one of /api/examples")
        told = self.session.abilities.told.queries
        found = listed_query(self.session.test_split, self.lists[number], entry, told)
        return dataclasses.replace(found, person_id=None) if self.foreign else found

    def drawn(self, seed: int) -> list[tuple[int, int]]:
        """Return (list, entry) of some examples: of the most different mixes, several of each where there are few;
        other ones for another seed.
        """
        generator = np.random.default_rng(seed)
        kinds: dict[frozenset[str], list[int]] = {}
        for number, found in enumerate(self.lists):
            kinds.setdefault(frozenset(one.value for one in found.combination), []).append(number)
        # Mixes of many parts first; spread over all kinds, and another seed moves on to the next ones.
        ordered = sorted(kinds, key=lambda kind: (-len(kind), sorted(kind)))
        count = min(SHOWN, len(ordered))
        places = {(index * len(ordered) // count + seed) % len(ordered) for index in range(count)}
        each = SHOWN // max(count, 1)
        chosen = [int(generator.choice(kinds[ordered[place]])) for place in sorted(places) for _ in range(each)]
        drawn = [(number, int(generator.integers(len(self.lists[number].entries)))) for number in chosen]
        return list(dict.fromkeys(drawn))

    def picture(self, number: int, entry: int, part: int) -> Source:
        """Return a picture of an example; that of its instruction comes after those of its parts. Raises UserError when
        there is none.
        """
        query = self.query(number, entry)
        sources = query.sources if query.instruction is None else (*query.sources, query.instruction)
        if part >= len(sources) or not MODALITIES[sources[part].modality].is_image:
            raise UserError(f"example {number}.{entry} has no picture {part}")
        return sources[part]
