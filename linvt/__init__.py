"""LinVT: a linear video tokenizer between an image-LLM's frozen vision side and its LLM (arXiv 2412.05185).

Names resolve on first use, so importing a configuration module costs no torch import.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from linvt.backbones import load_backbone
    from linvt.shards import read_cache
    from linvt.video_llm import VideoLLM
    from linvt.video_tokenizer import LinVT, LinVTConfig

__all__ = ["LinVT", "LinVTConfig", "VideoLLM", "load_backbone", "read_cache"]

_HOME = {
    "LinVT": "linvt.video_tokenizer",
    "LinVTConfig": "linvt.video_tokenizer",
    "VideoLLM": "linvt.video_llm",
    "load_backbone": "linvt.backbones",
    "read_cache": "linvt.shards",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'linvt' has no attribute {name!r}; it exports {__all__}")
    return getattr(import_module(_HOME[name]), name)
