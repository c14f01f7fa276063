"""Liveness and readiness. They need no key and tell nothing but versions."""

from typing import Any, Literal

from fastapi import APIRouter
from fastapi.responses import JSONResponse
from pydantic import BaseModel

from serve_apps.variants import Variants


class LiveBody(BaseModel):
    """The process answers."""

    status: Literal["live"] = "live"


class ReadyBody(BaseModel):
    """What is served, and what of it is not there right now."""

    status: Literal["ready", "degraded", "not_ready"]
    missing: list[str]
    model_version: str
    index_version: str


def health_routes(variants: Variants) -> APIRouter:
    """/health/live answers while the process does; /health/ready says what lists and feedback would get."""
    router = APIRouter()
    has_been_ready = False

    @router.get("/health/live")
    async def live() -> LiveBody:
        """The process answers."""
        return LiveBody()

    @router.get("/health/ready", response_model=ReadyBody, responses={503: {"model": ReadyBody}})
    async def ready() -> JSONResponse:
        """200 ready or degraded, 503 not ready.

        Models that die after the start leave the gateway degraded, not unready: it still serves popular lists, and
        taking it out of rotation would make that an outage. Without its event store it could lose feedback: 503.
        """
        nonlocal has_been_ready
        flow = variants.champion
        missing = await flow.missing()
        has_been_ready = has_been_ready or not missing
        serves = has_been_ready and "event_store" not in missing
        status = "ready" if not missing else "degraded" if serves else "not_ready"
        body: dict[str, Any] = {
            "status": status,
            "missing": missing,
            "model_version": flow.model_version,
            "index_version": flow.index_version,
        }
        return JSONResponse(body, 200 if serves else 503)

    return router
