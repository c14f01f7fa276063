"""Liveness and readiness. They need no key and tell nothing but versions."""

from typing import Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse

from serve_apps.flow import RequestFlow


def health_routes(flow: RequestFlow) -> APIRouter:
    """/health/live answers while the process does; /health/ready says what lists and feedback would get."""
    router = APIRouter()
    has_been_ready = False

    @router.get("/health/live")
    async def live() -> dict[str, str]:
        """The process answers."""
        return {"status": "live"}

    @router.get("/health/ready")
    async def ready() -> JSONResponse:
        """200 ready or degraded, 503 not ready.

        Models that die after the start leave the gateway degraded, not unready: it still serves popular lists, and
        taking it out of rotation would make that an outage. Without its event store it could lose feedback: 503.
        """
        nonlocal has_been_ready
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
