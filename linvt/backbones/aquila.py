"""Aquila-VL (BAAI/Aquila-VL-2B-llava-qwen): SigLIP, a two-layer MLP and Qwen2, in the layout of LLaVA-NeXT.

Shape legend: T frames, S×S pixels, P patches a side, N tokens a frame, C hidden size of the LLM.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn
from transformers import Qwen2Config, Qwen2ForCausalLM, SiglipVisionConfig

from linvt.backbones.base import FrameTokens
from linvt.backbones.checkpoint import Rule
from linvt.backbones.conversation import CHATML, ConversationFormat
from linvt.backbones.onevision import halve_grid
from linvt.backbones.preprocessing import Squeeze
from linvt.backbones.published import Config, PublishedBackbone, from_config, mlp
from linvt.backbones.siglip import NAME, SiglipTower, siglip_config, siglip_preprocessing, siglip_rules


class _Vision(nn.Module):
    """Frame tokens [T, P², C] of pixels [T, 3, S, S]."""

    def __init__(self, tower: SiglipVisionConfig, hidden_size: int):
        super().__init__()
        # The last layer is neither used nor published.
        self.tower = SiglipTower(tower, num_layers=tower.num_hidden_layers - 1, post_norm=False)
        self.intermediate = mlp(tower.hidden_size, hidden_size)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.intermediate(self.tower(pixels))


class AquilaBackbone(PublishedBackbone):
    """Aquila-VL-2B. Its frames are pooled to half the grid, as its own video path does, unless `options.full_grid`."""

    model_name = "Aquila-VL"

    @staticmethod
    def recognises(config: Config) -> bool:
        # Its model_type is "qwen2": without its vision side, it would load as a Qwen2 that knows of no images.
        return config.get("architectures") == ["LlavaQwenForCausalLM"]

    @staticmethod
    def check(config: Config) -> None:
        expected: dict[str, Any] = {
            "mm_vision_tower": NAME,
            "mm_projector_type": "mlp2x_gelu",
            "mm_resampler_type": None,
            "mm_vision_select_feature": "patch",
        }
        other = {key: config.get(key) for key, value in expected.items() if config.get(key) != value}
        if other:
            raise ValueError(f"an Aquila-VL with {other} is not supported; expected {expected}")

    @staticmethod
    def build_vision(config: Config) -> nn.Module:
        return _Vision(_tower(config), config["hidden_size"])

    @staticmethod
    def build_llm(config: Config) -> nn.Module:
        return from_config(Qwen2ForCausalLM, Qwen2Config(**config))

    @staticmethod
    def rules(config: Config) -> Sequence[Rule]:
        tower = r"model\.vision_tower\.vision_tower\.vision_model\."
        return [
            *siglip_rules(tower, num_layers=_tower(config).num_hidden_layers - 1, post_norm=False),
            Rule("vision", r"model\.mm_projector\.(.*)", r"vision.intermediate.\1"),
            Rule("vision", r"model\.image_newline", None),  # For images of many tiles.
            Rule("llm", r"(model\.(?:embed_tokens|layers|norm)\..*|lm_head\..*)", r"model.\1"),
        ]

    @staticmethod
    def preprocessing(config: Config) -> Squeeze:
        return siglip_preprocessing(_tower(config))

    def pool_video_frames(self, tokens: Tensor, grid: tuple[int, int] | None) -> FrameTokens:
        if self.options.full_grid:
            return FrameTokens(tokens=tokens, grid=grid)
        pooled_TNC = halve_grid(tokens)
        return FrameTokens(tokens=pooled_TNC, grid=self.grid(pooled_TNC.shape[1]))

    @property
    def conversation(self) -> ConversationFormat:
        return replace(CHATML, after_media="\n")


def _tower(config: Config) -> SiglipVisionConfig:
    return siglip_config(config.get("vision_config", {}))
