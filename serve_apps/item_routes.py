"""The routes of new items."""

from typing import Any

from fastapi import APIRouter, Request
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.requests import ClientDisconnect

from avrec_ray.errors import MediaError
from serve_apps.item_bodies import ItemAccepted, ItemRequest, ItemStatus
from serve_apps.item_inbox import ItemInbox, is_upload
from serve_apps.item_uploads import MAX_ITEM_BYTES, receive_form, receive_raw
from serve_apps.problems import ProblemError
from serve_apps.schemas import NOT_FOUND, PROBLEM, PathId

_BODIES: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": ItemRequest.model_json_schema()},
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["item", "media"],
                    "properties": {
                        "item": ItemRequest.model_json_schema(),
                        "media": {"type": "string", "format": "binary"},
                    },
                }
            },
            "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
        },
    },
    "parameters": [
        {
            "name": "item",
            "in": "query",
            "required": False,
            "description": "The item as JSON, where the body is the media themselves.",
            "schema": {"type": "string", "maxLength": MAX_ITEM_BYTES},
        }
    ],
}


def add_new_item_routes(reads: APIRouter, writes: APIRouter, inbox: ItemInbox) -> None:
    """To be added before the routes of single items: those take any path below /v1/items."""

    @writes.post("/v1/items", status_code=202, openapi_extra=_BODIES, responses={409: PROBLEM, 413: PROBLEM})
    async def submit_item(request: Request) -> ItemAccepted:
        """Queue a new item, or another body of a known one: JSON with a place of its media, or the media themselves."""
        inbox.check_open()
        if not is_upload(request.scope):
            return await inbox.submit(_read(await request.body()).to_submission())
        return await _submit_upload(inbox, request)

    @reads.get("/v1/items/{item_id:path}/status", responses=NOT_FOUND, response_model_exclude_none=True)
    async def item_status(item_id: PathId) -> ItemStatus:
        """Where an item is on its way into lists, and why it is refused if it is."""
        return await inbox.status(item_id)

    @writes.delete("/v1/items/{item_id:path}", responses=NOT_FOUND)
    async def delete_item(item_id: PathId) -> ItemAccepted:
        """Take an item down, for good: out of every list within a second or so, and out of later bundles."""
        return await inbox.delete(item_id)


async def _submit_upload(inbox: ItemInbox, request: Request) -> ItemAccepted:
    kind = request.headers.get("content-type", "")
    limit = inbox.cfg.max_upload_bytes
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared[:20]) > limit + MAX_ITEM_BYTES:
        raise ProblemError(413, f"the body is larger than new_items.max_upload_bytes={limit}")
    try:
        with inbox.open_upload() as upload:
            if kind.lower().startswith("multipart/"):
                item = _read(await receive_form(request.stream(), kind, upload))
            else:
                item = _read(request.query_params.get("item", "").encode())  # before a byte of the media is read
                await receive_raw(request.stream(), upload)
            return await inbox.submit(item.to_submission(), upload)
    except MediaError as error:
        raise ProblemError(413, f"media: {error.detail}") from error
    except ClientDisconnect as error:
        raise ProblemError(400, "the upload ended before its end; send it again") from error
    except OSError as error:
        raise ProblemError(503, "the upload could not be written and nothing was kept; send it again") from error


def _read(body: bytes) -> ItemRequest:
    try:
        return ItemRequest.model_validate_json(body)
    except ValidationError as error:
        raise RequestValidationError(error.errors(include_context=False, include_url=False)) from error
