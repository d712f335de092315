"""LinVT on disk and on the Hugging Face hub: `linvt.safetensors` beside a versioned `config.json`."""

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelHubMixin, hf_hub_download
from safetensors.torch import load_file, save_file
from torch import nn

from linvt.video_tokenizer.config import LinVTConfig

FORMAT, VERSION = "linvt", 1
WEIGHTS = "linvt.safetensors"

_CARD = """---
{{ card_data }}
---
A LinVT video tokenizer ([paper]({{ paper_url }})): `LinVT.from_pretrained(DIRECTORY_OR_HUB_ID)` brings it back. Its
configuration is `config.json`, its weights are `linvt.safetensors`.
"""


class PretrainedMixin(
    ModelHubMixin,
    library_name="linvt",
    tags=["video"],
    paper_url="https://arxiv.org/abs/2412.05185",
    model_card_template=_CARD,
):
    """`save_pretrained`, `from_pretrained` and `push_to_hub`, as Hugging Face models have them.

    `from_pretrained(NAME, hidden_size=…, dtype=…, device=…)` takes a directory or hub id that `save_pretrained` or
    `VideoLLM.save_pretrained` made. With `hidden_size`, the image-LLM's, a LinVT of other channels is refused.
    """

    config: LinVTConfig

    def _save_pretrained(self, save_directory: Path) -> None:
        assert isinstance(self, nn.Module)
        state = {name: tensor.contiguous() for name, tensor in self.state_dict().items()}
        save_file(state, save_directory / WEIGHTS, metadata={"format": "pt"})
        fields = {"format": FORMAT, "version": VERSION, **dataclasses.asdict(self.config)}
        # Last, and renamed into place: a directory without it is unfinished.
        unfinished = save_directory / "config.json.tmp"
        with open(unfinished, "w") as file:
            file.write(json.dumps(fields, indent=1) + "\n")
            file.flush()
            os.fsync(file.fileno())
        unfinished.rename(save_directory / "config.json")

    @classmethod
    def _from_pretrained(
        cls,
        *,
        model_id: str,
        revision: str | None,
        cache_dir: str | Path | None,
        force_download: bool,
        local_files_only: bool,
        token: str | bool | None,
        config: dict[str, Any] | None = None,
        hidden_size: int | None = None,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
    ) -> Any:
        if config is None:
            raise ValueError(f"{model_id}: no config.json; expected what LinVT.save_pretrained wrote")
        parsed = _parse(config, model_id)
        if hidden_size is not None and hidden_size != parsed.hidden_size:
            raise ValueError(
                f"{model_id} was trained for C = {parsed.hidden_size} channels, the image-LLM has C = {hidden_size}; "
                "a LinVT serves image-LLMs of its own width only"
            )
        if os.path.isdir(model_id):
            weights = os.path.join(model_id, WEIGHTS)
        else:
            weights = hf_hub_download(
                model_id,
                WEIGHTS,
                revision=revision,
                cache_dir=cache_dir,
                force_download=force_download,
                local_files_only=local_files_only,
                token=token,
            )
        module: Any = cls(parsed)  # pyright: ignore[reportCallIssue]
        module.load_state_dict(load_file(weights))
        return module.to(device=device, dtype=dtype).eval()


def _parse(config: dict[str, Any], source: str) -> LinVTConfig:
    """A configuration as LinVT or VideoLLM wrote it. Raises ValueError for other formats and newer versions."""
    if config.get("format") == "linvt-video-llm":
        return LinVTConfig.from_json(config["video_tokenizer"])
    fields = dict(config)
    found = fields.pop("format", None), fields.pop("version", None)
    if found != (FORMAT, VERSION):
        raise ValueError(f"{source}: config.json is of format {found[0]!r} version {found[1]}, expected {FORMAT} 1")
    return LinVTConfig.from_json(fields)
