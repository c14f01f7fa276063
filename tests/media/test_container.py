from pathlib import Path
from typing import Any

import pytest

from avrec_ray.errors import MediaError
from avrec_ray.media.config import MediaConfig
from avrec_ray.media.container import OpenMedia
from tests.media.cases import BY_FILE, rendered

CFG = MediaConfig()


def packets(container: Any, stream: Any) -> list[tuple[Any, ...]]:
    return [
        (p.pts, p.dts, p.size, p.duration, p.is_keyframe, p.is_discard, [bytes(data) for data in p.iter_sidedata()])
        for p in container.demux(stream)
    ]


@pytest.mark.parametrize("file", BY_FILE)
def test_restart_gives_every_packet_again_as_in_a_fresh_file(file: str) -> None:
    case = BY_FILE[file]
    with rendered(file).open("rb", buffering=0) as source, OpenMedia(source, case.kind, CFG) as media:
        indices = [s.index for s in media.container.streams if not s.disposition & 0x400]  # cover art is never decoded
        fresh = {}
        for index in indices:
            # A file of its own: two readers of one descriptor would move each other's place.
            with rendered(file).open("rb", buffering=0) as again, OpenMedia(again, case.kind, CFG) as other:
                fresh[index] = packets(other.container, other.container.streams[index])
        for _ in media.container.demux():
            pass
        for index in [*indices, *reversed(indices)]:
            assert packets(*media.restart(index)) == fresh[index]


def test_restart_after_a_part_was_decoded_decodes_from_the_start() -> None:
    with rendered("h264.mp4").open("rb", buffering=0) as source, OpenMedia(source, "mp4", CFG) as media:
        container, stream = media.restart(0)
        assert next(container.decode(stream)).pts == 0
        container, stream = media.restart(1)
        assert next(container.decode(stream)).pts == 0
        container, stream = media.restart(0)
        assert [frame.pts for frame in container.decode(stream)] == [512 * row for row in range(50)]


def test_open_media_of_another_kind_is_refused() -> None:
    with (
        rendered("h264.mp4").open("rb", buffering=0) as source,
        pytest.raises(MediaError, match="the avi container does not open"),
    ):
        OpenMedia(source, "avi", CFG)


def test_open_media_title_that_is_not_utf8_is_no_obstacle(tmp_path: Path) -> None:
    path = tmp_path / "title.mkv"
    path.write_bytes(rendered("h264.mkv").read_bytes().replace(b"Lavf", b"L\xe4vf"))
    with path.open("rb", buffering=0) as source, OpenMedia(source, "matroska", CFG) as media:
        assert "\ufffd" in str(media.container.metadata)
