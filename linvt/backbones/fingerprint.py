"""What a cache's tokens depend on, read from a checkpoint without building the model."""

import hashlib
import json
from dataclasses import asdict
from typing import Any

import torch

from linvt.backbones.base import PUBLISHED_VISION, VisionOptions
from linvt.backbones.checkpoint import Checkpoint
from linvt.backbones.loading import adapter_for, resolve_directory
from linvt.backbones.published import read_config

_BYTES = torch.uint8
_INCIDENTAL = ("text_config", "llm_config", "transformers_version", "dtype", "torch_dtype", "_name_or_path")
_PREPROCESSING_FILES = ("preprocessor_config.json", "processor_config.json")


def vision_fingerprint(name: str, options: VisionOptions = PUBLISHED_VISION) -> str:
    """sha256 hex over the vision weights (names, dtypes, bytes), the configuration, the preprocessing, the options.

    Raises ValueError if the checkpoint has no safetensors or none of its tensors is a vision weight.
    """
    directory = resolve_directory(name)
    adapter = adapter_for(directory)
    checkpoint = Checkpoint(directory)
    digest = hashlib.sha256()
    found = 0
    for key, tensor in adapter.vision_tensors(read_config(directory), checkpoint):
        found += 1
        content: Any = tensor.contiguous().view(-1).view(_BYTES).numpy()
        digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(content)
    if not found:
        raise ValueError(
            f"{directory}: no vision weights in its safetensors by the names that {adapter.__name__} knows"
        )
    for file_name in ("config.json", *_PREPROCESSING_FILES):
        if (directory / file_name).exists():
            content = _without_incidentals(json.loads((directory / file_name).read_text()))
            digest.update(json.dumps(content, sort_keys=True).encode())
    if options != PUBLISHED_VISION:
        digest.update(json.dumps(asdict(options), sort_keys=True).encode())
    return digest.hexdigest()


def _without_incidentals(content: Any) -> Any:
    """Drops what a mere load and save changes, and the LLM's own configuration, at every depth."""
    if isinstance(content, dict):
        return {key: _without_incidentals(value) for key, value in content.items() if key not in _INCIDENTAL}
    return content
