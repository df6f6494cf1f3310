"""Covers: solver/objectives/reid5o, solver/objectives/base, solver/training/families. ReID5o's objective against sums
written out over separate encodings and fusions.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from tiny_reid5o import tiny_reid5o_config
from torch import Tensor, nn

from configs.schema.experiment import FAMILIES as SECTIONS
from configs.schema.reid5o import Reid5oObjectiveConfig
from configs.vocabulary import COMBINATIONS, Combination, Family, Modality
from datasets.structures import Batch, Record, Source
from model.build import FAMILIES as MODELS
from model.interface import Fuses, RetrievalModel, Tokens
from model.reid5o import ReID5o
from model.weights.clip import initialise_reid5o
from solver.losses.cmpm import cmpm_loss
from solver.losses.identity import identity_loss
from solver.losses.itc import itc_loss
from solver.losses.sdm import sdm_loss
from solver.losses.supitc import supitc_loss
from solver.objectives import base
from solver.objectives.base import ObjectiveContext
from solver.objectives.reid5o import FUSED, Reid5oObjective, batch_rank1, fuse_combinations
from solver.training.families import FAMILIES, build_objective
from utils.errors import UserError

NIR, CP, SK, TEXT = (Modality.NIR, Modality.CP, Modality.SK, Modality.TEXT)
PERSON_IDS = torch.tensor([2, 0, 2, 1, 3])
ALL_LOSSES = {"itc": 0.5, "sdm": 2.0, "mm_itc": 1.0, "mm_sdm": 0.25, "mm_supitc": 1.5, "mm_cmpm": 0.75, "id": 3.0}


class CountingModel(RetrievalModel, Fuses):
    """A small model in float64 that counts its calls; images have four tokens, texts three."""

    statistics = "clip"
    embed_dim = 6
    num_identities = 4

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        self.mix = nn.Parameter(torch.randn(6, 6, generator=generator, dtype=torch.float64))
        self.classifier = nn.Parameter(torch.randn(4, 6, generator=generator, dtype=torch.float64))
        self.calls: Counter[str] = Counter()

    def compile_blocks(self, **options: Any) -> None:
        raise AssertionError("nothing is compiled here")

    def encode_batch(self, inputs: Mapping[Modality, Tensor], instructions: Any = None) -> dict[Modality, Tokens]:
        self.calls["encode_batch"] += 1
        tokens = {
            kind: rows.double() * (1 + 0.1 * index) @ self.mix for index, (kind, rows) in enumerate(inputs.items())
        }
        return {kind: Tokens(tokens=rows, pooled=rows[:, 0]) for kind, rows in tokens.items()}

    def prepare(self, tokens: Tensor) -> Tensor:
        self.calls["prepare"] += 1
        return torch.cat([tokens, tokens.sin()], dim=2)

    def fuse_prepared(self, prepared: Tensor) -> Tensor:
        self.calls["fuse_prepared"] += 1
        self.calls["fused rows"] += len(prepared)
        return (prepared[:, :, :6] * prepared[:, :, 6:]).tanh().mean(dim=1) @ self.mix

    def identity_logits(self, features: Tensor) -> Tensor:
        self.calls["classified rows"] += len(features)
        return features @ self.classifier.T


def counting_model() -> Any:
    """Stands for a ReID5o, which the objective asks for by type."""
    return CountingModel()


def example_inputs() -> dict[Modality, Tensor]:
    generator = torch.Generator().manual_seed(1)
    lengths = {Modality.RGB: 4, NIR: 4, CP: 4, SK: 4, TEXT: 3}
    return {
        kind: torch.randn(5, length, 6, generator=generator, dtype=torch.float64) for kind, length in lengths.items()
    }


def expected_terms(
    model: Any, inputs: Mapping[Modality, Tensor], fused: Sequence[Combination], temperature: float
) -> dict[str, Tensor]:
    """Every unweighted term, each modality encoded and each combination fused on its own."""
    encoded = model.encode_batch(inputs)
    rgb = encoded[Modality.RGB].pooled
    features: dict[Combination, Tensor] = {(kind,): encoded[kind].pooled for kind in (NIR, CP, SK, TEXT)}
    features |= {combination: model.fuse([encoded[kind] for kind in combination]) for combination in fused}
    pair = {
        "itc": lambda other: itc_loss(rgb, other, temperature=temperature),
        "sdm": lambda other: sdm_loss(rgb, other, PERSON_IDS, temperature=temperature),
        "supitc": lambda other: supitc_loss(rgb, other, PERSON_IDS),
        "cmpm": lambda other: cmpm_loss(rgb, other, PERSON_IDS),
    }
    terms = {
        f"{name}/{kind.value}": pair[name](features[kind,]) for name in ("itc", "sdm") for kind in (NIR, CP, SK, TEXT)
    }
    for name, loss in pair.items():
        for size, group in enumerate(("one", "two", "three", "four"), start=1):
            values = [loss(feature) for combination, feature in features.items() if len(combination) == size]
            if values:
                terms[f"mm_{name}/{group}"] = torch.stack(values).mean()
    each = [identity_loss(model.identity_logits(feature), PERSON_IDS) for feature in (rgb, *features.values())]
    terms["id"] = torch.stack(each).mean()
    return terms


@pytest.mark.parametrize("losses", [ALL_LOSSES, {"mm_sdm": 1.0, "id": 1.0}, {"mm_itc": 1.0}, {"sdm": 1.0, "id": 0.5}])
def test_every_term_and_the_total(losses: dict[str, float]) -> None:
    model, inputs = counting_model(), example_inputs()
    output = Reid5oObjective(Reid5oObjectiveConfig(losses=losses, temperature=0.3)).compute(
        model, inputs, PERSON_IDS, FUSED
    )
    expected = expected_terms(model, inputs, FUSED, 0.3)
    wanted = {
        name: losses[name.split("/")[0]] * value for name, value in expected.items() if name.split("/")[0] in losses
    }
    assert set(output.losses) == set(wanted)
    for name, value in wanted.items():
        torch.testing.assert_close(output.losses[name], value, rtol=1e-12, atol=1e-12, msg=name)
    torch.testing.assert_close(output.total, sum(wanted.values()))


def test_the_real_model_gives_the_same_stacked_and_apart() -> None:
    config = tiny_reid5o_config()
    torch.manual_seed(0)
    model = ReID5o(config, num_identities=4)
    initialise_reid5o(model, config)
    inputs = {kind: torch.randn(5, 3, 32, 16) for kind in (Modality.RGB, NIR, CP, SK)}
    inputs[TEXT] = torch.randint(1, 50, (5, 7))
    combinations = FUSED[1:9]
    output = Reid5oObjective(Reid5oObjectiveConfig(losses={"mm_sdm": 1.0, "id": 1.0}, temperature=0.3)).compute(
        model, inputs, PERSON_IDS, combinations
    )
    expected = expected_terms(model, inputs, combinations, 0.3)
    for name, value in output.losses.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-5, msg=name)
    output.total.backward()
    untouched = [
        name for name, parameter in model.named_parameters() if parameter.requires_grad and parameter.grad is None
    ]
    assert not untouched


def test_each_combination_gets_its_own_fusion() -> None:
    model = counting_model()
    encoded = model.encode_batch(example_inputs())
    for combinations in (FUSED, FUSED[3:8]):
        fused = fuse_combinations(model, encoded, combinations)
        assert list(fused) == list(combinations)
        for combination, feature in fused.items():
            torch.testing.assert_close(feature, model.fuse([encoded[kind] for kind in combination]))


def batch_of(inputs: dict[Modality, Tensor]) -> Batch:
    boxes = {NIR: torch.ones(5, 4, dtype=torch.int64)}
    return Batch(inputs=inputs, erased=boxes, person_ids=PERSON_IDS, record_ids=torch.arange(5))


def test_a_step_encodes_once_prepares_once_and_fuses_equal_lengths_together(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[Modality, bool]] = []

    def double_it(kind: Modality, rows: Tensor, erased: Tensor | None = None, statistics: str = "") -> Tensor:
        seen.append((kind, erased is not None))
        return 2 * rows

    monkeypatch.setattr(base, "model_input", double_it)
    model, inputs = counting_model(), example_inputs()
    output = Reid5oObjective(Reid5oObjectiveConfig(losses={"mm_sdm": 1.0, "id": 1.0}, temperature=0.3)).step(
        model, batch_of(inputs), 0
    )
    assert seen == [(kind, kind is NIR) for kind in inputs]
    assert model.calls == {"encode_batch": 1, "prepare": 4, "fuse_prepared": 5, "fused rows": 55, "classified rows": 80}
    doubled = {kind: 2 * rows for kind, rows in inputs.items()}
    torch.testing.assert_close(output.losses["id"], expected_terms(model, doubled, FUSED, 0.3)["id"])


def test_single_losses_alone_fuse_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "model_input", lambda kind, rows, erased=None, statistics="": rows)
    for losses, fused in (
        ({"itc": 1.0, "sdm": 1.0, "id": 0.0}, 0),
        ({"itc": 1.0, "id": 1.0}, 5),
        ({"mm_cmpm": 1.0}, 5),
    ):
        model = counting_model()
        Reid5oObjective(Reid5oObjectiveConfig(losses=losses, temperature=0.3)).step(
            model, batch_of(example_inputs()), 7
        )
        assert model.calls["fuse_prepared"] == fused


def test_rows_may_be_permuted() -> None:
    model, inputs, order = counting_model(), example_inputs(), torch.tensor([4, 2, 0, 3, 1])
    objective = Reid5oObjective(Reid5oObjectiveConfig(losses=ALL_LOSSES, temperature=0.3))
    plain = objective.compute(model, inputs, PERSON_IDS, FUSED)
    permuted = objective.compute(model, {kind: rows[order] for kind, rows in inputs.items()}, PERSON_IDS[order], FUSED)
    torch.testing.assert_close(permuted.losses, plain.losses)
    torch.testing.assert_close(permuted.diagnostics, plain.diagnostics)


@pytest.mark.parametrize("count", range(3, 12))
def test_drawn_combinations(count: int) -> None:
    objective = Reid5oObjective(
        Reid5oObjectiveConfig(losses={"mm_sdm": 1.0}, temperature=0.1, combinations_per_step=count), seed=3
    )
    draws = [objective.combinations(step) for step in range(300)]
    for drawn in draws:
        assert len(set(drawn)) == len(drawn) == count and {len(combination) for combination in drawn} == {2, 3, 4}
        assert sorted(drawn, key=COMBINATIONS.index) == list(drawn)
    assert draws == [objective.combinations(step) for step in range(300)]
    shares = Counter(itertools.chain.from_iterable(draws))
    assert set(shares) == set(FUSED)
    pairs = [shares[combination] for combination in FUSED if len(combination) == 2]
    assert max(pairs) - min(pairs) < 90


def test_seed_and_step_decide_the_draw() -> None:
    one, two = (
        Reid5oObjective(Reid5oObjectiveConfig(losses={"id": 1.0}, temperature=0.1, combinations_per_step=3), seed=seed)
        for seed in (1, 2)
    )
    assert len({one.combinations(step) for step in range(40)}) > 10
    assert [one.combinations(step) for step in range(9)] != [two.combinations(step) for step in range(9)]


def test_a_mean_is_taken_over_the_drawn_combinations() -> None:
    model, inputs = counting_model(), example_inputs()
    drawn = ((NIR, TEXT), (CP, SK), (NIR, CP, SK), (NIR, CP, SK, TEXT))
    output = Reid5oObjective(Reid5oObjectiveConfig(losses=ALL_LOSSES, temperature=0.3)).compute(
        model, inputs, PERSON_IDS, drawn
    )
    expected = expected_terms(model, inputs, drawn, 0.3)
    for name in ("mm_sdm/two", "mm_supitc/three", "mm_itc/one", "id"):
        torch.testing.assert_close(output.losses[name], ALL_LOSSES[name.split("/")[0]] * expected[name], msg=name)


def test_rank1_in_the_batch() -> None:
    gallery = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
    query = torch.tensor([[2.0, 0.1], [3.0, 0.1], [0.1, 5.0], [0.0, -4.0]])
    assert batch_rank1(query, gallery, torch.tensor([0, 0, 1, 3])).item() == pytest.approx(75.0)
    output = Reid5oObjective(Reid5oObjectiveConfig(losses={"sdm": 1.0}, temperature=0.3)).compute(
        counting_model(), example_inputs(), PERSON_IDS, ()
    )
    assert list(output.diagnostics) == ["batch_rank1/one"] and not output.diagnostics["batch_rank1/one"].requires_grad


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"losses": {"mm_sdn": 1.0}}, "mm_sdn.*did you mean 'mm_sdm'"),
        ({"losses": {"id": -1.0}}, "objective.losses.id = -1.0"),
        ({"losses": {"id": float("nan")}}, "finite"),
        ({"losses": {"id": 0.0}}, "no loss with a weight above 0"),
        ({"losses": {}}, "at least one loss"),
        ({"ramps": {"triplets": [0, 3]}}, "losses of objective.losses .*each with the first and the last step"),
        ({"ramps": {"id": [4, 3]}}, "objective.ramps"),
        ({"temperature": 0.0}, "temperature = 0.0"),
        ({"combinations_per_step": 2}, "3..11"),
        ({"combinations_per_step": 12}, "3..11"),
    ],
)
def test_wrong_options_are_refused(change: dict, message: str) -> None:
    with pytest.raises((UserError, ValueError), match=message):
        Reid5oObjective(Reid5oObjectiveConfig(**({"losses": {"id": 1.0}, "temperature": 0.1} | change)))


def told(*modalities: Modality, partners: Sequence[Modality] = ()) -> Record:
    sources = {kind: Source(modality=kind, value=f"one {kind.value}") for kind in Modality}
    return Record(
        person_id=0,
        sources={kind: sources[kind] for kind in modalities},
        partners={kind: (sources[kind],) for kind in partners},
    )


TOLD = (told(Modality.RGB, TEXT, partners=[NIR, CP]), told(Modality.RGB, partners=[SK]))


def test_losses_are_those_of_the_modalities_that_the_data_have() -> None:
    """Of NIR, SK and TEXT: three single ones, three pairs, one of three; nothing of CP, and no term of four."""
    inputs = example_inputs()
    model: Any = CountingModel()
    del inputs[CP]
    config = Reid5oObjectiveConfig(losses=ALL_LOSSES, temperature=0.3)
    records = [told(Modality.RGB, TEXT), told(Modality.RGB, partners=[NIR, SK])]
    objective = build_objective(Family.REID5O, config, ObjectiveContext(seed=0, model=model, records=records))
    assert isinstance(objective, Reid5oObjective)
    fused = objective.combinations(0)
    assert fused == ((NIR, SK), (NIR, TEXT), (SK, TEXT), (NIR, SK, TEXT))
    output = objective.compute(model, inputs, PERSON_IDS, fused)
    features: dict[Combination, Tensor] = {
        (Modality.RGB,): model.encode_batch(inputs)[Modality.RGB].pooled,
        **{(kind,): model.encode_batch(inputs)[kind].pooled for kind in (NIR, SK, TEXT)},
        **{members: model.fuse([model.encode_batch(inputs)[kind] for kind in members]) for members in fused},
    }
    pairs = [itc_loss(features[Modality.RGB,], features[members], temperature=0.3) for members in fused[:3]]
    torch.testing.assert_close(output.losses["mm_itc/two"], torch.stack(pairs).mean())
    each = [identity_loss(model.identity_logits(feature), PERSON_IDS) for feature in features.values()]
    torch.testing.assert_close(output.losses["id"], 3 * torch.stack(each).mean())
    names = {name.partition("/")[2] for name in output.losses if name.startswith("mm_")}
    assert names == {"one", "two", "three"} and "itc/cp" not in output.losses
    assert list(output.diagnostics) == ["batch_rank1/three"]


def test_rows_that_lack_a_modality_take_no_part_in_its_losses() -> None:
    """Row 1 has no TEXT, rows 0 and 3 no NIR; each combination is computed on its own rows alone, one by one."""
    inputs = example_inputs()
    model: Any = CountingModel()
    held = {Modality.RGB: [0, 1, 2, 3, 4], NIR: [1, 2, 4], TEXT: [0, 2, 3, 4]}
    given = {kind: inputs[kind][rows] for kind, rows in held.items()}
    batch_rows = {kind: torch.tensor(rows) for kind, rows in held.items()}
    config = Reid5oObjectiveConfig(losses={"mm_sdm": 1.0, "sdm": 1.0, "id": 1.0}, temperature=0.3)
    objective = Reid5oObjective(config, modalities=(NIR, TEXT))
    output = objective.compute(model, given, PERSON_IDS, objective.combinations(0), batch_rows)
    values, logits, labels = {}, [model.identity_logits(model.encode_batch(given)[Modality.RGB].pooled)], [PERSON_IDS]
    for members, rows in {(NIR,): [1, 2, 4], (TEXT,): [0, 2, 3, 4], (NIR, TEXT): [2, 4]}.items():
        encoded = model.encode_batch({kind: inputs[kind][rows] for kind in (Modality.RGB, NIR, TEXT)})
        feature = encoded[members[0]].pooled if len(members) == 1 else model.fuse([encoded[kind] for kind in members])
        values[members] = sdm_loss(encoded[Modality.RGB].pooled, feature, PERSON_IDS[rows], temperature=0.3)
        logits.append(model.identity_logits(feature))
        labels.append(PERSON_IDS[rows])
    torch.testing.assert_close(output.losses["sdm/nir"], values[NIR,])
    torch.testing.assert_close(output.losses["mm_sdm/one"], (values[NIR,] + values[TEXT,]) / 2)
    torch.testing.assert_close(output.losses["mm_sdm/two"], values[NIR, TEXT])
    torch.testing.assert_close(output.losses["id"], identity_loss(torch.cat(logits), torch.cat(labels)))


@pytest.mark.parametrize("held", [{NIR: [1], TEXT: [2, 3]}, {TEXT: [0, 1, 2, 3, 4]}])
def test_a_batch_without_a_combination_has_its_terms_as_zeros(held: dict[Modality, list[int]]) -> None:
    """Micro-batches of one step are averaged term by term, so each has all of them."""
    inputs = example_inputs()
    model: Any = CountingModel()
    held = {Modality.RGB: [0, 1, 2, 3, 4], **held}
    objective = Reid5oObjective(Reid5oObjectiveConfig(losses={"mm_itc": 1.0}, temperature=0.3), modalities=(NIR, TEXT))
    given = {kind: inputs[kind][rows] for kind, rows in held.items()}
    rows = {kind: torch.tensor(places) for kind, places in held.items()}
    output = objective.compute(model, given, PERSON_IDS, objective.combinations(0), rows)
    assert list(output.losses) == ["mm_itc/one", "mm_itc/two"] and list(output.diagnostics) == ["batch_rank1/two"]
    assert output.losses["mm_itc/two"] == 0 and output.losses["mm_itc/one"].isfinite()
    output.total.backward()
    assert all(value.grad is None or value.grad.isfinite().all() for value in model.parameters())


def test_the_table_builds_every_family() -> None:
    assert set(FAMILIES) == set(MODELS) == set(SECTIONS) == set(Family)
    config = Reid5oObjectiveConfig(losses={"mm_itc": 2.0}, temperature=0.1, combinations_per_step=4)
    objective = build_objective(Family.REID5O, config, ObjectiveContext(seed=6, model=counting_model(), records=TOLD))
    assert isinstance(objective, Reid5oObjective)
    model, inputs = counting_model(), example_inputs()
    drawn = [objective.combinations(step) for step in range(20)]
    assert {len(combinations) for combinations in drawn} == {4} and len(set(drawn)) > 1
    other = build_objective(Family.REID5O, config, ObjectiveContext(seed=7, model=model, records=TOLD))
    assert isinstance(other, Reid5oObjective) and [other.combinations(step) for step in range(20)] != drawn
    output = objective.compute(model, inputs, PERSON_IDS, drawn[0])
    expected = expected_terms(model, inputs, drawn[0], 0.1)
    assert output.losses and all(
        torch.allclose(value, 2.0 * expected[name], rtol=1e-12) for name, value in output.losses.items()
    )
    torch.testing.assert_close(output.total, torch.stack([*output.losses.values()]).sum())
