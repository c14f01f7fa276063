from pathlib import Path

import numpy as np
import pytest

from avrec_ray.errors import MediaError
from avrec_ray.media.config import MediaConfig
from avrec_ray.media.container import one_line
from avrec_ray.media.probe import MediaInfo, probe
from tests.media.render import tone, write_media


def probed(path: Path, kind: str, cfg: MediaConfig | None = None) -> MediaInfo:
    with path.open("rb", buffering=0) as file:
        return probe(file, kind, cfg or MediaConfig())


def reason(path: Path, kind: str, cfg: MediaConfig | None = None) -> str:
    with pytest.raises(MediaError) as caught:
        probed(path, kind, cfg)
    return caught.value.reason


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("probe") / "film.mp4"
    return write_media(path, options={"g": "12", "bf": "2"}, sound=tone(2.0))


def test_probe_reads_streams_times_and_keyframes_from_packets(film: Path) -> None:
    info = probed(film, "mp4")
    assert info.video is not None
    assert info.audio is not None
    assert (info.video.codec, info.video.width, info.video.height) == ("h264", 128, 96)
    assert info.audio.codec == "aac"
    np.testing.assert_allclose(info.video.pts * info.video.tick_seconds, np.arange(50) / 25, atol=1e-6)
    assert len(info.video.key_pts) == 5
    assert info.video.is_only
    assert not info.video.is_open_gop
    assert info.duration_seconds == pytest.approx(2.0, abs=0.03)


def test_probe_silent_video_and_sound_alone(tmp_path: Path) -> None:
    silent = probed(write_media(tmp_path / "silent.mp4", num_frames=5), "mp4")
    assert silent.audio is None
    sound = probed(write_media(tmp_path / "sound.mp3", 0, sound=tone(1.0), audio_codec="libmp3lame"), "mp3")
    assert sound.video is None
    assert sound.duration_seconds == pytest.approx(1.0, abs=0.1)


def test_probe_single_frame_without_sound_has_no_duration(tmp_path: Path) -> None:
    assert probed(write_media(tmp_path / "one.mp4", num_frames=1), "mp4").duration_seconds == 0.0


@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_probe_cut_file_is_truncated(tmp_path: Path, suffix: str, share: float) -> None:
    options = {"movflags": "faststart"} if suffix == "mp4" else {}
    path = write_media(tmp_path / f"cut.{suffix}", num_frames=200, container_options=options)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    assert reason(path, "mp4" if suffix == "mp4" else "matroska") == "truncated"


def test_probe_mp4_without_its_index_is_truncated(tmp_path: Path, film: Path) -> None:
    data = film.read_bytes()
    path = tmp_path / "headless.mp4"
    path.write_bytes(data[: data.index(b"moov") - 4])
    assert reason(path, "mp4") == "truncated"


def test_probe_limits_name_the_setting(film: Path) -> None:
    with pytest.raises(MediaError, match=r"128 x 96 pixels, media\.max_pixels=100"):
        probed(film, "mp4", MediaConfig(max_pixels=100))
    with pytest.raises(MediaError, match=r"media\.max_duration_seconds=1"):
        probed(film, "mp4", MediaConfig(max_duration_seconds=1.0, clip_seconds=1.0))


def test_probe_garbage_behind_good_magic_is_corrupt(tmp_path: Path) -> None:
    path = tmp_path / "bad.mkv"
    path.write_bytes(b"\x1a\x45\xdf\xa3" + bytes(np.random.default_rng(0).integers(0, 256, 4096, np.uint8)))
    assert reason(path, "matroska") == "corrupt"


def test_probe_demuxer_of_another_kind_does_not_open(film: Path) -> None:
    assert reason(film, "matroska") == "corrupt"


def test_probe_cover_art_is_not_video(shared_data: Path) -> None:
    for name, kind in (("ExoPlayer__bear-id3.mp3", "id3"), ("ExoPlayer__audio.mp3", "id3")):
        info = probed(shared_data / "media" / "audio_formats" / name, kind)
        assert info.video is None
        assert info.audio is not None


def test_one_line_drops_code_and_descriptor() -> None:
    assert one_line(ValueError("[Errno 12] Invalid data: '3'; last log: x\nmore")) == "Invalid data; last log: x"
