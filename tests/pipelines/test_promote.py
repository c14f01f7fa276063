"""The alias moves only by the gate's leave, one at a time, and back by one command. A real MLflow on SQLite."""

from pathlib import Path

import pytest

from avrec_ray.bundle import load_metadata
from avrec_ray.config import JobConfig
from avrec_ray.errors import ConfigError, StageError
from avrec_ray.pipelines import promote
from avrec_ray.pipelines.full_loop import open_loop
from avrec_ray.pipelines.stage import Loop
from avrec_ray.pipelines.storage import Storage
from avrec_ray.pipelines.tracking import VERDICT
from tests.tiny_bundle import build_tiny_bundle


def job_at(root: Path, version: str = "", rollback: bool = False, force: bool = False) -> JobConfig:
    return JobConfig(storage_path=str(root), version=version, rollback=rollback, force=force)


def move(root: Path, **asked: object) -> str:
    """jobs.promote; gives the bundle that is champion then."""
    job = job_at(root, **asked)  # type: ignore[arg-type]
    with open_loop(job, "promote") as loop:
        return promote.run(loop, job).model_version


@pytest.fixture
def registry(tmp_path: Path) -> Path:
    """Three registered bundles: v-1 and v-2 passed the gate, v-3 did not. None is champion."""
    root = tmp_path / "run"
    with open_loop(job_at(root), "loop") as loop:
        for number, verdict in ((1, "passed"), (2, "passed"), (3, "refused")):
            bundle = build_tiny_bundle(tmp_path / f"v-{number}", num_items=12)
            run = loop.tracking.start("register", {}, parent=loop.parent.run_id)
            version = loop.tracking.register(
                run, bundle, bundle.name, {VERDICT: verdict, "checks": "FAIL  not worse on all: -0.1"}
            )
            assert version == str(number)
    return root


def champion(root: Path) -> str | None:
    job = job_at(root)
    found = Loop(Storage.at(str(root)), job.tracking, "look").tracking.champion()
    return found.model_version if found else None


def test_promote_and_roll_back(registry: Path) -> None:
    assert champion(registry) is None
    assert move(registry, version="1") == "v-1"
    assert move(registry, version="2") == "v-2"
    assert champion(registry) == "v-2"
    assert move(registry, rollback=True) == "v-1"
    assert champion(registry) == "v-1"


def test_champion_resolves_to_its_bundle(registry: Path) -> None:
    move(registry, version="2")
    loop = Loop(Storage.at(str(registry)), job_at(registry).tracking, "look")
    assert (loop.resolve_bundle("models:/avrec_ray@champion") / "metadata.json").is_file()


def test_the_champion_is_served_whatever_was_built_last(registry: Path) -> None:
    loop = Loop(Storage.at(str(registry)), job_at(registry).tracking, "look", echo=lambda line: None)
    with pytest.raises(StageError, match="stage 'bundle' has not finished"):
        loop.bundle_to_serve("")  # neither a champion nor a bundle built here
    move(registry, version="2")
    assert load_metadata(loop.bundle_to_serve("")).model_version == "v-2"
    move(registry, version="1")
    assert load_metadata(loop.bundle_to_serve("")).model_version == "v-1"
    assert load_metadata(loop.bundle_to_serve("models:/avrec_ray/2")).model_version == "v-2"


def test_what_the_gate_refused_needs_force(registry: Path) -> None:
    move(registry, version="1")
    with pytest.raises(StageError, match=r"(?s)version 3 was refused by the gate:.*not worse on all.*force=true"):
        move(registry, version="3")
    assert champion(registry) == "v-1"
    assert move(registry, version="3", force=True) == "v-3"


def test_promote_of_nothing_or_of_the_unknown_is_refused(registry: Path) -> None:
    with pytest.raises(StageError, match="version '9' .* is not in the registry"):
        move(registry, version="9")
    with pytest.raises(ConfigError, match="give one of version"):
        move(registry)
    with pytest.raises(ConfigError, match="give one of version"):
        move(registry, version="1", rollback=True)
    with pytest.raises(StageError, match="champion is not set"):
        move(registry, rollback=True)
    move(registry, version="1")
    with pytest.raises(StageError, match="which replaced none"):
        move(registry, rollback=True)


def test_two_promotions_cannot_race(registry: Path) -> None:
    with (
        promote.promotion_lock(Storage.at(str(registry))),
        pytest.raises(StageError, match="another promotion is running"),
    ):
        move(registry, version="1")
    assert move(registry, version="1") == "v-1"
