"""The id that ties a request to the lines it leaves in logs: the client's if it is clean, else one of ours."""

import contextvars
import re
import uuid

HEADER = "X-Request-Id"
_CLEAN = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}", re.ASCII)
_current: contextvars.ContextVar[str] = contextvars.ContextVar("avrec_request_id", default="-")


def take_request_id(offered: bytes | None) -> str:
    """Make `offered`, if it is fit for logs and headers, or a new id the one of the running request; returns it."""
    text = (offered or b"").decode("latin-1")
    request_id = text if _CLEAN.fullmatch(text) else uuid.uuid4().hex
    _current.set(request_id)
    return request_id


def current_request_id() -> str:
    """Id of the request that is being answered; "-" outside of one."""
    return _current.get()
