"""The champion is asked once: the gate takes what evaluation kept, if it is of the present champion."""

from pathlib import Path

import pyarrow as pa
import pytest

from avrec_ray.bundle import Bundle, load_bundle
from avrec_ray.config import JobConfig
from avrec_ray.errors import StageError
from avrec_ray.pipelines import champion
from avrec_ray.pipelines.champion import ChampionLists, ask_champion, ask_champion_if_possible
from avrec_ray.pipelines.full_loop import open_loop
from avrec_ray.pipelines.stage import Loop
from avrec_ray.pipelines.storage import Storage
from tests.tiny_bundle import build_tiny_bundle
from tests.tiny_measured import recommendations, tiny_measured

USERS = ["u00", "u01"]


@pytest.fixture
def loop(tmp_path: Path) -> Loop:
    """A registry whose versions 1 and 2 are the bundles v-1 and v-2; none is champion."""
    job = JobConfig(storage_path=str(tmp_path / "run"))
    with open_loop(job, "loop") as opened:
        for number in (1, 2):
            bundle = build_tiny_bundle(tmp_path / f"v-{number}", num_items=12)
            run = opened.tracking.start("register", {}, parent=opened.parent.run_id)
            opened.tracking.register(run, bundle, bundle.name, {})
        return opened


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Bundles that were asked for lists, in place of Ray."""
    names: list[str] = []
    monkeypatch.setattr(champion, "read_candidates", lambda root: None)
    monkeypatch.setattr(champion, "history_paths", lambda root: [])

    def recommend(bundle: Path, *args: object) -> pa.Table:
        names.append(load_bundle(bundle).metadata.model_version)
        return pa.table({"user_id": USERS, "item_id": ["i01", "i02"], "rank": [1, 1]})

    monkeypatch.setattr(champion, "recommend_users", recommend)
    return names


def ask(loop: Loop, tmp_path: Path, saved: Path | None = None, candidate: str = "v-1") -> ChampionLists:
    job = JobConfig(storage_path=str(loop.storage.root))
    bundle: Bundle = load_bundle(tmp_path / candidate)
    return ask_champion(loop, job, bundle, USERS, lambda line: None, saved)


def test_nobody_is_asked_without_another_champion(loop: Loop, tmp_path: Path, asked: list[str]) -> None:
    assert ask(loop, tmp_path).note == "There is no champion yet."
    loop.tracking.promote("1")
    found = ask(loop, tmp_path)
    assert (found.note, found.lists) == ("The champion is this very bundle.", None)
    assert asked == []


def test_saved_lists_are_taken_while_the_champion_is_the_same(loop: Loop, tmp_path: Path, asked: list[str]) -> None:
    loop.tracking.promote("2")
    found = ask(loop, tmp_path)
    assert (found.name, found.note, asked) == ("v-2 (version 2)", "", ["v-2"])
    found.save(tmp_path)
    again = ask(loop, tmp_path, saved=tmp_path)
    assert asked == ["v-2"]
    assert again.lists is not None
    assert again.lists.equals(found.lists)
    loop.tracking.promote("1")
    assert ask(loop, tmp_path, saved=tmp_path, candidate="v-2").model_version == "v-1"
    assert asked == ["v-2", "v-1"]


def test_nothing_is_saved_without_lists(tmp_path: Path) -> None:
    ChampionLists(note="There is no champion yet.").save(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_champion_that_cannot_be_read_is_no_reason_to_stop(loop: Loop, tmp_path: Path, asked: list[str]) -> None:
    loop.tracking.promote("2")
    (kept,) = [path for path in loop.storage.root.rglob("metadata.json") if '"v-2"' in path.read_text()]
    kept.write_text("{}")
    found = ask(loop, tmp_path)
    assert found.lists is None
    assert found.note.startswith("The champion v-2 (version 2) cannot be read, so nothing is compared: ")
    assert asked == []


def test_a_champion_that_cannot_be_fetched_stops_the_gate_and_not_the_report(
    loop: Loop, tmp_path: Path, asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    loop.tracking.promote("2")

    def fail(reference: str) -> Path:
        raise StageError(f"{reference} is not in the registry")

    monkeypatch.setattr(loop.tracking, "resolve_bundle", fail)
    with pytest.raises(StageError, match="not in the registry"):
        ask(loop, tmp_path)
    job, bundle = JobConfig(storage_path=str(loop.storage.root)), load_bundle(tmp_path / "v-1")
    found = ask_champion_if_possible(loop, job, bundle, USERS, lambda line: None)
    assert (
        found.note
        == "The champion cannot be fetched, so nothing is compared: models:/avrec_ray/2 is not in the registry"
    )


def test_lists_by_hand_go_through_a_file(tmp_path: Path) -> None:
    measured = tiny_measured(tmp_path / "v-1")
    lists = recommendations(measured.rankings["popularity"], measured.bundle)
    ChampionLists("v-0 (version 1)", "v-0", lists).save(tmp_path)
    assert Storage.at(str(tmp_path)).folder(champion.FILE).is_file()
