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


def new_item_routes(inbox: ItemInbox, errors: dict[int | str, dict[str, Any]]) -> APIRouter:
    """To be included before the routes of single items: those take any path below /v1/items."""
    router = APIRouter()
    some_errors: dict[int | str, dict[str, Any]] = {404: errors[422]}

    @router.post("/v1/items", status_code=202, openapi_extra=_BODIES, responses={409: errors[422], 413: errors[422]})
    async def submit_item(request: Request) -> ItemAccepted:
        """Queue a new item, or another body of a known one: JSON with a place of its media, or the media themselves."""
        inbox.check_open()
        if not is_upload(request.scope):
            return await inbox.submit(_read(await request.body()).to_submission())
        return await _submit_upload(inbox, request)

    @router.get("/v1/items/{item_id:path}/status", responses=some_errors, response_model_exclude_none=True)
    async def item_status(item_id: str) -> ItemStatus:
        """Where an item is on its way into lists, and why it is refused if it is."""
        return await inbox.status(item_id)

    @router.delete("/v1/items/{item_id:path}", responses=some_errors)
    async def delete_item(item_id: str) -> ItemAccepted:
        """Take an item down, for good: out of every list within a second or so, and out of later bundles."""
        return await inbox.delete(item_id)

    return router


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
