import random
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avrec_ray.errors import MediaError
from avrec_ray.media.config import MediaConfig
from avrec_ray.media.extract import extract
from avrec_ray.media.probe import MediaInfo, probe
from avrec_ray.media.video import _orient, read_frames
from tests.media.render import barcode, read_barcode, write_edit_list, write_media

CFG = MediaConfig()
GOP = {"g": "12", "bf": "2"}
_rng = random.Random(0)
UNEVEN = [sum(_rng.choice([0.02, 0.04, 0.2]) for _ in range(n)) for n in range(1)]
for _ in range(49):
    UNEVEN.append(UNEVEN[-1] + _rng.choice([0.02, 0.04, 0.2]))

CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "h264.mp4": ("mp4", "decord", {"options": GOP}),
    "h264_one_gop.mov": ("mp4", "decord", {}),
    "h264.mkv": ("matroska", "decord", {"options": GOP}),
    "vfr.mp4": ("mp4", "decord", {"options": GOP, "times": UNEVEN}),
    "vp8.webm": ("matroska", "decord", {"codec": "libvpx", "options": {"g": "12", "auto-alt-ref": "1"}}),
    "vp9.webm": ("matroska", "decord", {"codec": "libvpx-vp9", "options": {"g": "12"}}),
    "fragmented.mp4": ("mp4", "decord", {"container_options": {"movflags": "frag_keyframe+empty_moov"}}),
    "open_gop.mp4": ("mp4", "pyav", {"options": {**GOP, "x264-params": "open-gop=1"}}),
    "hevc.mp4": ("mp4", "pyav", {"codec": "libx265", "options": {"g": "12", "x265-params": "log-level=none"}}),
    "h264.flv": ("flv", "pyav", {"options": GOP}),
    "h264.ts": ("mpegts", "pyav", {"options": GOP}),
    "mpeg2.ts": ("mpegts", "pyav", {"codec": "mpeg2video", "options": GOP}),
    "mpeg4.avi": ("avi", "pyav", {"codec": "mpeg4", "options": GOP}),
    "one_frame.mp4": ("mp4", "decord", {"num_frames": 1}),
}


@cache
def rendered(name: str) -> Path:
    return write_media(Path(mkdtemp()) / name, **CASES[name][2])


def frame_numbers(path: Path, info: MediaInfo, rows: list[int], cfg: MediaConfig = CFG) -> tuple[list[int], str]:
    with path.open("rb", buffering=0) as file:
        frames, decoder = read_frames(file, info, np.array(rows), cfg)
    return [read_barcode(frame.transpose(2, 0, 1)) for frame in frames], decoder


def probed(path: Path, kind: str) -> MediaInfo:
    with path.open("rb", buffering=0) as file:
        return probe(file, kind, CFG)


@pytest.mark.parametrize("name", CASES)
def test_read_frames_each_container_gives_every_frame_asked_for(name: str) -> None:
    kind, expected, _ = CASES[name]
    path = rendered(name)
    info = probed(path, kind)
    assert info.video is not None
    count = len(info.video.pts)
    assert count == CASES[name][2].get("num_frames", 50)
    for rows in (list(range(count)), [count - 1], list(range(count // 3, count, 7)), [0, 0, count // 2]):
        numbers, decoder = frame_numbers(path, info, rows)
        assert numbers == rows
        assert decoder.startswith(expected)


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from(["h264.mp4", "vfr.mp4", "hevc.mp4", "vp9.webm", "mpeg4.avi", "h264.flv", "open_gop.mp4"]),
    st.sampled_from(["auto", "pyav"]),
    st.lists(st.integers(0, 49), min_size=1, max_size=6),
)
def test_read_frames_any_rows_are_exact(name: str, decoder: str, rows: list[int]) -> None:
    info = probed(rendered(name), CASES[name][0])
    numbers, _ = frame_numbers(rendered(name), info, sorted(rows), MediaConfig(decoder=decoder))
    assert numbers == sorted(rows)


def test_read_frames_edit_list_hides_what_lies_before_the_cut(tmp_path: Path) -> None:
    path = write_edit_list(rendered("h264.mp4"), tmp_path / "cut.mp4", cut_seconds=0.72)
    info = probed(path, "mp4")
    assert info.video is not None
    numbers, decoder = frame_numbers(path, info, list(range(len(info.video.pts))))
    assert numbers == list(range(18, 50))
    assert decoder.startswith("pyav")


@pytest.mark.parametrize("rotation", [90, -90, 180])
def test_read_frames_rotated_video_stands_upright(tmp_path: Path, rotation: int) -> None:
    path = write_media(tmp_path / "turned.mp4", rotation=rotation, num_frames=10)
    with path.open("rb", buffering=0) as file:
        frames, decoder = read_frames(file, probe(file, "mp4", CFG), np.array([5]), CFG)
    back = np.rot90(frames[0], -rotation // 90)
    assert read_barcode(back.transpose(2, 0, 1)) == 5
    assert read_barcode(frames[0].transpose(2, 0, 1)) != 5
    assert decoder.startswith("pyav")


def test_orient_mirrors_and_turns_as_the_matrix_says() -> None:
    frame = np.arange(12, dtype=np.uint8).reshape(1, 2, 2, 3)
    assert (_orient(frame, (1, 0, 0, 1)) == frame).all()
    assert (_orient(frame, (-1, 0, 0, 1)) == frame[:, :, ::-1]).all()
    assert (_orient(frame, (1, 0, 0, -1)) == frame[:, ::-1]).all()
    assert (_orient(frame, (0, 1, -1, 0)) == np.rot90(frame, -1, (1, 2))).all()
    assert (_orient(frame, (0, -1, 1, 0)) == np.rot90(frame, 1, (1, 2))).all()
    assert (_orient(frame, (0, 1, 1, 0)) == frame.transpose(0, 2, 1, 3)).all()


def test_read_frames_decord_alone_refuses_where_it_is_not_exact() -> None:
    cfg = MediaConfig(decoder="decord")
    assert frame_numbers(rendered("h264.mp4"), probed(rendered("h264.mp4"), "mp4"), [7], cfg)[0] == [7]
    with pytest.raises(MediaError, match="decord is not exact on hevc"):
        frame_numbers(rendered("hevc.mp4"), probed(rendered("hevc.mp4"), "mp4"), [7], cfg)


def test_read_frames_decord_and_pyav_give_the_same_picture() -> None:
    info = probed(rendered("h264.mp4"), "mp4")
    with rendered("h264.mp4").open("rb", buffering=0) as file:
        ours, _ = read_frames(file, info, np.arange(50), CFG)
        theirs, _ = read_frames(file, info, np.arange(50), MediaConfig(decoder="pyav"))
    assert np.abs(ours.astype(int) - theirs).mean() < 1.0
    assert np.abs(ours[5].astype(int).mean((0, 1)) - barcode(5).mean((0, 1))).max() < 4


def test_extract_takes_the_middles_of_equal_parts() -> None:
    # 50 frames of 40 ms: 2 s, two clips of 1 s, 4 frames each 250 ms apart, so at 125, 375, ... ms.
    cfg = MediaConfig(num_frames=4, clip_seconds=1.0, max_clips=2)
    with rendered("h264.mp4").open("rb", buffering=0) as file:
        found = extract(file, cfg)
    assert found.frames is not None
    assert found.frames.shape == (2, 4, 3, 64, 64)
    numbers = [[read_barcode(frame) for frame in clip] for clip in found.frames]
    assert numbers == [[3, 9, 15, 21], [28, 34, 40, 46]]
    assert found.spans == [(0.0, 1.0), (1.0, 2.0)]


def test_extract_uneven_frame_times_go_by_the_clock() -> None:
    cfg = MediaConfig(num_frames=16, max_clips=1)
    with rendered("vfr.mp4").open("rb", buffering=0) as file:
        found = extract(file, cfg)
    assert found.frames is not None
    span = found.spans[0][1]
    times = (np.arange(16) + 0.5) * span / 16
    expected = [max(n for n, start in enumerate(UNEVEN) if start <= time) for time in times]
    assert [read_barcode(frame) for frame in found.frames[0]] == expected
