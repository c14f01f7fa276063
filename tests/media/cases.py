"""The table of media that decoding must be exact on: each row renders one file and says what is in it.

What is expected comes from what was rendered, never from reading the file back. A picture carries its number; the
sound is `clicks` of the time, so it is right exactly where it equals `clicks` on the item's time line.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tests.media.boxes import set_edit
from tests.media.render import SAMPLE_RATE_HZ, click_track, write_edit_list, write_media

_FOLDER = TemporaryDirectory(prefix="cases")

SECONDS = 2.0
"""Length of most cases."""


@dataclass(frozen=True)
class Case:
    """One file, and what is to be seen and heard of it."""

    file: str
    kind: str
    """Key of gate.FORMATS."""
    render: Callable[[Path], object]
    starts: Sequence[float]
    """Time that each picture shown starts at, on the item's time line: the first at zero. Empty without video."""
    end: float
    """End of the item."""
    first: int = 0
    """Number of the first picture shown."""
    decoder: str = "pyav"
    """Who decodes the pictures with `decoder=auto`: decord where decord is exact."""
    sound: tuple[float, float] | None = None
    """Between which times of the item sound is heard."""
    sound_shift: float = 0.0
    """The sound at time t of the item is clicks(t + sound_shift)."""
    num_keys: int | None = None
    """Keyframes shown, where the suite checks them."""
    turns: int = 0
    """Quarter turns clockwise that bring the stored picture upright."""
    is_mirrored: bool = False
    """Left and right change places after the turn."""


def even(num_frames: int, fps: float) -> list[float]:
    """Start times of frames at an even rate."""
    return [number / fps for number in range(num_frames)]


def _uneven(num_frames: int) -> list[float]:
    rng = random.Random(0)
    times = [0.0]
    while len(times) < num_frames:
        times.append(round(times[-1] + rng.choice([0.02, 0.04, 0.2]), 2))
    return times


UNEVEN = _uneven(36)
GOP = {"g": "12", "bf": "2"}


def film(
    file: str,
    kind: str,
    decoder: str = "pyav",
    *,
    num_frames: int = 50,
    fps: float = 25.0,
    sound: tuple[float, float] | None = (0.0, SECONDS),
    times: Sequence[float] | None = None,
    turns: int = 0,
    lead_samples: int = 0,
    **how: Any,
) -> Case:
    """A case that `write_media` can write. `times` and `sound` are on the file's clock; the item begins with the film.

    `lead_samples` is by how much the container itself sets the sound late: what an encoder puts before the sound, where
    the format has no place to say so.
    """
    starts = list(times) if times is not None else even(num_frames, fps)
    zero = starts[0] if starts else (sound or (0.0, 0.0))[0]
    # The last picture of uneven times is as long as a container cares to say: the sound outlasts it.
    end = max(starts[-1] + (1 / fps if times is None else 0) if starts else 0.0, sound[1] if sound else 0.0)

    def render(path: Path) -> object:
        track = None if sound is None else click_track(*sound)
        begin = sound[0] if sound else 0.0
        return write_media(
            path, len(starts), fps, times=times, sound=track, audio_start_seconds=begin, rotation=-90 * turns, **how
        )

    return Case(
        file,
        kind,
        render,
        [start - zero for start in starts],
        end - zero,
        decoder=decoder,
        sound=None if sound is None else (max(0.0, sound[0] - zero), sound[1] - zero),
        sound_shift=zero - lead_samples / SAMPLE_RATE_HZ,
        turns=turns,
        is_mirrored=how.get("is_mirrored", False),
    )


def sound_alone(file: str, kind: str, audio_codec: str, **how: Any) -> Case:
    """A case without pictures."""
    return film(file, kind, num_frames=0, audio_codec=audio_codec, **how)


def _h264(**more: str) -> dict[str, Any]:
    return {"options": {**GOP, **more}}


def _cut_by_remux(path: Path) -> None:
    whole = write_media(path.with_name("whole.mp4"), options=GOP, sound=click_track(0, SECONDS))
    write_edit_list(whole, path, cut_seconds=0.72)


def _cut_by_edit(path: Path) -> None:
    """Pictures 10 to 39 of 50: the edit begins between keyframes and ends before the track does."""
    write_media(path, options=GOP, sound=click_track(0, SECONDS))
    # 12800 ticks a second; the first picture lies two frames late in the track, for the reordering.
    set_edit(path, b"vide", media_start_ticks=(10 + 2) * 512, length_ticks=1200)
    set_edit(path, b"soun", media_start_ticks=1024 + round(0.4 * 48000), length_ticks=1200)


X265 = {"codec": "libx265", "options": {"g": "12", "x265-params": "log-level=none"}}
X265_CLOSED = {"codec": "libx265", "options": {"g": "12", "x265-params": "log-level=none:open-gop=0"}}
VP9 = {"codec": "libvpx-vp9", "options": {"g": "12", "deadline": "realtime", "cpu-used": "8"}, "audio_codec": "libopus"}
VP8 = {"codec": "libvpx", "options": {"g": "12", "auto-alt-ref": "1"}, "audio_codec": "libopus"}
AV1 = {"codec": "libsvtav1", "options": {"g": "12", "preset": "8", "crf": "10"}}
ASP = {"codec": "mpeg4", "options": GOP}
LATE = (0.5, SECONDS)

CASES = [
    # Containers of H.264 with B-frames
    film("h264.mp4", "mp4", "decord", **_h264()),
    film("h264.mov", "mp4", "decord", **_h264()),
    film("h264.mkv", "matroska", "decord", **_h264()),
    film("h264.flv", "flv", **_h264()),
    film("h264.ts", "mpegts", **_h264()),
    film("h264.avi", "avi", audio_codec="libmp3lame", lead_samples=1105, **_h264()),
    film("faststart.mp4", "mp4", "decord", container_options={"movflags": "faststart"}, **_h264()),
    film("fragmented.mp4", "mp4", "decord", container_options={"movflags": "frag_keyframe+empty_moov"}, **_h264()),
    film("fragmented_edit.mp4", "mp4", "decord", container_options={"movflags": "frag_keyframe+delay_moov"}, **_h264()),
    # Groups of pictures
    film("one_group.mp4", "mp4", "decord"),
    film("all_keys.mp4", "mp4", "decord", options={"g": "1"}),
    film("pyramid.mp4", "mp4", "decord", **_h264(bf="3", **{"x264-params": "b-pyramid=normal"})),
    film("intra_refresh.mp4", "mp4", **_h264(**{"x264-params": "intra-refresh=1"})),
    film("open_group.mp4", "mp4", **_h264(**{"x264-params": "open-gop=1"})),
    film("open_group.mkv", "matroska", **_h264(**{"x264-params": "open-gop=1"})),
    film("open_group.ts", "mpegts", **_h264(**{"x264-params": "open-gop=1"})),
    # Codecs
    film("hevc.mp4", "mp4", **X265),
    film("hevc_closed.mp4", "mp4", "decord", **X265_CLOSED),
    film("hevc.mkv", "matroska", **X265),
    film("vp8.webm", "matroska", "decord", **VP8),
    film("vp9.webm", "matroska", "decord", **VP9),
    film("vp9.mp4", "mp4", "decord", **VP9),
    film("av1.mp4", "mp4", **AV1),
    film("av1.webm", "matroska", audio_codec="libopus", **AV1),
    film("asp.avi", "avi", audio_codec="libmp3lame", lead_samples=1105 - 1920, **ASP),
    film("asp.mp4", "mp4", **ASP),
    film("mpeg2.ts", "mpegts", codec="mpeg2video", options=GOP, audio_codec="mp2"),
    film("mpeg2.mpg", "mpeg", codec="mpeg2video", options=GOP, audio_codec="mp2", format_name="vob"),
    film("mjpeg.avi", "avi", codec="mjpeg", pix_fmt="yuvj420p", audio_codec="pcm_s16le"),
    film("prores.mov", "mp4", codec="prores_ks", pix_fmt="yuv422p10le", audio_codec="pcm_s16le"),
    film("loop.gif", "gif", codec="gif", pix_fmt="rgb8", sound=None),
    # Clocks
    film("uneven.mp4", "mp4", "decord", times=UNEVEN, **_h264()),
    film("uneven.mkv", "matroska", "decord", times=UNEVEN, **_h264()),
    film("uneven.flv", "flv", times=UNEVEN, **_h264()),
    film("uneven.ts", "mpegts", times=UNEVEN, **_h264()),
    film("fps1.mp4", "mp4", "decord", num_frames=4, fps=1.0, sound=(0.0, 4.0), **_h264()),
    film("fps1.ts", "mpegts", num_frames=4, fps=1.0, sound=(0.0, 4.0), **_h264()),
    film("fps60.mp4", "mp4", "decord", num_frames=120, fps=60.0, **_h264()),
    film("fps60.webm", "matroska", "decord", num_frames=120, fps=60.0, **VP9),
    film("fps29.97.mp4", "mp4", "decord", num_frames=60, fps=30000 / 1001, **_h264()),
    film("one_frame.mp4", "mp4", "decord", num_frames=1, sound=None),
    film("one_frame_sound.mp4", "mp4", "decord", num_frames=1),
    film("silent.mp4", "mp4", "decord", sound=None, **_h264()),
    # Beginnings and ends
    film("late_film.mkv", "matroska", "decord", times=[3.5 + t for t in even(50, 25)], sound=(3.5, 5.5), **_h264()),
    film("late_film.mp4", "mp4", "decord", times=[0.4 + t for t in even(50, 25)], sound=(0.0, 2.0), **_h264()),
    film("late_film.ts", "mpegts", times=[0.4 + t for t in even(50, 25)], sound=(0.0, 2.0), **_h264()),
    film("late_sound.mp4", "mp4", "decord", sound=LATE, container_options={"movie_timescale": "48000"}, **_h264()),
    film("late_sound.mkv", "matroska", "decord", sound=LATE, **_h264()),
    film("late_sound.flv", "flv", sound=LATE, **_h264()),
    film("late_sound.ts", "mpegts", sound=LATE, **_h264()),
    film("late_sound.webm", "matroska", "decord", sound=(0.5065, SECONDS), **VP9),
    Case("cut_by_remux.mp4", "mp4", _cut_by_remux, even(32, 25), 1.28, first=18),
    Case("cut_by_edit.mp4", "mp4", _cut_by_edit, even(30, 25), 1.2, first=10, sound=(0.0, 1.2), sound_shift=0.4),
    # Pictures
    film("turned_90.mp4", "mp4", turns=1, **_h264()),
    film("turned_180.mp4", "mp4", turns=2, **_h264()),
    film("turned_270.mov", "mp4", turns=3, **_h264()),
    film("mirrored.mp4", "mp4", is_mirrored=True, **_h264()),
    film("turned_mirrored.mp4", "mp4", turns=1, is_mirrored=True, **_h264()),
    film("ten_bit.mp4", "mp4", "decord", pix_fmt="yuv420p10le", **_h264()),
    film("ten_bit.mkv", "matroska", pix_fmt="yuv420p10le", **X265),
    film("full_chroma.mp4", "mp4", "decord", pix_fmt="yuv444p", **_h264()),
    film("odd.mp4", "mp4", "decord", pix_fmt="yuv444p", size=(137, 91), **_h264()),
    film("odd.webm", "matroska", "decord", size=(137, 91), **VP9),
    film("wide_pixels.mp4", "mp4", "decord", sample_aspect_ratio=Fraction(4, 3), **_h264()),
    film("cover.mp4", "mp4", "decord", has_cover=True, **_h264()),
    # Sounds
    film("surround.mp4", "mp4", "decord", layout="5.1", **_h264()),
    film("stereo.mp4", "mp4", "decord", layout="stereo", **_h264()),
    film("mp3.mp4", "mp4", "decord", audio_codec="libmp3lame", **_h264()),
    film("opus.mp4", "mp4", "decord", audio_codec="libopus", **_h264()),
    film("opus.mkv", "matroska", "decord", audio_codec="libopus", **_h264()),
    film("flac.mkv", "matroska", "decord", audio_codec="flac", **_h264()),
    film("pcm.mov", "mp4", "decord", audio_codec="pcm_s16le", **_h264()),
    film("ac3.ts", "mpegts", audio_codec="ac3", layout="5.1", **_h264()),
    sound_alone("sound.wav", "wav", "pcm_s16le"),
    sound_alone("sound.flac", "flac", "flac"),
    sound_alone("sound.mp3", "id3", "libmp3lame"),
    sound_alone("sound.m4a", "mp4", "aac"),
    sound_alone("sound.aac", "aac", "aac", lead_samples=1024),
    sound_alone("sound.ogg", "ogg", "libopus"),
    sound_alone("sound.mka", "matroska", "aac"),
    sound_alone("sound.webm", "matroska", "libopus"),
    sound_alone("cover.m4a", "mp4", "aac", has_cover=True, format_name="mp4"),
    sound_alone("late.m4a", "mp4", "aac", sound=LATE, lead_samples=1024),
]

BY_FILE = {case.file: case for case in CASES}
WITH_VIDEO = [case.file for case in CASES if case.starts]
WITH_SOUND = [case.file for case in CASES if case.sound]


@cache
def rendered(file: str) -> Path:
    """The rendered file of a case, kept for the whole test session and removed at its end."""
    path = Path(_FOLDER.name) / file
    BY_FILE[file].render(path)
    return path
