"""LoRA on the LLM's linear layers, through PEFT (stage 2)."""

import json
from pathlib import Path
from typing import Any

from peft import LoraConfig, PeftModel
from peft.tuners.lora import LoraLayer

from linvt.backbones import Backbone


def add_lora(backbone: Backbone, *, rank: int, alpha: float, dropout: float) -> None:
    """Wraps `backbone.model` so that only its adapters train. Raises ValueError if it is wrapped already."""
    if isinstance(backbone.model, PeftModel):
        raise ValueError(f"{backbone.name} already carries a LoRA adapter")
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,  # pyright: ignore[reportArgumentType]  # PEFT says int, and divides it by the rank
        lora_dropout=dropout,
        target_modules=backbone.lora_targets(),
        bias="none",
        # Else PEFT records the directory the LLM was loaded from, which means nothing on another machine.
        base_model_name_or_path=backbone.name,
    )
    backbone.model = PeftModel(backbone.model, config)


def save_lora(backbone: Backbone, directory: Path) -> None:
    """Writes the adapter as PEFT does, with the full names of its targets: PEFT alone then finds them in the image-LLM.

    The endings of names that PEFT itself writes were enough beside the LLM alone. Beside a vision tower, they match
    there, too.
    """
    # By default PEFT asks a hub whether the embeddings are the image-LLM's own, and copies them where it thinks not.
    image_llm: Any = backbone.model
    image_llm.save_pretrained(str(directory), save_embedding_layers=False)
    # PEFT's model card is a form with nothing filled in.
    (directory / "README.md").unlink(missing_ok=True)
    file = directory / "adapter_config.json"
    config = json.loads(file.read_text()) | {"target_modules": sorted(adapted_modules(backbone))}
    file.write_text(json.dumps(config, indent=2) + "\n")


def adapted_modules(backbone: Backbone) -> dict[str, LoraLayer]:
    """The linear layers that carry an adapter, by their full names within the image-LLM."""
    image_llm: Any = backbone.model
    base = image_llm.get_base_model() if isinstance(image_llm, PeftModel) else image_llm
    return {name: module for name, module in base.named_modules() if isinstance(module, LoraLayer)}


def load_lora(backbone: Backbone, directory: Path, *, trainable: bool = False) -> None:
    """Puts a saved adapter back on the LLM it was trained for."""
    if isinstance(backbone.model, PeftModel):
        raise ValueError(f"{backbone.name} already carries a LoRA adapter")
    config: Any = LoraConfig.from_pretrained(str(directory))
    # Adapters that PEFT itself saved have endings of names, see save_lora.
    config.target_modules = set(backbone.lora_targets())
    backbone.model = PeftModel.from_pretrained(backbone.model, str(directory), is_trainable=trainable, config=config)
