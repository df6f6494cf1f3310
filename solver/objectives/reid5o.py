"""ReID5o's objective: RGB against every single modality and every fused combination.

Shapes: B rows, L tokens of one source, S tokens of a combination, D embed_dim, K width of a prepared token.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

import torch
from torch import Tensor

from configs.schema.reid5o import Reid5oObjectiveConfig
from configs.vocabulary import COMBINATIONS, QUERY_MODALITIES, Combination, Modality
from datasets.structures import Batch
from model.interface import FusingModel, Tokens
from solver.losses.cmpm import cmpm_loss
from solver.losses.identity import identity_loss
from solver.losses.itc import itc_loss
from solver.losses.numerics import full_precision, unit_rows
from solver.losses.sdm import sdm_loss
from solver.losses.supitc import supitc_loss
from solver.objectives.base import Objective, StepOutput, batch_inputs, loss_weights
from solver.objectives.rows import WHOLE, Rows, Spread
from utils.seeding import stream

PairLoss = Callable[[Tensor, Tensor, Tensor, float], Tensor]
"""(rgb (B, D), other (B, D), person_ids (B,), temperature) -> scalar."""

PAIR_LOSSES: dict[str, PairLoss] = {
    "itc": lambda rgb, other, person_ids, temperature: itc_loss(rgb, other, temperature=temperature),
    "sdm": lambda rgb, other, person_ids, temperature: sdm_loss(rgb, other, person_ids, temperature=temperature),
    # It keeps its own temperature, as the reference.
    "supitc": lambda rgb, other, person_ids, temperature: supitc_loss(rgb, other, person_ids),
    "cmpm": lambda rgb, other, person_ids, temperature: cmpm_loss(rgb, other, person_ids),
}
"""Losses between RGB and one other feature; `mm_NAME` in objective.losses is one over all combinations."""
RGB: Combination = (Modality.RGB,)
FUSED: tuple[Combination, ...] = tuple(combination for combination in COMBINATIONS if len(combination) > 1)
GROUPS = {1: "one", 2: "two", 3: "three", 4: "four"}
SINGLE_LOSSES = ("itc", "sdm")
"""Those that exist for each single modality as well."""
GROUP_LOSSES = tuple(f"mm_{name}" for name in PAIR_LOSSES)
LOSSES = (*SINGLE_LOSSES, *GROUP_LOSSES, "id")
PERSONS = "person_ids"
Holders = Mapping[Combination, Tensor]
"""Combination -> (b,) int64, ascending: the rows of the batch that have all its members; left out = all rows."""


def column(combination: Combination) -> str:
    """Return the name of a combination's column of features."""
    return "+".join(member.value for member in combination)


def row_column(combination: Combination) -> str:
    """Return the name of the column that says which rows have a combination."""
    return f"rows of {column(combination)}"


@full_precision
def batch_rank1(query: Tensor, gallery: Tensor, person_ids: Tensor) -> Tensor:
    """Percentage of rows of `query` (B, D) whose most similar row of `gallery` (B, D) is of the same person."""
    nearest_row = (unit_rows(query) @ unit_rows(gallery).T).argmax(dim=1)
    return (person_ids[nearest_row] == person_ids).float().mean() * 100


def fuse_combinations(
    model: FusingModel,
    encoded: Mapping[Modality, Tokens],
    combinations: Sequence[Combination],
    places: Mapping[tuple[Combination, Modality], Tensor] | None = None,
) -> dict[Combination, Tensor]:
    """Fuse the members of each combination, row by row, into (b, D).

    places: for a combination and a member of it which of the member's rows (b,) take part, left out = all of them.
    Combinations of equal length share one call, stacked on the batch axis: 5 calls for all 11. Every modality is
    prepared once.
    """
    places = places or {}
    members = {member for combination in combinations for member in combination}
    prepared = {member: model.prepare(encoded[member].tokens) for member in QUERY_MODALITIES if member in members}
    by_length: dict[int, list[Combination]] = {}
    for combination in combinations:
        by_length.setdefault(sum(prepared[member].shape[1] for member in combination), []).append(combination)
    fused: dict[Combination, Tensor] = {}
    for alike in by_length.values():
        joined = [
            torch.cat([_taken(prepared[member], places.get((combination, member))) for member in combination], dim=1)
            for combination in alike
        ]
        features = model.fuse_prepared(torch.cat(joined)).split([len(rows) for rows in joined])
        fused.update(zip(alike, features, strict=True))
    return {combination: fused[combination] for combination in combinations}


def _taken(values: Tensor, rows: Tensor | None) -> Tensor:
    return values if rows is None else values[rows]


def shared_rows(
    held: Mapping[Modality, Tensor], combinations: Sequence[Combination]
) -> tuple[dict[Combination, Tensor], dict[tuple[Combination, Modality], Tensor]]:
    """Return which rows of the batch have all members of each combination, and where each member has them.

    held: by modality the rows (b,) that have it, ascending.
    """
    rows: dict[Combination, Tensor] = {}
    places: dict[tuple[Combination, Modality], Tensor] = {}
    for combination in combinations:
        common = held[combination[0]]
        for member in combination[1:]:
            common = common[torch.isin(common, held[member])]
        rows[combination] = common
        for member in combination:
            places[combination, member] = torch.searchsorted(held[member], common)
    return rows, places


def available_combinations(modalities: Collection[Modality]) -> tuple[Combination, ...]:
    """Return the fused combinations whose members are all there, by size."""
    return tuple(combination for combination in FUSED if set(combination) <= set(modalities))


class Reid5oObjective(Objective[FusingModel]):
    """Any weighted set of the reference's losses, over the modalities that the data have.

    sdm, itc: one term for each single modality. mm_sdm, mm_itc, mm_supitc, mm_cmpm: a term for each number of
    modalities, one to four as far as there are so many: the mean over all combinations of that many that take part in
    the step. id: mean cross-entropy over the features of RGB and of all these combinations. Nothing is fused when
    neither id nor an mm_ loss is on.

    Source: reference. Departures: id works beside every loss, several mm_ losses can be summed, nothing is encoded
    twice, and rows may lack modalities: each combination is then compared on the rows that have all its members, and a
    term without any row is zero. The released code does none of the four.
    """

    def __init__(
        self, config: Reid5oObjectiveConfig, seed: int = 0, modalities: Collection[Modality] = QUERY_MODALITIES
    ) -> None:
        """Take the section `objective`; seed decides the drawn combinations. modalities: those of the queries that the
        training records have. Raises UserError for an unknown loss or weight.
        """
        super().__init__()
        self.weights = loss_weights(config.losses, LOSSES)
        self.temperature = config.temperature
        self.singles: Combination = tuple(modality for modality in QUERY_MODALITIES if modality in modalities)
        self.fused = available_combinations(self.singles)
        self.combinations_per_step = min(config.combinations_per_step, len(self.fused))
        self.seed = seed

    def encode(self, model: FusingModel, batch: Batch, step: int) -> Rows:
        """Return the features (b, D) of a batch whose rows all have RGB; step decides which combinations take part."""
        whole = all(len(rows) == len(batch.person_ids) for rows in batch.rows.values())
        held = None if whole else batch.rows
        return self.features(model, batch_inputs(model, batch), batch.person_ids, self.combinations(step), held)

    def terms(self, model: FusingModel, rows: Rows, step: int, spread: Spread = WHOLE) -> StepOutput:
        """Return the losses of features that `encode` gave."""
        return self.compared(model, rows, self.combinations(step))

    def combinations(self, step: int) -> tuple[Combination, ...]:
        """Return the fused combinations of a step: one of each size, the others drawn without replacement."""
        if not any(name == "id" or name in GROUP_LOSSES for name in self.weights):
            return ()
        if self.combinations_per_step == len(self.fused):
            return self.fused
        rng = stream(self.seed, "combinations", step)
        sizes = range(2, len(self.singles) + 1)
        drawn = {rng.choice([combination for combination in self.fused if len(combination) == size]) for size in sizes}
        rest = [combination for combination in self.fused if combination not in drawn]
        drawn.update(rng.sample(rest, self.combinations_per_step - len(drawn)))
        return tuple(combination for combination in self.fused if combination in drawn)

    def compute(
        self,
        model: FusingModel,
        inputs: Mapping[Modality, Tensor],
        person_ids: Tensor,
        combinations: Sequence[Combination],
        held: Mapping[Modality, Tensor] | None = None,
    ) -> StepOutput:
        """Return the losses for normalised images (b, 3, H, W) and token ids (b, T) with the given combinations
        fused. held: by modality the rows (b,) of the batch that have it; None = every row has all.
        """
        return self.compared(model, self.features(model, inputs, person_ids, combinations, held), combinations)

    def features(
        self,
        model: FusingModel,
        inputs: Mapping[Modality, Tensor],
        person_ids: Tensor,
        combinations: Sequence[Combination],
        held: Mapping[Modality, Tensor] | None = None,
    ) -> Rows:
        """Return a column (b, D) of RGB, of each single modality and of each combination, and which rows have it."""
        encoded = model.encode_batch(inputs)
        singles: list[Combination] = [(kind,) for kind in self.singles if kind in encoded]
        fused = [combination for combination in combinations if all(member in encoded for member in combination)]
        rows, places = shared_rows(held, [*singles, *fused]) if held is not None else ({}, {})
        features = {RGB: encoded[Modality.RGB].pooled, **{single: encoded[single[0]].pooled for single in singles}}
        fused = [combination for combination in fused if combination not in rows or len(rows[combination])]
        if fused:
            features |= fuse_combinations(model, encoded, fused, places)
        everyone = torch.arange(len(person_ids), device=person_ids.device)
        holders = {row_column(found): rows.get(found, everyone) for found in features if found != RGB}
        return Rows(
            features={column(found): values for found, values in features.items()},
            facts={PERSONS: person_ids, **holders},
            refers=dict.fromkeys(holders, PERSONS),
        )

    def compared(self, model: FusingModel, given: Rows, combinations: Sequence[Combination]) -> StepOutput:
        """Return the losses of the columns that `features` makes, and batch rank-1 of the largest combination."""
        planned: list[Combination] = [*((kind,) for kind in self.singles), *combinations]
        person_ids = given.facts[PERSONS]
        there = [found for found in (RGB, *planned) if given.count(column(found))]
        features = {found: given.features[column(found)] for found in there}
        # Numbers that ascend and are as many as the rows are all of them.
        rows = {found: given.facts[row_column(found)] for found in there if len(features[found]) != len(features[RGB])}
        losses = self.losses(features, person_ids, model.identity_logits, rows, planned)
        with torch.no_grad():
            largest = combinations[-1] if combinations else (self.singles[-1],)
            name = f"batch_rank1/{GROUPS[len(largest)]}"
            return StepOutput(losses=losses, diagnostics={name: _rank1(features, largest, person_ids, rows)})

    def losses(
        self,
        features: Mapping[Combination, Tensor],
        person_ids: Tensor,
        identity_logits: Callable[[Tensor], Tensor],
        rows: Holders | None = None,
        planned: Sequence[Combination] | None = None,
    ) -> dict[str, Tensor]:
        """Return every weighted term for the features (b, D) of RGB, the single modalities and the fused
        combinations. rows: of the combinations that not every row has. planned: which decide the terms, so that a batch
        in which no row has one of them has the same terms as the others; None = those of the features.
        """
        rows = rows or {}
        planned = [combination for combination in features if combination != RGB] if planned is None else planned
        terms: dict[str, Tensor] = {}
        for name, weight in self.weights.items():
            if name == "id":
                logits = identity_logits(torch.cat(list(features.values())))
                labels = torch.cat([_taken(person_ids, rows.get(combination)) for combination in features])
                terms[name] = weight * identity_loss(logits, labels)
                continue
            loss = PAIR_LOSSES[name.removeprefix("mm_")]
            for group, members in _groups(planned, by_size=name in GROUP_LOSSES).items():
                values = [
                    loss(_taken(features[RGB], taken), features[member], _taken(person_ids, taken), self.temperature)
                    for member in members
                    if member in features
                    for taken in [rows.get(member)]
                ]
                terms[f"{name}/{group}"] = weight * torch.stack(values or [features[RGB].sum() * 0]).mean()
        return terms


def _groups(planned: Sequence[Combination], by_size: bool) -> dict[str, list[Combination]]:
    """Return the combinations whose mean is one term: by size, or each single modality alone."""
    if not by_size:
        return {combination[0].value: [combination] for combination in planned if len(combination) == 1}
    groups: dict[str, list[Combination]] = {}
    for combination in planned:
        groups.setdefault(GROUPS[len(combination)], []).append(combination)
    return groups


def _rank1(
    features: Mapping[Combination, Tensor], combination: Combination, person_ids: Tensor, rows: Holders
) -> Tensor:
    """batch_rank1 of a combination against RGB, not a number where no row of the batch has it."""
    if combination not in features:
        return torch.full((), torch.nan, device=person_ids.device)
    taken = rows.get(combination)
    return batch_rank1(features[combination], _taken(features[RGB], taken), _taken(person_ids, taken))
