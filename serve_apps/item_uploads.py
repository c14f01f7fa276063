"""A request's body to a file on disk, chunk by chunk: raw, or as a part of a form."""

import asyncio
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser, parse_options_header

from avrec_ray.new_items.uploads import Upload
from serve_apps.problems import ProblemError

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

MAX_ITEM_BYTES = 256 * 1024
"""Longest `item` part or query parameter."""
_CHUNK_BYTES = 2**20


async def receive_raw(chunks: AsyncIterator[bytes], upload: Upload) -> None:
    """The whole body is the file."""
    waiting = bytearray()
    async for chunk in chunks:
        waiting += chunk
        if len(waiting) >= _CHUNK_BYTES:
            await asyncio.to_thread(upload.write, bytes(waiting))
            waiting.clear()
    await asyncio.to_thread(upload.write, bytes(waiting))


async def receive_form(chunks: AsyncIterator[bytes], content_type: str, upload: Upload) -> bytes:
    """A form with a part `item` (JSON), which is returned, and a part `media`, which goes into the file.

    Raises:
        ProblemError: 422, saying what is wrong with the form.
        MediaError: too_large.
    """
    kind, options = parse_options_header(content_type)
    boundary = options.get(b"boundary", b"")
    if kind != b"multipart/form-data" or not boundary:
        raise ProblemError(
            422, f"Content-Type: got {content_type[:80]!a}, expected multipart/form-data with a boundary"
        )
    form = _Form()
    parser = MultipartParser(boundary, form.callbacks())
    try:
        async for chunk in chunks:
            parser.write(chunk)
            if len(form.media) >= _CHUNK_BYTES:
                await asyncio.to_thread(upload.write, form.take())
        parser.finalize()
    except MultipartParseError as error:
        raise ProblemError(422, f"body: this is no form ({error})") from error
    if not form.is_ended or set(form.seen) != {"item", "media"}:
        raise ProblemError(422, f"body: got the parts {sorted(form.seen)}, expected item and media, whole")
    await asyncio.to_thread(upload.write, form.take())
    return bytes(form.item)


class _Form:
    """Parts as they come; nothing but what is not yet written is held."""

    def __init__(self) -> None:
        self.item, self.media = bytearray(), bytearray()
        self.seen: list[str] = []
        self.is_ended = False
        self._field, self._value = bytearray(), bytearray()

    def callbacks(self) -> "MultipartCallbacks":
        """For MultipartParser."""
        return {
            "on_header_field": lambda data, start, end: self._field.extend(data[start:end]),
            "on_header_value": lambda data, start, end: self._value.extend(data[start:end]),
            "on_header_end": self._end_header,
            "on_part_data": self._data,
            "on_end": self._end,
        }

    def take(self) -> bytes:
        """What came of `media` since the last call."""
        taken = bytes(self.media)
        self.media.clear()
        return taken

    def _end_header(self) -> None:
        if bytes(self._field).lower() == b"content-disposition":
            _, options = parse_options_header(bytes(self._value))
            name = options.get(b"name", b"").decode("utf-8", "backslashreplace")
            if name in self.seen or name not in ("item", "media"):
                raise ProblemError(422, f"body: got a part {name[:80]!a}, expected one part item and one part media")
            self.seen.append(name)
        self._field.clear()
        self._value.clear()

    def _data(self, data: bytes, start: int, end: int) -> None:
        if not self.seen:
            raise ProblemError(422, "body: got a part without a name, expected item and media")
        part = self.item if self.seen[-1] == "item" else self.media
        part.extend(data[start:end])
        if len(self.item) > MAX_ITEM_BYTES:
            raise ProblemError(422, f"item: longer than {MAX_ITEM_BYTES} bytes")

    def _end(self) -> None:
        self.is_ended = True
