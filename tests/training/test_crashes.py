"""A checkpoint is complete or absent: a training that dies at any call of the file system goes on and ends the same."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def deaths(tmp_path_factory: pytest.TempPathFactory) -> list[list[Any]]:
    """A line for each call at which a training died: number, call, where it went on, equal in the end, folders left."""
    folder = tmp_path_factory.mktemp("crashes")
    found = subprocess.run(
        [sys.executable, "-m", "tests.training.crashing", str(folder)],
        cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert found.returncode == 0, found.stdout[-2000:] + found.stderr[-2000:]
    return [json.loads(line) for line in found.stdout.splitlines() if line.startswith("[")]


@pytest.mark.slow
def test_every_kind_of_call_was_fatal_once(deaths: list[list[Any]]) -> None:
    calls = {death[1] for death in deaths}
    assert {"mkdir", "rename", "fsync", "rmdir", "unlink", "torn model.safetensors", "torn COMPLETE.json"} <= calls
    assert len(deaths) > 100


def test_weights_and_losses_are_bit_equal_wherever_it_died(deaths: list[list[Any]]) -> None:
    assert [death for death in deaths if not death[3]] == []


def test_no_more_is_done_again_than_since_the_last_checkpoint(deaths: list[list[Any]]) -> None:
    """Where it goes on never moves back, and in the end it goes on at the end: nothing is done twice for long."""
    places = [float(death[2]) for death in deaths]
    assert places == sorted(places)
    assert places[0] == 0.0
    assert places[-1] == 2.0
    assert len(set(places)) == 5  # the start, and each of the four checkpoints


def test_nothing_is_left_over_in_the_end(deaths: list[list[Any]]) -> None:
    assert all(name == "checkpoint" for death in deaths for name in death[4])
