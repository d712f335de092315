"""Nearly any Hugging Face image-text-to-text model, through the methods that Transformers gives all of them.

Shape legend: T frames, N tokens a frame, C hidden size, B batch, L sequence length.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers.models.auto import AutoConfig, AutoModelForImageTextToText, AutoProcessor

from linvt.backbones.base import FrameTokens, Message, Prompt
from linvt.backbones.frame_side import side_for

PARTS = frozenset({"vision", "llm"})
# One image, one tile: what the image-LLM would cut into crops is, for a video, many frames already.
_ONE_TILE = {"crop_to_patches": False, "do_image_splitting": False, "do_pan_and_scan": False}

_MROPE_MODELS = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")


class GenericBackbone(nn.Module):
    """See `Backbone`. `directory` is in the layout of `save_pretrained`."""

    def __init__(self, directory: Path, *, name: str, parts: frozenset[str], dtype: torch.dtype, device: torch.device):
        super().__init__()
        self.name, self.parts = name, parts
        config = AutoConfig.from_pretrained(directory)
        text_config = config.get_text_config()
        self.hidden_size: int = text_config.hidden_size
        self.model_type: str = config.model_type
        self.processor = AutoProcessor.from_pretrained(directory)
        model_class = _partial_class(_model_class(config), parts)
        model, report = model_class.from_pretrained(
            directory, dtype=dtype, attn_implementation="sdpa", output_loading_info=True
        )
        _refuse_incomplete(report, directory)
        self.model: Any = model.to(device)
        self.model.eval()
        self.model.requires_grad_(False)
        self._text: Any = self.processor.tokenizer
        self.image_token_id: int = _image_token_id(self.processor, config)

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.model.parameters()).dtype

    @property
    def pad_id(self) -> int:
        for candidate in (self._text.pad_token_id, self._text.eos_token_id):
            if candidate is not None:
                return candidate
        raise ValueError(f"{self.name}: its text tokenizer has neither a pad nor an end token")

    @property
    def stop_ids(self) -> list[int]:
        stop = self.model.generation_config.eos_token_id
        if stop is None:
            stop = self._text.eos_token_id
        return list(stop) if isinstance(stop, list | tuple) else [stop]

    @property
    def max_frame_side(self) -> int:
        return side_for(self.processor.image_processor)

    @torch.no_grad()
    def encode_frames(self, frames: np.ndarray, *, batch_size: int = 16) -> FrameTokens:
        self._need("vision")
        if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or len(frames) == 0:
            raise ValueError(f"frames must be uint8 [T>0, H, W, 3], got {frames.dtype} {frames.shape}")
        chunks: list[Tensor] = []
        grid: tuple[int, int] | None = None
        for start in range(0, len(frames), batch_size):
            chunk = frames[start : start + batch_size]
            # A padded batch has the same shape for every video, so its results do not depend on how many frames follow.
            padded = np.concatenate([chunk, np.zeros((batch_size - len(chunk), *chunk.shape[1:]), np.uint8)])
            tokens, grid = self._encode_batch(padded)
            chunks.append(tokens[: len(chunk)])
        return FrameTokens(tokens=torch.cat(chunks), grid=grid)

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
        ids = self._ids(self._render(messages, add_generation_prompt=True))
        segments: list[list[int]] = [[]]
        for token_id in ids:
            if token_id == self.image_token_id:
                segments.append([])
            else:
                segments[-1].append(token_id)
        media = sum(_is_media(part) for m in messages if isinstance(m["content"], list) for part in m["content"])
        if len(segments) != media + 1:
            raise ValueError(
                f"{self.name}: its chat template made {len(segments) - 1} media slots out of {media} media parts"
            )
        return Prompt(segments=tuple(tuple(s) for s in segments))

    def answer_ids(self, messages: Sequence[Message], answer: str) -> list[int]:
        asked = self._render(messages, add_generation_prompt=True)
        turn: Message = {"role": "assistant", "content": [{"type": "text", "text": answer}]}
        answered = self._render([*messages, turn], add_generation_prompt=False)
        if not answered.startswith(asked):
            raise ValueError(f"{self.name}: its chat template changes the prompt once it is answered: {answered!r}")
        return self._ids(answered[len(asked) :])

    def text_ids(self, text: str) -> list[int]:
        return self._ids(text)

    def decode(self, ids: Sequence[int]) -> str:
        return self._text.decode(list(ids), skip_special_tokens=True).strip()

    def _ids(self, text: str) -> list[int]:
        return self._text(text, add_special_tokens=False)["input_ids"]

    def _render(self, messages: Sequence[Message], *, add_generation_prompt: bool) -> str:
        # Frames enter by the image path, so a video's slot is an image's slot.
        shown = [
            {
                **m,
                "content": [{"type": "text", "text": m["content"]}]
                if isinstance(m["content"], str)
                else [{"type": "image"} if _is_media(part) else part for part in m["content"]],
            }
            for m in messages
        ]
        return self.processor.apply_chat_template(shown, add_generation_prompt=add_generation_prompt, tokenize=False)

    def embed(self, ids: Tensor) -> Tensor:
        self._need("llm")
        return self.model.get_input_embeddings()(ids)

    def hidden_states(self, embeds: Tensor, mask: Tensor) -> Tensor:
        self._need("llm")
        return self._base.get_decoder()(
            inputs_embeds=embeds, attention_mask=mask.long(), position_ids=self.position_ids(mask), use_cache=False
        ).last_hidden_state

    def position_ids(self, mask: Tensor) -> Tensor:
        """Running index over valid tokens: [B, L], or [3, B, L] with t = h = w for the M-RoPE family."""
        positions_BL = (mask.long().cumsum(-1) - 1).clamp(min=0)
        return (
            positions_BL.expand(3, -1, -1)
            if self.model_type.startswith(("qwen2_vl", "qwen2_5_vl", "qwen3_vl"))
            else positions_BL
        )

    def head(self, hidden: Tensor) -> Tensor:
        return self.model.get_output_embeddings()(hidden)

    @torch.no_grad()
    def generate(self, embeds: Tensor, mask: Tensor, *, max_new_tokens: int, **sampling: Any) -> list[list[int]]:
        self._need("llm")
        sampling.setdefault("do_sample", False)
        out = self.model.generate(
            inputs_embeds=embeds,
            attention_mask=mask.long(),
            max_new_tokens=max_new_tokens,
            pad_token_id=self.pad_id,
            eos_token_id=self.stop_ids,
            **sampling,
        )
        stop = set(self.stop_ids)
        answers: list[list[int]] = []
        for row in out.tolist():
            end = next((i for i, token_id in enumerate(row) if token_id in stop), len(row))
            answers.append(row[:end])
        return answers

    def lora_targets(self) -> list[str]:
        self._need("llm")
        decoder = self._base.get_decoder()
        inside = {id(module) for module in decoder.modules() if isinstance(module, nn.Linear)}
        return [name for name, module in self._base.named_modules() if id(module) in inside]

    @property
    def _base(self) -> Any:
        """The Transformers model, also when PEFT has wrapped it."""
        return self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model

    def _need(self, part: str) -> None:
        if part not in self.parts:
            raise ValueError(f"{self.name} was loaded without its {part} part; load_backbone(…, parts={{'{part}'}})")


def _is_media(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type") in ("image", "video")


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
    unknown = parts - PARTS
    if unknown or not parts:
        raise ValueError(f"parts must be a non-empty subset of {sorted(PARTS)}, got {sorted(parts)}")
    if parts == PARTS:
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
