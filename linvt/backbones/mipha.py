"""Mipha (zhumj34/Mipha-3B on Phi-2, Mipha-1.6B on Phi-1.5): SigLIP, a two-layer MLP and Phi.

Shape legend: T frames, H×W pixels of a decoded frame, S×S pixels, N tokens a frame, C hidden size of the LLM, A heads
of the LLM, D channels a head.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from einops import rearrange
from torch import Tensor, nn
from transformers import PhiConfig, PhiForCausalLM, SiglipVisionConfig

from linvt.backbones.base import Message
from linvt.backbones.checkpoint import Placed, Rule
from linvt.backbones.conversation import ConversationFormat
from linvt.backbones.preprocessing import Squeeze
from linvt.backbones.published import Config, PublishedBackbone, from_config, mlp
from linvt.backbones.siglip import SiglipTower, siglip_config, siglip_preprocessing, siglip_rules

_ARCHITECTURES = ("MiphaPhiForCausalLM", "MiphaPhi15ForCausalLM")
_END = "<|endoftext|>"

_CONVERSATION = ConversationFormat(
    system="{} ",
    default_system="A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions.",
    user="USER: {} ",
    assistant="ASSISTANT: {}" + _END,
    after_media="\n",
    stop=(_END,),
)


class _Vision(nn.Module):
    """Frame tokens [T, N, C] of pixels [T, 3, S, S]."""

    def __init__(self, tower: SiglipVisionConfig, hidden_size: int):
        super().__init__()
        # hidden_states[-2]: the last layer is published, yet never used.
        self.tower = SiglipTower(tower, num_layers=tower.num_hidden_layers - 1, post_norm=False)
        self.intermediate = mlp(tower.hidden_size, hidden_size)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.intermediate(self.tower(pixels))


@dataclass(frozen=True, kw_only=True, slots=True)
class PadToSquare:
    """Centres a frame on a square of the mean colour, then squeezes that to S×S."""

    squeeze: Squeeze

    @property
    def side(self) -> int:
        return self.squeeze.side

    def __call__(self, frames: np.ndarray) -> Tensor:
        """float32 [T, 3, S, S] of uint8 RGB [T, H, W, 3]."""
        num_frames, height, width, _ = frames.shape
        side = max(height, width)
        colour = [int(255 * mean) for mean in self.squeeze.mean]
        squares = np.full((num_frames, side, side, 3), colour, np.uint8)
        top, left = (side - height) // 2, (side - width) // 2
        squares[:, top : top + height, left : left + width] = frames
        return self.squeeze(squares)


class MiphaBackbone(PublishedBackbone):
    """Mipha on Phi-1.5 or Phi-2."""

    model_name = "Mipha"

    @staticmethod
    def recognises(config: Config) -> bool:
        return str(config.get("model_type")).startswith("mipha")

    @staticmethod
    def check(config: Config) -> None:
        architectures = config.get("architectures", [])
        if not set(architectures) & set(_ARCHITECTURES):
            raise ValueError(
                f"a Mipha of {architectures} is not supported; expected one of {', '.join(_ARCHITECTURES)}"
            )
        vision = config.get("vision_config", {})
        found: Config = {
            "mm_projector_type": vision.get("mm_projector", {}).get("mm_projector_type"),
            "mm_vision_select_layer": vision.get("vision_tower", {}).get("mm_vision_select_layer"),
            "mm_use_im_start_end": config.get("mm_use_im_start_end", False),
        }
        expected: Config = {
            "mm_projector_type": "mlp2x_gelu",
            "mm_vision_select_layer": -2,
            "mm_use_im_start_end": False,
        }
        other = {key: value for key, value in found.items() if value != expected[key]}
        if other:
            raise ValueError(f"a Mipha with {other} is not supported; expected {expected}")
        # A local path, where the authors trained from one.
        tower = vision["vision_tower"].get("vision_model_name_or_path")
        if "siglip" not in str(tower):
            raise ValueError(f"a Mipha with the vision tower {tower!r} is not supported; expected SigLIP")

    @staticmethod
    def build_vision(config: Config) -> nn.Module:
        return _Vision(_tower(config), config["hidden_size"])

    @staticmethod
    def build_llm(config: Config) -> nn.Module:
        return from_config(PhiForCausalLM, PhiConfig(**config))

    @staticmethod
    def rules(config: Config) -> Sequence[Rule]:
        num_heads = config["num_attention_heads"]

        def split(match: re.Match[str], tensor: Tensor) -> Iterable[Placed]:
            return _split_heads(match, tensor, num_heads)

        tower = r"model\.vision_tower\.vision_model\."
        return [
            *siglip_rules(tower, num_layers=_tower(config).num_hidden_layers - 1, post_norm=False),
            Rule("vision", r"model\.mm_projector\.(.*)", r"vision.intermediate.\1"),
            Rule("llm", r"(model\.layers\.\d+\.self_attn)\.query_key_value\.(weight|bias)", split),
            Rule("llm", r"(model\.(?:embed_tokens|layers|final_layernorm)\..*|lm_head\..*)", r"model.\1"),
        ]

    @staticmethod
    def preprocessing(config: Config) -> Squeeze | PadToSquare:
        squeeze = siglip_preprocessing(_tower(config))
        return PadToSquare(squeeze=squeeze) if config.get("image_aspect_ratio") == "pad" else squeeze

    @property
    def conversation(self) -> ConversationFormat:
        return _CONVERSATION

    @property
    def stop_ids(self) -> list[int]:
        # Its config leaves eos_token_id at Phi's default, which is some word of this vocabulary.
        return [self.special_id(_END)]

    def _render(self, messages: Sequence[Message], *, add_generation_prompt: bool) -> str:
        text = super()._render(messages, add_generation_prompt=add_generation_prompt)
        # The space before an answer belongs to the answer's first token.
        return text.removesuffix(" ") if add_generation_prompt else text


def _split_heads(match: re.Match[str], tensor: Tensor, num_heads: int) -> list[Placed]:
    """Rows of query_key_value are grouped by head: each head's query, key and value, D rows each."""
    heads = rearrange(tensor, "(A three D) ... -> three (A D) ...", A=num_heads, three=3)
    attention, kind = match.groups()
    return [Placed(f"model.{attention}.{name}_proj.{kind}", rows) for name, rows in zip("qkv", heads)]


def _tower(config: Config) -> SiglipVisionConfig:
    return siglip_config(config["vision_config"]["vision_tower"])
