"""Every distinct source encoded once: pooled features for all, tokens into the cache for those that will be fused.

Shapes: N slots (distinct sources), B rows of a batch, L tokens, D embed_dim, K width of a prepared token.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from configs.vocabulary import Modality
from datasets.loading.loaders import SourceBatch, source_loader
from datasets.loading.transforms import model_input
from datasets.modalities import MODALITIES
from datasets.structures import Source
from model.interface import RetrievalModel, Tokens
from solver.evaluation.plan import SourceTable, Space
from solver.evaluation.token_cache import BankShape, CacheBudget, TokenCache
from utils.device import autocast
from utils.errors import UserError
from utils.progress import progress_bar

logger = logging.getLogger(__name__)

PROBE_ROWS = 32
"""Rows encoded of every modality before the cache is laid out; their shapes say how large it must be."""

CPU_BATCH_TOKENS = 2048
"""Tokens of one batch on a CPU: about what its cache holds of a block's activations, and enough for full matrix
speed.
"""

Reader = Callable[[Source], Tensor]
EncodedBatch = tuple[Tensor, Tokens]
"""Slots (B,) int64 on the CPU and what they were encoded to."""
LoadedBatch = tuple[Tensor, Tensor, "Tensor | None", list[tuple[int, str]]]
"""Indices (b,), inputs, instructions or None, failures [(index, reason)]."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EncoderSpec:
    """How sources are read and encoded.

    precision: fp32, bf16 or fp16. workers: loader processes. skip_unreadable: leave unreadable sources out. mirror:
    encode the mirror images.
    """

    batch_size: int
    precision: str
    workers: int
    skip_unreadable: bool
    mirror: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodedSources:
    """Encoded sources by slot. pooled (N, D) float32 on the compute device; failures: reason per unreadable slot.

    cache: tokens of the slots that take part in a fusion, None when there are none. encoded: sources per modality.
    """

    pooled: Tensor
    cache: TokenCache | None
    failures: Mapping[int, str]
    encoded: Mapping[Modality, int]


def batch_rows(tokens: int, limit: int, device: torch.device) -> int:
    """Rows of a batch of sequences of `tokens` tokens: `limit`, on a CPU fewer when they are long."""
    return limit if device.type != "cpu" else max(1, min(limit, CPU_BATCH_TOKENS // tokens))


@contextlib.contextmanager
def inference(model: RetrievalModel, device: torch.device, precision: str) -> Iterator[None]:
    """Run in eval mode, without gradients and under the precision's autocast; restores the training mode."""
    training = [module for module in model.modules() if module.training] if isinstance(model, nn.Module) else []
    if isinstance(model, nn.Module):
        model.eval()
    try:
        with torch.inference_mode(), autocast(device, precision):
            yield
    finally:
        for module in training:
            module.training = True


class SourceEncoder:
    """Reads and encodes sources of one modality in batches. Must be used under `inference`."""

    def __init__(self, model: RetrievalModel, reader: Reader, spec: EncoderSpec, device: torch.device) -> None:
        self.model = model
        self.reader = reader
        self.spec = spec
        self.device = device
        self.failures: dict[int, str] = {}
        self.encoded: dict[Modality, int] = {}

    def batches(
        self, table: SourceTable, space: Space, slots: NDArray[np.int64], rows: int, workers: int
    ) -> Iterator[EncodedBatch]:
        """Yield (slots (B,) int64 on the CPU, Tokens) of at most `rows` rows of one space, in order.

        Unreadable sources go to `failures` when they may be skipped; else the first one raises UserError.
        """
        if not len(slots):
            return
        modality, spoken = space
        known = torch.from_numpy(slots)
        loaded = source_loader([table.sources[slot] for slot in slots], self.reader, rows, workers)
        instructions = None
        if spoken is not None:
            instructions = source_loader([table.instructions[slot] for slot in slots], self.reader, rows, workers)
        for indices, inputs, instruction, failures in _pairs(loaded, instructions):
            if failures and not self.spec.skip_unreadable:
                raise UserError(failures[0][1])
            self.failures.update({int(slots[index]): reason for index, reason in failures})
            if not len(indices):
                continue
            self.encoded[modality] = self.encoded.get(modality, 0) + len(indices)
            moved = inputs.to(self.device, non_blocking=True)
            prepared = self._prepared(
                modality, moved.flip(-1) if self.spec.mirror and MODALITIES[modality].is_image else moved
            )
            if instruction is None or spoken is None:
                yield known[indices], self.model.encode(modality, prepared)
            else:
                yield (
                    known[indices],
                    self.model.encode(
                        modality, prepared, self._prepared(spoken, instruction.to(self.device, non_blocking=True))
                    ),
                )

    def _prepared(self, modality: Modality, inputs: Tensor) -> Tensor:
        return model_input(modality, inputs, statistics=self.model.statistics)


def _pairs(loaded: Iterable[SourceBatch], instructions: Iterable[SourceBatch] | None) -> Iterator[LoadedBatch]:
    """Join the batches of sources with those of their instructions; a row needs both to be readable."""
    if instructions is None:
        yield from ((indices, inputs, None, failures) for indices, inputs, failures in loaded)
        return
    for (left, inputs, failures), (right, spoken, further) in zip(loaded, instructions, strict=True):
        yield (
            left[torch.isin(left, right)],
            inputs[torch.isin(left, right)],
            spoken[torch.isin(right, left)],
            [*failures, *further],
        )


class _EncodingPass:
    """One pass over a table of sources; see `encode_sources`."""

    def __init__(self, encoder: SourceEncoder, table: SourceTable, needs_tokens: NDArray[np.bool_]) -> None:
        self.encoder = encoder
        self.table = table
        self.needs_tokens = torch.from_numpy(needs_tokens)
        self.pooled = torch.zeros((len(table), encoder.model.embed_dim), dtype=torch.float32, device=encoder.device)
        self.cache: TokenCache | None = None

    def run(self, budget: CacheBudget) -> EncodedSources:
        """Encode every source of the table; see `encode_sources`."""
        spaces = self.table.by_space()
        probed = {key: self._probe(key, slots) for key, slots in spaces.items()}
        shapes = [
            self._shape(batches[0][1], spaces[key])
            for key, (batches, _) in probed.items()
            if batches and bool(self.needs_tokens[spaces[key]].any())
        ]
        if shapes:
            self.cache = TokenCache(len(self.table), shapes, device=self.encoder.device, budget=budget)
        try:
            for key, slots in spaces.items():
                self._encode_space(key, slots, *probed.pop(key))
        except BaseException:
            if self.cache is not None:
                self.cache.close()
            raise
        return EncodedSources(
            pooled=self.pooled, cache=self.cache, failures=self.encoder.failures, encoded=self.encoder.encoded
        )

    def _probe(self, space: Space, slots: NDArray[np.int64]) -> tuple[list[EncodedBatch], int]:
        """Encode the first readable rows of a space; return their batches and how many slots are done."""
        done = 0
        rows = min(PROBE_ROWS, self.encoder.spec.batch_size)
        while done < len(slots):
            chunk = slots[done : done + rows]
            done += len(chunk)
            batches = list(self.encoder.batches(self.table, space, chunk, rows, workers=0))
            if batches:
                return batches, done
        return [], done

    def _encode_space(self, space: Space, slots: NDArray[np.int64], probed: list[EncodedBatch], done: int) -> None:
        with progress_bar(None, len(slots), f"encode {space[0].value}", "source") as bar:
            for batch in probed:
                self._store(batch, bar)
            if done == len(slots):
                return
            rows = batch_rows(probed[0][1].tokens.shape[1], self.encoder.spec.batch_size, self.encoder.device)
            for batch in self.encoder.batches(self.table, space, slots[done:], rows, self.encoder.spec.workers):
                self._store(batch, bar)

    def _shape(self, tokens: Tokens, slots: NDArray[np.int64]) -> BankShape:
        prepared = self.encoder.model.prepare(tokens.tokens[:1])
        own = torch.from_numpy(slots)
        return BankShape(
            slots=own[self.needs_tokens[own]],
            length=tokens.tokens.shape[1],
            plain_width=tokens.tokens.shape[2],
            prepared_width=prepared.shape[2],
            dtype=torch.promote_types(tokens.tokens.dtype, prepared.dtype),
        )

    def _store(self, batch: EncodedBatch, bar: tqdm) -> None:
        slots, tokens = batch
        self.pooled.index_copy_(0, slots.to(self.pooled.device), tokens.pooled.float())
        fusing = self.needs_tokens[slots]
        if self.cache is not None and bool(fusing.any()):
            values = tokens.tokens if bool(fusing.all()) else tokens.tokens[fusing.to(tokens.tokens.device)]
            self.cache.put(slots[fusing], self.encoder.model.prepare(values) if self.cache.prepared else values)
        bar.update(len(slots))


def encode_sources(
    encoder: SourceEncoder, table: SourceTable, needs_tokens: NDArray[np.bool_], budget: CacheBudget
) -> EncodedSources:
    """Encode every source of `table` once. needs_tokens (N,): which slots take part in a fusion.

    The first rows of each modality are encoded before the cache is laid out, so that the choice between plain and
    prepared tokens and the split over the tiers follow from the true sizes. The caller closes the cache.
    """
    encoded = _EncodingPass(encoder, table, needs_tokens).run(budget)
    if encoded.cache is not None:
        logger.info(
            "token cache: %s tokens, MB per tier %s",
            "prepared" if encoded.cache.prepared else "plain",
            encoded.cache.used_mb,
        )
    return encoded
