"""What a chat-completions request may say: the OpenAI fields we serve, and what vLLM and its clients added.

Unknown fields are tolerated, as OpenAI-compatible servers do; fields with a meaning we cannot serve are refused,
because an answer that silently ignores `tools` is a wrong answer. These models are also the schema in `/openapi.json`.
"""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError

from linvt.serving.errors import RequestError

MAX_TEXT_CHARACTERS = 1_000_000
"""Of all texts of a request: more than any context holds, and little enough to be tokenized while others wait."""
_INT64 = 2**63
# What the two kinds of content are called where an error is; left out of what clients are told.
_PLAIN, _PARTS = "<text>", "<parts>"
# Field, and what of it can be served.
_UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "tools": ([],),
    "functions": ([],),
    "logit_bias": ({},),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "audio": (),
    "best_of": (1,),
    "use_beam_search": (False,),
}


class _Model(BaseModel):
    # Strict, because a schema that says integer and a server that takes "3" are two APIs.
    model_config = ConfigDict(extra="ignore", strict=True)


def _writable(text: str) -> str:
    text.encode()  # half of a surrogate pair, which JSON can spell, is no character
    return text


def _content_kind(content: Any) -> str:
    return _PLAIN if isinstance(content, str) else _PARTS


Text = Annotated[str, AfterValidator(_writable)]


class TextPart(_Model):
    type: Literal["text"]
    text: Text


class MediaURL(_Model):
    url: Text
    """http(s), data, or file where the server allows it."""


class ImagePart(_Model):
    type: Literal["image_url"]
    image_url: MediaURL


class VideoPart(_Model):
    type: Literal["video_url"]
    video_url: MediaURL
    """Frames of a video, as vLLM takes them, are `data:video/jpeg;base64,FRAME,FRAME,…`."""


Part = Annotated[TextPart | ImagePart | VideoPart, Field(discriminator="type")]


class Message(_Model):
    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[Annotated[Text, Tag(_PLAIN)] | Annotated[list[Part], Tag(_PARTS)], Discriminator(_content_kind)]

    @property
    def parts(self) -> list[Part]:
        """The content, of which a plain text is one part."""
        return [TextPart(type="text", text=self.content)] if isinstance(self.content, str) else self.content


class VideoOptions(_Model):
    """How many frames stand for each video of the request: a number, or a rate."""

    num_frames: int | None = Field(default=None, ge=1)
    fps: float | None = Field(default=None, gt=0, allow_inf_nan=False)


class MediaIO(_Model):
    video: VideoOptions = VideoOptions()


class StreamOptions(_Model):
    include_usage: bool | None = None


class LinVTOptions(_Model):
    """Our extension: what evidence comes back with the answer."""

    evidence: bool = False
    """The weight of every sampled frame, and of every shot, in the answer. Costs eight forward and backward passes."""
    evidence_map: bool = False
    """Also the weight of every patch of every frame, where patches lie on a grid."""
    evidence_per_token: bool = False
    """Also the weight of every frame in each token of the answer. Costs as many backward passes for each of them."""
    top_moments: int = Field(default=3, ge=1)
    """How many of the heaviest frames to list first."""

    @property
    def wants_evidence(self) -> bool:
        return self.evidence or self.evidence_map or self.evidence_per_token


class ChatCompletionRequest(_Model):
    """The body of `POST /v1/chat/completions`."""

    model: Text
    messages: list[Message] = Field(min_length=1)
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    """The same, and stronger."""
    temperature: float | None = Field(default=None, ge=0, le=2, allow_inf_nan=False)
    """0, the default: the likeliest token each time."""
    top_p: float | None = Field(default=None, gt=0, le=1, allow_inf_nan=False)
    top_k: int | None = Field(default=None, ge=-1)
    min_p: float | None = Field(default=None, ge=0, le=1, allow_inf_nan=False)
    presence_penalty: float | None = Field(default=None, ge=-2, le=2, allow_inf_nan=False)
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2, allow_inf_nan=False)
    repetition_penalty: float | None = Field(default=None, gt=0, le=10, allow_inf_nan=False)
    """The three penalties look at the answer, not at the question."""
    seed: int | None = Field(default=None, ge=-_INT64, lt=_INT64)
    stop: Text | Annotated[list[Text], Field(max_length=16)] | None = None
    n: int | None = Field(default=None, ge=1, le=16)
    """Answers to the same question."""
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    media_io_kwargs: MediaIO | None = None
    linvt: LinVTOptions = LinVTOptions()

    @property
    def num_choices(self) -> int:
        return self.n or 1

    @property
    def stops(self) -> list[str]:
        stops = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return [stop for stop in stops if stop]

    @property
    def includes_usage(self) -> bool:
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    @property
    def video_options(self) -> VideoOptions:
        return VideoOptions() if self.media_io_kwargs is None else self.media_io_kwargs.video


def parse_request(body: Any, *, model_names: tuple[str, ...]) -> ChatCompletionRequest:
    """Validates a decoded JSON body. Raises RequestError 400 (a field is wrong) or 404 (another model's name)."""
    try:
        request = ChatCompletionRequest.model_validate(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(step) for step in first["loc"] if step not in (_PLAIN, _PARTS)) or None
        raise _refused(f"{where or 'body'}: {first['msg']}", where) from error
    if request.model not in model_names:
        raise RequestError(
            404,
            f"the model {request.model!r} does not exist; this server has {list(model_names)}",
            code="model_not_found",
        )
    for field, served in _UNSUPPORTED.items():
        if body.get(field) is not None and body[field] not in served:
            raise RequestError(400, f"{field} cannot be served here", code="unsupported", param=field)
    options = request.video_options
    if options.num_frames is not None and options.fps is not None:
        raise _refused("give either num_frames or fps, not both", "media_io_kwargs.video")
    if request.top_logprobs is not None and not request.logprobs:
        raise _refused("top_logprobs needs logprobs", "top_logprobs")
    if request.linvt.wants_evidence and request.num_choices > 1:
        raise _refused("evidence is that of one answer; ask with n = 1", "n")
    if request.messages[-1].role != "user":
        raise _refused("the last message must be the user's", "messages")
    texts = 0
    for message in request.messages:
        if message.role != "user" and any(not isinstance(part, TextPart) for part in message.parts):
            raise _refused("media parts belong in user messages", "messages")
        texts += sum(len(part.text) for part in message.parts if isinstance(part, TextPart))
    if texts > MAX_TEXT_CHARACTERS:
        raise _refused(f"{texts} characters of text; at most {MAX_TEXT_CHARACTERS} are read", "messages")
    return request


def _refused(message: str, param: str | None) -> RequestError:
    return RequestError(400, message, code="invalid_request", param=param)
