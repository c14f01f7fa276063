"""The page holds what it was given, escaped, and needs nothing from outside."""

import re
from html.parser import HTMLParser

from avrec_ray.evaluation.page import Card, Page, Picture, Section, Strip, Table, Terms, render

HOSTILE = "<script>alert('x')</script>"
PAGE = Page(
    title=f"Run {HOSTILE}",
    verdict="Better than the champion.",
    facts=[("seed", "3")],
    sections=[
        Section(
            "Metrics", "Full ranking.", [Table(["model", "ndcg"], [["a", "0.1"], [HOSTILE, "0.2"]], frozenset({1}))]
        ),
        Section("Users", "", [Strip("u1", [Card(HOSTILE, "rank 1", Picture(b"png", "cap"), hit=True), Card("b")])]),
        Section("Curve", "", [Picture(b"\x89PNG", 'a "quoted" caption')]),
    ],
)


class Tags(HTMLParser):
    """Names of the tags, and those still open at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        if tag not in {"meta", "img", "br"}:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_page_escapes_everything_and_is_well_formed() -> None:
    html = render(PAGE)
    tags = Tags()
    tags.feed(html)
    assert tags.open == []
    assert "script" not in tags.seen
    assert tags.seen.count("tr") == 3
    assert tags.seen.count("img") == 2
    assert html.count("&lt;script&gt;") == 4  # the title twice, a cell, a card


def test_page_loads_nothing_from_outside() -> None:
    html = render(PAGE)
    assert not re.findall(r"(?:src|href)=\"(?!data:)", html)
    assert "data:image/png;base64,iVBORw==" in html


def test_page_lists_words_with_their_meaning() -> None:
    html = render(Page("A page", sections=[Section("Glossary", "Words.", [Terms([("NDCG", HOSTILE), ("MRR", "b")])])]))
    tags = Tags()
    tags.feed(html)
    assert tags.open == []
    assert (tags.seen.count("dt"), tags.seen.count("dd"), tags.seen.count("script")) == (2, 2, 0)


def test_page_marks_rows_and_hits() -> None:
    html = render(PAGE)
    assert html.count('class="marked"') == 1
    assert html.count('class="card hit"') == 1
    assert html.count("no picture") == 1
