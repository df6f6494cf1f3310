"""What a model and its objective can use of a data set: training records and query lists, and what is left aside."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from configs.schema.family import ModelSection, ObjectiveSection
from configs.vocabulary import QUERY_MODALITIES, Combination, Modality
from datasets.structures import EvalSplit, QueryList, Record, Source
from utils.errors import UserError, shortened

SHOWN = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelNeeds:
    """What a model encodes and how its objective wants the training records."""

    modalities: Combination = tuple(Modality)
    fuses: bool = True
    """Whether it takes queries of several modalities."""
    paired: bool = False
    """A training row is a visible image together with what the same person has in the other modalities."""
    told_gallery: bool = True
    """Whether gallery images may have an instruction."""


def needs_of(model: ModelSection, objective: ObjectiveSection) -> ModelNeeds:
    """Return what the sections `model` and `objective` of a configuration ask of the data."""
    return ModelNeeds(
        modalities=model.modalities, fuses=model.fuses, paired=objective.paired, told_gallery=objective.told_gallery
    )


def encodable(name: str, records: Sequence[Record], modalities: Combination) -> tuple[Sequence[Record], list[str]]:
    """Return the training records without what a model does not encode, and a note on that.

    name: of the data set. Raises UserError where nothing is left to train on.
    """
    present = _modalities_of(records)
    unknown = present - set(modalities)
    if not unknown:
        return records, []
    kept = [found for found in (_encoded(record, modalities) for record in records) if found.sources]
    if not kept:
        raise UserError(
            f"the training records of {name} hold {_names_of(present)}, and this model encodes {_names_of(modalities)} "
            "only; choose another data.dataset or a configuration of another family"
        )
    return kept, [f"{_names_of(unknown)} of the training records are left aside: this model does not encode them"]


def pair_records(
    name: str, records: Sequence[Record], modalities: Combination = tuple(Modality)
) -> tuple[list[Record], list[str]]:
    """Return the records with a visible image, each with its person's other sources as partners, and notes.

    A modality that a record lists or has partners for stays as it is, so that a data set that comes paired (ORBench) is
    returned unchanged. What a person lacks is absent from its records. Raises UserError where no record gets a partner.
    """
    pool: dict[int, dict[Modality, set[Source]]] = {}
    for record in records:
        for modality, source in record.sources.items():
            if modality is not Modality.RGB:
                pool.setdefault(record.person_id, {}).setdefault(modality, set()).add(source)
    ordered = {
        person: {
            modality: tuple(sorted(found[modality], key=lambda source: (source.value, source.crop)))
            for modality in QUERY_MODALITIES
            if modality in found
        }
        for person, found in pool.items()
    }
    paired = [
        _with_partners(record, ordered.get(record.person_id, {}))
        for record in records
        if Modality.RGB in record.sources
    ]
    available = _modalities_of(paired)
    if not available - {Modality.RGB}:
        listed = _names_of(_modalities_of(records))
        asked = ", ".join(modality.name for modality in QUERY_MODALITIES if modality in modalities)
        raise UserError(
            f"this objective trains on visible images together with at least one of {asked} of the same persons, and "
            f"the training records of {name} hold {listed}; train the visible baseline (configs/baseline/own.yaml), or "
            "choose another data.dataset"
        )
    return paired, _incomplete(records, paired, available)


def _with_partners(record: Record, pool: Mapping[Modality, tuple[Source, ...]]) -> Record:
    own = {*record.sources, *record.partners}
    missing = {modality: sources for modality, sources in pool.items() if modality not in own}
    return replace(record, partners={**record.partners, **missing}) if missing else record


def _incomplete(records: Sequence[Record], paired: Sequence[Record], available: Collection[Modality]) -> list[str]:
    persons = {record.person_id for record in paired}
    notes = []
    unseen = {record.person_id for record in records} - persons
    if unseen:
        notes.append(f"{len(unseen)} training identities have no visible image and are left out")
    for modality in QUERY_MODALITIES:
        if modality in available:
            having = {
                record.person_id for record in paired if modality in record.sources or modality in record.partners
            }
            if len(having) < len(persons):
                notes.append(
                    f"{len(persons) - len(having)} of {len(persons)} training identities have no {modality.name}: "
                    "their rows take no part in its losses"
                )
    return notes


def fit_split(name: str, split: EvalSplit, needs: ModelNeeds, own: bool) -> tuple[EvalSplit, list[str]]:
    """Return a split without the query lists that the model cannot answer, and a note that names them.

    name: of the data set. own: it is the user's; of a published benchmark no list is left aside, for the rest would
    pass for the whole. Raises UserError then, where no list is left, where gallery images are of another modality, and
    where they have instructions that the model does not take.
    """
    told = [] if needs.told_gallery else [queries.name for queries in split.query_lists if told_gallery(split, queries)]
    if told:
        raise UserError(
            f"the protocol gives gallery images of {name} an instruction ({shortened(told, SHOWN)}), and this family "
            "encodes them alone; choose data.protocols=[task-free] or [joint] of omnireid or joint, or set "
            "instruction.gallery=none"
        )
    unknown = {source.modality for source in split.gallery} - set(needs.modalities)
    lists, aside = [], []
    for queries in split.query_lists:
        if _answerable(queries.combination, needs):
            lists.append(queries)
        else:
            aside.append(queries.name)
    able = f"this model encodes {_names_of(needs.modalities)} only{'' if needs.fuses else ', one of them in a query'}"
    remedy = "choose another data.dataset, other protocols (data.protocols) or a model of another family"
    if unknown:
        raise UserError(f"the gallery of {name} holds {_names_of(unknown)} images, and {able}; {remedy}")
    if not aside:
        return split, []
    if not lists or not own:
        asked = {modality for queries in split.query_lists for modality in queries.combination}
        raise UserError(
            f"the queries of {name} hold {_names_of(asked)} ({shortened(aside, SHOWN)}), and {able}; {remedy}"
        )
    note = f"{split.name}: {len(aside)} query lists are left aside, for {able}: {shortened(aside, SHOWN)}"
    return replace(split, query_lists=tuple(lists)), [note]


def told_gallery(split: EvalSplit, queries: QueryList) -> bool:
    """Return whether an image of the gallery in which a list is searched has an instruction."""
    told = split.gallery_instructions
    return any(told) if queries.gallery is None or not told else any(told[item] for item in queries.gallery)


def _answerable(combination: Combination, needs: ModelNeeds) -> bool:
    return set(combination) <= set(needs.modalities) and (needs.fuses or len(combination) == 1)


def _encoded(record: Record, modalities: Combination) -> Record:
    """The record without sources and partners that a model does not encode."""
    return replace(
        record,
        sources={modality: source for modality, source in record.sources.items() if modality in modalities},
        partners={modality: sources for modality, sources in record.partners.items() if modality in modalities},
    )


def _modalities_of(records: Sequence[Record]) -> set[Modality]:
    return {modality for record in records for modality in (*record.sources, *record.partners)}


def _names_of(modalities: Collection[Modality]) -> str:
    """Return the names of modalities for a sentence, in their fixed order."""
    return " and ".join(modality.name for modality in Modality if modality in modalities)
