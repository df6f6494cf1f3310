"""ReID5o's objective: RGB against every single modality and every fused combination.

Shapes: B rows, L tokens of one source, S tokens of a combination, D embed_dim, K width of a prepared token.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from configs.schema.reid5o import Reid5oObjectiveConfig
from configs.vocabulary import COMBINATIONS, QUERY_MODALITIES, Combination, Modality
from datasets.structures import Batch
from model.interface import FusingModel, Tokens
from solver.losses import cmpm_loss, identity_loss, itc_loss, sdm_loss, supitc_loss
from solver.losses.numerics import full_precision, unit_rows
from solver.objectives.base import Objective, StepOutput, batch_inputs, loss_weights
from utils.seeding import stream

PairLoss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(rgb (B, D), other (B, D), person_ids (B,)) -> scalar."""

RGB: Combination = (Modality.RGB,)
FUSED: tuple[Combination, ...] = tuple(combination for combination in COMBINATIONS if len(combination) > 1)
GROUPS = {1: "one", 2: "two", 3: "three", 4: "four"}
SINGLE_LOSSES = ("itc", "sdm")
GROUP_LOSSES = ("mm_itc", "mm_sdm", "mm_supitc", "mm_cmpm")
LOSSES = (*SINGLE_LOSSES, *GROUP_LOSSES, "id")


def pair_losses(temperature: float) -> dict[str, PairLoss]:
    """Return the losses between RGB and one other feature by name; supitc keeps its own temperature, as the
    reference.
    """
    return {
        "itc": lambda rgb, other, person_ids: itc_loss(rgb, other, temperature=temperature),
        "sdm": functools.partial(sdm_loss, temperature=temperature),
        "supitc": supitc_loss,
        "cmpm": cmpm_loss,
    }


@full_precision
def batch_rank1(query: Tensor, gallery: Tensor, person_ids: Tensor) -> Tensor:
    """Percentage of rows of `query` (B, D) whose most similar row of `gallery` (B, D) is of the same person."""
    nearest_row = (unit_rows(query) @ unit_rows(gallery).T).argmax(dim=1)
    return (person_ids[nearest_row] == person_ids).float().mean() * 100


def fuse_combinations(
    model: FusingModel, encoded: Mapping[Modality, Tokens], combinations: Sequence[Combination]
) -> dict[Combination, Tensor]:
    """Fuse the members of each combination, row by row, into (B, D).

    Combinations of equal length share one call, stacked on the batch axis: 5 calls for all 11. Every modality is
    prepared once.
    """
    members = {member for combination in combinations for member in combination}
    prepared = {member: model.prepare(encoded[member].tokens) for member in QUERY_MODALITIES if member in members}
    by_length: dict[int, list[Combination]] = {}
    for combination in combinations:
        by_length.setdefault(sum(prepared[member].shape[1] for member in combination), []).append(combination)
    fused: dict[Combination, Tensor] = {}
    for alike in by_length.values():
        stacked = torch.cat([torch.cat([prepared[member] for member in combination], dim=1) for combination in alike])
        fused.update(zip(alike, model.fuse_prepared(stacked).chunk(len(alike)), strict=True))
    return {combination: fused[combination] for combination in combinations}


class Reid5oObjective(Objective[FusingModel]):
    """Any weighted set of the reference's losses.

    sdm, itc: one term for each single modality. mm_sdm, mm_itc, mm_supitc, mm_cmpm: four terms, the means over all
    combinations of one, two, three and four modalities that take part in the step. id: mean cross-entropy over the
    features of RGB and of all these combinations. Nothing is fused when neither id nor an mm_ loss is on.

    Source: reference. Departures: id works beside every loss, several mm_ losses can be summed, and nothing is encoded
    twice; the released code does none of the three.
    """

    def __init__(self, config: Reid5oObjectiveConfig, seed: int = 0) -> None:
        """Take the section `objective`; seed decides the drawn combinations. Raises UserError for an unknown loss or
        weight.
        """
        super().__init__()
        self.weights = loss_weights(config.losses, LOSSES)
        self.pair_losses = pair_losses(config.temperature)
        self.combinations_per_step = config.combinations_per_step
        self.seed = seed

    def step(self, model: FusingModel, batch: Batch, step: int) -> StepOutput:
        """Return the losses of a batch of all five modalities; step decides which combinations take part."""
        return self.compute(model, batch_inputs(model, batch), batch.person_ids, self.combinations(step))

    def combinations(self, step: int) -> tuple[Combination, ...]:
        """Return the fused combinations of a step: one of each size, the others drawn without replacement."""
        if not any(name == "id" or name in GROUP_LOSSES for name in self.weights):
            return ()
        if self.combinations_per_step == len(FUSED):
            return FUSED
        rng = stream(self.seed, "combinations", step)
        drawn = {rng.choice([combination for combination in FUSED if len(combination) == size]) for size in (2, 3, 4)}
        rest = [combination for combination in FUSED if combination not in drawn]
        drawn.update(rng.sample(rest, self.combinations_per_step - len(drawn)))
        return tuple(combination for combination in FUSED if combination in drawn)

    def compute(
        self,
        model: FusingModel,
        inputs: Mapping[Modality, Tensor],
        person_ids: Tensor,
        combinations: Sequence[Combination],
    ) -> StepOutput:
        """Return the losses for normalised images (B, 3, H, W) and token ids (B, T) with the given combinations
        fused.
        """
        encoded = model.encode_batch(inputs)
        features: dict[Combination, Tensor] = {
            (kind,): encoded[kind].pooled for kind in (Modality.RGB, *QUERY_MODALITIES)
        }
        if combinations:
            features |= fuse_combinations(model, encoded, combinations)
        losses = self.losses(features, person_ids, model.identity_logits)
        with torch.no_grad():
            last = list(features)[-1]
            name = f"batch_rank1/{GROUPS[len(last)]}"
            return StepOutput(losses=losses, diagnostics={name: batch_rank1(features[last], features[RGB], person_ids)})

    def losses(
        self, features: Mapping[Combination, Tensor], person_ids: Tensor, identity_logits: Callable[[Tensor], Tensor]
    ) -> dict[str, Tensor]:
        """Return every weighted term for the features (B, D) of RGB, the single modalities and the fused
        combinations.
        """
        terms: dict[str, Tensor] = {}
        for name, weight in self.weights.items():
            if name == "id":
                logits = identity_logits(torch.cat(list(features.values())))
                terms[name] = weight * identity_loss(logits, person_ids.repeat(len(features)))
                continue
            loss = self.pair_losses[name.removeprefix("mm_")]
            for group, members in _groups(features, by_size=name in GROUP_LOSSES).items():
                values = [loss(features[RGB], features[member], person_ids) for member in members]
                terms[f"{name}/{group}"] = weight * torch.stack(values).mean()
        return terms


def _groups(features: Mapping[Combination, Tensor], by_size: bool) -> dict[str, list[Combination]]:
    """Return the combinations whose mean is one term: by size, or each single modality alone."""
    queries = [combination for combination in features if combination != RGB]
    if not by_size:
        return {combination[0].value: [combination] for combination in queries if len(combination) == 1}
    groups: dict[str, list[Combination]] = {}
    for combination in queries:
        groups.setdefault(GROUPS[len(combination)], []).append(combination)
    return groups
