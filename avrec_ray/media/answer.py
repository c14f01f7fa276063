"""What the decoding process says, and what its parent believes of it: a decoder that was taken over may say anything.

Wire format of an answer: b"AVR1", u32 length of the JSON, u64 length of the payload, JSON, frames, waveforms.
"""

import json
import math
import re
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np

from avrec_ray.errors import MediaError
from avrec_ray.media.config import MediaConfig
from avrec_ray.media.extract import Extract, payload_bytes

MAGIC = b"AVR1"
HEADER = struct.Struct("<4sIQ")
MAX_JSON_BYTES = 65536
MAX_SAMPLE = 2.0**16
"""Largest sample believed: sound of floats is at 1, some of it wrongly at the scale of 16-bit integers."""
NOT_AN_ANSWER = (ValueError, TypeError, LookupError, ArithmeticError, RecursionError)
"""What reading a wrong answer raises."""

_DECODER = re.compile(r"[A-Za-z0-9][A-Za-z0-9 .,_+-]{0,199}")
_MAX_DETAIL = 2000


@dataclass(kw_only=True)
class Claim:
    """The head of an answer that holds clips, checked; its payload is still to come."""

    spans: list[tuple[float, float]]
    has_frames: bool
    has_waveforms: bool
    has_audio: list[bool]
    decoder: str


def describe(found: Extract) -> dict[str, Any]:
    """The head of the answer for decoded clips."""
    return {
        "spans": found.spans,
        "frames": found.frames is not None,
        "waveforms": found.waveforms is not None,
        "has_audio": found.has_audio,
        "decoder": found.decoder,
    }


def check_sound(found: Extract) -> None:
    """Files of floating-point sound can hold anything. Raises MediaError(corrupt)."""
    if found.waveforms is not None and not _is_sound(found.waveforms):
        raise MediaError("corrupt", f"the sound holds samples that are not finite or above {MAX_SAMPLE:g}")


def read_head(header: bytes | bytearray) -> tuple[int, int]:
    """Lengths of the JSON and of the payload. Raises ValueError."""
    magic, json_bytes, payload = HEADER.unpack(header)
    if magic != MAGIC or json_bytes > MAX_JSON_BYTES:
        raise ValueError("its answer has a wrong header")
    return json_bytes, payload


def read_json(text: bytes | bytearray) -> dict[str, Any]:
    """The JSON of an answer. Raises MediaError when it says so, one of NOT_AN_ANSWER when it is none."""
    from avrec_ray.types import QUARANTINE_REASONS  # with pyarrow, for which the decoding process has no use

    answer = json.loads(text, parse_constant=_refuse_constant)
    if not isinstance(answer, dict):
        raise ValueError(f"its answer is a {type(answer).__name__}")
    if "reason" in answer:
        if answer["reason"] not in QUARANTINE_REASONS:
            raise ValueError(f"its answer has the reason {plain(answer['reason'], 40)!r}")
        raise MediaError(answer["reason"], plain(answer["detail"], _MAX_DETAIL))
    return answer


def read_claim(answer: dict[str, Any], num_bytes: int, cfg: MediaConfig) -> Claim:
    """The head of an answer with clips. Raises one of NOT_AN_ANSWER."""
    claim = Claim(
        spans=[(_number(start), _number(end)) for start, end in answer["spans"]],
        has_frames=_flag(answer["frames"]),
        has_waveforms=_flag(answer["waveforms"]),
        has_audio=[_flag(flag) for flag in answer["has_audio"]],
        decoder=answer["decoder"],
    )
    if not 1 <= len(claim.spans) <= cfg.max_clips or len(claim.has_audio) != len(claim.spans):
        raise ValueError(f"its answer has {len(claim.spans)} clips and {len(claim.has_audio)} flags")
    if not claim.has_frames and not (claim.has_waveforms and any(claim.has_audio)):
        raise ValueError("its answer has neither frames nor sound")
    if any(claim.has_audio) and not claim.has_waveforms:
        raise ValueError("its answer has flags of sound without sound")
    _check_spans(claim.spans, cfg)
    if not _DECODER.fullmatch(claim.decoder):
        raise ValueError(f"its answer has the decoder {plain(claim.decoder, 40)!r}")
    if num_bytes != payload_bytes(len(claim.spans), claim.has_frames, claim.has_waveforms, cfg):
        raise ValueError(f"its answer has a payload of {num_bytes} bytes")
    return claim


def read_payload(payload: bytearray, claim: Claim, cfg: MediaConfig) -> Extract:
    """The clips. Raises ValueError when the sound is not finite or beyond MAX_SAMPLE."""
    count = len(claim.spans)
    split = payload_bytes(count, claim.has_frames, False, cfg)
    view = memoryview(payload)
    frames = np.frombuffer(view[:split], np.uint8).reshape(count, *cfg.frames_shape) if claim.has_frames else None
    waveforms = np.frombuffer(view[split:], np.float32).reshape(count, -1) if claim.has_waveforms else None
    if waveforms is not None and not _is_sound(waveforms):
        raise ValueError(f"its answer has samples that are not finite or above {MAX_SAMPLE:g}")
    return Extract(claim.spans, frames, waveforms, claim.has_audio, claim.decoder)


def plain(text: object, most: int) -> str:
    """Text from outside made fit for a table and a terminal: no control characters, no halves of characters."""
    return "".join(letter if letter.isprintable() else "?" for letter in str(text)[:most])


def _is_sound(waveforms: np.ndarray[Any, np.dtype[np.float32]]) -> bool:
    return not waveforms.size or bool(np.isfinite(waveforms).all() and np.abs(waveforms).max() <= MAX_SAMPLE)


def _check_spans(spans: list[tuple[float, float]], cfg: MediaConfig) -> None:
    limit = cfg.max_duration_seconds + 1e-3
    before = 0.0
    for start, end in spans:
        if not before <= start <= end <= limit:
            raise ValueError(f"its answer has the span {start:g} to {end:g} s, expected them ascending to {limit:g} s")
        before = start


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError("its answer has a time that is no finite number")
    return float(value)


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError("its answer has a flag that is neither true nor false")
    return value


def _refuse_constant(name: str) -> float:
    raise ValueError(f"its answer holds {name}")
