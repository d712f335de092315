"""LoRA merged into the weights of an image-LLM, in the layout and under the names that its checkpoint has.

A checkpoint that Transformers loads is merged by PEFT and saved by Transformers. One in its authors' layout is copied
tensor by tensor: the adapter's rules say where each published value goes in the model, so they also say where a merged
value comes from.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from linvt.backbones import load_backbone, resolve_directory
from linvt.backbones.checkpoint import Checkpoint, Rule, rule_for
from linvt.backbones.loading import published_layout
from linvt.backbones.published import PublishedBackbone
from linvt.lora import adapted_modules, load_lora

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
# As safetensors spell them, the widest first.
_DTYPE_OF = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".msgpack", ".h5", ".onnx")
# The image-LLM's own card would say of the merged weights what they no longer are.
_NOT_COPIED = ("README.md", ".gitattributes", "model.safetensors.index.json", "pytorch_model.bin.index.json")


def merge_into_image_llm(backbone: str, adapter: Path, out: Path, *, dtype: str) -> None:
    """Write the image-LLM `backbone` to the new folder `out`, the adapter added to its LLM; all else as it was.

    The sum is taken in float32 and stored in `dtype`: "stored" (each tensor's own), "fp32" or "bf16". Raises ValueError
    for a checkpoint whose values cannot be traced back.
    """
    directory = resolve_directory(backbone)
    out.mkdir(parents=True)
    for file in sorted(directory.iterdir()):
        if file.is_file() and file.suffix not in _WEIGHTS and file.name not in _NOT_COPIED:
            shutil.copyfile(file, out / file.name)
    if published_layout(directory) is None:
        _merge_by_transformers(backbone, adapter, out, dtype)
    else:
        _merge_published(backbone, adapter, out, dtype)


def _merge_by_transformers(backbone: str, adapter: Path, out: Path, dtype: str) -> None:
    loaded: Any = load_backbone(backbone, dtype=torch.float32)
    load_lora(loaded, adapter)
    model = loaded.model.merge_and_unload()
    stored = _stored_dtype(resolve_directory(backbone))
    model = model.to(stored if dtype == "stored" else _DTYPES[dtype])
    own_generation_config = out / "generation_config.json"
    kept = own_generation_config.read_bytes() if own_generation_config.is_file() else None
    model.save_pretrained(out)
    if kept is not None:
        own_generation_config.write_bytes(kept)


def _stored_dtype(directory: Path) -> torch.dtype:
    checkpoint = Checkpoint(directory)
    found = {checkpoint.dtype_of(name) for name in checkpoint.names}
    return next((_DTYPE_OF[name] for name in _DTYPE_OF if name in found), torch.float32)


def _merge_published(backbone: str, adapter: Path, out: Path, dtype: str) -> None:
    loaded: Any = load_backbone(backbone, parts=("llm",), dtype=torch.float32)
    assert isinstance(loaded, PublishedBackbone)
    load_lora(loaded, adapter)
    # As the rules name them: `model.` is the attribute that holds the LLM.
    merged: dict[str, Tensor] = {
        f"model.{name}.weight": module.get_base_layer().weight + module.get_delta_weight("default")  # pyright: ignore
        for name, module in adapted_modules(loaded).items()
    }
    checkpoint, rules = loaded.checkpoint, loaded.rules(loaded.config)
    written: set[str] = set()
    weight_map: dict[str, str] = {}
    for file in sorted({checkpoint.file_of(name) for name in checkpoint.names}):
        tensors: dict[str, Tensor] = {}
        for name in (name for name in checkpoint.names if checkpoint.file_of(name) == file):
            tensor = checkpoint.read(name)
            rule = rule_for(name, rules)
            if rule is not None and rule.part == "llm":
                tensor = _with_merged(name, tensor, rule, merged, written, dtype)
            tensors[name] = tensor if dtype == "stored" else _cast(tensor, _DTYPES[dtype])
        save_file(tensors, out / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, file)
    left = sorted(merged.keys() - written)
    if left:
        raise ValueError(f"{backbone}: no tensor of the checkpoint holds {', '.join(left[:5])}; it cannot be merged")
    if len(set(weight_map.values())) > 1:
        total_size = sum(path.stat().st_size for path in out.glob("*.safetensors"))
        index = {"metadata": {"total_size": total_size}, "weight_map": weight_map}
        (out / "model.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n")


def _with_merged(
    name: str, tensor: Tensor, rule: Rule, merged: dict[str, Tensor], written: set[str], dtype: str
) -> Tensor:
    """A published tensor with merged values in the places that they were read from."""
    # Where each value goes, by sending the values' numbers the way that the values go.
    numbers = torch.arange(tensor.numel()).view(tensor.shape)
    numbers_placed = list(rule.place(name, numbers))
    if not any(placed.target in merged for placed in numbers_placed):
        return tensor
    out = tensor.float().flatten() if dtype != "stored" else tensor.flatten().clone()
    for placed, real in zip(numbers_placed, rule.place(name, tensor), strict=True):
        places = placed.values.flatten()
        if places.dtype != torch.int64 or not torch.equal(real.values.flatten(), tensor.flatten()[places]):
            raise ValueError(f"{name} is not only moved but computed on its way into the model; it cannot be merged")
        if placed.target in merged:
            start = placed.first_row or 0
            out[places] = merged[placed.target][start : start + len(placed.values)].flatten().to(out.dtype)
            written.add(placed.target)
    return out.view(tensor.shape)


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(dtype) if tensor.is_floating_point() else tensor
