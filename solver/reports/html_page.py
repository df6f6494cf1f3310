"""Ranked lists as one self-contained HTML page: no script, no file beside it, everything that is not ours escaped."""

from __future__ import annotations

import base64
import functools
import hashlib
import html
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image

from configs.vocabulary import Modality
from datasets.loading.readers import open_source
from datasets.modalities import MODALITIES
from datasets.structures import Source
from solver.reports.grid import describe_query, file_label, fit_image, parts_of, printable, result_image, word_of
from solver.search.ranked import RankedImage, RankedQuery
from utils.files import write_text

THUMBNAIL = (64, 128)
JPEG_QUALITY = 80
MAX_TEXT = 2000
"""Letters of a query's text that the page shows."""

STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; color: #1c1e21; background: #f4f5f7; }
body { margin: 0 auto; max-width: 1180px; padding: 24px; }
h1 { font-size: 22px; margin: 0 0 8px; } h2 { font-size: 18px; margin: 28px 0 8px; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 2px 16px; margin: 0 0 12px; }
dt { color: #5c636b; } dd { margin: 0; overflow-wrap: anywhere; }
article { background: #fff; border: 1px solid #dfe3e8; border-radius: 8px; padding: 14px 18px; margin: 0 0 16px; }
h3 { font-size: 15px; margin: 0 0 10px; overflow-wrap: anywhere; }
.list { display: flex; flex-wrap: wrap; gap: 12px; align-items: flex-start; }
.parts { border-bottom: 1px solid #dfe3e8; padding-bottom: 12px; margin-bottom: 12px; }
figure { margin: 0; width: 94px; font-size: 12px; }
figure img { display: block; width: 64px; height: 128px; border: 4px solid #969ca4; padding: 2px; background: #fff; }
figure.match img { border-color: #1a8c46; } figure.other img { border-color: #c83028; }
figure.below img { border-color: #e2ac00; }
figcaption { overflow-wrap: anywhere; }
figure.match figcaption b { color: #1a8c46; } figure.other figcaption b { color: #c83028; }
figure.below figcaption b { color: #8a6a00; }
.name { color: #5c636b; font-size: 11px; }
.missed { border-left: 2px dashed #969ca4; padding-left: 12px; }
img.wide { display: block; max-width: 100%; margin: 0 0 12px; background: #fff; }
blockquote { margin: 0; padding: 8px 12px; background: #f4f5f7; border-left: 4px solid #969ca4; }
blockquote { max-width: 560px; overflow-wrap: anywhere; }
table { border-collapse: collapse; margin: 0 0 12px; background: #fff; }
th, td { border: 1px solid #dfe3e8; padding: 3px 10px; text-align: right; }
th:first-child, td:first-child { text-align: left; }
thead th { background: #eceff2; border-bottom: 2px solid #5c636b; }
tbody.averages { border-top: 2px solid #5c636b; } tbody.averages td { font-weight: bold; }
"""
# The policy names the digest of our own style sheet, so that no other one, and nothing else but data: pictures, is
# used.
POLICY = (
    "default-src 'none'; img-src data:; base-uri 'none'; form-action 'none'; style-src 'sha256-"
    + base64.b64encode(hashlib.sha256(STYLE.encode("utf-8")).digest()).decode("ascii")
    + "'"
)


def write_page(
    path: str | Path,
    title: str,
    facts: Mapping[str, str],
    sections: Mapping[str, Sequence[RankedQuery]],
    table: str = "",
) -> None:
    """Write a page, atomically. facts: name -> value at the top. sections: heading ('' = none) -> ranked lists.

    table: further HTML below the facts, from `html_table` and `html_picture`.
    """
    write_text(path, page(title, facts, sections, table))


def page(title: str, facts: Mapping[str, str], sections: Mapping[str, Sequence[RankedQuery]], table: str = "") -> str:
    """Return the page of `write_page`."""
    listed = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>\n" for name, value in facts.items())
    parts = "".join(
        (f"<h2>{escape(heading)}</h2>\n" if heading else "") + "".join(map(_card, rows))
        for heading, rows in sections.items()
    )
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        f"<h1>{escape(title)}</h1>\n<dl>\n{listed}</dl>\n{table}{parts}</body>\n</html>\n"
    )


def escape(value: object) -> str:
    """Return text that is safe inside an element and inside a quoted attribute."""
    return html.escape(printable(str(value)), quote=True)


def html_table(
    columns: Sequence[str], rows: Sequence[Sequence[object]], averages: Sequence[Sequence[object]] = ()
) -> str:
    """Return a table; floats with two decimals, None as a dash. averages: rows below a line, in bold."""
    head = "".join(f"<th>{escape(name)}</th>" for name in columns)
    below = f'<tbody class="averages">\n{_rows(averages)}</tbody>\n' if averages else ""
    return f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{_rows(rows)}</tbody>\n{below}</table>\n"


def html_picture(path: Path, description: str) -> str:
    """Return a PNG file as a picture inside the page."""
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    return f'<img class="wide" src="data:image/png;base64,{data}" alt="{escape(description)}">\n'


def _rows(rows: Sequence[Sequence[object]]) -> str:
    return "".join("<tr>" + "".join(f"<td>{_number(value)}</td>" for value in row) + "</tr>\n" for row in rows)


def _number(value: object) -> str:
    return "–" if value is None else f"{value:.2f}" if isinstance(value, float) else escape(value)


@functools.lru_cache(maxsize=4096)
def thumbnail(source: Source) -> str:
    """Return a small JPEG of an image source as a data URI."""
    return _encoded(open_source(source))


def _encoded(picture: Image.Image) -> str:
    stream = io.BytesIO()
    fit_image(picture, *THUMBNAIL).save(stream, format="JPEG", quality=JPEG_QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode("ascii")


def _card(row: RankedQuery) -> str:
    parts = "".join(_part(name, source) for name, source in parts_of(row.query))
    results = "".join(map(_result, row.results))
    if row.missed is not None:
        results += f'<div class="missed">{_result(row.missed, "missed ")}</div>'
    return (
        f'<article>\n<h3>{escape(describe_query(row))}</h3>\n<div class="list parts">\n{parts}</div>\n'
        f'<div class="list">\n{results}</div>\n</article>\n'
    )


def _part(name: str, source: Source) -> str:
    if not MODALITIES[source.modality].is_image:
        text = source.value if len(source.value) <= MAX_TEXT else source.value[:MAX_TEXT] + " …"
        return f"<blockquote><b>{name}</b><br>{escape(text) or '(empty text)'}</blockquote>\n"
    return _figure("part", source.value, thumbnail(source), f"<b>{name}</b>")


def _result(image: RankedImage, before: str = "") -> str:
    person = "" if image.person_id is None else f" id {escape(image.person_id)}"
    word = word_of(image)
    caption = f"#{image.rank} · {image.similarity:.4f}<br><b>{before}{word}</b>{person}"
    kind = image.verdict.value or "unknown"
    # Nearly all files are what they were, and many results are of one file.
    shown = _encoded(result_image(image)) if image.outdated else thumbnail(_source(image))
    return _figure(kind, image.path, shown, caption)


def _source(image: RankedImage) -> Source:
    return Source(modality=Modality.RGB, value=image.path)


def _figure(kind: str, path: str, picture: str, caption: str) -> str:
    name = escape(file_label(path))
    return (
        f'<figure class="{kind}" title="{escape(path)}"><img src="{picture}" alt="{name}" width="64" '
        f'height="128">'
        f'<figcaption>{caption}<div class="name">{name}</div></figcaption></figure>\n'
    )
