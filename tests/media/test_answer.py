import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avrec_ray.errors import MediaError
from avrec_ray.media import answer
from avrec_ray.media.config import MediaConfig
from avrec_ray.media.extract import Extract, payload_bytes

CFG = MediaConfig(frame_size=16, num_frames=2, clip_seconds=0.1)
GOOD = {"spans": [[0, 1.5], [1.5, 3]], "frames": True, "waveforms": True, "has_audio": [True, False], "decoder": "d 1"}
NUM_BYTES = payload_bytes(2, True, True, CFG)


def test_answer_survives_the_way_to_the_parent() -> None:
    frames = np.arange(2 * 2 * 3 * 16 * 16, dtype=np.uint8).reshape(2, *CFG.frames_shape)
    waveforms = np.linspace(-1, 1, 2 * CFG.num_samples, dtype=np.float32).reshape(2, -1)
    sent = Extract([(0.0, 1.5), (1.5, 3.0)], frames, waveforms, [True, False], "decord 0.6.0, pyav 18.1.0")
    head = answer.read_json(json.dumps(answer.describe(sent)).encode())
    claim = answer.read_claim(head, NUM_BYTES, CFG)
    found = answer.read_payload(bytearray(frames.tobytes() + waveforms.tobytes()), claim, CFG)
    assert (found.spans, found.has_audio, found.decoder) == (sent.spans, sent.has_audio, sent.decoder)
    np.testing.assert_array_equal(found.frames, frames)
    np.testing.assert_array_equal(found.waveforms, waveforms)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"spans": [[0, 1]] * 3, "has_audio": [True] * 3}, "3 clips"),
        ({"spans": [], "has_audio": []}, "0 clips"),
        ({"has_audio": [True]}, "2 clips and 1 flags"),
        ({"has_audio": ["yes", "no"]}, "neither true nor false"),
        ({"frames": 1}, "neither true nor false"),
        ({"waveforms": False}, "flags of sound without sound"),
        ({"frames": False, "has_audio": [False, False]}, "neither frames nor sound"),
        ({"spans": [[2, 1], [2, 3]]}, "the span 2 to 1 s"),
        ({"spans": [[2, 3], [1, 3]]}, "the span 1 to 3 s"),
        ({"spans": [[-1, 3], [1, 3]]}, "the span -1 to 3 s"),
        ({"spans": [[0, 1], [1, 1e9]]}, "the span 1 to 1e"),
        ({"spans": [[0, 1], [1, True]]}, "no finite number"),
        ({"spans": [[0, 1], [1, "2"]]}, "no finite number"),
        ({"spans": [[0, 1], [1, 10**400]]}, "too large"),
        ({"spans": [[0, 1], [1]]}, "not enough values"),
        ({"spans": 7}, "not iterable"),
        ({"decoder": "\x1b[2J"}, r"the decoder '\?\[2J'"),
        ({"decoder": "x" * 201}, "the decoder 'xxx"),
        ({"decoder": ""}, "the decoder ''"),
        ({"decoder": ["d"]}, "expected string"),
    ],
)
def test_read_claim_wrong_head_is_no_answer(change: dict[str, Any], message: str) -> None:
    assert answer.read_claim(GOOD, NUM_BYTES, CFG).decoder == "d 1"
    with pytest.raises(answer.NOT_AN_ANSWER, match=message):
        answer.read_claim({**GOOD, **change}, NUM_BYTES, CFG)


@pytest.mark.parametrize("num_bytes", [0, NUM_BYTES - 1, NUM_BYTES + 1, 2**63])
def test_read_claim_wrong_payload_is_no_answer(num_bytes: int) -> None:
    with pytest.raises(answer.NOT_AN_ANSWER, match=f"payload of {num_bytes} bytes"):
        answer.read_claim(GOOD, num_bytes, CFG)


@pytest.mark.parametrize("sample", [np.nan, np.inf, -1e9])
def test_read_payload_sound_that_is_none_is_no_answer(sample: float) -> None:
    claim = answer.read_claim({**GOOD, "frames": False}, payload_bytes(2, False, True, CFG), CFG)
    waveforms = np.zeros(2 * CFG.num_samples, np.float32)
    answer.read_payload(bytearray(waveforms.tobytes()), claim, CFG)
    waveforms[-1] = sample
    with pytest.raises(answer.NOT_AN_ANSWER, match="not finite"):
        answer.read_payload(bytearray(waveforms.tobytes()), claim, CFG)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"\xff",
        b"[1]",
        b"[" * 60000,
        b'{"reason": "odd", "detail": ""}',
        b'{"reason": []}',
        b'{"a": NaN}',
        b"1" * 9000,
    ],
)
def test_read_json_garbage_is_no_answer(text: bytes) -> None:
    with pytest.raises(answer.NOT_AN_ANSWER):
        answer.read_json(text)


def test_read_json_refusal_is_raised_with_a_plain_detail() -> None:
    with pytest.raises(MediaError) as caught:
        answer.read_json(b'{"reason": "corrupt", "detail": "a\\u001b\\ud800\\u202eb' + b"c" * 5000 + b'"}')
    assert caught.value.reason == "corrupt"
    assert caught.value.detail.startswith("a???bccc")
    assert len(caught.value.detail) == 2000
    caught.value.detail.encode()


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=50)
@given(st.dictionaries(st.sampled_from(sorted(GOOD)), json_values))
def test_read_claim_any_head_is_believed_as_a_whole_or_refused(change: dict[str, Any]) -> None:
    try:
        claim = answer.read_claim({**GOOD, **change}, NUM_BYTES, CFG)
    except answer.NOT_AN_ANSWER:
        return
    assert len(claim.spans) == len(claim.has_audio) <= CFG.max_clips
    assert all(0 <= start <= end <= CFG.max_duration_seconds + 1 for start, end in claim.spans)
    assert claim.decoder.isprintable()
    assert claim.decoder.isascii()


@given(st.binary(max_size=64))
def test_read_head_any_bytes_give_bounded_lengths_or_are_refused(data: bytes) -> None:
    try:
        json_bytes, _ = answer.read_head(data)
    except (answer.struct.error, ValueError):
        return
    assert json_bytes <= answer.MAX_JSON_BYTES
