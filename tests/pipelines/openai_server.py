"""An OpenAI-compatible server in this process: a judge, or a model that knows the answers."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

Reply = str | JSONResponse


@dataclass
class OpenAIServer:
    """Where it listens, and every request body that came, with its headers."""

    url: str = ""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)


@contextmanager
def openai_server(reply: Callable[[dict[str, Any]], Reply]) -> Iterator[OpenAIServer]:
    """Serves `reply(body)` as chat completions on a free port of the loopback interface."""
    state, app, lock = OpenAIServer(), FastAPI(), threading.Lock()

    @app.post("/v1/chat/completions")
    async def complete(request: Request) -> JSONResponse:
        body = await request.json()
        with lock:
            state.bodies.append(body)
            state.headers.append(dict(request.headers))
            said = reply(body)
        if isinstance(said, JSONResponse):
            return said
        message = {"role": "assistant", "content": said}
        return JSONResponse(
            {
                "id": "chatcmpl-1",
                "object": "chat.completion",
                "model": f"{body['model']}-2026-01-01",
                "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
            }
        )

    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        thread.join(0.01)
        assert thread.is_alive(), "the server did not start"
    port = server.servers[0].sockets[0].getsockname()[1]
    state.url = f"http://127.0.0.1:{port}/v1"
    try:
        yield state
    finally:
        server.should_exit = True
        thread.join()


def text_of(body: dict[str, Any]) -> str:
    """The text of a request's last message."""
    content = body["messages"][-1]["content"]
    if isinstance(content, str):
        return content
    return "".join(part["text"] for part in content if part["type"] == "text")
