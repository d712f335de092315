"""Molmo (allenai/Molmo-7B-D-0924): CLIP-L/14-336, attention pooling with a SwiGLU projector, and Qwen2-7B.

Shape legend: T frames, S×S pixels, P patches a side, N tokens a frame, C hidden size of the LLM.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import Qwen2Config, Qwen2ForCausalLM

from linvt.backbones.base import Message
from linvt.backbones.checkpoint import Checkpoint, Placed, Rule
from linvt.backbones.conversation import SLOT, ConversationFormat
from linvt.backbones.frozen import is_media
from linvt.backbones.letterbox import Letterbox
from linvt.backbones.molmo_vision import MolmoVision, letterbox, vision_rules
from linvt.backbones.published import Config, PublishedBackbone, from_config

_NUM_NEW_TOKENS = 128
"""Rows of the LLM's embedding behind the `embedding_size` of Qwen2. They are read, never predicted."""
_NEW_TOKENS = ("<im_start>", "<im_end>", "<im_patch>")
"""The first of them, in their order."""
_NEW_EMBEDDING = "model.transformer.wte.new_embedding"
_SPACE = {"type": "text", "text": " "}
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.json")


class MolmoConversation(ConversationFormat):
    """Molmo's processor puts images in front of the conversation, and has no system turn.

    What the system says opens the first question, as the prompts that the model was trained on do it.
    """

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool) -> str:
        turns: list[Message] = [
            {"role": message["role"], "content": [part for part in _parts(message) if not is_media(part)]}
            for message in messages
        ]
        if turns and turns[0]["role"] == "system":
            if len(turns) < 2 or turns[1]["role"] != "user":
                raise ValueError("a system turn without a user turn behind it; Molmo opens the first question with it")
            said = [*turns[0]["content"], _SPACE, *turns[1]["content"]]
            turns[:2] = [{"role": "user", "content": said}]
        for turn in turns:
            if turn["role"] == "assistant":
                turn["content"].insert(0, _SPACE)
        num_media = sum(is_media(part) for message in messages for part in _parts(message))
        media = f"{self.before_media}{SLOT}{self.after_media}" * num_media
        behind_media = replace(self, begin=self.begin + media)
        return ConversationFormat.render(behind_media, turns, add_generation_prompt=add_generation_prompt)


# Published, each row of an image's tokens ends in <im_col>. Video tokens stand for no place in a frame, so they have no
# rows; and an image goes the way of a frame.
CONVERSATION = MolmoConversation(
    begin="<|endoftext|>",
    system="",
    default_system=None,
    user=" User: {}",
    assistant=" Assistant:{}<|endoftext|>",
    before_media="<im_start>",
    after_media="<im_end>",
    stop=("<|endoftext|>",),
)


class MolmoBackbone(PublishedBackbone):
    """Molmo-7B-D. A frame is its low-resolution image, without the crops at a higher resolution."""

    model_name = "Molmo"

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        ids = self._new_token_ids()
        vision: Any = self.vision
        if vision is not None:
            row = ids["<im_patch>"] - self.config["embedding_size"]
            with torch.no_grad():
                vision.image_token.copy_(self.checkpoint.read_rows(_NEW_EMBEDDING, row, row + 1)[0])

    @staticmethod
    def recognises(config: Config) -> bool:
        return config.get("model_type") == "molmo"  # Molmo2 is "molmo2", which Transformers has.

    @staticmethod
    def check(config: Config) -> None:
        variant = _unsupported(config)
        if variant:
            raise ValueError(f"{variant} is not supported; expected Molmo-7B-D")
        expected: dict[str, Any] = {
            "architectures": ["MolmoForCausalLM"],
            "layer_norm_type": "rms",
            "clip_qkv": None,
            "qkv_bias": True,
            "use_position_ids": True,
            "weight_tying": False,
            "quantization_config": None,
        }
        other = {key: config[key] for key, value in expected.items() if config.get(key, value) != value}
        if other:
            raise ValueError(f"a Molmo with {other} is not supported; expected {expected}")

    @staticmethod
    def build_vision(config: Config) -> nn.Module:
        return MolmoVision(config)

    @staticmethod
    def build_llm(config: Config) -> nn.Module:
        llm: Any = from_config(
            Qwen2ForCausalLM,
            Qwen2Config(
                vocab_size=config["embedding_size"],
                hidden_size=config["hidden_size"],
                intermediate_size=config["intermediate_size"] // 2,  # Theirs counts gate and up together.
                num_hidden_layers=config["num_hidden_layers"],
                num_attention_heads=config["num_attention_heads"],
                num_key_value_heads=config["num_key_value_heads"],
                max_position_embeddings=config["max_position_embeddings"],
                rms_norm_eps=config["layer_norm_eps"],
                rope_parameters={"rope_type": "default", "rope_theta": config["rope_theta"]},
                tie_word_embeddings=False,
            ),
        )
        llm.set_input_embeddings(nn.Embedding(config["embedding_size"] + _NUM_NEW_TOKENS, config["hidden_size"]))
        return llm

    @staticmethod
    def rules(config: Config) -> Sequence[Rule]:
        return [*vision_rules(config), *_llm_rules(config)]

    @classmethod
    def vision_tensors(cls, config: Config, checkpoint: Checkpoint) -> Iterator[tuple[str, Tensor]]:
        yield from super().vision_tensors(config, checkpoint)
        row = _NEW_TOKENS.index("<im_patch>")
        yield _NEW_EMBEDDING, checkpoint.read_rows(_NEW_EMBEDDING, row, row + 1)

    @staticmethod
    def preprocessing(config: Config) -> Letterbox:
        return letterbox(config)

    @property
    def conversation(self) -> ConversationFormat:
        return CONVERSATION

    def _encode_batch(self, frames: np.ndarray) -> tuple[Tensor, tuple[int, int] | None]:
        preprocess = self.preprocessing(self.config)
        # The model was trained with masks shifted by one: the whole image got the mask of its first crop. An image that
        # fits into the tower has one crop, itself; every frame is taken for such an image.
        share_TP = preprocess.image_share(*frames.shape[1:3]).expand(len(frames), -1)
        tokens = self.encode_pixels(preprocess(frames), share_TP)
        return tokens, self.grid(tokens.shape[1])

    def encode_pixels(self, pixels: Tensor, image_share: Tensor | None = None) -> Tensor:
        """Frame tokens [T, N, C] of preprocessed frames [T, 3, S, S].

        `image_share` [T, P²] says how much of each patch is image and not padding; without it, all of it is.
        """
        self._need("vision")
        assert self.vision is not None
        share = None if image_share is None else image_share.to(self.device)
        return self.vision(pixels.to(self.device, self.dtype), share)

    def _new_token_ids(self) -> dict[str, int]:
        """By the text tokenizer, where there is one. Raises ValueError if the embedding has other rows for them."""
        first = self.config["embedding_size"]
        expected = {token: first + i for i, token in enumerate(_NEW_TOKENS)}
        if not any((self._directory / file).exists() for file in _TOKENIZER_FILES):
            return expected
        ids = {token: self.special_id(token) for token in _NEW_TOKENS}
        if ids != expected:
            raise ValueError(
                f"{self._directory}: its text tokenizer has {ids}, expected {expected} behind an embedding_size of "
                f"{first}; take config.json and the tokenizer from the same checkpoint"
            )
        return ids


def _parts(message: Message) -> list[Any]:
    content = message["content"]
    return [{"type": "text", "text": content}] if isinstance(content, str) else list(content)


def _unsupported(config: Config) -> str | None:
    """The name of a Molmo that is not Molmo-7B-D."""
    code = str([config.get("architectures"), config.get("auto_map")]).lower()
    if any("num_experts" in key for key in config) or "molmoe" in code:
        return "MolmoE-1B (a mixture of experts)"
    if config.get("norm_after") or config.get("attention_layer_norm"):
        return "Molmo-7B-O (its LLM is OLMo, with norms behind each block, and of queries and keys)"
    if config.get("hidden_size") == 8192:
        return "Molmo-72B (never compared with the original)"
    return None


def _llm_rules(config: Config) -> list[Rule]:
    """Fills `model`, a Qwen2ForCausalLM."""
    kv_size = config["hidden_size"] // config["num_attention_heads"] * config["num_key_value_heads"]
    block = r"model\.transformer\.blocks\.(\d+)\."
    layer = r"model.model.layers.\1."

    def attention(match: re.Match[str], values: Tensor) -> list[Placed]:
        number, kind = match.groups()
        split = values.split([len(values) - 2 * kv_size, kv_size, kv_size])
        return [Placed(f"model.model.layers.{number}.self_attn.{n}_proj.{kind}", v) for n, v in zip("qkv", split)]

    def feed_forward(match: re.Match[str], values: Tensor) -> list[Placed]:
        up, gate = values.chunk(2)
        mlp = f"model.model.layers.{match[1]}.mlp"
        return [Placed(f"{mlp}.up_proj.weight", up), Placed(f"{mlp}.gate_proj.weight", gate)]

    def embedding(match: re.Match[str], values: Tensor) -> list[Placed]:
        first_row = config["embedding_size"] if match[1] else 0
        return [Placed("model.model.embed_tokens.weight", values, first_row)]

    return [
        Rule("llm", r"model\.transformer\.wte\.(new_)?embedding", embedding),
        Rule("llm", rf"{block}att_proj\.(weight|bias)", attention),
        Rule("llm", rf"{block}attn_out\.weight", rf"{layer}self_attn.o_proj.weight"),
        Rule("llm", rf"{block}ff_proj\.weight", feed_forward),
        Rule("llm", rf"{block}ff_out\.weight", rf"{layer}mlp.down_proj.weight"),
        Rule("llm", rf"{block}attn_norm\.weight", rf"{layer}input_layernorm.weight"),
        Rule("llm", rf"{block}ff_norm\.weight", rf"{layer}post_attention_layernorm.weight"),
        Rule("llm", r"model\.transformer\.ln_f\.weight", "model.model.norm.weight"),
        Rule("llm", r"model\.transformer\.ff_out\.weight", "model.lm_head.weight"),
    ]
