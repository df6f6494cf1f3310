"""What a check found: a value with stable keys for JSON, and its form as text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from prettytable import PrettyTable

FORMAT = 1
"""Version of the JSON form."""
EXAMPLES = 5


Level = Literal["defect", "warning", "note"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One thing that was found. kind: stable key. message: one sentence that names the culprit and, for a defect, the
    remedy.

    level: a defect makes the data wrong to use, a warning is to be known (rendered and partial sets are legitimate), a
    note informs.
    """

    level: Level
    kind: str
    message: str
    count: int = 1
    examples: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class PartCount:
    """Size of a part. images: distinct files. captions: texts. published_*: None = not published; confirmed: see
    `Count`.
    """

    part: str
    records: int
    images: int
    captions: int
    persons: int
    cameras: int
    published_images: int | None = None
    published_persons: int | None = None
    confirmed: bool = True


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchCount:
    """One search of a protocol. unmatched: queries without a valid match, by reason."""

    protocol: str
    title: str
    rule: str
    queries: int
    gallery: int
    unmatched: Mapping[str, int]


@dataclass(frozen=True, kw_only=True, slots=True)
class Coverage:
    """One side: persons, for each modality the persons who have it and its items, listed images, and how many have a
    caption (train).
    """

    side: str
    persons: int
    modalities: Mapping[str, Mapping[str, int]]
    images: int
    captioned_images: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """Everything that was found in a data set. images_opened: None when the images were not opened.

    access: how the data set is obtained, and under which terms; empty for rendered data.
    """

    dataset: str
    title: str
    root: str
    variant: str
    parts: tuple[PartCount, ...]
    searches: tuple[SearchCount, ...]
    coverage: tuple[Coverage, ...]
    findings: tuple[Finding, ...]
    images_opened: int | None
    dropped: Mapping[str, int] = field(default_factory=dict)
    access: str = ""

    @property
    def exit_code(self) -> int:
        """0 without a defect, else 1."""
        return int(any(finding.level == "defect" for finding in self.findings))

    def to_json(self) -> dict[str, Any]:
        """Return the report as plain values; the keys are those of the classes, `format` and `exit_code`."""
        return {"format": FORMAT, **asdict(self), "exit_code": self.exit_code}


def examples(values: Iterable[Any]) -> tuple[str, ...]:
    """Return the first five values as texts."""
    return tuple(str(value) for value, _ in zip(values, range(EXAMPLES)))


def render(report: Report) -> str:
    """Return the report as text: tables, then one line per finding, examples of defects and warnings, the verdict."""
    lines = [
        f"{report.title} at {report.root}{f' ({report.variant})' if report.variant else ''}",
        str(_parts_table(report.parts)),
    ]
    if report.searches:
        lines.append(str(_searches_table(report.searches)))
    lines += [_coverage_line(entry) for entry in report.coverage]
    if report.access:
        lines.append(f"access and terms: {report.access}")
    lines += [f"left out by the data set's own rules: {what}: {count:,}" for what, count in report.dropped.items()]
    for finding in sorted(report.findings, key=lambda finding: ("note", "warning", "defect").index(finding.level)):
        lines.append(f"{finding.level}: {finding.message}")
        lines += [f"    {example}" for example in finding.examples if finding.level != "note"]
    lines.append(_verdict(report))
    return "\n".join(lines)


def _table(names: Sequence[str]) -> PrettyTable:
    table = PrettyTable(names)
    table.align = "r"
    table.align[names[0]] = "l"
    return table


def _parts_table(parts: Sequence[PartCount]) -> PrettyTable:
    table = _table(["part", "images", "published", "persons", "published ", "cameras", "captions"])
    for part in parts:
        mark = "" if part.confirmed else "?"
        table.add_row(
            [
                part.part,
                f"{part.images:,}",
                *(
                    ("-" if value is None else f"{value:,}{mark}") if name else f"{value:,}"
                    for name, value in (
                        ("images", part.published_images),
                        ("", part.persons),
                        ("persons", part.published_persons),
                    )
                ),
                part.cameras or "-",
                part.captions or "-",
            ]
        )
    return table


def _searches_table(searches: Sequence[SearchCount]) -> PrettyTable:
    """A row per protocol: its draws differ little."""
    table = _table(["protocol", "rule", "searches", "queries", "gallery", "without a match", "why"])
    groups: dict[tuple[str, str], list[SearchCount]] = {}
    for search in searches:
        groups.setdefault((search.protocol, search.rule), []).append(search)
    for (protocol, rule), group in groups.items():
        worst = max(group, key=lambda search: sum(search.unmatched.values()))
        why = ", ".join(f"{reason.replace('_', ' ')} {count}" for reason, count in worst.unmatched.items() if count)
        table.add_row(
            [
                protocol,
                rule,
                len(group),
                _span(search.queries for search in group),
                _span(search.gallery for search in group),
                sum(worst.unmatched.values()),
                why or "-",
            ]
        )
    return table


def _span(values: Iterable[int]) -> str:
    found = sorted(values)
    return f"{found[0]:,}" if found[0] == found[-1] else f"{found[0]:,}..{found[-1]:,}"


def _coverage_line(entry: Coverage) -> str:
    have = ", ".join(
        f"{name} {counts['persons']:,} persons / {counts['items']:,}" for name, counts in entry.modalities.items()
    )
    captions = (
        f"; {entry.captioned_images:,} of {entry.images:,} images have a caption" if entry.captioned_images else ""
    )
    return f"{entry.side}: {entry.persons:,} persons; {have}{captions}"


def _verdict(report: Report) -> str:
    count = {level: sum(finding.level == level for finding in report.findings) for level in ("defect", "warning")}
    opened = "images were not opened" if report.images_opened is None else f"{report.images_opened:,} images opened"
    words = "clean" if not count["defect"] else f"{count['defect']} defect{'s' * (count['defect'] > 1)}"
    return f"{words}, {count['warning']} warning{'s' * (count['warning'] != 1)}; {opened}"
