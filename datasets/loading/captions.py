"""Captions as they are before word pieces are made of them."""

from __future__ import annotations

import re

MAX_WORDS = 50

_DELETED = re.compile(r"[,.'!?\"()*#:;~]")
_SPACES = re.compile(r"\s{2,}")


def preprocess_caption(text: str, max_words: int = MAX_WORDS) -> str:
    """Return a caption in lower case, without punctuation, cut to its first `max_words` words.

    , . ' ! ? " ( ) * # : ; ~ are deleted, hyphens and slashes become spaces, `<person>` becomes `person`, two or more
    white characters become one space, spaces at the ends go. A single tab or line break inside stays, and so does every
    other character; words are what single spaces separate. An empty caption stays empty.
    Source: reference (IRM's text branch, after ALBEF's).
    """
    cleaned = _DELETED.sub("", text.lower()).replace("-", " ").replace("/", " ").replace("<person>", "person")
    cleaned = _SPACES.sub(" ", cleaned).rstrip("\n").strip(" ")
    return " ".join(cleaned.split(" ")[:max_words])
