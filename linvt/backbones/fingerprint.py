"""What a cache's tokens depend on, read from a checkpoint without building the model."""

import hashlib
import json
from typing import Any

import torch
from safetensors import safe_open

from linvt.backbones.loading import resolve_directory

# Parts of parameter names that only the vision side and the intermediate layer have, over the published layouts; and
# Molmo's new token embeddings, of which its frame tokens hold one.
_VISION_NAMES = (
    *("vision", "visual", "projector", "connector", "merger", "mm_", "mlp1", "aligner", "image_newline"),
    "new_embedding",
)
_BYTES = torch.uint8
_INCIDENTAL = ("text_config", "transformers_version", "dtype", "torch_dtype", "_name_or_path")
_PREPROCESSING_FILES = ("preprocessor_config.json", "processor_config.json")


def vision_fingerprint(name: str) -> str:
    """sha256 hex over the vision weights (names, dtypes, bytes), the configuration and the preprocessing.

    Raises ValueError if the checkpoint has no safetensors or none of its tensors looks like a vision weight.
    """
    directory = resolve_directory(name)
    digest = hashlib.sha256()
    found = 0
    for file in sorted(directory.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            for key in sorted(tensors.keys()):
                if not any(part in key for part in _VISION_NAMES):
                    continue
                found += 1
                tensor = tensors.get_tensor(key).contiguous()
                digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}".encode())
                digest.update(tensor.view(-1).view(_BYTES).numpy())
    if not found:
        raise ValueError(f"{directory}: no safetensors with vision weights; expected names with one of {_VISION_NAMES}")
    for file_name in ("config.json", *_PREPROCESSING_FILES):
        if (directory / file_name).exists():
            content = _without_incidentals(json.loads((directory / file_name).read_text()))
            digest.update(json.dumps(content, sort_keys=True).encode())
    return digest.hexdigest()


def _without_incidentals(content: Any) -> Any:
    """Drops what a mere load and save changes, and the LLM's own configuration, at every depth."""
    if isinstance(content, dict):
        return {key: _without_incidentals(value) for key, value in content.items() if key not in _INCIDENTAL}
    return content
