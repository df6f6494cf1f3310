"""Every distinct source encoded once: pooled features for all, tokens into the cache for those that will be fused.

Shapes: N slots (distinct sources), B rows of a batch, L tokens, D embed_dim, K width of a prepared token.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from configs.vocabulary import Modality
from datasets.loading.loaders import SourceBatch, source_loader
from datasets.loading.readers import Reader
from datasets.loading.transforms import model_input
from datasets.modalities import MODALITIES
from datasets.structures import Source
from model.interface import Fuses, Instruction, RetrievalModel, Tokens
from solver.evaluation.kept_tokens import KeptTokens
from solver.evaluation.plan import EvaluationPlan, SourceTable, Space
from solver.evaluation.sharing import complete, dealt
from solver.evaluation.spec import EvaluationSpec
from solver.evaluation.token_cache import BankShape, CacheBudget, Owners, TokenCache
from utils.device import autocast
from utils.errors import UserError
from utils.progress import progress_bar

logger = logging.getLogger(__name__)

SHOWN_LISTS = 4
PROBE_ROWS = 32
"""Rows encoded of every modality before the cache is laid out; their shapes say how large it must be."""

CPU_BATCH_TOKENS = 2048
"""Tokens of one batch on a CPU: about what its cache holds of a block's activations, and enough for full matrix
speed.
"""

EncodedBatch = tuple[Tensor, Tokens]
"""Slots (B,) int64 on the CPU and what they were encoded to."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodedSources:
    """Encoded sources by slot. pooled (N, D) float32 on the compute device; failures: reason per unreadable slot.

    cache: tokens of the slots that take part in a fusion, None when there are none. encoded: sources per modality.
    kept: whole representations of the slots that a matching head will look at, None when there are none.
    """

    pooled: Tensor
    cache: TokenCache | None
    failures: Mapping[int, str]
    encoded: Mapping[Modality, int]
    kept: KeptTokens | None = None

    def close(self) -> None:
        """Free all tokens; the pooled features stay."""
        for tokens in (self.cache, self.kept):
            if tokens is not None:
                tokens.close()


def batch_rows(tokens: int, limit: int, device: torch.device) -> int:
    """Rows of a batch of sequences of `tokens` tokens: `limit`, on a CPU fewer when they are long."""
    return limit if device.type != "cpu" else max(1, min(limit, CPU_BATCH_TOKENS // tokens))


@contextlib.contextmanager
def inference(model: RetrievalModel, device: torch.device, precision: str) -> Iterator[None]:
    """Run in eval mode, without gradients and under the precision's autocast; restores the training mode."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.inference_mode(), autocast(device, precision):
            yield
    finally:
        for module in training:
            module.training = True


class SourceEncoder:
    """Reads and encodes sources of one modality in batches. Must be used under `inference`."""

    def __init__(self, model: RetrievalModel, reader: Reader, spec: EvaluationSpec, device: torch.device) -> None:
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
        given = _Instructions([table.instructions[slot] for slot in slots], rows) if spoken is not None else None
        read = given.load(self.reader, rows, workers) if given is not None else itertools.repeat(None)
        for number, ((indices, inputs, failures), told) in enumerate(zip(loaded, read, strict=False)):
            instructions: tuple[Instruction, ...] = ()
            if given is not None and told is not None and spoken is not None:
                kept, instruction, further = given.match(number, indices, told)
                indices, inputs, failures = indices[kept], inputs[kept], [*failures, *further]
                statistics = self.model.instruction_statistics or self.model.statistics
                values = model_input(spoken, instruction.inputs.to(self.device), statistics=statistics)
                instructions = (replace(instruction, inputs=values, rows=instruction.rows.to(self.device)),)
            if failures and not self.spec.skip_unreadable:
                raise UserError(failures[0][1])
            self.failures.update({int(slots[index]): reason for index, reason in failures})
            if not len(indices):
                continue
            self.encoded[modality] = self.encoded.get(modality, 0) + len(indices)
            yield known[indices], self.model.encode(modality, self._prepared(modality, inputs), instructions)

    def _prepared(self, modality: Modality, inputs: Tensor) -> Tensor:
        moved = inputs.to(self.device, non_blocking=True)
        mirrored = self.spec.mirror and MODALITIES[modality].is_image
        return model_input(modality, moved.flip(-1) if mirrored else moved, statistics=self.model.statistics)


class _Instructions:
    """Instructions of one modality for rows that are read in batches: each distinct one is read once a batch."""

    def __init__(self, given: Sequence[Source | None], rows: int) -> None:
        self.sources: list[Source] = []
        self.batches: list[list[int]] = []
        self.numbers: list[list[int]] = []
        """Per batch: for each of its rows the index of its instruction in `sources`."""
        self.rows = rows
        for first in range(0, len(given), rows):
            known: dict[Source, int] = {}
            numbers = []
            for source in given[first : first + rows]:
                assert source is not None, "rows of an instructed space have instructions"
                numbers.append(known.setdefault(source, len(self.sources) + len(known)))
            self.batches.append(list(known.values()))
            self.numbers.append(numbers)
            self.sources += known

    def load(self, reader: Reader, rows: int, workers: int) -> Iterable[SourceBatch]:
        """Return a loader that yields the distinct instructions of each batch."""
        return source_loader(self.sources, reader.annotation, rows, workers, self.batches)

    def match(
        self, batch: int, indices: Tensor, told: SourceBatch
    ) -> tuple[Tensor, Instruction, list[tuple[int, str]]]:
        """Return which of the read rows `indices` (b,) of a batch have a readable instruction (b,) bool, the
        instructions of these, and (index, reason) of the others.
        """
        read, inputs, failures = told
        places = {int(number): place for place, number in enumerate(read)}
        reasons = dict(failures)
        numbers = [self.numbers[batch][int(index) - batch * self.rows] for index in indices]
        kept = torch.tensor([number in places for number in numbers], dtype=torch.bool)
        rows = torch.tensor([places[number] for number in numbers if number in places], dtype=torch.int64)
        lost = [
            (int(index), reasons[number])
            for index, number in zip(indices, numbers, strict=True)
            if number not in places
        ]
        spoken = self.sources[0].modality
        return kept, Instruction(modality=spoken, inputs=inputs, rows=rows), lost


def require_fusion(model: RetrievalModel, plan: EvaluationPlan) -> None:
    """Raise UserError, before anything is encoded, for mixed queries to a model that fuses none."""
    if plan.num_sets and not isinstance(model, Fuses):
        mixed = [listed.name for split in plan.splits for listed in split.lists if len(listed.combination) > 1]
        raise UserError(
            f"this model has no fusion, so it cannot answer mixed queries ({', '.join(mixed[:SHOWN_LISTS])}); give "
            "each query one source, or choose a model that fuses"
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class _SpaceLayout:
    """What the first rows of a space say of all."""

    done: int
    """Slots at the beginning of the space that have been encoded, or could not be read."""
    length: int
    """Tokens of a source."""
    width: int
    dtype: torch.dtype
    prepared_width: int
    """Of a token for a fusion, 0 = none is needed."""
    prepared_dtype: torch.dtype
    masked: bool


class _EncodingPass:
    """One pass over a table of sources; see `encode_sources`."""

    def __init__(
        self,
        encoder: SourceEncoder,
        table: SourceTable,
        needs_tokens: NDArray[np.bool_],
        matched: NDArray[np.bool_] | None,
    ) -> None:
        self.encoder = encoder
        self.processes = encoder.spec.processes
        self.table = table
        self.needs_tokens = torch.from_numpy(needs_tokens)
        self.matched = torch.from_numpy(np.zeros_like(needs_tokens) if matched is None else matched)
        self.pooled = torch.zeros((len(table), encoder.model.embed_dim), dtype=torch.float32, device=encoder.device)
        self.cache: TokenCache | None = None
        self.kept: KeptTokens | None = None

    def run(self, budget: CacheBudget) -> EncodedSources:
        """Encode every source of the table; see `encode_sources`."""
        spaces = {key: torch.from_numpy(slots) for key, slots in self.table.by_space().items()}
        probers = {key: number % self.processes.count for number, key in enumerate(spaces)}
        probed: dict[Space, list[EncodedBatch]] = {}
        found: dict[Space, _SpaceLayout | None] = {}
        for key, slots in spaces.items():
            if probers[key] == self.processes.rank:
                probed[key], found[key] = self._probe(key, slots)
        layouts = {key: layout for told in self.processes.told(found) for key, layout in told.items()}
        owners = Owners(ranks=self._dealt(spaces, layouts, probers), processes=self.processes)
        try:
            self._make_room(spaces, layouts, owners, budget)
            for key, slots in spaces.items():
                layout = layouts[key]
                if layout is not None:
                    coming = owners.own(slots[layout.done :])
                    self._encode_space(key, layout, coming, probed.pop(key, []))
            self._share(owners)
        except BaseException:
            self._encoded().close()
            raise
        return self._encoded()

    def _make_room(
        self,
        spaces: Mapping[Space, Tensor],
        layouts: Mapping[Space, _SpaceLayout | None],
        owners: Owners,
        budget: CacheBudget,
    ) -> None:
        shapes, whole, masked = [], [], []
        for key, slots in spaces.items():
            layout = layouts[key]
            if layout is None:
                continue
            if layout.prepared_width:
                shapes.append(
                    BankShape(
                        slots=slots[self.needs_tokens[slots]],
                        length=layout.length,
                        plain_width=layout.width,
                        prepared_width=layout.prepared_width,
                        dtype=layout.prepared_dtype,
                    )
                )
            if bool(self.matched[slots].any()):
                whole.append(
                    BankShape(
                        slots=slots[self.matched[slots]],
                        length=layout.length,
                        plain_width=layout.width,
                        prepared_width=layout.width,
                        dtype=layout.dtype,
                    )
                )
                masked += [layout.length] if layout.masked else []
        device = self.encoder.device
        if shapes:
            self.cache = TokenCache(len(self.table), shapes, device=device, budget=budget, owners=owners)
        if whole:
            left = budget if self.cache is None else self.cache.left
            self.kept = KeptTokens(len(self.table), whole, masked, device=device, budget=left, owners=owners)

    def _dealt(
        self,
        spaces: Mapping[Space, Tensor],
        layouts: Mapping[Space, _SpaceLayout | None],
        probers: Mapping[Space, int],
    ) -> Tensor:
        """Return (N,) int64: the process that encodes each slot. Batches are those of one process."""
        ranks = torch.zeros(len(self.table), dtype=torch.int64)
        loads = [0] * self.processes.count
        for key, slots in spaces.items():
            ranks[slots] = probers[key]
            layout = layouts[key]
            if layout is not None:
                loads[probers[key]] += layout.done * layout.length
        for key, slots in spaces.items():
            layout = layouts[key]
            if layout is not None and layout.done < len(slots):
                batches = slots[layout.done :].split(self._rows(layout))
                for batch, rank in zip(batches, dealt([len(batch) * layout.length for batch in batches], loads)):
                    ranks[batch] = rank
        return ranks

    def _rows(self, layout: _SpaceLayout) -> int:
        return batch_rows(layout.length, self.encoder.spec.config.batch_size, self.encoder.device)

    def _encoded(self) -> EncodedSources:
        return EncodedSources(
            pooled=self.pooled,
            cache=self.cache,
            kept=self.kept,
            failures=self.encoder.failures,
            encoded=self.encoder.encoded,
        )

    def _probe(self, space: Space, slots: Tensor) -> tuple[list[EncodedBatch], _SpaceLayout | None]:
        """Encode the first readable rows of a space; return their batches and what they say of it, None when there is
        no readable row.
        """
        done = 0
        rows = min(PROBE_ROWS, self.encoder.spec.config.batch_size)
        while done < len(slots):
            chunk = slots[done : done + rows].numpy()
            done += len(chunk)
            batches = list(self.encoder.batches(self.table, space, chunk, rows, workers=0))
            if batches:
                return batches, self._layout(batches[0][1], slots, done)
        return [], None

    def _layout(self, tokens: Tokens, slots: Tensor, done: int) -> _SpaceLayout:
        plain = tokens.tokens
        prepared = self._fusing().prepare(plain[:1]) if bool(self.needs_tokens[slots].any()) else None
        return _SpaceLayout(
            done=done,
            length=plain.shape[1],
            width=plain.shape[2],
            dtype=plain.dtype,
            prepared_width=0 if prepared is None else prepared.shape[2],
            prepared_dtype=plain.dtype if prepared is None else torch.promote_types(plain.dtype, prepared.dtype),
            masked=tokens.mask is not None,
        )

    def _encode_space(self, space: Space, layout: _SpaceLayout, coming: Tensor, probed: Sequence[EncodedBatch]) -> None:
        """Store the batches that are there, encode and store this process's slots `coming`."""
        total = len(coming) + sum(len(slots) for slots, _ in probed)
        with progress_bar(None, total, f"encode {space[0].value}", "source") as bar:
            for batch in probed:
                self._store(batch, bar)
            workers = self.encoder.spec.workers
            for batch in self.encoder.batches(self.table, space, coming.numpy(), self._rows(layout), workers):
                self._store(batch, bar)
                self.processes.heed()

    def _share(self, owners: Owners) -> None:
        """Let every process know the features of all, and what could not be read."""
        told = self.processes.told((self.encoder.failures, self.encoder.encoded))
        for failures, _ in told:
            self.encoder.failures.update(failures)
        counts = {space[0]: sum(encoded.get(space[0], 0) for _, encoded in told) for space in self.table.by_space()}
        self.encoder.encoded = {modality: count for modality, count in counts.items() if count}
        complete(self.processes, self.pooled, owners.own(torch.arange(len(self.table))))
        if self.kept is not None:
            self.kept.share_masks()

    def _fusing(self) -> Fuses:
        model = self.encoder.model
        assert isinstance(model, Fuses), "tokens are kept for a fusion"
        return model

    def _store(self, batch: EncodedBatch, bar: tqdm) -> None:
        slots, tokens = batch
        self.pooled.index_copy_(0, slots.to(self.pooled.device), tokens.pooled.float())
        fusing = self.needs_tokens[slots]
        if self.cache is not None and bool(fusing.any()):
            values = tokens.tokens if bool(fusing.all()) else tokens.tokens[fusing.to(tokens.tokens.device)]
            self.cache.put(slots[fusing], self._fusing().prepare(values) if self.cache.prepared else values)
        matched = self.matched[slots]
        if self.kept is not None and bool(matched.any()):
            self.kept.put(slots[matched], _taken(tokens, matched))
        bar.update(len(slots))


def _taken(tokens: Tokens, chosen: Tensor) -> Tokens:
    """Return the representations of some rows. chosen (B,) bool on the CPU."""
    if bool(chosen.all()):
        return tokens
    own = chosen.to(tokens.tokens.device)
    mask = None if tokens.mask is None else tokens.mask[own]
    return Tokens(tokens=tokens.tokens[own], pooled=tokens.pooled[own], mask=mask)


def encode_sources(
    encoder: SourceEncoder,
    table: SourceTable,
    needs_tokens: NDArray[np.bool_],
    budget: CacheBudget,
    matched: NDArray[np.bool_] | None = None,
) -> EncodedSources:
    """Encode every source of `table` once. needs_tokens (N,): which slots take part in a fusion. matched (N,): those
    that a matching head will look at, None = none.

    The first rows of each modality are encoded before the cache is laid out, so that the choice between plain and
    prepared tokens and the split over the tiers follow from the true sizes. Of several processes each encodes whole
    batches and holds their tokens; all get every pooled feature. The caller closes what is returned.
    """
    encoded = _EncodingPass(encoder, table, needs_tokens, matched).run(budget)
    if encoded.cache is not None:
        kind, used = "prepared" if encoded.cache.prepared else "plain", encoded.cache.used_mb
        logger.info("token cache: %s tokens, MB per tier %s", kind, used)
    return encoded
