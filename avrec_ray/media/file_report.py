"""What a probe finds in one file, as numbers and names: read in the decoding process, checked by its parent."""

from dataclasses import dataclass
from typing import Any, BinaryIO

from avrec_ray.dataclass_io import from_dict, to_dict
from avrec_ray.media import answer, image
from avrec_ray.media.config import MediaConfig
from avrec_ray.media.gate import kind_of
from avrec_ray.media.probe import MediaInfo, probe


@dataclass(kw_only=True)
class FileReport:
    """Streams and time line of one file. Zero or "" where there is no such stream."""

    kind: str
    """Key of gate.FORMATS."""
    num_streams: int = 1
    video_codec: str = ""
    width: int = 0
    height: int = 0
    num_frames: int = 0
    fps: float = 0.0
    """Mean rate by the packets' times."""
    audio_codec: str = ""
    sample_rate_hz: int = 0
    duration_seconds: float = 0.0


def report(file: BinaryIO, cfg: MediaConfig) -> FileReport:
    """Look into an open file that passed the gate. For the decoding process. Raises MediaError."""
    kind = kind_of(file)
    if kind in image.IMAGE_FORMATS:
        width, height = image.read_size(file, kind, cfg)
        return FileReport(kind=kind, video_codec=kind, width=width, height=height, num_frames=1)
    return _report_streams(probe(file, kind, cfg))


def _report_streams(info: MediaInfo) -> FileReport:
    found = FileReport(kind=info.kind, num_streams=info.num_streams, duration_seconds=info.duration_seconds)
    if info.video is not None:
        video = info.video
        seconds = float(video.pts[-1] - video.pts[0]) * video.tick_seconds
        found.video_codec, found.width, found.height = video.codec, video.width, video.height
        found.num_frames = len(video.pts)
        found.fps = (len(video.pts) - 1) / seconds if seconds else 0.0
    if info.audio is not None:
        found.audio_codec, found.sample_rate_hz = info.audio.codec, info.audio.sample_rate_hz
    return found


def describe(found: FileReport) -> dict[str, Any]:
    """The head of an answer."""
    return {"report": to_dict(found)}


def read_report(head: dict[str, Any]) -> FileReport:
    """A report from the decoding process, its texts made plain. Raises one of answer.NOT_AN_ANSWER."""
    found = from_dict(FileReport, head["report"])
    for name in ("kind", "video_codec", "audio_codec"):
        setattr(found, name, answer.plain(getattr(found, name), 32))
    return found
