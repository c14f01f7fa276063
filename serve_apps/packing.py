"""Queries and answers between gateway and models as bytes: msgpack is faster than pickle, and read by types."""

from collections.abc import Sequence

import msgspec

from avrec_ray.types import Query
from serve_apps.answers import FusedAnswer

_encode = msgspec.msgpack.Encoder().encode
_queries = msgspec.msgpack.Decoder(list[Query])
_answers = msgspec.msgpack.Decoder(list[FusedAnswer])


def pack_queries(queries: Sequence[Query]) -> bytes:
    """As `unpack_queries` takes them."""
    return _encode(queries)


def unpack_queries(packed: bytes) -> list[Query]:
    """Raises msgspec.ValidationError where they are of another release."""
    return _queries.decode(packed)


def pack_answers(answers: Sequence[FusedAnswer]) -> bytes:
    """As `unpack_answers` takes them."""
    return _encode(answers)


def unpack_answers(packed: bytes) -> list[FusedAnswer]:
    """Raises msgspec.ValidationError where they are of another release."""
    return _answers.decode(packed)
