"""From a name to a backbone."""

from collections.abc import Collection
from importlib.metadata import entry_points
from itertools import chain
from pathlib import Path

import torch

from linvt.backbones.aquila import AquilaBackbone
from linvt.backbones.base import PUBLISHED_VISION, VisionOptions
from linvt.backbones.blip3 import Blip3Backbone
from linvt.backbones.frame_side import side_for
from linvt.backbones.frozen import FrozenBackbone
from linvt.backbones.generic import GenericBackbone
from linvt.backbones.generic_processor import load_image_processor
from linvt.backbones.internvl2 import InternVL2Backbone
from linvt.backbones.mipha import MiphaBackbone
from linvt.backbones.molmo import MolmoBackbone
from linvt.backbones.molmo2 import Molmo2Backbone
from linvt.backbones.published import PublishedBackbone, read_config

PUBLISHED: tuple[type[PublishedBackbone], ...] = (
    AquilaBackbone,
    Blip3Backbone,
    InternVL2Backbone,
    MiphaBackbone,
    MolmoBackbone,
)
ENTRY_POINTS = "linvt.backbones"
"""The group under which an installed package offers adapters of its own."""
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


def published_layout(directory: Path) -> type[PublishedBackbone] | None:
    """The adapter for a checkpoint in its authors' layout; None for one that Transformers loads itself."""
    config = read_config(directory)
    offered = (entry.load() for entry in entry_points(group=ENTRY_POINTS))
    return next((layout for layout in chain(offered, PUBLISHED) if layout.recognises(config)), None)


def adapter_for(directory: Path) -> type[PublishedBackbone] | type[GenericBackbone]:
    """The class that loads a checkpoint."""
    layout = published_layout(directory)
    if layout is not None:
        return layout
    return Molmo2Backbone if read_config(directory).get("model_type") == "molmo2" else GenericBackbone


def max_frame_side(name: str) -> int:
    """`Backbone.max_frame_side` of a model that need not be loaded: only its configuration is read."""
    layout = published_layout(resolve_directory(name))
    if layout is not None:
        return layout.frame_side(read_config(resolve_directory(name)))
    return side_for(load_image_processor(resolve_directory(name)))


def load_backbone(
    name: str,
    *,
    parts: Collection[str] = ("vision", "llm"),
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    options: VisionOptions = PUBLISHED_VISION,
) -> FrozenBackbone:
    """Loads an image-LLM, or only its "vision" (tower + intermediate layer) or "llm" part. All weights are frozen.

    Weights of a part that is not asked for are not read. Raises ValueError for an unknown name, a model or a variant
    that no adapter takes, or a checkpoint that does not fit its architecture.
    """
    directory = resolve_directory(name)
    return adapter_for(directory)(
        directory, name=name, parts=frozenset(parts), dtype=dtype, device=torch.device(device), options=options
    )
