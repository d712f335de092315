"""LoRA on the LLM's linear layers, through PEFT (stage 2)."""

from pathlib import Path
from typing import Any

from peft import LoraConfig, PeftModel

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


def load_lora(backbone: Backbone, directory: Path, *, trainable: bool = False) -> None:
    """Puts a saved adapter back on the LLM it was trained for."""
    if isinstance(backbone.model, PeftModel):
        raise ValueError(f"{backbone.name} already carries a LoRA adapter")
    config: Any = LoraConfig.from_pretrained(str(directory))
    # PEFT stores endings of names that were enough beside the LLM alone. Beside a vision tower, they would match there.
    config.target_modules = set(backbone.lora_targets())
    backbone.model = PeftModel.from_pretrained(backbone.model, str(directory), is_trainable=trainable, config=config)
