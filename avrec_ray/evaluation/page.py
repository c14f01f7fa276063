"""One self-contained HTML page of sections with tables, pictures and cards; it opens anywhere, without a server.

Everything that comes from data is escaped by the template engine: titles are written by strangers.
"""

import base64
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, select_autoescape

_TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class Table:
    """Rows under a head; `marked` rows stand out."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    marked: frozenset[int] = frozenset()
    note: str = ""


@dataclass(frozen=True)
class Picture:
    """A PNG with what it shows."""

    png: bytes
    caption: str

    @property
    def uri(self) -> str:
        """The picture inside the page."""
        return "data:image/png;base64," + base64.b64encode(self.png).decode()


@dataclass(frozen=True)
class Card:
    """An item in a strip: a thumbnail where there is one, a title, a line below."""

    title: str
    line: str = ""
    thumbnail: Picture | None = None
    hit: bool = False
    """The user went on to choose it."""


@dataclass(frozen=True)
class Strip:
    """Cards in a row, such as a history or a list."""

    title: str
    cards: Sequence[Card]


@dataclass(frozen=True)
class Terms:
    """Words and what they mean."""

    entries: Sequence[tuple[str, str]]


Block = Table | Picture | Strip | Terms


@dataclass(frozen=True)
class Section:
    """A heading, what to read in it, and its blocks."""

    title: str
    text: str = ""
    blocks: Sequence[Block] = ()


@dataclass(frozen=True)
class Page:
    """A whole report."""

    title: str
    verdict: str = ""
    """One sentence at the top: what a reader should take away."""
    facts: Sequence[tuple[str, str]] = ()
    sections: Sequence[Section] = field(default=())


def number(value: float, form: str = ".4f") -> str:
    """A number for a cell; a dash where there is none.

    >>> number(0.12345), number(float("nan"))
    ('0.1235', '-')
    """
    return "-" if math.isnan(value) else format(value, form)


def interval(low: float, high: float, form: str = ".4f") -> str:
    """Both ends of an interval for a cell.

    >>> interval(-0.1, 0.25, "+.2f"), interval(float("nan"), float("nan"))
    ('-0.10 to +0.25', '-')
    """
    return "-" if math.isnan(low) else f"{low:{form}} to {high:{form}}"


def render(page: Page) -> str:
    """The page as HTML."""
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES), autoescape=select_autoescape(default=True), trim_blocks=True
    )
    environment.tests["table"] = lambda block: isinstance(block, Table)
    environment.tests["terms"] = lambda block: isinstance(block, Terms)
    environment.tests["picture"] = lambda block: isinstance(block, Picture)
    return environment.get_template("page.html").render(page=page)
