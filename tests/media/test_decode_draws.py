"""Rows with draws to rows with clips: one an item, in order, whatever a file does."""

import os
import signal
import threading
from pathlib import Path

import numpy as np
import pytest

from avrec_ray.dataclass_io import to_dict
from avrec_ray.media.config import MediaConfig
from avrec_ray.media.decode import decode_item
from avrec_ray.media.decode_draws import NO_DRAW, DecodeDraws
from tests.media.render import tone, write_media

CFG = MediaConfig(num_frames=2, frame_size=16, clip_seconds=1.0, decoder="pyav")


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_media(tmp_path_factory.mktemp("media") / "film.mp4", 60, sound=tone(2.4))


def test_rows_come_in_order_with_the_clip_that_was_asked_for_or_a_reason(film: Path, tmp_path: Path) -> None:
    uris = [str(film), str(tmp_path / "absent.mp4"), str(film), str(film), str(film)]
    decode = DecodeDraws(to_dict(CFG))
    rows = decode(
        {
            "order": np.array([7, 8, 9, 10, 11]),
            "item_id": ["a", "b", "c", "d", "e"],
            "media_uri": uris,
            "draw": [NO_DRAW, 5, 12345, NO_DRAW, 12345],
            "clip_idx": [1, 0, 0, 9, 1],
        }
    )
    decode.decoder.close()
    assert rows["order"].tolist() == [7, 8, 9, 10, 11]
    assert rows["reason"].tolist() == ["", "missing", "", "corrupt", ""]
    assert rows["has_video"].tolist() == rows["has_audio"].tolist() == [True, False, True, False, True]
    assert rows["frames"].shape == (5, *CFG.frames_shape)
    assert rows["log_mel"].shape == (5, *CFG.log_mel_shape)
    cached = decode_item("a", str(film), CFG)
    np.testing.assert_array_equal(rows["frames"][0], cached[1].frames)
    np.testing.assert_array_equal(rows["log_mel"][0], cached[1].log_mel)
    assert not rows["frames"][[1, 3]].any()
    np.testing.assert_array_equal(rows["log_mel"][2], rows["log_mel"][4])  # the draw decides, not the clip's number
    assert "holds 2 clips now, decode_media found clip 9" in rows["detail"][3]


def test_a_process_that_was_killed_from_outside_costs_no_item(film: Path) -> None:
    decode = DecodeDraws(to_dict(CFG))
    asked = {"order": [0], "item_id": ["a"], "media_uri": [str(film)], "draw": [3], "clip_idx": [0]}
    before = decode(asked)
    pid = decode.decoder._process.pid
    assert pid
    os.kill(pid, signal.SIGSTOP)  # so that it still holds the file when it is killed
    killer = threading.Timer(0.3, os.kill, (pid, signal.SIGKILL))
    killer.start()
    after = decode(asked)
    killer.join()
    decode.decoder.close()
    assert after["reason"].tolist() == [""]
    np.testing.assert_array_equal(after["frames"], before["frames"])


def test_a_file_that_kills_its_process_is_tried_twice_and_left_out(film: Path) -> None:
    decode = DecodeDraws(to_dict(CFG), "tests.media.dying_decoder:die")
    asked = {"order": [0], "item_id": ["a"], "media_uri": [str(film)], "draw": [3], "clip_idx": [0]}
    rows = decode(asked)
    decode.decoder.close()
    assert rows["reason"].tolist() == ["crashed"]
