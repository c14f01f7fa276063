"""Decode actors run on the nodes that decode, and outlive one of them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.pipelines.killed_decoding import ROOT, decode_without_ray, rows_of, write_job


@pytest.mark.slow
@pytest.mark.ray
def test_decode_node_killed_in_the_middle_gives_the_complete_result(tmp_path: Path) -> None:
    write_job(tmp_path, 60)
    ran = subprocess.run(
        [sys.executable, "-m", "tests.pipelines.decoding_nodes", str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    told = json.loads(ran.stdout.splitlines()[-1])
    assert told["actors"] == [0, 1, 1], "of the head, which has CPUs to spare, and of the two decode nodes"
    assert told["done"] < 56
    assert told["alive"] == 2
    assert told["lines"][-1] == "decoded 60"
    assert rows_of(tmp_path / "clips", tmp_path / "quarantine") == decode_without_ray(tmp_path)
