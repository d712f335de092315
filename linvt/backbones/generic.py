"""Nearly any Hugging Face image-text-to-text model, through the methods that Transformers gives all of them.

Shape legend: T frames, N tokens a frame, C hidden size, B batch, L sequence length.
"""

import inspect
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers.models.auto import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

from linvt.backbones.base import FrameTokens, Message, Prompt, VisionOptions
from linvt.backbones.checkpoint import Checkpoint
from linvt.backbones.frame_side import side_for
from linvt.backbones.frozen import PARTS, FrozenBackbone, attention_for, checked_parts, is_media
from linvt.backbones.generic_processor import load_image_processor, load_processor
from linvt.backbones.onevision import halve_grid
from linvt.backbones.preprocessing import squeezed
from linvt.backbones.published import Config, reset

# One image, one tile: what the image-LLM would cut into crops is, for a video, many frames already.
_ONE_TILE = {"crop_to_patches": False, "do_image_splitting": False, "do_pan_and_scan": False}
# Their features are those of several tiles and of line ends; frame tokens are the projected tower's, of the base tile.
_ANY_RESOLUTION = ("llava_next", "llava_next_video", "llava_onevision")
# Their learned queries are an unordered set, however many they are.
_UNORDERED = ("aria", "blip-2", "idefics2", "instructblip", "instructblipvideo")
# They generate from embeddings only as a plain language model: the whole asks for ids, to find the image tokens.
_GENERATES_AS_TEXT = ("gemma3", "paligemma")
# Parts of tensors' names that only the vision side and the intermediate layer have, in Transformers' own layouts.
_VISION_NAMES = ("vision", "visual", "projector", "connector", "merger", "mm_", "mlp1", "aligner", "image_newline")
_INTERMEDIATE = ("multi_modal_projector", "connector", "merger", "aligner", "embed_vision", "mm_projector", "projector")
# Models that take a picture of any shape get this of a video's frames: 16×16 tokens of Qwen2-VL.
_FRAME_SIDE = 448
_BLANK = np.zeros((32, 32, 3), np.uint8)


class GenericBackbone(FrozenBackbone):
    """See `Backbone`. `directory` is in the layout of `save_pretrained`.

    The LLM sees one tensor a token, in causal order, at running positions. Where a model does more for images in its
    own forward, frame and video tokens go without it:

    - M-RoPE (Qwen-VL, GLM-4V): t = h = w = running index; video tokens are averages over frames and have no grid.
    - Deepstack (Qwen3-VL): features of lower layers of the tower are not added inside the LLM; the cache would be
      several times as large.
    - Attention in both directions among image tokens (Gemma 3, Molmo 2) or over the whole prompt (PaliGemma): video
      tokens are in temporal order and read causally, in training as in generation, and an answer never sees what comes
      after it. So is an image, whose answers therefore differ from the model's own for these types.
    - Ends of lines and images' tiles (LLaVA-NeXT, LLaVA-OneVision, Pixtral, Molmo 2): cut, one base tile a frame.
    """

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
        self.name, self.parts, self._options, self._directory = name, parts, options, directory
        config = AutoConfig.from_pretrained(directory, trust_remote_code=False)
        self.hidden_size = config.get_text_config().hidden_size
        self.model_type: str = config.model_type
        model_class = _partial_class(_model_class(config), parts)
        self.model, report = model_class.from_pretrained(
            directory,
            dtype=dtype,
            attn_implementation=attention_for(model_class, dtype, device),
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # They are in the report, which is refused with all that is wrong.
        )
        _refuse_incomplete(report, directory)
        if "vision" in parts and options.reset_intermediate is not None:
            intermediate = self._intermediate()
            reset(intermediate, seed=options.reset_intermediate)
            for module in intermediate.modules():
                if type(module).__name__ == "Gemma3RMSNorm":  # It adds 1 to its weights.
                    module.weight.data.zero_()  # pyright: ignore
        if "llm" in parts:
            _read_causally(self.model.get_decoder())
        self._freeze(device)

    @classmethod
    def vision_tensors(cls, config: Config, checkpoint: Checkpoint) -> Iterator[tuple[str, Tensor]]:
        """Name and content of each tensor that frame tokens depend on."""
        for name in checkpoint.names:
            if any(part in name for part in _VISION_NAMES):
                yield name, checkpoint.read(name)

    @cached_property
    def processor(self) -> Any:
        return load_processor(self._directory, self.model.config)

    @cached_property
    def image_processor(self) -> Any:
        return load_image_processor(self._directory)

    @property
    def text_tokenizer(self) -> Any:
        return self.processor.tokenizer

    @cached_property
    def image_token_id(self) -> int:
        """What stands for each token of an image where the model's own forward puts features."""
        # A processor's own image_token_id may be that of the mark in the text, which becomes these (Gemma 3).
        for holder in (self._base.config, self.processor):
            for field in ("image_token_id", "image_token_index"):
                if isinstance(value := getattr(holder, field, None), int):
                    return value
        raise ValueError(f"{self.model_type}: neither its config nor its processor names the image token")

    @property
    def max_frame_side(self) -> int:
        return side_for(self.image_processor)

    # -- frames --------------------------------------------------------------------------------------------------------

    def fit_video_frames(self, frames: np.ndarray) -> np.ndarray:
        if self._follows_shape:
            return squeezed(frames, self._options.frame_side or _FRAME_SIDE)
        if self._options.frame_side is not None:
            raise ValueError(f"{self.name}: frame_side is for models that take any shape; this one resizes by itself")
        return frames

    def pool_video_frames(self, tokens: Tensor, grid: tuple[int, int] | None) -> FrameTokens:
        if self.model_type != "llava_onevision" or self._options.full_grid:
            return FrameTokens(tokens=tokens, grid=grid)
        pooled_TNC = halve_grid(tokens)
        side = round(pooled_TNC.shape[1] ** 0.5)
        return FrameTokens(tokens=pooled_TNC, grid=(side, side))

    @cached_property
    def _follows_shape(self) -> bool:
        """Whether the grid of a frame follows its shape (Qwen-VL, Pixtral): one cache has one grid."""
        wide, tall = (
            self.image_processor(images=[np.zeros(shape, np.uint8)], return_tensors="pt", **self._one_tile)
            for shape in ((64, 256, 3), (256, 64, 3))
        )
        return "image_grid_thw" in wide or wide["pixel_values"].shape != tall["pixel_values"].shape

    def _encode_batch(self, frames: np.ndarray) -> tuple[Tensor, tuple[int, int] | None]:
        options = self._one_tile
        if frames.shape[1] <= 4:  # Without being told, it would take so few rows of pixels for colour channels.
            options["input_data_format"] = "channels_last"
        inputs = self.image_processor(images=list(frames), return_tensors="pt", **options)
        tokens = self._frame_tokens(inputs, len(frames))
        return tokens, self._grid(inputs, tokens.shape[1])

    @property
    def _one_tile(self) -> dict[str, Any]:
        """Options of the image processor that keep it from cutting an image into tiles."""
        options: dict[str, Any] = {k: v for k, v in _ONE_TILE.items() if hasattr(self.image_processor, k)}
        if self.model_type in _ANY_RESOLUTION:
            # One tile besides the base tile, and the smallest: it is thrown away.
            side = self._base.config.vision_config.image_size
            options["image_grid_pinpoints"] = [[side, side]]
        return options

    def encode_pixels(self, pixels: Tensor, **others: Tensor) -> Tensor:
        """Frame tokens [T, N, C] of what the model's image processor returns for T images: `pixel_values` first."""
        self._need("vision")
        return self._frame_tokens({"pixel_values": pixels, **others}, len(others.get("image_grid_thw", pixels)))

    def _frame_tokens(self, inputs: Any, num_frames: int) -> Tensor:
        inputs = {
            k: (v.to(self.device, self.dtype) if v.is_floating_point() else v.to(self.device))
            for k, v in inputs.items()
            if isinstance(v, Tensor)
        }
        if self.model_type in _ANY_RESOLUTION:
            return self._base_tile(inputs["pixel_values"][:, 0])
        # Some give the method only to the model within (DeepSeek-VL).
        owner = self.model if hasattr(self.model, "get_image_features") else self.model.model
        taken = inspect.signature(owner.get_image_features).parameters
        inputs = {k: v for k, v in inputs.items() if k in taken}
        features = owner.get_image_features(**inputs, return_dict=True).pooler_output
        if isinstance(features, list | tuple):
            features = torch.cat([f.reshape(-1, f.shape[-1]) for f in features])
        return features.reshape(num_frames, -1, features.shape[-1])

    def _base_tile(self, pixels: Tensor) -> Tensor:
        config, core = self.model.config, self.model.model
        states = core.vision_tower(pixels, output_hidden_states=True).hidden_states
        layers = config.vision_feature_layer
        selected = torch.cat([states[i] for i in ([layers] if isinstance(layers, int) else layers)], dim=-1)
        if config.vision_feature_select_strategy == "default":
            selected = selected[:, 1:]
        return core.multi_modal_projector(selected)

    def _grid(self, inputs: Any, num_tokens: int) -> tuple[int, int] | None:
        config = self.model.config
        if "image_grid_thw" in inputs:
            _, rows, columns = (int(v) for v in inputs["image_grid_thw"][0])
            return rows // self.image_processor.merge_size, columns // self.image_processor.merge_size
        if config.vision_config.model_type == "pixtral":
            patch = config.vision_config.patch_size * getattr(config, "spatial_merge_size", 1)
            height, width = (int(v) for v in inputs["image_sizes"][0])
            return height // patch, width // patch
        side = round(num_tokens**0.5)
        return (side, side) if side * side == num_tokens and self.model_type not in _UNORDERED else None

    def _intermediate(self) -> nn.Module:
        """What maps the tower's features to the LLM's channels. Raises ValueError if no module has its usual names."""
        for wanted in _INTERMEDIATE:
            for name, module in self.model.named_modules():
                if name.split(".")[-1] == wanted:
                    return module
        raise ValueError(
            f"{self.name} ({self.model_type}): no intermediate layer found; expected one of {_INTERMEDIATE}"
        )

    # -- conversations -------------------------------------------------------------------------------------------------

    def prompt(self, messages: Sequence[Message]) -> Prompt:
        """As the model's own processor tokenises the conversation, an image's tokens being cut out: all from its first
        to its last, with any ends of lines between them. What the processor puts around them stays."""
        media = sum(is_media(part) for m in messages if isinstance(m["content"], list) for part in m["content"])
        text = self._render(messages, add_generation_prompt=True)
        # Some processors know a mark in the text by another token than those that they make of it (Gemma 3, Molmo 2).
        marks = {self.processor.image_token, self.text_tokenizer.convert_ids_to_tokens(self.image_token_id)}
        slots = sum(text.count(mark) for mark in marks)
        if slots != media:
            raise ValueError(f"{self.name}: its chat template made {slots} media slots out of {media} media parts")
        special = self._special_tokens(text)
        if not media:
            return Prompt(segments=(tuple(self.text_tokenizer(text, add_special_tokens=special)["input_ids"]),))
        try:
            ids = self.processor(
                text=[text], images=[_BLANK] * media, images_kwargs=self._one_tile, add_special_tokens=special
            )["input_ids"][0]
        except ValueError as error:
            raise ValueError(
                f"{self.name}: its processor refuses a conversation with {media} media parts: {error}"
            ) from error
        at = [i for i, token_id in enumerate(ids) if token_id == self.image_token_id]
        if not at or len(at) % media:
            raise ValueError(
                f"{self.name}: its processor made {len(at)} image tokens ({self.image_token_id}) out of {media} media"
            )
        each = len(at) // media
        starts, stops = at[::each], [i + 1 for i in at[each - 1 :: each]]
        edges = zip([0, *stops], [*starts, len(ids)])
        return Prompt(segments=tuple(tuple(ids[start:stop]) for start, stop in edges))

    def _added_ids(self, before: str, whole: str) -> list[int]:
        ids_before, ids = self.text_ids(before), self.text_ids(whole)
        if ids[: len(ids_before)] == ids_before:
            return ids[
                len(ids_before) :
            ]  # A word that follows others may have other tokens than one that begins a text.
        return super()._added_ids(before, whole)

    def _special_tokens(self, text: str) -> bool:
        """Whether the text tokenizer still has to begin a rendered conversation, as Transformers decides it."""
        begin = self.text_tokenizer.bos_token
        return begin is None or not text.startswith(begin)

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
        if self.processor.chat_template is None and self.model_type == "paligemma":
            return self._without_turns(shown)
        if self.processor.chat_template is None and self.text_tokenizer.chat_template is None:
            raise ValueError(f"{self.name}: it comes without a chat template; expected one in chat_template.jinja")
        return self.processor.apply_chat_template(shown, add_generation_prompt=add_generation_prompt, tokenize=False)

    def _without_turns(self, messages: Sequence[Message]) -> str:
        """PaliGemma's: all images first, then the text. Its processor itself begins and ends the question."""
        parts = [(m["role"], part) for m in messages for part in m["content"]]
        images = "".join(self.processor.image_token for _, part in parts if part["type"] == "image")
        asked = " ".join(part["text"] for role, part in parts if part["type"] == "text" and role != "assistant")
        answers = [part["text"] + self.text_tokenizer.eos_token for role, part in parts if role == "assistant"]
        return f"{images}{asked}" + "".join(f" {answer}" for answer in answers)

    # -- the LLM -------------------------------------------------------------------------------------------------------

    def position_ids(self, mask: Tensor) -> Tensor:
        """Running index over valid tokens: [B, L], or [3, B, L] with t = h = w for the M-RoPE family."""
        positions_BL = super().position_ids(mask)
        rope = getattr(self._base.config.get_text_config(), "rope_parameters", None) or {}
        return positions_BL.expand(3, -1, -1) if "mrope_section" in rope else positions_BL

    @property
    def _generator(self) -> Any:
        if self.model_type not in _GENERATES_AS_TEXT:
            return self.model
        base = self._base
        text_config = base.config.get_text_config()
        with torch.device("meta"):
            text_model = AutoModelForCausalLM.from_config(text_config)
        text_model.model, text_model.lm_head = base.get_decoder(), base.get_output_embeddings()
        text_model.generation_config = base.generation_config
        return text_model.eval()


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


def _read_causally(decoder: Any) -> None:
    """PaliGemma's decoder attends in both directions unless its own forward says which tokens are the prompt: left so,
    a training step would see the answer that it should predict."""
    if getattr(decoder.config, "use_bidirectional_attention", False):
        decoder.config.use_bidirectional_attention = False
        for module in decoder.modules():
            if hasattr(module, "is_causal"):
                module.is_causal = True


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
            if parts == {"llm"}:  # Ends of lines, of which the LLM knows nothing; the model's initialisation does.
                for name, ends in list(self.model.named_parameters(recurse=False)):
                    delattr(self.model, name)
                    self.model.register_buffer(name, torch.zeros_like(ends), persistent=False)
                    dropped.add(name)
            for name in dropped & set(children):
                setattr(self.model, name, None)
            if parts == {"vision"}:
                self.lm_head = None
                dropped.add("lm_head")
            self._keys_to_ignore_on_load_unexpected = {rf"(^|\.){name}(\.|$)" for name in dropped}

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
