"""The endpoint's OpenAPI description: what it takes (`requests`), what it answers, and with which status."""

from typing import Any, Literal

from pydantic import BaseModel, Field
from pydantic.json_schema import models_json_schema

from linvt.serving.requests import ChatCompletionRequest

_REF = "#/components/schemas/{model}"


class ErrorDetails(BaseModel):
    message: str
    type: Literal["invalid_request_error", "authentication_error", "permission_error", "server_error"]
    param: str | None
    code: str


class Error(BaseModel):
    """What comes with every status but 200."""

    error: ErrorDetails


class Health(BaseModel):
    status: Literal["ok"]
    requests: int
    """Since the start."""
    in_work: int
    cache: dict[Literal["hits", "misses"], int]
    """Of the media of answered requests: encoded before, or then."""
    replica: dict[Literal["rows", "steps", "tokens"], int]
    """One replica's answers at work or waiting; its passes of the LLM after prompts, and tokens that came of them."""


class ModelCard(BaseModel):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    image_llm: str


class ModelList(BaseModel):
    object: Literal["list"]
    data: list[ModelCard]


class TopLogProb(BaseModel):
    token: str
    logprob: float
    bytes: list[int]


class TokenLogProb(TopLogProb):
    top_logprobs: list[TopLogProb]


class LogProbs(BaseModel):
    content: list[TokenLogProb]
    refusal: None


class AnswerMessage(BaseModel):
    role: Literal["assistant"]
    content: str
    refusal: None


class Choice(BaseModel):
    index: int
    message: AnswerMessage
    finish_reason: Literal["stop", "length"]
    logprobs: LogProbs | None


class TokenUsage(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class Moment(BaseModel):
    timestamp_s: float
    weight: float


class AnswerToken(BaseModel):
    text: str
    evidence: list[Moment]


class EvidenceMap(BaseModel):
    grid: tuple[int, int] | None
    weights: list[list[float]]
    """[frames, patches]"""


class Video(BaseModel):
    """A video of the request; the second half is there where evidence was asked for."""

    sha256: str
    duration_s: float
    shots_s: list[tuple[float, float]]
    from_cache: bool
    evidence: list[Moment] = Field(default=[], description="Of every sampled frame, in time; weights sum to 1.")
    top_moments: list[Moment] = []
    shot_weights: list[float] = []
    answer_tokens: list[AnswerToken] = []
    evidence_map: EvidenceMap | None = None


class LinVT(BaseModel):
    videos: list[Video]


class ChatCompletion(BaseModel):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[Choice]
    usage: TokenUsage
    linvt: LinVT


_MODELS = (ChatCompletionRequest, ChatCompletion, Error, Health, ModelCard, ModelList)
_STATUSES = {
    400: "The request is malformed, or asks for what this server or model cannot do.",
    401: "No valid API key.",
    403: "The media may not be read by this server, or the Host header is another machine's.",
    404: "There is no such model.",
    408: "The request came too slowly.",
    413: "The request or its media are too large.",
    415: "The request is not application/json.",
    422: "The media cannot be fetched or decoded.",
    500: "A fault of the server.",
    502: "The server that has the media failed.",
    503: "Too many requests are in work, or the model went down; see Retry-After.",
    504: "The server that has the media was too slow.",
}


def openapi(version: str) -> dict[str, Any]:
    """The OpenAPI 3.1 document."""
    _, schemas = models_json_schema([(model, "validation") for model in _MODELS], ref_template=_REF)
    answers = {
        "application/json": _schema("ChatCompletion"),
        # OpenAPI 3.1 has no way to say what each event is.
        "text/event-stream": {},
    }
    described = "The answer; with `stream`, chunks, then `data: [DONE]`"
    chat = {
        "summary": "Answer a conversation with videos and images",
        "operationId": "chat",
        "requestBody": {"required": True, "content": {"application/json": _schema("ChatCompletionRequest")}},
        "responses": {"200": {"description": described, "content": answers}, **_errors(*_STATUSES)},
        "security": [{}, {"key": []}],
    }
    name = {"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "LinVT", "version": version, "description": "Questions about videos and images."},
        "paths": {
            "/v1/chat/completions": {"post": chat},
            "/v1/models": {"get": _get("models", "The models", "ModelList", 401, 403)},
            "/v1/models/{name}": {
                "get": _get("model", "One of the models", "ModelCard", 401, 403, 404) | {"parameters": [name]}
            },
            "/health": {
                "get": _get("health", "Whether the model answers, and how busy it is", "Health", 503) | {"security": []}
            },
        },
        "components": {
            "schemas": schemas["$defs"],
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def _get(name: str, summary: str, model: str, *statuses: int) -> dict[str, Any]:
    found = {"description": summary, "content": {"application/json": _schema(model)}}
    return {
        "summary": summary,
        "operationId": name,
        "responses": {"200": found, **_errors(*statuses)},
        "security": [{}, {"key": []}],
    }


def _errors(*statuses: int) -> dict[str, Any]:
    body = {"application/json": _schema("Error")}
    return {str(status): {"description": _STATUSES[status], "content": body} for status in statuses}


def _schema(model: str) -> dict[str, Any]:
    return {"schema": {"$ref": _REF.format(model=model)}}
