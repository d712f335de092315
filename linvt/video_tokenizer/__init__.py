"""LinVT itself (paper sec. 3.2): refiner (SVR), multi-scale pooling (MTP), text-conditioned aggregation (TTA)."""

from typing import TYPE_CHECKING, Any

from linvt.video_tokenizer.config import LinVTConfig

if TYPE_CHECKING:
    from linvt.video_tokenizer.baselines import FrameAverage
    from linvt.video_tokenizer.linvt import LinVT, VideoTokens, build_video_tokenizer
    from linvt.video_tokenizer.video_side import VideoSide, VideoSideCache

__all__ = [
    "FrameAverage",
    "LinVT",
    "LinVTConfig",
    "VideoSide",
    "VideoSideCache",
    "VideoTokens",
    "build_video_tokenizer",
]


def __getattr__(name: str) -> Any:
    """Resolves the modules lazily: the configuration must be readable without torch."""
    if name == "FrameAverage":
        from linvt.video_tokenizer.baselines import FrameAverage

        return FrameAverage
    if name in ("VideoSide", "VideoSideCache"):
        from linvt.video_tokenizer import video_side

        return getattr(video_side, name)
    if name in __all__:
        from linvt.video_tokenizer import linvt

        return getattr(linvt, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it exports {__all__}")
