import math
from pathlib import Path

import av
import pytest

from avrec_ray.errors import MediaError
from avrec_ray.media import limits
from avrec_ray.media.config import MediaConfig
from avrec_ray.media.gate import kind_of
from avrec_ray.media.probe import MediaInfo, probe
from tests.media.malformed import _many_streams
from tests.media.render import tone, write_media


def probed(path: Path, cfg: MediaConfig) -> MediaInfo:
    with path.open("rb", buffering=0) as file:
        return probe(file, kind_of(file), cfg)


def test_probe_many_streams_are_too_large(tmp_path: Path) -> None:
    path = tmp_path / "a.mkv"
    _many_streams(path)
    with pytest.raises(MediaError, match=r"too_large: 16 streams or more, media\.max_streams=8"):
        probed(path, MediaConfig())
    assert probed(path, MediaConfig(max_streams=64)).num_streams == 64


def test_probe_frame_rate_is_counted_from_packets(tmp_path: Path) -> None:
    path = write_media(tmp_path / "a.mkv", 600, fps=500, options={"preset": "ultrafast"})
    with pytest.raises(MediaError, match=r"too_large: 600 frames in 1\.\d+ s, media\.max_fps=240"):
        probed(path, MediaConfig())
    assert probed(path, MediaConfig(max_fps=500)).video is not None


def test_probe_sample_rate_is_limited(tmp_path: Path) -> None:
    path = write_media(tmp_path / "a.wav", 0, sound=tone(0.1), audio_codec="pcm_s16le")
    with pytest.raises(MediaError, match=r"too_large: sound at 48000 Hz, media\.max_sample_rate_hz=44100"):
        probed(path, MediaConfig(max_sample_rate_hz=44100))
    info = probed(path, MediaConfig(max_sample_rate_hz=48000))
    assert info.audio is not None
    assert info.audio.sample_rate_hz == 48000


@pytest.mark.parametrize("seconds", [math.nan, math.inf, -math.inf, 1e11, -1e11])
def test_check_clock_absurd_time_is_corrupt(seconds: float) -> None:
    limits.check_clock(0.0, -3.0, 1.8e9)  # a live recording counts from 1970
    with pytest.raises(MediaError, match="corrupt: a time stamp at"):
        limits.check_clock(0.0, seconds)


@pytest.mark.parametrize("seconds", [0.0, -0.04, math.nan, 1e5])
def test_check_tick_absurd_unit_is_corrupt(seconds: float) -> None:
    limits.check_tick(1 / 90000)
    with pytest.raises(MediaError, match="corrupt: a stream counts time in units"):
        limits.check_tick(seconds)


@pytest.mark.parametrize(("num_frames", "seconds"), [(1, 0.0), (241, 0.0), (241, 1.0), (2401, 10.0)])
def test_check_rate_at_the_limit_passes(num_frames: int, seconds: float) -> None:
    limits.check_rate(num_frames, seconds, MediaConfig())
    with pytest.raises(MediaError, match="too_large"):
        limits.check_rate(num_frames + 241, seconds, MediaConfig())


def test_open_options_are_all_known_to_ffmpeg(tmp_path: Path) -> None:
    path = write_media(tmp_path / "a.mp4", 5)
    with path.open("rb") as file, av.open(file, options=limits.open_options("mp4", MediaConfig())) as container:
        assert len(container.streams) == 1
        assert not container.options.keys() - limits.open_options("mp4", MediaConfig()).keys()
    tight = MediaConfig(max_pixels=64)
    with path.open("rb") as file, av.open(file, options=limits.open_options("mp4", tight)) as container:
        assert container.streams.video[0].codec_context.width == 128  # the header is read, no picture is
