"""Published conversation formats, for image-LLMs that come without a chat template of their own."""

from collections.abc import Sequence
from dataclasses import dataclass

from linvt.backbones.base import Message
from linvt.backbones.frozen import is_media

SLOT = "\x00"
"""Stands in rendered text where the tokens of an image or a video go."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ConversationFormat:
    """What stands around each turn. `{}` is the turn's text."""

    begin: str = ""
    system: str
    default_system: str | None
    """Said where a conversation brings no system turn; None says nothing."""
    user: str
    assistant: str
    """From where the assistant begins to the end of its turn; what precedes `{}` is the generation prompt."""
    before_media: str = ""
    after_media: str = ""
    stop: tuple[str, ...]
    """Tokens that end the assistant's turn."""

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool) -> str:
        """The conversation as text, with SLOT for each image and video. Raises ValueError for what it cannot say."""
        turns = list(messages)
        if not turns or turns[0]["role"] != "system":
            text = self.begin + (self.system.format(self.default_system) if self.default_system is not None else "")
        else:
            text = self.begin + self.system.format(self._content(turns.pop(0)))
        for turn in turns:
            if turn["role"] not in ("user", "assistant"):
                raise ValueError(f"a turn of {turn['role']!r}; expected one system turn first, then user and assistant")
            text += (self.user if turn["role"] == "user" else self.assistant).format(self._content(turn))
        return text + (self.assistant.split("{}")[0] if add_generation_prompt else "")

    def _content(self, message: Message) -> str:
        parts = message["content"]
        parts = [{"type": "text", "text": parts}] if isinstance(parts, str) else parts
        if any(SLOT in part.get("text", "") for part in parts):
            raise ValueError("a message holds a NUL character, which no text has")
        return "".join(
            f"{self.before_media}{SLOT}{self.after_media}" if is_media(part) else part["text"] for part in parts
        )


CHATML = ConversationFormat(
    system="<|im_start|>system\n{}<|im_end|>\n",
    default_system="You are a helpful assistant.",
    user="<|im_start|>user\n{}<|im_end|>\n",
    assistant="<|im_start|>assistant\n{}<|im_end|>\n",
    stop=("<|im_end|>",),
)
