from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avrec_ray.errors import MediaError
from avrec_ray.media.config import MediaConfig
from avrec_ray.media.container import OpenMedia
from avrec_ray.media.extract import extract
from avrec_ray.media.gate import kind_of
from avrec_ray.media.probe import probe_open
from avrec_ray.media.video import _orient, _Pictures, read_frames
from tests.media.cases import BY_FILE, WITH_VIDEO, rendered
from tests.media.render import barcode, read_barcode, write_media

CFG = MediaConfig()


def frame_numbers(file: str, rows: list[int], cfg: MediaConfig = CFG) -> tuple[list[int], str]:
    frames, decoder = pictures(rendered(file), rows, cfg)
    return [read_barcode(frame.transpose(2, 0, 1)) for frame in frames], decoder


def pictures(path: Path, rows: list[int], cfg: MediaConfig = CFG) -> tuple[npt.NDArray[np.uint8], str]:
    with path.open("rb", buffering=0) as file, OpenMedia(file, kind_of(file), cfg) as media:
        return read_frames(media, probe_open(media, cfg), np.array(rows), cfg)


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from(["h264.mp4", "hevc.mp4", "vp9.webm", "asp.avi", "h264.avi", "h264.flv", "open_group.mp4"]),
    st.sampled_from(["auto", "pyav"]),
    st.lists(st.integers(0, 49), min_size=1, max_size=6),
)
def test_read_frames_any_rows_are_exact(file: str, decoder: str, rows: list[int]) -> None:
    numbers, _ = frame_numbers(file, sorted(rows), MediaConfig(decoder=decoder))
    assert numbers == sorted(rows)


@pytest.mark.parametrize("file", WITH_VIDEO)
def test_read_frames_few_frames_are_those_of_a_decode_from_the_start(file: str) -> None:
    """Equal to the last bit: a seek into a group must not leave traces of what it skipped."""
    with av.open(str(rendered(file))) as container:
        shown = [frame for frame in container.decode(video=0) if frame.pts is not None]
    count = len(BY_FILE[file].starts)
    rows = sorted({0, count // 3, count // 2, count * 4 // 5, count - 1})
    few, _ = pictures(rendered(file), rows, MediaConfig(decoder="pyav"))
    hidden = len(shown) - count  # those that an edit list hides come first
    assert hidden >= 0
    for row, picture in zip(rows, few, strict=True):
        whole = _Pictures(CFG.frame_size)
        whole.add(shown[hidden + row])
        np.testing.assert_array_equal(picture, whole.upright()[0])


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
    assert frame_numbers("h264.mp4", [7], cfg)[0] == [7]
    with pytest.raises(MediaError, match="decord is not exact on hevc"):
        frame_numbers("hevc.mp4", [7], cfg)


def test_read_frames_decord_and_pyav_give_the_same_picture() -> None:
    ours, _ = pictures(rendered("h264.mp4"), list(range(50)))
    theirs, _ = pictures(rendered("h264.mp4"), list(range(50)), MediaConfig(decoder="pyav"))
    assert np.abs(ours.astype(int) - theirs).mean() < 1.0
    assert np.abs(ours[5].astype(int).mean((0, 1)) - barcode(5).mean((0, 1))).max() < 4


def test_extract_takes_the_middles_of_equal_parts() -> None:
    # 50 frames of 40 ms: 2 s, two clips of 1 s, 4 frames each 250 ms apart, so at 125, 375, ... ms.
    cfg = MediaConfig(num_frames=4, clip_seconds=1.0, max_clips=2)
    with rendered("silent.mp4").open("rb", buffering=0) as file:
        found = extract(file, cfg)
    assert found.frames is not None
    assert found.frames.shape == (2, 4, 3, 64, 64)
    numbers = [[read_barcode(frame) for frame in clip] for clip in found.frames]
    assert numbers == [[3, 9, 15, 21], [28, 34, 40, 46]]
    np.testing.assert_allclose(found.spans, [(0.0, 1.0), (1.0, 2.0)])


def test_read_frames_size_that_decord_refuses_is_decoded_by_pyav_in_the_same_process(tmp_path: Path) -> None:
    """decord 0.6 fails on 16 x 16 with an error of its own class."""
    film = write_media(tmp_path / "film.mp4", 10)
    with film.open("rb", buffering=0) as file:
        found = extract(file, MediaConfig(frame_size=16, num_frames=2))
    assert found.decoder.startswith("pyav")
