from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avrec_ray.media.config import MediaConfig
from avrec_ray.media.extract import Extract, extract
from tests.media.cases import BY_FILE, Case, rendered
from tests.media.render import click_track, clicks, read_barcode, write_media

RATE_HZ = 16000


def decoded(file: str, cfg: MediaConfig, draw: int | None = None) -> Extract:
    with rendered(file).open("rb", buffering=0) as media:
        return extract(media, cfg, draw)


def numbers(found: Extract) -> list[int]:
    assert found.frames is not None
    return [read_barcode(frame) for clip in found.frames for frame in clip]


def on_display(case: Case, time: float) -> int:
    return case.first + max((row for row, start in enumerate(case.starts) if start <= time), default=0)


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(["uneven.mp4", "h264.mkv", "h264.ts", "h264.avi", "vp9.webm"]), st.integers(0, 2**32))
def test_extract_draw_is_one_exact_clip_of_picture_and_sound(file: str, draw: int) -> None:
    cfg = MediaConfig(num_frames=4, clip_seconds=0.5, max_clips=2)
    found = decoded(file, cfg, draw)
    ((start, end),) = found.spans
    assert 0 <= start < end
    assert end - start == pytest.approx(0.5)
    # The times are the draw's own: a place for the span first, then a place in each part.
    rng = np.random.default_rng(draw)
    rng.random()
    times = start + (np.arange(4) + rng.random(4)) / 4 * 0.5
    for number, time in zip(numbers(found), times, strict=True):
        assert number in {on_display(BY_FILE[file], time + slack) for slack in (-6e-4, 6e-4)}
    case = BY_FILE[file]
    assert case.sound is not None
    if found.waveforms is None:
        assert start > case.sound[1] - 0.1
        return
    seconds = round(start * RATE_HZ) / RATE_HZ + np.arange(cfg.num_samples) / RATE_HZ
    heard = np.where(seconds < case.sound[1] - 0.05, found.waveforms[0], 0)
    expected = np.where(seconds < case.sound[1] - 0.05, clicks(seconds + case.sound_shift), 0)
    assert np.abs(heard - expected).mean() < 0.01
    if np.abs(expected).max() > 0.2:
        assert np.corrcoef(heard, expected)[0, 1] > 0.9


def test_extract_draw_of_a_short_item_is_all_of_it_and_of_another_number_another_clip() -> None:
    cfg = MediaConfig(num_frames=4, clip_seconds=4.0)
    found = decoded("silent.mp4", cfg, 3)
    np.testing.assert_allclose(found.spans, [(0.0, 2.0)])
    assert numbers(found) == numbers(decoded("silent.mp4", cfg, 3))
    assert len({tuple(numbers(decoded("silent.mp4", cfg, draw))) for draw in range(8)}) > 1


FAST = ["h264.mp4", "h264.mkv", "h264.flv", "h264.ts", "hevc.mp4", "open_group.mp4", "vp9.webm", "av1.mp4", "asp.avi"]


@pytest.mark.parametrize("file", [*FAST, "mpeg2.mpg", "uneven.mp4"])
def test_extract_fast_takes_the_nearest_keyframes(file: str) -> None:
    # Keyframes every 12 pictures; two pictures wanted at a quarter and three quarters of the item.
    found = decoded(file, MediaConfig(num_frames=2, max_clips=1, mode="fast"))
    case = BY_FILE[file]
    keys = np.arange(0, len(case.starts), 12)
    key_starts = np.array(case.starts)[keys]
    times = np.array([0.25, 0.75]) * found.spans[0][1]
    assert numbers(found) == [int(keys[np.abs(key_starts - time).argmin()]) for time in times]
    assert found.decoder.split(",")[0].endswith(" keyframes")
    assert found.decoder.startswith("pyav 18")


def test_extract_fast_turns_the_picture() -> None:
    fast = decoded("turned_90.mp4", MediaConfig(num_frames=1, max_clips=1, mode="fast"))
    whole = decoded("turned_90.mp4", MediaConfig(num_frames=50, max_clips=1))
    assert fast.frames is not None
    assert whole.frames is not None
    np.testing.assert_array_equal(fast.frames[0, 0], whole.frames[0, 24])


@pytest.mark.parametrize("file", ["one_group.mp4", "h264.avi", "intra_refresh.mp4", "one_frame.mp4"])
def test_extract_fast_is_exact_where_keyframes_do_not_do(file: str) -> None:
    cfg = MediaConfig(num_frames=4, max_clips=1)
    fast, exact = decoded(file, MediaConfig(num_frames=4, max_clips=1, mode="fast")), decoded(file, cfg)
    assert numbers(fast) == numbers(exact)
    assert fast.decoder == exact.decoder
    assert "keyframes" not in fast.decoder


def test_extract_fast_counts_the_keyframes_of_a_drawn_span_alone() -> None:
    cfg = MediaConfig(num_frames=2, clip_seconds=0.5, mode="fast")
    found = [decoded("h264.mp4", cfg, draw) for draw in range(12)]
    for extract_ in found:
        ((start, end),) = extract_.spans
        num_keys = sum(start <= key * 12 / 25 < end for key in range(5))
        assert ("keyframes" in extract_.decoder) == (num_keys >= 2)


def test_extract_draw_in_a_hole_of_the_sound_is_a_silent_clip(tmp_path: Path) -> None:
    path = write_media(tmp_path / "hole.mka", 0, sound=click_track(0, 1), audio_codec="flac", sound_again_seconds=9.0)
    cfg = MediaConfig(clip_seconds=1.0)
    with path.open("rb", buffering=0) as media:
        found = [extract(media, cfg, draw) for draw in range(12)]
    for extract_ in found:
        ((start, end),) = extract_.spans
        assert extract_.has_audio == [start < 1.0 or end > 9.0]
        assert extract_.decoder.startswith("pyav")
    assert {extract_.has_audio[0] for extract_ in found} == {True, False}
