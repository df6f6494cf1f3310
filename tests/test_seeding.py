"""Covers: utils/seeding. Seeds that depend on their key alone, and the generators of the whole process."""

import random

import numpy as np
import torch

from utils.seeding import generator_states, restore_generators, seed_everything, stream, stream_seed


def little_endian(digest: str) -> int:
    return sum(int(digest[place : place + 2], 16) << 4 * place for place in range(0, 16, 2))


def test_a_seed_is_the_digest_of_its_key() -> None:
    # printf '7\x1fcrop' | b2sum -l 64, printf '0\x1f3\x1f12' | b2sum -l 64
    assert stream_seed(7, "crop") == little_endian("792f4db2fe69761c")
    assert stream_seed(0, 3, 12) == little_endian("58a148258965a982")


def test_keys_do_not_run_into_each_other() -> None:
    keys = [(1, 23), (12, 3), (123,), ("1", "2", 3), (1, 2, 3, ""), (1, 2), (2, 1), ("flip", 1), ("pad", 1)]
    assert len({stream_seed(*key) for key in keys}) == len(keys)
    assert stream_seed(1, 2) == stream_seed("1", "2"), "a number and its text are one key"


def test_streams_are_apart_from_the_global_generator() -> None:
    random.seed(5)
    expected = [random.random() for _ in range(4)]
    random.seed(5)
    first = random.random()
    drawn = [stream(1, "a").random() for _ in range(2)]
    assert [first, *(random.random() for _ in range(3))] == expected
    assert drawn[0] == drawn[1] == random.Random(stream_seed(1, "a")).random() != stream(2, "a").random()


def test_everything_is_seeded() -> None:
    seed = 2**32 + 3
    seed_everything(seed)
    assert random.random() == random.Random(seed).random()
    assert np.random.random() == np.random.RandomState(3).random_sample()
    assert torch.equal(torch.rand(3), torch.rand(3, generator=torch.Generator().manual_seed(seed)))


def test_generators_come_back_in_the_middle_of_a_pair() -> None:
    def draws() -> list[float]:
        return [random.gauss(0, 1), random.random(), *np.random.standard_normal(2), float(torch.randn(()))]

    seed_everything(3)
    draws()
    random.gauss(0, 1), np.random.standard_normal()
    states = generator_states()
    expected = draws()
    seed_everything(4)
    restore_generators(states)
    assert draws() == expected
