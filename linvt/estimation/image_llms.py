"""How large the published image-LLMs are, from the numbers in their config.json files. Imports no torch."""

import itertools
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Blocks:
    """A stack of transformer layers."""

    layers: int
    width: int
    mlp_width: int
    mlp_matrices: int
    """2, or 3 where the MLP is gated."""
    kv_width: int | None = None
    """Of keys and of values, where they are shared between heads."""

    @property
    def parameters(self) -> int:
        """Of the matrices; biases and norms are nothing beside them."""
        attention = 2 * self.width * (self.width + (self.kv_width or self.width))
        return self.layers * (attention + self.mlp_matrices * self.width * self.mlp_width)

    def flops(self, tokens: int) -> int:
        """Of a forward pass over one sequence: matrices, and attention's products of length by length."""
        return 2 * self.parameters * tokens + 4 * self.layers * tokens**2 * self.width

    def lora_parameters(self, rank: int) -> int:
        """Of adapters on all matrices."""
        kv = self.kv_width or self.width
        per_layer = 4 * self.width + 2 * (self.width + kv) + self.mlp_matrices * (self.width + self.mlp_width)
        return rank * self.layers * per_layer


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageLLM:
    """What an estimate needs to know."""

    name: str
    published_as: str
    tokens_per_frame: int
    hidden_size: int
    frame_flops: float
    """Of encoding one frame: vision tower and the layer between it and the LLM."""
    llm_parameters: float
    """Of the decoder, without embeddings."""
    head_parameters: float
    llm: Blocks | None = None
    """None where it was measured instead."""

    def lora_parameters(self, rank: int) -> float:
        """Where the shape is not known, as many in proportion as a Qwen2-1.5B has."""
        if self.llm is not None:
            return self.llm.lora_parameters(rank)
        return self.llm_parameters * _QWEN2_1_5B.lora_parameters(rank) / _QWEN2_1_5B.parameters


def _siglip(layers: int) -> Blocks:
    return Blocks(layers=layers, width=1152, mlp_width=4304, mlp_matrices=2)


_SIGLIP_TOKENS = 27 * 27
_QWEN2_0_5B = Blocks(layers=24, width=896, mlp_width=4864, mlp_matrices=3, kv_width=128)
_QWEN2_1_5B = Blocks(layers=28, width=1536, mlp_width=8960, mlp_matrices=3, kv_width=256)
_QWEN2_7B = Blocks(layers=28, width=3584, mlp_width=18944, mlp_matrices=3, kv_width=512)
_INTERNLM2_7B = Blocks(layers=32, width=4096, mlp_width=14336, mlp_matrices=3, kv_width=1024)
_PHI3_MINI = Blocks(layers=32, width=3072, mlp_width=8192, mlp_matrices=3)
_PHI1_5 = Blocks(layers=24, width=2048, mlp_width=8192, mlp_matrices=2)
_INTERN_VIT = Blocks(layers=24, width=1024, mlp_width=4096, mlp_matrices=2)
_CLIP_L = Blocks(layers=23, width=1024, mlp_width=4096, mlp_matrices=2)
_QWEN2_VIT = Blocks(layers=32, width=1280, mlp_width=5120, mlp_matrices=2)
# Six layers of 16 heads of 96 channels: 128 latents ask 729 tokens and themselves; MLP of 4 widths.
_PERCEIVER_FLOPS = 6 * 2 * (2 * 1152 * 1536 * (_SIGLIP_TOKENS + 128) + (2 * 1152 * 1536 + 8 * 1152**2) * 128)


def _mlp_flops(tokens: int, *widths: int) -> int:
    return sum(2 * tokens * a * b for a, b in itertools.pairwise(widths))


def _image_llm(
    name: str, published_as: str, *, tokens: int, frame_flops: float, llm: Blocks, vocabulary: int
) -> ImageLLM:
    return ImageLLM(
        name=name,
        published_as=published_as,
        tokens_per_frame=tokens,
        hidden_size=llm.width,
        frame_flops=frame_flops,
        llm_parameters=llm.parameters,
        head_parameters=vocabulary * llm.width,
        llm=llm,
    )


IMAGE_LLMS = {
    model.name: model
    for model in (
        _image_llm(
            "aquila-vl-2b",
            "BAAI/Aquila-VL-2B-llava-qwen",
            tokens=14 * 14,
            frame_flops=_siglip(26).flops(_SIGLIP_TOKENS) + _mlp_flops(_SIGLIP_TOKENS, 1152, 1536, 1536),
            llm=_QWEN2_1_5B,
            vocabulary=151_936,
        ),
        _image_llm(
            "blip-3",
            "Salesforce/xgen-mm-phi3-mini-instruct-interleave-r-v1.5",
            tokens=128,
            frame_flops=_siglip(27).flops(_SIGLIP_TOKENS) + _PERCEIVER_FLOPS + _mlp_flops(128, 1152, 3072),
            llm=_PHI3_MINI,
            vocabulary=32_015,
        ),
        _image_llm(
            "internvl2-1b",
            "OpenGVLab/InternVL2-1B",
            tokens=16 * 16,
            frame_flops=_INTERN_VIT.flops(1025) + _mlp_flops(256, 4096, 896, 896),
            llm=_QWEN2_0_5B,
            vocabulary=151_655,
        ),
        _image_llm(
            "internvl2-8b",
            "OpenGVLab/InternVL2-8B",
            tokens=16 * 16,
            frame_flops=_INTERN_VIT.flops(1025) + _mlp_flops(256, 4096, 4096, 4096),
            llm=_INTERNLM2_7B,
            vocabulary=92_553,
        ),
        _image_llm(
            "mipha-1.6b",
            "zhumj34/Mipha-phi1_5-1.6B",
            tokens=_SIGLIP_TOKENS,
            frame_flops=_siglip(26).flops(_SIGLIP_TOKENS) + _mlp_flops(_SIGLIP_TOKENS, 1152, 2048, 2048),
            llm=_PHI1_5,
            vocabulary=51_200,
        ),
        _image_llm(
            "molmo-7b-d",
            "allenai/Molmo-7B-D-0924",
            tokens=12 * 12,
            # Attention pooling over 2×2 patches of 2×1024 channels, then a gated MLP to 3584 through 18944.
            frame_flops=_CLIP_L.flops(577)
            + _mlp_flops(576, 2048, 1024) * 2
            + _mlp_flops(144, 2048, 1024, 1024)
            + 3 * _mlp_flops(144, 1024, 18_944),
            llm=_QWEN2_7B,
            vocabulary=152_064,
        ),
        _image_llm(
            "qwen2-vl-2b",
            "Qwen/Qwen2-VL-2B-Instruct",
            tokens=16 * 16,
            frame_flops=_QWEN2_VIT.flops(1024) + _mlp_flops(256, 5120, 5120, 1536),
            llm=_QWEN2_1_5B,
            vocabulary=151_936,
        ),
        _image_llm(
            "qwen2-vl-7b",
            "Qwen/Qwen2-VL-7B-Instruct",
            tokens=16 * 16,
            frame_flops=_QWEN2_VIT.flops(1024) + _mlp_flops(256, 5120, 5120, 3584),
            llm=_QWEN2_7B,
            vocabulary=152_064,
        ),
    )
}
