import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from avrec_ray.dataclass_io import to_dict
from avrec_ray.media.config import MediaConfig
from avrec_ray.media.decode_clips import DecodeClips, split_rows
from avrec_ray.types import QUARANTINE, QUARANTINE_REASONS, check_table
from tests.media.render import tone, write_media

CFG = MediaConfig(num_frames=2, frame_size=16, clip_seconds=1.0, timeout_seconds=3.0)


@pytest.fixture(scope="module")
def uris(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str | None]:
    """Name to media_uri; a name that starts with bad_ belongs in quarantine."""
    folder = tmp_path_factory.mktemp("media")
    write_media(folder / "long.mp4", 50)
    write_media(folder / "sound.wav", 0, sound=tone(0.5), audio_codec="pcm_s16le")
    (folder / "text.mp4").write_text("ffconcat version 1.0\nfile /etc/passwd\n")
    os.mkfifo(folder / "fifo.mp4")
    names = {"long": "long.mp4", "sound": "sound.wav", "bad_text": "text.mp4", "bad_fifo": "fifo.mp4", "bad_none": "no"}
    found: dict[str, str | None] = {name: str(folder / file) for name, file in names.items()}
    return {**found, "only_text": None, "empty": "", "bad_url": "http://127.0.0.1:9/x.mp4"}


@pytest.fixture(scope="module")
def decode() -> Iterator[DecodeClips]:
    decode = DecodeClips(to_dict(CFG))
    yield decode
    decode.decoder.close()


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_decode_clips_every_item_is_in_exactly_one_table(
    decode: DecodeClips, uris: dict[str, str | None], data: st.DataObject
) -> None:
    chosen = data.draw(st.lists(st.sampled_from(sorted(uris)), min_size=1, max_size=6))
    ids = [f"{row}:{name}" for row, name in enumerate(chosen)]
    batch = {"item_id": np.array(ids, object), "media_uri": np.array([uris[name] for name in chosen], object)}
    clips, aside = split_rows(decode(batch))
    clip_items, aside_items = set(clips["item_id"].to_pylist()), set(aside["item_id"].to_pylist())
    assert clip_items | aside_items == set(ids)
    assert not clip_items & aside_items
    assert aside.num_rows == len(aside_items)
    assert all(":bad_" in item for item in aside_items)
    assert not any(":bad_" in item for item in clip_items)


def test_decode_clips_tables_have_their_schemas(decode: DecodeClips, uris: dict[str, str | None]) -> None:
    names = sorted(uris)
    rows = decode({"item_id": np.array(names, object), "media_uri": np.array([uris[n] for n in names], object)})
    clips, aside = split_rows(rows)
    check_table(aside, QUARANTINE, "quarantine", unique=["item_id"])
    reasons = dict(zip(aside["item_id"].to_pylist(), aside["reason"].to_pylist(), strict=True))
    assert reasons == {"bad_text": "not_media", "bad_fifo": "forbidden", "bad_none": "missing", "bad_url": "forbidden"}
    assert set(reasons.values()) <= set(QUARANTINE_REASONS)
    assert all(aside["detail"].to_pylist())
    per_item = dict(zip(*np.unique(clips["item_id"].to_pylist(), return_counts=True), strict=True))
    assert per_item == {"long": 2, "sound": 1, "only_text": 1, "empty": 1}


def test_decode_clips_hostile_decoder_costs_its_own_row_only(tmp_path: Path) -> None:
    words = ["good", "abort", "spin", "fine"]
    for word in words:
        (tmp_path / word).write_bytes(b"OggS" + word.encode())
    decode = DecodeClips(to_dict(CFG), "tests.media.hostile_decoders:by_content")
    rows = decode(
        {"item_id": np.array(words, object), "media_uri": np.array([str(tmp_path / w) for w in words], object)}
    )
    decode.decoder.close()
    assert rows["reason"].tolist() == ["", "crashed", "timeout", ""]
    assert rows["frames"][0].max() == ord("g")
    assert rows["frames"][3].max() == ord("f")
