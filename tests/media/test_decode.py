import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from avrec_ray.errors import MediaError
from avrec_ray.media.config import MediaConfig
from avrec_ray.media.decode import ItemDecoder, decode_item, text_only_clip
from avrec_ray.types import QUARANTINE_REASONS
from tests.media.cases import rendered
from tests.media.render import read_barcode, tone, write_media

CFG = MediaConfig(num_frames=4, clip_seconds=1.0)


@pytest.fixture(scope="module")
def decoder() -> Iterator[ItemDecoder]:
    with ItemDecoder(CFG) as decoder:
        yield decoder


@pytest.fixture(scope="module")
def pyav_decoder() -> Iterator[ItemDecoder]:
    with ItemDecoder(MediaConfig(num_frames=2, clip_seconds=1.0, decoder="pyav")) as decoder:
        yield decoder


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_media(tmp_path_factory.mktemp("decode") / "film.mp4", options={"g": "12"}, sound=tone(2.0))


def test_decode_film_gives_clips_of_fixed_shape(decoder: ItemDecoder, film: Path) -> None:
    clips = decoder.decode("film", str(film))
    assert [clip.clip_idx for clip in clips] == [0, 1]
    for clip in clips:
        assert clip.item_id == "film"
        assert clip.frames.shape == (4, 3, 64, 64)
        assert clip.log_mel.shape == (80, 100)
        assert clip.has_video
        assert clip.has_audio
        assert clip.decoder.startswith("decord 0.6.0, pyav 18")
        assert clip.media_sha256 == hashlib.sha256(film.read_bytes()).hexdigest()
    assert [read_barcode(frame) for frame in clips[0].frames] == [3, 9, 15, 21]
    loudest = clips[0].log_mel.mean(1).argmax()
    assert 8 <= loudest <= 13  # 440 Hz lies near the tenth of 80 mels


def test_decode_twice_is_bit_equal(decoder: ItemDecoder, film: Path) -> None:
    first, second = decoder.decode("film", str(film)), decoder.decode("film", str(film))
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a.frames, b.frames)
        np.testing.assert_array_equal(a.log_mel, b.log_mel)


def test_decode_item_absent_modality_is_zero_with_a_flag(tmp_path: Path) -> None:
    silent = write_media(tmp_path / "silent.mp4", num_frames=10)
    (clip,) = decode_item("silent", str(silent), CFG)
    assert (clip.has_video, clip.has_audio) == (True, False)
    assert not clip.log_mel.any()
    sound = write_media(tmp_path / "sound.wav", 0, sound=tone(0.5), audio_codec="pcm_s16le")
    (clip,) = decode_item("sound", str(sound), CFG)
    assert (clip.has_video, clip.has_audio) == (False, True)
    assert not clip.frames.any()
    assert clip.log_mel.any()


def test_text_only_clip_is_all_absent() -> None:
    clip = text_only_clip("text", CFG)
    assert not clip.has_video
    assert not clip.has_audio
    assert not clip.frames.any()
    assert not clip.log_mel.any()
    assert clip.log_mel.shape == CFG.log_mel_shape


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_decode_damaged_film_is_decoded_or_set_aside_with_a_known_reason(
    decoder: ItemDecoder, film: Path, tmp_path: Path, data: st.DataObject
) -> None:
    content = bytearray(film.read_bytes())
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    length = data.draw(st.one_of(st.just(len(content)), st.integers(0, len(content))))
    path = tmp_path / "damaged.mp4"
    path.write_bytes(content[:length])
    reason, clips = "", []
    try:
        clips = decoder.decode("damaged", str(path))
    except MediaError as error:
        reason = error.reason
    assert reason in QUARANTINE_REASONS or 1 <= len(clips) <= CFG.max_clips
    assert all(np.isfinite(clip.log_mel).all() for clip in clips)


DAMAGED = ["h264.flv", "h264.ts", "h264.mkv", "h264.avi", "fragmented.mp4", "mpeg2.mpg", "sound.aac", "sound.ogg"]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(file=st.sampled_from(DAMAGED), seed=st.integers(0, 2**32), count=st.integers(1, 30))
def test_decode_damaged_media_of_any_container_does_not_end_the_child(
    pyav_decoder: ItemDecoder, tmp_path: Path, file: str, seed: int, count: int
) -> None:
    rng = np.random.default_rng(seed)
    content = bytearray(rendered(file).read_bytes())
    for place, value in zip(rng.integers(0, len(content), count), rng.integers(0, 256, count), strict=True):
        content[place] = value
    path = tmp_path / file
    path.write_bytes(content)
    reason = ""
    try:
        assert pyav_decoder.decode("damaged", str(path))
    except MediaError as error:
        reason = error.reason
    assert reason in {"", *QUARANTINE_REASONS} - {"crashed"}
