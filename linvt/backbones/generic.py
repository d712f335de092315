"""Nearly any Hugging Face image-text-to-text model, through the methods that Transformers gives all of them.

Shape legend: T frames, N tokens a frame, C hidden size, B batch, L sequence length.
"""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.models.auto import AutoConfig, AutoModelForImageTextToText, AutoProcessor

from linvt.backbones.base import Message, Prompt, VisionOptions
from linvt.backbones.frame_side import side_for
from linvt.backbones.frozen import PARTS, FrozenBackbone, checked_parts, cut_at, is_media

# One image, one tile: what the image-LLM would cut into crops is, for a video, many frames already.
_ONE_TILE = {"crop_to_patches": False, "do_image_splitting": False, "do_pan_and_scan": False}


class GenericBackbone(FrozenBackbone):
    """See `Backbone`. `directory` is in the layout of `save_pretrained`."""

    def __init__(
        self,
        directory: Path,
        *,
        name: str,
        parts: frozenset[str],
        dtype: torch.dtype,
        device: torch.device,
        options: VisionOptions,
    ):
        super().__init__()
        self.name, self.parts, self._directory = name, parts, directory
        config = AutoConfig.from_pretrained(directory)
        self.hidden_size = config.get_text_config().hidden_size
        self.model_type: str = config.model_type
        model_class = _partial_class(_model_class(config), parts)
        self.model, report = model_class.from_pretrained(
            directory, dtype=dtype, attn_implementation="sdpa", output_loading_info=True
        )
        _refuse_incomplete(report, directory)
        self._freeze(device)

    @cached_property
    def processor(self) -> Any:
        return AutoProcessor.from_pretrained(self._directory)

    @property
    def text_tokenizer(self) -> Any:
        return self.processor.tokenizer

    @cached_property
    def image_token_id(self) -> int:
        return _image_token_id(self.processor, self.model.config)

    @property
    def max_frame_side(self) -> int:
        return side_for(self.processor.image_processor)

    def _encode_batch(self, frames: np.ndarray) -> tuple[Tensor, tuple[int, int] | None]:
        processor = self.processor.image_processor
        options: dict[str, Any] = {name: value for name, value in _ONE_TILE.items() if hasattr(processor, name)}
        if frames.shape[1] <= 4:  # Without being told, it would take so few rows of pixels for colour channels.
            options["input_data_format"] = "channels_last"
        inputs = processor(images=list(frames), return_tensors="pt", **options)
        inputs = {
            k: (v.to(self.device, self.dtype) if v.is_floating_point() else v.to(self.device))
            for k, v in inputs.items()
            if isinstance(v, Tensor)
        }
        features = self.model.get_image_features(**inputs, return_dict=True).pooler_output
        if isinstance(features, list | tuple):
            features = torch.stack([f.reshape(-1, f.shape[-1]) for f in features])
        tokens_TNC = features.reshape(len(frames), -1, features.shape[-1])
        if "image_grid_thw" in inputs:
            merge = processor.merge_size
            _, rows, columns = (int(v) for v in inputs["image_grid_thw"][0])
            return tokens_TNC, (rows // merge, columns // merge)
        side = round(tokens_TNC.shape[1] ** 0.5)
        return tokens_TNC, (side, side) if side * side == tokens_TNC.shape[1] else None

    def prompt(self, messages: Sequence[Message]) -> Prompt:
        ids = self.text_ids(self._render(messages, add_generation_prompt=True))
        prompt = cut_at(ids, self.image_token_id)
        media = sum(is_media(part) for m in messages if isinstance(m["content"], list) for part in m["content"])
        slots = len(prompt.segments) - 1
        if slots != media:
            raise ValueError(f"{self.name}: its chat template made {slots} media slots out of {media} media parts")
        return prompt

    def _render(self, messages: Sequence[Message], *, add_generation_prompt: bool) -> str:
        # Frames enter by the image path, so a video's slot is an image's slot.
        shown = [
            {
                **m,
                "content": [{"type": "text", "text": m["content"]}]
                if isinstance(m["content"], str)
                else [{"type": "image"} if is_media(part) else part for part in m["content"]],
            }
            for m in messages
        ]
        return self.processor.apply_chat_template(shown, add_generation_prompt=add_generation_prompt, tokenize=False)

    def position_ids(self, mask: Tensor) -> Tensor:
        """Running index over valid tokens: [B, L], or [3, B, L] with t = h = w for the M-RoPE family."""
        positions_BL = super().position_ids(mask)
        is_mrope = self.model_type.startswith(("qwen2_vl", "qwen2_5_vl", "qwen3_vl"))
        return positions_BL.expand(3, -1, -1) if is_mrope else positions_BL


def _model_class(config: Any) -> Any:
    mapping = AutoModelForImageTextToText._model_mapping
    if type(config) not in mapping:
        raise ValueError(
            f"model_type {config.model_type!r} is not an image-text-to-text model that Transformers loads natively"
        )
    return mapping[type(config)]


def _refuse_incomplete(report: dict[str, Any], directory: Path) -> None:
    """Transformers only logs what a checkpoint lacks; a silently random layer would train and answer nonsense."""
    problems = {kind: sorted(map(str, report[kind])) for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")}
    problems = {kind: keys for kind, keys in problems.items() if keys}
    if problems:
        raise ValueError(f"{directory}: the checkpoint does not fit its architecture: {problems}")


def _image_token_id(processor: Any, config: Any) -> int:
    for holder, field in ((processor, "image_token_id"), (config, "image_token_id"), (config, "image_token_index")):
        value = getattr(holder, field, None)
        if isinstance(value, int):
            return value
    raise ValueError(f"{config.model_type}: neither its processor nor its config names the image token")


def _partial_class(model_class: Any, parts: frozenset[str]) -> Any:
    """`model_class` without the parts that were not asked for, whose weights are then never read.

    Built under the same name, because Transformers looks checkpoint conversions up by it.
    """
    if checked_parts(parts) == PARTS:
        return model_class

    class Partial(model_class):
        def __init__(self, config: Any, *args: Any, **kwargs: Any):
            super().__init__(config, *args, **kwargs)
            decoder = self.get_decoder()
            children = dict(self.model.named_children())
            kept = {name for name, child in children.items() if any(m is decoder for m in child.modules())}
            dropped = kept if parts == {"vision"} else set(children) - kept
            for name in dropped:
                setattr(self.model, name, None)
            if parts == {"vision"}:
                self.lm_head = None
                dropped.add("lm_head")
            self._keys_to_ignore_on_load_unexpected = {rf"(^|\.){name}\." for name in dropped}

        def get_input_embeddings(self) -> Any:
            return super().get_input_embeddings() if "llm" in parts else None

        def get_output_embeddings(self) -> Any:
            return super().get_output_embeddings() if "llm" in parts else None

        def tie_weights(self, *args: Any, **kwargs: Any) -> None:
            if "llm" in parts:
                super().tie_weights(*args, **kwargs)

    Partial.__name__, Partial.__qualname__ = model_class.__name__, model_class.__qualname__
    Partial.__module__ = model_class.__module__
    return Partial
