"""Asking an OpenAI-compatible endpoint, patiently: it may be busy, but its errors are not answers."""

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx

# The first question about a long video waits for its decoding, and behind others' questions.
_PATIENCE_S = 1800
_BUSY = (429, 503)


def bearer(key_env: str | None, flag: str) -> dict[str, str]:
    """The header with the API key that the environment variable holds. Raises ValueError if it holds none."""
    if key_env is None:
        return {}
    if not os.environ.get(key_env):
        raise ValueError(f"{flag} {key_env}: this environment variable is not set")
    return {"Authorization": f"Bearer {os.environ[key_env]}"}


class Endpoint:
    """The model under test. Safe to use from several threads."""

    def __init__(self, url: str, model: str, *, key_env: str | None = None, num_frames: int | None = None) -> None:
        self._client = httpx.Client(
            base_url=url.rstrip("/"), headers=bearer(key_env, "--api-key-env"), timeout=_PATIENCE_S
        )
        self._url, self._model, self._num_frames = url, model, num_frames

    def close(self) -> None:
        self._client.close()

    def ask(self, media: Sequence[tuple[str, Path]], text: str, *, max_tokens: int) -> str | None:
        """The answer to one question about media, (kind, file) in order; None where a medium cannot be decoded.

        Raises ValueError for an endpoint that refuses the request, RuntimeError for one that is out of reach.
        """
        parts: list[dict[str, Any]] = [
            {"type": f"{kind}_url", f"{kind}_url": {"url": path.as_uri()}} for kind, path in media
        ]
        body: dict[str, Any] = {
            "model": self._model,
            "messages": [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}],
            "max_tokens": max_tokens,
            "temperature": 0,
            "linvt": {"evidence": False},
        }
        if self._num_frames is not None and any(kind == "video" for kind, _ in media):
            body["media_io_kwargs"] = {"video": {"num_frames": self._num_frames}}
        response = self._post_until_admitted(body)
        if response.status_code == 422:
            return None
        if response.status_code != 200:
            raise ValueError(f"{self._url} answered {response.status_code}: {response.text[:500]}")
        content = response.json()["choices"][0]["message"]["content"]
        if not isinstance(content, str):
            raise ValueError(f"{self._url} answered without text: {response.text[:500]}")
        return content

    def _post_until_admitted(self, body: dict[str, Any]) -> httpx.Response:
        give_up_at = time.monotonic() + _PATIENCE_S
        while True:
            try:
                response = self._client.post("/chat/completions", json=body)
            except httpx.TransportError as error:
                raise RuntimeError(f"{self._url} cannot be reached: {error}") from error
            if response.status_code not in _BUSY or time.monotonic() > give_up_at:
                return response
            time.sleep(float(response.headers.get("Retry-After", 1)))
