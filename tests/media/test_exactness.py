"""Every case of the table: each picture asked for is the one on display, the sound lies where it was put."""

import numpy as np
import numpy.typing as npt
import pytest

from avrec_ray.errors import MediaError
from avrec_ray.media.config import MediaConfig
from avrec_ray.media.container import OpenMedia
from avrec_ray.media.extract import Extract, extract
from avrec_ray.media.gate import kind_of
from avrec_ray.media.probe import probe_open
from avrec_ray.media.video import read_frames
from tests.media.cases import BY_FILE, WITH_SOUND, WITH_VIDEO, Case, rendered
from tests.media.render import clicks, read_barcode
from tests.media.sounds import lag_samples, whole_sound

RATE_HZ = 16000
CLOCK_SECONDS = 6e-4
"""Half a tick of a container that counts milliseconds, and a little: so far off may a recorded time be."""


def opened(case: Case, cfg: MediaConfig) -> Extract:
    with rendered(case.file).open("rb", buffering=0) as file:
        assert kind_of(file) == case.kind
        return extract(file, cfg)


def upright(frame: npt.NDArray[np.uint8], case: Case) -> npt.NDArray[np.uint8]:
    """The picture [3, H, W] as it was stored, so that its bars can be read."""
    picture = frame[:, :, ::-1] if case.is_mirrored else frame
    return np.rot90(picture, case.turns, (1, 2))


def all_pictures(case: Case, decoder: str) -> tuple[list[int], str]:
    cfg = MediaConfig(decoder=decoder)
    with rendered(case.file).open("rb", buffering=0) as file, OpenMedia(file, case.kind, cfg) as media:
        info = probe_open(media, cfg)
        assert info.video is not None
        rows = np.arange(len(info.video.pts))
        frames, name = read_frames(media, info, rows, cfg)
    return [read_barcode(upright(frame.transpose(2, 0, 1), case)) for frame in frames], name


@pytest.mark.parametrize("file", WITH_VIDEO)
@pytest.mark.parametrize("decoder", ["auto", "pyav", "decord"])
def test_read_frames_gives_every_picture_once_and_in_order(file: str, decoder: str) -> None:
    case = BY_FILE[file]
    if decoder == "decord" and case.decoder != "decord":
        with pytest.raises(MediaError, match="decord is not exact"):
            all_pictures(case, decoder)
        return
    numbers, name = all_pictures(case, decoder)
    assert numbers == list(range(case.first, case.first + len(case.starts)))
    assert name.startswith(case.decoder if decoder == "auto" else decoder)


@pytest.mark.parametrize("file", WITH_VIDEO)
def test_extract_shows_the_picture_on_display_at_each_time(file: str) -> None:
    case = BY_FILE[file]
    cfg = MediaConfig(num_frames=7, clip_seconds=1.0, max_clips=2)
    found = opened(case, cfg)
    assert found.frames is not None
    for (start, end), clip in zip(found.spans, found.frames, strict=True):
        for i, frame in enumerate(clip):
            time = start + (i + 0.5) * (end - start) / len(clip)
            number = read_barcode(upright(frame, case)) - case.first
            assert number in {on_display(case, time - CLOCK_SECONDS), on_display(case, time + CLOCK_SECONDS)}


def on_display(case: Case, time: float) -> int:
    return max((row for row, start in enumerate(case.starts) if start <= time), default=0)


@pytest.mark.parametrize("file", BY_FILE)
def test_extract_spans_cover_the_item(file: str) -> None:
    case = BY_FILE[file]
    found = opened(case, MediaConfig(clip_seconds=1.0, max_clips=2))
    expected = 0.0 if len(case.starts) == 1 and case.sound is None else case.end
    # Codecs pad the sound to whole packets; the last picture of uneven times has no length of its own.
    assert -0.01 <= found.spans[-1][1] - expected <= 0.21


@pytest.mark.parametrize("file", WITH_SOUND)
def test_extract_sound_lies_within_a_sample_of_where_it_was_put(file: str) -> None:
    case = BY_FILE[file]
    found = opened(case, MediaConfig(max_clips=1))
    assert found.waveforms is not None
    lag, likeness = lag_samples(found.waveforms[0], expected_sound(case))
    assert likeness > 0.98
    assert abs(lag) <= 1
    assert case.sound is not None
    before = round(case.sound[0] * RATE_HZ) - 400
    assert not np.abs(found.waveforms[0][: max(0, before)]).max(initial=0) > 1e-3


@pytest.mark.parametrize("file", WITH_SOUND)
def test_extract_sound_is_what_ffmpeg_makes_of_the_whole_file(file: str) -> None:
    case = BY_FILE[file]
    waveforms = opened(case, MediaConfig(max_clips=1)).waveforms
    assert waveforms is not None
    found, reference = waveforms[0], whole_sound(rendered(file))
    lag = round(lag_samples(found, np.pad(reference, (0, max(0, len(found) - len(reference)))))[0])
    low, high = max(0, lag), min(len(found), lag + len(reference))
    assert high - low > RATE_HZ * 0.9 * (case.sound[1] - case.sound[0] if case.sound else 0)
    np.testing.assert_allclose(found[low:high], reference[low - lag : high - lag], atol=1e-6)
    assert not found[:low].any()
    assert not found[high:].any()


def expected_sound(case: Case, num_samples: int = 4 * RATE_HZ) -> npt.NDArray[np.float32]:
    assert case.sound is not None
    times = np.arange(num_samples) / RATE_HZ
    wave = clicks(times + case.sound_shift)
    return np.where((times >= case.sound[0]) & (times < case.sound[1]), wave, 0).astype(np.float32)
