"""Image-LLMs behind one small protocol: `load_backbone(name_or_directory, parts={"vision", "llm"})`."""

from linvt.backbones.base import Backbone, FrameTokens, Prompt, VisionOptions
from linvt.backbones.fingerprint import vision_fingerprint
from linvt.backbones.generic import GenericBackbone
from linvt.backbones.loading import load_backbone, max_frame_side, resolve_directory

__all__ = [
    "Backbone",
    "FrameTokens",
    "GenericBackbone",
    "Prompt",
    "VisionOptions",
    "load_backbone",
    "max_frame_side",
    "resolve_directory",
    "vision_fingerprint",
]
