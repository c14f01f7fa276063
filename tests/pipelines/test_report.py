"""The page of an evaluation made by hand: what it says of slices, groups, items and the champion."""

from pathlib import Path

import numpy as np
import pytest

from avrec_ray.config import JobConfig
from avrec_ray.evaluation.page import Page, Section, Strip, Table, render
from avrec_ray.pipelines.champion import ChampionLists
from avrec_ray.pipelines.measured import SERVED, Measured
from avrec_ray.pipelines.report import build_page, write_report
from avrec_ray.pipelines.storage import Storage
from tests.tiny_measured import NUM_USERS, recommendations, tiny_measured, tiny_storage

NOBODY = ChampionLists(note="There is no champion yet.")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Measured, Storage, JobConfig]:
    root = tmp_path_factory.mktemp("report")
    measured = tiny_measured(root / "v-1")
    return measured, tiny_storage(root / "run", measured.bundle), JobConfig(storage_path=str(root / "run"))


def section(page: Page, title: str) -> Section:
    return next(section for section in page.sections if section.title == title)


def table(found: Section, position: int = 0) -> Table:
    block = found.blocks[position]
    assert isinstance(block, Table)
    return block


def page_of(finished: tuple[Measured, Storage, JobConfig], champion: ChampionLists = NOBODY) -> Page:
    measured, storage, job = finished
    return build_page(measured, champion, storage, job)


def test_every_section_says_how_to_read_it(finished: tuple[Measured, Storage, JobConfig]) -> None:
    page = page_of(finished)
    assert [found.title for found in page.sections] == [
        "Metrics", "Against the baselines", "Against the champion", "Over the length of the list", "Slices",
        "Groups of users", "Exposure", "Beyond accuracy", "Embeddings", "Ten users", "Glossary",
    ]  # fmt: skip
    assert all(found.text.endswith(".") for found in page.sections)
    assert page.verdict == "In NDCG at 10 the served ranking is better than popularity."
    assert section(page, "Against the champion").text.endswith("There is no champion yet.")


def test_slices_stand_beside_the_best_baseline(finished: tuple[Measured, Storage, JobConfig]) -> None:
    found = table(section(page_of(finished), "Slices"))
    rows = {row[0]: row for row in found.rows}
    assert list(found.head[:5]) == ["slice", "users", SERVED, "interval", "popularity"]
    # One of two targets stands first for everybody: 1 / (1 + 1 / log2(3)).
    assert rows["all"][1:5] == ["60", "0.6131", "0.6131 to 0.6131", "0.0000"]
    assert rows["all"][-1] == "better"
    assert rows["gender_F"][1] == "20"
    assert int(rows["new_users"][1]) + int(rows["known_users"][1]) == NUM_USERS


def test_groups_of_users_and_exposure_say_what_is_compared(finished: tuple[Measured, Storage, JobConfig]) -> None:
    page = page_of(finished)
    history, gender = (table(section(page, "Groups of users"), position) for position in (0, 1))
    assert (history.head[0], gender.head[0]) == ("users by history", "users by gender")
    assert [row[:6] for row in gender.rows] == [[g, "20", "33.3%", "0.6131", "0.6131", "+0.0000"] for g in ("F", "M")]
    category = table(section(page, "Exposure"), 1)
    assert list(category.head) == [
        "category", "share of the items", "share of the choices", "share of the exposure", "ratio", "interval",
    ]  # fmt: skip
    assert {row[0]: row[1] for row in category.rows} == dict.fromkeys(("music", "sport", "cooking"), "25.0%")


def test_a_worse_candidate_is_shown_where_it_lost(finished: tuple[Measured, Storage, JobConfig]) -> None:
    measured, storage, job = finished
    # The champion has both targets of every user in front; the candidate finds one of them.
    theirs = np.array(
        [
            [*t, *(i for i in r if i not in t)][:20]
            for t, r in zip(measured.targets, measured.rankings[SERVED], strict=True)
        ]
    )
    champion = ChampionLists("v-0 (version 1)", "v-0", recommendations(theirs, measured.bundle))
    page = build_page(measured, champion, storage, job)
    assert "It is worse than the champion v-0 (version 1), and worse on " in page.verdict
    found = section(page, "Against the champion")
    slices, items = table(found, 0), table(found, 1)
    assert slices.rows[0][-1] == "worse"
    assert 0 in slices.marked
    assert len(items.rows) == 15
    lost = [int(row[4].split()[0]) - int(row[5].split()[0]) for row in items.rows]
    assert lost == sorted(lost, reverse=True)
    assert lost[-1] > 0
    strips = [block for block in found.blocks if isinstance(block, Strip)]
    assert len(strips) == 20
    assert [sum(card.hit for card in strip.cards) for strip in strips[:2]] == [2, 1]
    assert "list of the champion, NDCG at 10 1.00" in strips[0].title


def test_the_same_lists_as_the_champion_are_not_clearly_different(
    finished: tuple[Measured, Storage, JobConfig],
) -> None:
    champion = ChampionLists("v-0 (version 1)", "v-0", finished[0].recommendations)
    page = page_of(finished, champion)
    assert page.verdict.endswith("It is not clearly different from the champion v-0 (version 1).")
    assert len(section(page, "Against the champion").blocks) == 1  # nothing lost: no items, no users


def test_the_page_is_one_file_with_its_glossary(finished: tuple[Measured, Storage, JobConfig], tmp_path: Path) -> None:
    measured, storage, job = finished
    write_report(tmp_path / "report.html", measured, NOBODY, storage, job)
    html = (tmp_path / "report.html").read_text()
    for word in ("NDCG", "Recall", "MRR", "Coverage", "Gini", "Novelty", "Intra-list", "Serendipity", "Miscalibration"):
        assert f"<dt>{word}" in html
    assert html.index('class="verdict"') < html.index("<h2>Metrics</h2>")
    assert html == render(page_of(finished))
