"""InternVL2 (OpenGVLab/InternVL2-1B, -2B and -8B): InternViT-300M, pixel shuffle, an MLP, and Qwen2 or InternLM2.

Shape legend: T frames, S×S pixels, P patches a side, D channels of the tower, N tokens a frame, C hidden size of the
LLM.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

from einops import rearrange
from torch import Tensor, nn
from transformers import InternVLVisionConfig, LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM
from transformers.models.internvl import InternVLVisionModel
from transformers.models.qwen2 import Qwen2Tokenizer

from linvt.backbones.checkpoint import Placed, Rule
from linvt.backbones.conversation import ConversationFormat
from linvt.backbones.internlm2 import internlm2_rules, internlm2_tokenizer
from linvt.backbones.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Squeeze
from linvt.backbones.published import Config, PublishedBackbone, from_config
from linvt.backbones.sentencepiece_model import BEGIN

_QWEN2, _INTERNLM2 = "Qwen2ForCausalLM", "InternLM2ForCausalLM"
_TEMPLATES = {_QWEN2: "Hermes-2", _INTERNLM2: "internlm2-chat"}
# The original classes' defaults for what a config.json may leave out.
_DEFAULTS = {"pad2square": False, "llm_config.use_sliding_window": False, "llm_config.rope_scaling": None}
_EXPECTED: dict[str, Any] = {
    "select_layer": -1,
    "downsample_ratio": 0.5,
    "ps_version": "v2",
    "pad2square": False,
    "use_backbone_lora": 0,
    "use_llm_lora": 0,
    "vision_config.norm_type": "layer_norm",
    "vision_config.qk_normalization": False,
    "vision_config.qkv_bias": True,
    "vision_config.hidden_act": "gelu",
    "llm_config.hidden_act": "silu",
}
_EXPECTED_OF_LLM: dict[str, dict[str, Any]] = {
    _QWEN2: {"llm_config.use_sliding_window": False, "llm_config.rope_scaling": None},
    _INTERNLM2: {"llm_config.bias": False},
}
_VISION_SIZES = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "image_size",
    "patch_size",
    "layer_norm_eps",
)
_LLM_SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "max_position_embeddings",
    "rms_norm_eps",
    "rope_theta",
)
_SYSTEM = "你是由上海人工智能实验室联合商汤科技开发的书生多模态大模型，英文名叫InternVL, 是一个有用无害的人工智能助手。"


class _Vision(nn.Module):
    """Frame tokens [T, N, C] of pixels [T, 3, S, S]: N = (P/2)²."""

    def __init__(self, tower: InternVLVisionConfig, hidden_size: int):
        super().__init__()
        self.tower = from_config(InternVLVisionModel, tower)
        shuffled = 4 * tower.hidden_size
        self.intermediate = nn.Sequential(
            nn.LayerNorm(shuffled),
            nn.Linear(shuffled, hidden_size),
            nn.GELU(),
            nn.Linear(hidden_size, hidden_size),
        )

    def forward(self, pixels: Tensor) -> Tensor:
        patches_TPD = self.tower(pixels).last_hidden_state[:, 1:]  # Without the class token.
        return self.intermediate(pixel_shuffle(patches_TPD))


def pixel_shuffle(patches: Tensor) -> Tensor:
    """[T, P², D] → [T, (P/2)², 4·D]: the patches of each 2×2 cell side by side in the channels, row by row."""
    side = round(patches.shape[1] ** 0.5)
    return rearrange(patches, "T (h a w b) D -> T (h w) (a b D)", h=side // 2, a=2, b=2)


class InternVL2Backbone(PublishedBackbone):
    """InternVL2 of 1, 2 or 8 billion parameters: one tile a frame."""

    model_name = "InternVL2"

    @staticmethod
    def recognises(config: Config) -> bool:
        return config.get("model_type") == "internvl_chat"

    @staticmethod
    def check(config: Config) -> None:
        llm = _llm(config)
        if llm not in _TEMPLATES:
            raise ValueError(f"an InternVL2 on {llm} is not supported; expected one of {sorted(_TEMPLATES)}")
        given = _DEFAULTS | _flattened(config)
        expected = _EXPECTED | _EXPECTED_OF_LLM[llm] | {"template": _TEMPLATES[llm]}
        if given.get("force_image_size") is not None:
            expected["force_image_size"] = given.get("vision_config.image_size")
        if llm == _INTERNLM2 and (given["llm_config.rope_scaling"] or {}).get("type", "dynamic") != "dynamic":
            expected["llm_config.rope_scaling"] = "None, or of type dynamic"
        other = {key: given.get(key) for key, value in expected.items() if given.get(key) != value}
        if other:
            wanted = {key: expected[key] for key in other}
            raise ValueError(f"an InternVL2 on {llm} with {other} is not supported; expected {wanted}")
        sizes = [f"vision_config.{key}" for key in _VISION_SIZES] + [f"llm_config.{key}" for key in _LLM_SIZES]
        missing = [key for key in sizes if given.get(key) is None]
        if missing:
            raise ValueError(f"config.json of an InternVL2 does not say {missing}; download it again")

    @staticmethod
    def build_vision(config: Config) -> nn.Module:
        sizes = {key: config["vision_config"][key] for key in _VISION_SIZES}
        tower = InternVLVisionConfig(**sizes, attention_bias=True, norm_type="layer_norm", hidden_act="gelu")
        return _Vision(tower, config["llm_config"]["hidden_size"])

    @staticmethod
    def build_llm(config: Config) -> nn.Module:
        llm = config["llm_config"]
        # The original never ties the head to the embeddings, whatever its LLM did by itself.
        sizes: dict[str, Any] = {key: llm[key] for key in _LLM_SIZES}
        sizes |= {"eos_token_id": llm.get("eos_token_id"), "tie_word_embeddings": False}
        if _llm(config) == _QWEN2:
            return from_config(Qwen2ForCausalLM, Qwen2Config(**sizes))
        return from_config(LlamaForCausalLM, LlamaConfig(**sizes, rope_parameters=_rope(llm)))

    @staticmethod
    def rules(config: Config) -> Sequence[Rule]:
        llm = config["llm_config"]
        if _llm(config) == _QWEN2:
            of_llm = [Rule("llm", r"language_model\.(.*)", r"model.\1")]
        else:
            heads = {"num_heads": llm["num_attention_heads"], "num_kv_heads": llm["num_key_value_heads"]}
            of_llm = internlm2_rules(r"language_model\.", **heads)
        return [*_tower_rules(), Rule("vision", r"mlp1\.(.*)", r"vision.intermediate.\1"), *of_llm]

    @staticmethod
    def hidden_size_of(config: Config) -> int:
        return config["llm_config"]["hidden_size"]

    @staticmethod
    def preprocessing(config: Config) -> Squeeze:
        return Squeeze(side=config["vision_config"]["image_size"], mean=IMAGENET_MEAN, std=IMAGENET_STD)

    @cached_property
    def text_tokenizer(self) -> Any:
        # AutoTokenizer would offer to run the checkpoint's own code, which its config.json names.
        if (self._directory / "tokenizer.json").exists():
            return super().text_tokenizer
        if _llm(self.config) == _INTERNLM2:
            return internlm2_tokenizer(self._directory)
        # Without these, Qwen2Tokenizer is one that knows no text, and does not say so.
        absent = [name for name in ("vocab.json", "merges.txt") if not (self._directory / name).exists()]
        if absent:
            raise ValueError(f"{self._directory}: neither tokenizer.json nor {absent}; expected a text tokenizer")
        return Qwen2Tokenizer.from_pretrained(self._directory)

    @property
    def conversation(self) -> ConversationFormat:
        return ConversationFormat(
            begin=BEGIN if _llm(self.config) == _INTERNLM2 else "",
            system="<|im_start|>system\n{}<|im_end|>",
            default_system=self.config.get("system_message", _SYSTEM),
            user="<|im_start|>user\n{}<|im_end|>",
            assistant="<|im_start|>assistant\n{}<|im_end|>",
            before_media="<img>",
            after_media="</img>\n",
            stop=("<|im_end|>",),
        )


def _llm(config: Config) -> str:
    """The class of the LLM inside."""
    return ((config.get("llm_config") or {}).get("architectures") or ["an LLM without a name"])[0]


def _rope(llm: Config) -> dict[str, Any]:
    """Rotary embeddings, whose base grows with the sequence once it is longer than `max_position_embeddings`."""
    scaling = llm.get("rope_scaling")
    scaled = {"rope_type": scaling["type"], "factor": scaling["factor"]} if scaling else {"rope_type": "default"}
    return {**scaled, "rope_theta": llm["rope_theta"]}


def _flattened(config: Mapping[str, Any]) -> Config:
    """`config`, and its LLM's and tower's entries as "llm_config.NAME" and "vision_config.NAME"."""
    parts = ("vision_config", "llm_config")
    return {**config, **{f"{part}.{key}": value for part in parts for key, value in (config.get(part) or {}).items()}}


def _tower_rules() -> list[Rule]:
    embeddings, layer = r"vision_model\.embeddings\.", r"vision_model\.encoder\.layers\.(\d+)\."
    ours = r"vision.tower.encoder.layer.\1."

    def split_qkv(match: re.Match[str], qkv: Tensor) -> Iterator[Placed]:
        for name, rows in zip("qkv", qkv.chunk(3)):
            yield Placed(f"vision.tower.encoder.layer.{match[1]}.attention.{name}_proj.{match[2]}", rows)

    return [
        Rule("vision", rf"{embeddings}class_embedding", "vision.tower.embeddings.cls_token"),
        Rule("vision", rf"{embeddings}position_embedding", "vision.tower.embeddings.position_embeddings"),
        Rule(
            "vision", rf"{embeddings}patch_embedding\.(.*)", r"vision.tower.embeddings.patch_embeddings.projection.\1"
        ),
        Rule("vision", rf"{layer}attn\.qkv\.(.*)", split_qkv),
        Rule("vision", rf"{layer}attn\.proj\.(.*)", rf"{ours}attention.projection_layer.\2"),
        Rule("vision", rf"{layer}norm1\.(.*)", rf"{ours}layernorm_before.\2"),
        Rule("vision", rf"{layer}norm2\.(.*)", rf"{ours}layernorm_after.\2"),
        Rule("vision", rf"{layer}ls([12])", rf"{ours}lambda_\2"),
        Rule("vision", rf"{layer}(mlp\..*)", rf"{ours}\2"),
    ]
