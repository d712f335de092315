"""What tests of the endpoint share: a tiny model on disk, media, a free port."""

import socket
from pathlib import Path
from typing import Any

import openai
import torch

from linvt.backbones import load_backbone
from linvt.video_llm import VideoLLM
from linvt.video_tokenizer import LinVT, LinVTConfig


def save_tiny_model(directory: Path, image_llm: str) -> Path:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = LinVTConfig(hidden_size=64, num_queries=(4, 2), windows=(1, 2), num_layers=1, num_heads=4, top_k=200)
    VideoLLM(load_backbone(image_llm, parts={"llm"}), LinVT(config)).save_pretrained(directory)
    return directory


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def question(url: str | None = None, text: str = "what moves ?", *, part: str = "video_url") -> list[dict[str, Any]]:
    """The messages that ask about a video or image, or about nothing."""
    media = [] if url is None else [{"type": part, part: {"url": url}}]
    return [{"role": "user", "content": [*media, {"type": "text", "text": text}]}]


def ask(client: openai.OpenAI, url: str | None = None, text: str = "what moves ?", **options: Any) -> Any:
    messages: Any = question(url, text, part=options.pop("part", "video_url"))
    return client.chat.completions.create(model="linvt", messages=messages, **options)
