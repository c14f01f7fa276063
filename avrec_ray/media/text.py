"""Text of an item, cleaned, for the text encoder."""

import re
import unicodedata
from collections.abc import Iterable

MAX_TEXT_CHARS = 2000
"""Longest text; encoders read far less."""


def item_text(title: str | None, description: str | None = None, tags: Iterable[str] | None = None) -> str:
    """Title, tags and description as one line, in the order of how much they say; empty parts left out.

    >>> item_text("Cats  at play", "Two kittens.", ["pets", "funny"])
    'Cats at play. pets, funny. Two kittens.'
    """
    parts = [clean_text(title), ", ".join(filter(None, map(clean_text, tags or ()))), clean_text(description)]
    sentences = [part if part.endswith((".", "!", "?")) else f"{part}." for part in parts if part]
    return " ".join(sentences)[:MAX_TEXT_CHARS].rstrip()


def clean_text(text: str | None) -> str:
    """Unicode NFKC, control and invisible characters out, white space collapsed, cut to MAX_TEXT_CHARS.

    >>> clean_text("ﬁve\\u200b\\tstars\\x00 ")
    'five stars'
    """
    # Tabs and newlines are control characters too, but they part words.
    spaced = re.sub(r"\s+", " ", unicodedata.normalize("NFKC", text or ""))
    visible = "".join(c for c in spaced if not unicodedata.category(c).startswith("C"))
    # Without the invisible characters, neighbours may compose or white space may meet.
    return re.sub(r"\s+", " ", unicodedata.normalize("NFKC", visible)).strip()[:MAX_TEXT_CHARS].strip()
