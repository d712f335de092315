"""Molmo's vision side: CLIP-L/14-336 read at two depths, attention pooling over 2×2 patches, and a SwiGLU projector.

Shape legend: T frames, S×S pixels, P patches a side, D channels of the tower, C hidden size of the LLM, N = (P/2)²
tokens a frame.
"""

from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel

from linvt.backbones.checkpoint import Placed, Rule
from linvt.backbones.letterbox import Letterbox
from linvt.backbones.preprocessing import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD
from linvt.backbones.published import Config, from_config

_READ = (-2, -9)
"""The layers whose outputs are read, in the order in which they are concatenated."""

# The published config says nothing of the tower.
_CLIP_L_336 = {
    "image_default_input_size": (336, 336),
    "image_patch_size": 14,
    "image_emb_dim": 1024,
    "image_num_heads": 16,
    "image_num_layers": 23,
    "image_mlp_dim": 4096,
    "image_mlp_activations": "quick_gelu",
    "image_norm_eps": 1e-5,
}

_LAYER_NAMES = {
    r"attention\.wq": "self_attn.q_proj",
    r"attention\.wk": "self_attn.k_proj",
    r"attention\.wv": "self_attn.v_proj",
    r"attention\.wo": "self_attn.out_proj",
    r"feed_forward\.w1": "mlp.fc1",
    r"feed_forward\.w2": "mlp.fc2",
    r"attention_norm": "layer_norm1",
    r"ffn_norm": "layer_norm2",
}
_INTERMEDIATE_NAMES = {
    r"image_pooling_2d\.wq": "query",
    r"image_pooling_2d\.wk": "key",
    r"image_pooling_2d\.wv": "value",
    r"image_pooling_2d\.wo": "out",
    r"image_projector\.w1": "gate",
    r"image_projector\.w2": "down",
    r"image_projector\.w3": "up",
}


class MolmoVision(nn.Module):
    """Frame tokens [T, N, C] of pixels [T, 3, S, S] and of how much of each patch is image, [T, P²]; None: all of it.

    Molmo adds its features to the embedding of the token `<im_patch>`. `image_token` [C] is that embedding: with it
    added here, frame tokens are what the LLM reads, and averages of them with weights that sum to 1 are too.
    """

    def __init__(self, config: Config):
        super().__init__()
        tower = clip_config(config)
        self.tower = _Tower(tower)
        # Both halves of the LLM's SwiGLU are counted in its `intermediate_size`, and the projector is as wide.
        self.intermediate = _Intermediate(tower, config["intermediate_size"] // 2, config["hidden_size"])
        self.image_token: Tensor
        # Not persistent: it is a row of the LLM's embedding, not a tensor of the checkpoint's vision side.
        self.register_buffer("image_token", torch.zeros(config["hidden_size"]), persistent=False)

    def forward(self, pixels: Tensor, image_share: Tensor | None = None) -> Tensor:
        return self.features(pixels, image_share) + self.image_token

    def features(self, pixels: Tensor, image_share: Tensor | None = None) -> Tensor:
        """[T, N, C], what is added to the embedding of `<im_patch>`."""
        return self.intermediate(self.tower(pixels), image_share)


class _Tower(nn.Module):
    """The outputs [T, P², 2D] of two layers, without class token and post-norm, for pixels [T, 3, S, S]."""

    def __init__(self, config: CLIPVisionConfig):
        super().__init__()
        self.read = [config.num_hidden_layers + layer for layer in _READ]
        sizes: dict[str, Any] = config.to_dict() | {"num_hidden_layers": max(self.read) + 1}
        self.model: Any = from_config(CLIPVisionModel, CLIPVisionConfig(**sizes))
        self.model.post_layernorm = nn.Identity()

    def forward(self, pixels: Tensor) -> Tensor:
        hidden = self.model.pre_layrnorm(self.model.embeddings(pixels))
        outputs: list[Tensor] = []
        for layer in self.model.encoder.layers:
            hidden = layer(hidden, attention_mask=None)
            outputs.append(hidden)
        return torch.cat([outputs[i] for i in self.read], dim=-1)[:, 1:]


class _Intermediate(nn.Module):
    """[T, N, C] of tower features [T, P², 2D]: each 2×2 patches attended to by their mean, then projected."""

    def __init__(self, tower: CLIPVisionConfig, projector_size: int, hidden_size: int):
        super().__init__()
        self.num_heads = tower.num_attention_heads
        channels, read_channels = tower.hidden_size, len(_READ) * tower.hidden_size
        self.padding = nn.Parameter(torch.empty(2, read_channels))
        """Added to patches that are padding only, and to patches that are partly padding."""
        self.query = nn.Linear(read_channels, channels)
        self.key = nn.Linear(read_channels, channels)
        self.value = nn.Linear(read_channels, channels)
        self.out = nn.Linear(channels, channels)
        self.gate = nn.Linear(channels, projector_size, bias=False)
        self.up = nn.Linear(channels, projector_size, bias=False)
        self.down = nn.Linear(projector_size, hidden_size, bias=False)

    def forward(self, features: Tensor, image_share: Tensor | None = None) -> Tensor:
        if image_share is not None:
            only_TP = image_share == 0
            partly_TP = (image_share < 1) & ~only_TP
            features = features + torch.stack([only_TP, partly_TP], dim=-1).to(features.dtype) @ self.padding
        return self._project(self._pool(features))

    def _pool(self, features: Tensor) -> Tensor:
        """[T, P², 2D] → [T, N, D]."""
        half = round(features.shape[1] ** 0.5) // 2
        cells = rearrange(features, "t (h i w j) c -> (t h w) (i j) c", h=half, w=half, i=2, j=2)
        query, key, value = (
            rearrange(projected, "b n (h d) -> b h n d", h=self.num_heads)
            for projected in (self.query(cells.mean(1, keepdim=True)), self.key(cells), self.value(cells))
        )
        pooled = F.scaled_dot_product_attention(query, key, value)
        return self.out(rearrange(pooled, "(t n) h 1 d -> t n (h d)", t=len(features)))

    def _project(self, pooled: Tensor) -> Tensor:
        """[T, N, D] → [T, N, C]."""
        return self.down(F.silu(self.gate(pooled)) * self.up(pooled))


def clip_config(config: Config) -> CLIPVisionConfig:
    """The whole tower's configuration: the sizes of `vision_backbone` where a config has it, else CLIP-L/14-336's."""
    sizes = _CLIP_L_336 | config.get("vision_backbone", {})
    return CLIPVisionConfig(
        image_size=sizes["image_default_input_size"][0],
        patch_size=sizes["image_patch_size"],
        hidden_size=sizes["image_emb_dim"],
        intermediate_size=sizes["image_mlp_dim"],
        num_hidden_layers=sizes["image_num_layers"],
        num_attention_heads=sizes["image_num_heads"],
        hidden_act=sizes["image_mlp_activations"],
        layer_norm_eps=sizes["image_norm_eps"],
    )


def letterbox(config: Config) -> Letterbox:
    tower: Any = clip_config(config)
    return Letterbox(side=tower.image_size, patch=tower.patch_size, mean=OPENAI_CLIP_MEAN, std=OPENAI_CLIP_STD)


def vision_rules(config: Config) -> list[Rule]:
    """Fills `vision` from what is published under `model.vision_backbone`."""
    tower = clip_config(config)
    num_kept = tower.num_hidden_layers + max(_READ) + 1
    kept, above = ("|".join(map(str, n)) for n in (range(num_kept), range(num_kept, tower.num_hidden_layers)))
    backbone, model = r"model\.vision_backbone\.", "vision.tower.model."
    vit = rf"{backbone}image_vit\."
    block = rf"{vit}transformer\.resblocks\."

    def convolution(_: Any, weight: Tensor) -> list[Placed]:
        """A linear layer over patches of (row, column, channel)."""
        size: Any = tower.patch_size
        kernel = rearrange(weight, "d (i j c) -> d c i j", i=size, j=size)
        return [Placed(f"{model}embeddings.patch_embedding.weight", kernel)]

    return [
        Rule("vision", rf"{vit}class_embedding", f"{model}embeddings.class_embedding"),
        Rule("vision", rf"{vit}positional_embedding", f"{model}embeddings.position_embedding.weight"),
        Rule("vision", rf"{vit}patch_embedding\.weight", convolution),
        Rule("vision", rf"{vit}pre_ln\.(\w+)", rf"{model}pre_layrnorm.\1"),
        *(
            Rule("vision", rf"{block}({kept})\.{theirs}\.(\w+)", rf"{model}encoder.layers.\1.{ours}.\2")
            for theirs, ours in _LAYER_NAMES.items()
        ),
        Rule("vision", rf"{block}({above})\..*", None),  # Above the layers that are read.
        *(
            Rule("vision", rf"{backbone}{theirs}\.(\w+)", rf"vision.intermediate.{ours}.\1")
            for theirs, ours in _INTERMEDIATE_NAMES.items()
        ),
        Rule("vision", rf"{backbone}pad_embed", "vision.intermediate.padding"),
    ]
