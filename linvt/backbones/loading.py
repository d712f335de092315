"""From a name to a backbone."""

from collections.abc import Collection
from pathlib import Path

import torch
from transformers.models.auto import AutoProcessor

from linvt.backbones.frame_side import side_for
from linvt.backbones.generic import GenericBackbone

TINY = "tiny"
_TINY_DIRECTORY = Path(__file__).parent.parent / "tiny" / "weights" / "image_llm"


def resolve_directory(name: str) -> Path:
    """The local directory of a model: `tiny` (the embedded one), a directory, or a hub id (downloaded on first use)."""
    if name == TINY:
        return _TINY_DIRECTORY
    if Path(name).is_dir():
        return Path(name)
    if name.startswith((".", "/")) or name.count("/") != 1:
        raise ValueError(f"--backbone {name}: no such directory; expected '{TINY}', a directory or a hub id ORG/NAME")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name))
    except (HfHubHTTPError, LocalEntryNotFoundError) as error:
        raise ValueError(f"--backbone {name}: not on this disk, and the hub gave no copy ({error})") from error


def max_frame_side(name: str) -> int:
    """`Backbone.max_frame_side` of a model that need not be loaded: only its image processor is read."""
    return side_for(AutoProcessor.from_pretrained(resolve_directory(name)).image_processor)


def load_backbone(
    name: str,
    *,
    parts: Collection[str] = ("vision", "llm"),
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
) -> GenericBackbone:
    """Loads an image-LLM, or only its "vision" (tower + intermediate layer) or "llm" part. All weights are frozen.

    Raises ValueError for an unknown name, a model that Transformers cannot load natively, or an incomplete checkpoint.
    """
    directory = resolve_directory(name)
    return GenericBackbone(directory, name=name, parts=frozenset(parts), dtype=dtype, device=torch.device(device))
