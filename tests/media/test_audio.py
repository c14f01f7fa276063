from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from avrec_ray.errors import MediaError
from avrec_ray.media.audio import _stretches
from avrec_ray.media.config import MediaConfig
from avrec_ray.media.extract import Extract, extract
from avrec_ray.media.probe import AudioTrack, MediaInfo
from tests.media.render import SAMPLE_RATE_HZ, tone, write_media
from tests.media.sounds import lag_samples, whole_sound

CFG = MediaConfig()


def decoded(path: Path, cfg: MediaConfig = CFG, draw: int | None = None) -> Extract:
    with path.open("rb", buffering=0) as file:
        return extract(file, cfg, draw)


def onset_seconds(samples: npt.NDArray[np.float32]) -> float:
    return float(np.argmax(np.abs(samples) > 0.1)) / CFG.sample_rate_hz


@pytest.mark.parametrize(
    ("name", "codec"),
    [
        ("a.wav", "pcm_s16le"),
        ("b.wav", "pcm_s64le"),
        ("c.wav", "pcm_u8"),
        ("a.flac", "flac"),
        ("a.mp3", "libmp3lame"),
        ("a.m4a", "aac"),
        ("a.ogg", "libopus"),
    ],
)
def test_extract_sound_alone_keeps_pitch_and_level(tmp_path: Path, name: str, codec: str) -> None:
    path = write_media(tmp_path / name, 0, sound=tone(3.0), audio_codec=codec)
    found = decoded(path)
    assert found.frames is None
    assert found.has_audio == [True]
    assert found.waveforms is not None
    samples = found.waveforms[0]
    assert samples.shape == (64000,)
    middle = samples[8000:40000]
    assert np.sqrt((middle**2).mean()) == pytest.approx(0.5 / np.sqrt(2), abs=0.02)
    peak = np.argmax(np.abs(np.fft.rfft(middle))) * CFG.sample_rate_hz / len(middle)
    assert peak == pytest.approx(440, abs=1)
    assert not samples[49000:].any()


def test_extract_lossless_sound_is_sample_exact(tmp_path: Path) -> None:
    cfg = MediaConfig(sample_rate_hz=SAMPLE_RATE_HZ, clip_seconds=1.0, max_clips=2)
    sound = tone(2.0)
    found = decoded(write_media(tmp_path / "a.wav", 0, sound=sound, audio_codec="pcm_f32le"), cfg)
    assert found.waveforms is not None
    np.testing.assert_allclose(found.waveforms.reshape(-1), sound, atol=1e-6)


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
@pytest.mark.parametrize("start", [0.0, 0.5, 1.3])
def test_extract_late_sound_keeps_its_delay(tmp_path: Path, suffix: str, start: float) -> None:
    sound = tone(1.0)
    path = write_media(tmp_path / f"late.{suffix}", 75, sound=sound, audio_start_seconds=start)
    found = decoded(path)
    assert found.waveforms is not None
    assert onset_seconds(found.waveforms[0]) == pytest.approx(start, abs=0.03)


def test_extract_sound_beyond_the_span_stays_out(tmp_path: Path) -> None:
    cfg = MediaConfig(clip_seconds=2.0, max_clips=2)
    found = decoded(write_media(tmp_path / "a.wav", 0, sound=tone(3.0), audio_codec="pcm_s16le"), cfg)
    assert found.spans == [(0.0, 1.5), (1.5, 3.0)]
    assert found.waveforms is not None
    assert found.waveforms[0, 23900:24000].any()
    assert not found.waveforms[0, 24000:].any()
    assert found.waveforms[1, :100].any()


def test_extract_clip_without_sound_says_so(tmp_path: Path) -> None:
    cfg = MediaConfig(clip_seconds=1.0, max_clips=2)
    path = write_media(tmp_path / "half.mkv", 100, sound=tone(1.0))
    found = decoded(path, cfg)
    assert found.has_audio == [True, False]


def test_extract_sound_with_few_bad_packets_is_kept_with_many_refused(tmp_path: Path) -> None:
    path = write_media(tmp_path / "a.flac", 0, sound=tone(3.0), audio_codec="flac")
    data = bytearray(path.read_bytes())
    path.write_bytes(data[:-40])
    assert decoded(path).has_audio == [True]
    data[200:] = bytes(len(data) - 200)
    path.write_bytes(data)
    with pytest.raises(MediaError):
        decoded(path)


@pytest.mark.parametrize(
    ("name", "codec"),
    [
        ("a.m4a", "aac"),
        ("a.aac", "aac"),
        ("a.mp3", "libmp3lame"),
        ("a.ogg", "libopus"),
        ("a.webm", "libopus"),
        ("a.flac", "flac"),
        ("a.wav", "pcm_s16le"),
        ("a.mka", "ac3"),
    ],
)
@pytest.mark.parametrize("draw", [None, 1])
def test_extract_sound_behind_a_skipped_stretch_is_that_of_a_whole_decode(
    tmp_path: Path, name: str, codec: str, draw: int | None
) -> None:
    rng = np.random.default_rng(0)
    noise = np.convolve(rng.normal(0, 0.1, 20 * SAMPLE_RATE_HZ), np.hanning(25) / 6, "same").astype(np.float32)
    path = write_media(tmp_path / name, 0, sound=noise, audio_codec=codec)
    cfg = MediaConfig(clip_seconds=1.0, max_clips=2)
    found = decoded(path, cfg, draw)
    whole = whole_sound(path)
    assert found.waveforms is not None
    start = round(found.spans[-1][0] * CFG.sample_rate_hz)
    assert start > 5 * CFG.sample_rate_hz
    lag, likeness = lag_samples(found.waveforms[-1], whole[start : start + cfg.num_samples])
    assert abs(lag) <= 1
    assert likeness > 0.99


def test_stretches_leave_out_what_lies_between_distant_clips() -> None:
    info = MediaInfo("mp4", None, AudioTrack(0, "aac", 1 / 48000, start_seconds=5.0))
    assert _stretches([(0.0, 1.0), (2.0, 3.0)], info) == [(-np.inf, 8.5)]
    assert _stretches([(0.0, 1.0), (10.0, 11.0)], info) == [(-np.inf, 6.5), (14.0, 16.5)]
    assert _stretches([(10.0, 11.0)], info) == [(-np.inf, 6.0), (14.0, 16.5)]
    vorbis = MediaInfo("matroska", None, AudioTrack(0, "vorbis", 1e-3, start_seconds=5.0))
    assert _stretches([(0.0, 1.0), (10.0, 11.0)], vorbis) == [(-np.inf, 16.5)]
