"""What a chat-completions request may say: the OpenAI fields we serve, and the media parts other servers added.

Unknown fields are tolerated, as OpenAI-compatible servers do; known fields with a meaning we cannot serve are refused,
because an answer that silently ignores `n=3` is a wrong answer.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from linvt.serving.errors import RequestError


class _Part(BaseModel):
    model_config = ConfigDict(extra="ignore")


class TextPart(_Part):
    type: Literal["text"]
    text: str


class MediaURL(_Part):
    url: str


class ImagePart(_Part):
    type: Literal["image_url"]
    image_url: MediaURL


class VideoPart(_Part):
    type: Literal["video_url"]
    video_url: MediaURL


Part = Annotated[TextPart | ImagePart | VideoPart, Field(discriminator="type")]


class Message(_Part):
    role: Literal["system", "developer", "user", "assistant"]
    content: list[Part]

    @field_validator("content", mode="before")
    @classmethod
    def _text_is_one_part(cls, content: Any) -> Any:
        return [{"type": "text", "text": content}] if isinstance(content, str) else content


class VideoOptions(_Part):
    num_frames: int | None = Field(default=None, ge=1)
    fps: float | None = Field(default=None, gt=0, allow_inf_nan=False)


class MediaIO(_Part):
    video: VideoOptions = VideoOptions()


class StreamOptions(_Part):
    include_usage: bool = False


class LinVTOptions(_Part):
    """Our extension: what evidence comes back with the answer."""

    evidence: bool = True
    """The weight of every sampled frame in the answer's video tokens."""
    evidence_map: bool = False
    """Also the weight of every patch of every frame, where patches lie on a grid."""
    evidence_per_token: bool = False
    """Also the weight of every frame in each token of the answer. Costs a backward pass per token instead of one."""
    top_moments: int = Field(default=3, ge=1)
    """How many of the heaviest frames to list first."""

    @property
    def wants_evidence(self) -> bool:
        return self.evidence or self.evidence_map or self.evidence_per_token


class ChatCompletionRequest(_Part):
    """The body of `POST /v1/chat/completions`."""

    model: str
    messages: list[Message] = Field(min_length=1)
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    seed: int | None = None
    stop: str | list[str] | None = None
    n: int | None = Field(default=None, ge=1)
    stream: bool = False
    stream_options: StreamOptions | None = None
    media_io_kwargs: MediaIO = MediaIO()
    linvt: LinVTOptions = LinVTOptions()

    @property
    def stops(self) -> list[str]:
        return [self.stop] if isinstance(self.stop, str) else [stop for stop in self.stop or [] if stop]

    @property
    def includes_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage


def parse_request(body: Any, *, model_names: tuple[str, ...]) -> ChatCompletionRequest:
    """Validates a decoded JSON body. Raises RequestError 400 (a field is wrong) or 404 (another model's name)."""
    try:
        request = ChatCompletionRequest.model_validate(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(step) for step in first["loc"]) or None
        raise RequestError(400, f"{where or 'body'}: {first['msg']}", code="invalid_request", param=where) from error
    if request.model not in model_names:
        raise RequestError(
            404,
            f"the model {request.model!r} does not exist; this server has {list(model_names)}",
            code="model_not_found",
        )
    if request.n not in (None, 1):
        raise RequestError(400, f"n={request.n}: one choice per request is supported", code="unsupported", param="n")
    options = request.media_io_kwargs.video
    if options.num_frames is not None and options.fps is not None:
        raise RequestError(
            400, "give either num_frames or fps, not both", code="invalid_request", param="media_io_kwargs.video"
        )
    if request.messages[-1].role != "user":
        raise RequestError(400, "the last message must be the user's", code="invalid_request", param="messages")
    for message in request.messages:
        if message.role != "user" and any(not isinstance(part, TextPart) for part in message.content):
            raise RequestError(400, "media parts belong in user messages", code="invalid_request", param="messages")
    return request
