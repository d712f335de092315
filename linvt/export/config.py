"""What jobs/export.py is told. Imports no torch."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportConfig:
    """Make a trained model ready to be given away: a folder that `VideoLLM.from_pretrained` loads and a hub takes."""

    model: str
    """The model's folder: OUT/model or OUT/best of a training."""
    out: str
    """The folder to write."""
    merge_lora: bool = False
    """Write the image-LLM too, with the adapter merged into its LLM (OUT/image_llm, in the layout that it came in).
    What reads it needs no PEFT; what the image-LLM was before is then no longer in it."""
    backbone: str | None = None
    """Where the image-LLM is found, if elsewhere than the model says."""
    dtype: Literal["stored", "fp32", "bf16"] = "stored"
    """Of the merged weights: stored is that of the image-LLM's own, which rounds what LoRA adds to it."""
    on_existing: Literal["resume", "overwrite", "fail"] = "fail"
    """What to do where OUT already holds a model; resume keeps a finished export of the same model."""
