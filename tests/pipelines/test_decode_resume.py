"""The driver of a decoding job is killed: what it had done stays done, and the tables come out the same."""

from pathlib import Path

import pytest

from tests.pipelines.killed_decoding import (
    NUM_ACTORS,
    Watch,
    decode_without_ray,
    rows_of,
    run_killed,
    start_job,
    until_blocks,
    write_job,
)


@pytest.mark.slow
@pytest.mark.ray
def test_job_killed_twice_gives_the_same_rows_and_redoes_a_block_an_actor(tmp_path: Path) -> None:
    write_job(tmp_path, 60)
    clips, log = tmp_path / "clips", tmp_path / "job.log"
    waits = [until_blocks(clips, 5), until_blocks(clips, 30)]
    with Watch(clips) as watch:
        kills, status = run_killed(lambda: start_job(tmp_path), waits)
    assert status == 0, log.read_text()
    assert kills == 2
    assert len(watch.runs) == 3
    assert all(again <= NUM_ACTORS for again in watch.begun_again())
    assert rows_of(clips, tmp_path / "quarantine") == decode_without_ray(tmp_path)
    assert log.read_text().count("blocks were decoded before and are kept") == 2
    assert not list(tmp_path.glob("clips.parts"))
