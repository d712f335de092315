"""Errors that reach an API client, in the shape that OpenAI's clients parse."""

from functools import partial
from typing import Any


class RequestError(Exception):
    """A request that cannot be answered, with the HTTP status and the error body the client should see.

    Statuses follow the conventions of OpenAI-compatible servers: 400 malformed or unsupported, 401 no valid key,
    403 not allowed here, 404 unknown model, 408 sent too slowly, 413 too large, 415 not JSON, 422 media that cannot be
    fetched or decoded, 502/504 a media server that failed or stalled, 503 the queue is full or a replica died.
    """

    def __init__(
        self, status: int, message: str, *, code: str, param: str | None = None, retry_after_s: int | None = None
    ) -> None:
        super().__init__(status, message)
        self.status, self.message, self.code = status, message, code
        self.param, self.retry_after_s = param, retry_after_s

    def __reduce__(self) -> tuple[Any, ...]:
        # Keyword arguments, which exceptions cannot carry by themselves between processes.
        options = {"code": self.code, "param": self.param, "retry_after_s": self.retry_after_s}
        return partial(RequestError, **options), (self.status, self.message)

    def __str__(self) -> str:
        return f"{self.status} {self.code}: {self.message}"

    def body(self) -> dict[str, Any]:
        """`{"error": {"message", "type", "param", "code"}}`."""
        kind = {401: "authentication_error", 403: "permission_error"}.get(self.status)
        kind = kind or ("invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def headers(self) -> dict[str, str]:
        """Headers that go with the body: `Retry-After` where a later try may do, `WWW-Authenticate` without a key."""
        headers = {}
        if self.retry_after_s is not None:
            headers["Retry-After"] = str(self.retry_after_s)
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return headers
