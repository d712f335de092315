"""SigLIP-so400m/14-384 as several image-LLMs hold it: cut above the layer they read, its sizes left out of the config.

Shape legend: T frames, S×S pixels, P patches a side, D channels of the tower.
"""

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from torch import Tensor, nn
from transformers import SiglipVisionConfig, SiglipVisionModel

from linvt.backbones.checkpoint import Rule
from linvt.backbones.preprocessing import SIGLIP_MEAN, SIGLIP_STD, Squeeze
from linvt.backbones.published import from_config

# Several published configs name the tower and nothing of its shape.
_SO400M: dict[str, Any] = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "image_size": 384,
    "patch_size": 14,
    "hidden_act": "gelu_pytorch_tanh",
    "layer_norm_eps": 1e-6,
}
NAME = "google/siglip-so400m-patch14-384"


def siglip_config(sizes: Mapping[str, Any]) -> SiglipVisionConfig:
    """The tower's configuration: `sizes` where a checkpoint brings its own, so400m's for the rest."""
    own = {key: value for key, value in sizes.items() if key in _SO400M}
    return SiglipVisionConfig(**(_SO400M | own), vision_use_head=False)


class SiglipTower(nn.Module):
    """The output [T, P², D] of layer `num_layers` for pixels [T, 3, S, S], normed only if `post_norm`."""

    def __init__(self, config: SiglipVisionConfig, *, num_layers: int, post_norm: bool):
        super().__init__()
        cut = deepcopy(config)
        cut.num_hidden_layers = num_layers
        self.model = from_config(SiglipVisionModel, cut)
        if not post_norm:
            self.model.post_layernorm = nn.Identity()

    def forward(self, pixels: Tensor) -> Tensor:
        return self.model(pixels).last_hidden_state


def siglip_rules(prefix: str, *, num_layers: int, post_norm: bool) -> list[Rule]:
    """Fills `vision.tower` from names that begin with `prefix`, a regular expression."""
    kept = "|".join(map(str, range(num_layers)))
    norm = r"|post_layernorm\..*" if post_norm else ""
    return [
        Rule("vision", rf"{prefix}(embeddings\..*|encoder\.layers\.(?:{kept})\..*{norm})", r"vision.tower.model.\1"),
        # Layers above the one that is read, the norm and the pooling head.
        Rule("vision", rf"{prefix}(encoder\.layers\.\d+|post_layernorm|head)\..*", None),
    ]


def siglip_preprocessing(config: SiglipVisionConfig) -> Squeeze:
    assert isinstance(config.image_size, int)
    return Squeeze(side=config.image_size, mean=SIGLIP_MEAN, std=SIGLIP_STD)
