"""Tiny random models of many image-text-to-text architectures, saved as a hub would have them.

Each has the special tokens, the image processor and the shape of prompt of its type; the words are few, and the
weights wide (0.35), so that errors of position show.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from tokenizers import Tokenizer, models, pre_tokenizers

from linvt.backbones.molmo2_processor import Molmo2BaseTile

STD = 0.35
_WORDS = ("user", "assistant", ":", "what", "color", "is", "the", "star", "?", "red", "blue", "here")
_BASE = ("<pad>", "<unk>", "<bos>", "<eos>")
_VOCABULARY = 64
C, LAYERS = 32, 2


@dataclass(frozen=True, kw_only=True)
class TinyType:
    """`config` and `image_processor` are made from the ids of the special tokens."""

    tokens: tuple[str, ...]
    """Special tokens besides the common ones."""
    named: Mapping[str, str] = field(default_factory=dict)
    """Special tokens that the type's text tokenizer knows by a name, such as image_token."""
    media: str
    """What the chat template puts for an image."""
    config: Callable[[Callable[[str], int]], Any]
    image_processor: Callable[[], Any]
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Of the processor."""
    bos: str = "{{ bos_token }}"
    has_chat_template: bool = True
    frame_size: tuple[int, int] = (40, 56)


def save_tiny(name: str, directory: Path) -> Path:
    tiny = TYPES[name]
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys((*_BASE, *tiny.tokens, *_WORDS)))}
    assert len(vocabulary) <= _VOCABULARY
    by_word = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))  # pyright: ignore[reportCallIssue]
    by_word.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    by_word.add_special_tokens([*_BASE, *tiny.tokens])
    hf.PreTrainedTokenizerFast(
        tokenizer_object=by_word,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token="<bos>",
        eos_token="<eos>",
        extra_special_tokens=dict(tiny.named),
    ).save_pretrained(directory)
    tiny.image_processor().save_pretrained(directory)
    settings = json.dumps(dict(tiny.settings))
    (directory / "processor_config.json").write_text(settings)
    chat_template = (
        tiny.bos + "{% for m in messages %}{{ m['role'] }} : {% for part in m['content'] %}"
        "{% if part['type'] == 'image' %}" + tiny.media + "{% else %}{{ part['text'] }}{% endif %}{% endfor %}"
        "{{ '<eos> ' if m['role'] == 'assistant' else ' ' }}{% endfor %}"
        "{% if add_generation_prompt %}assistant : {% endif %}"
    )
    if tiny.has_chat_template:
        (directory / "chat_template.jinja").write_text(chat_template)
    config = tiny.config(vocabulary.__getitem__)
    model_class: Any = hf.AutoModelForImageTextToText._model_mapping[type(config)]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(sum(name.encode()))
        model = model_class(config).eval()
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, mean=float(parameter.ndim == 1), std=STD if parameter.ndim > 1 else 0.2)
    model.generation_config.bos_token_id, model.generation_config.eos_token_id = 2, 3
    model.generation_config.pad_token_id = 0
    model.save_pretrained(directory)
    return directory


def _text(config_class: Any, **changes: Any) -> Any:
    fields = dict(
        vocab_size=_VOCABULARY,
        hidden_size=C,
        intermediate_size=2 * C,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=512,
        tie_word_embeddings=False,
        bos_token_id=2,
        eos_token_id=3,
        pad_token_id=0,
    )
    return config_class(**(fields | changes))


def _tower(config_class: Any, **changes: Any) -> Any:
    fields = dict(
        hidden_size=24,
        intermediate_size=32,
        num_hidden_layers=LAYERS,
        num_attention_heads=2,
        image_size=32,
        patch_size=8,
    )
    return config_class(**(fields | changes))


_PIXTRAL: Any = hf.PixtralImageProcessorPil
_GLM4V: Any = hf.Glm4vImageProcessorPil
_MROPE = {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 10000.0}


def _qwen2_vl(token: Callable[[str], int]) -> Any:
    return hf.Qwen2VLConfig(
        text_config=_text(hf.Qwen2VLTextConfig, rope_parameters=_MROPE).to_dict(),
        vision_config=dict(depth=2, embed_dim=16, num_heads=2, mlp_ratio=2, hidden_size=C, patch_size=8),
        **_qwen_ids(token),
    )


def _qwen2_5_vl(token: Callable[[str], int]) -> Any:
    vision = dict(depth=2, hidden_size=16, num_heads=2, intermediate_size=32, out_hidden_size=C, patch_size=8)
    return hf.Qwen2_5_VLConfig(
        text_config=_text(hf.Qwen2_5_VLTextConfig, rope_parameters=_MROPE).to_dict(),
        vision_config=vision | dict(window_size=32, fullatt_block_indexes=[1]),
        **_qwen_ids(token),
    )


def _qwen3_vl(token: Callable[[str], int]) -> Any:
    vision = dict(depth=2, hidden_size=16, num_heads=2, intermediate_size=32, out_hidden_size=C, patch_size=8)
    return hf.Qwen3VLConfig(
        text_config=_text(hf.Qwen3VLTextConfig, rope_parameters=_MROPE | {"mrope_interleaved": True}).to_dict(),
        vision_config=vision | dict(num_position_embeddings=16, deepstack_visual_indexes=[0]),
        **_qwen_ids(token),
    )


def _qwen_ids(token: Callable[[str], int]) -> dict[str, Any]:
    return dict(
        image_token_id=token("<|image_pad|>"),
        video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"),
        vision_end_token_id=token("<|vision_end|>"),
        tie_word_embeddings=False,
    )


def _qwen(config: Callable[[Callable[[str], int]], Any], *, merge: int = 2) -> TinyType:
    return TinyType(
        tokens=("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"),
        media="<|vision_start|><|image_pad|><|vision_end|>",
        config=config,
        image_processor=lambda: hf.Qwen2VLImageProcessorPil(
            patch_size=8, merge_size=merge, size={"shortest_edge": 16 * 16, "longest_edge": 64 * 64}
        ),
        bos="",
    )


def _clip_or_siglip_llava(config_class: Any, **fields: Any) -> Callable[[Callable[[str], int]], Any]:
    return lambda token: config_class(
        text_config=_text(hf.LlamaConfig),
        vision_config=_tower(hf.CLIPVisionConfig),
        image_token_index=token("<image>"),
        tie_word_embeddings=False,
        **fields,
    )


def _square_clip() -> Any:
    return hf.CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})


_LLAVA: dict[str, Any] = dict(tokens=("<image>",), named={"image_token": "<image>"}, media="<image>")
_LLAVA_SETTINGS = dict(patch_size=8, vision_feature_select_strategy="default", num_additional_image_tokens=1)

_IDEFICS: dict[str, Any] = dict(
    tokens=("<image>", "<fake_token_around_image>", "<end_of_utterance>", "<global-img>"),
    media="<image>",
    settings=dict(image_seq_len=4),
)


def _idefics3(config_class: Any, vision_class: Any) -> Callable[[Callable[[str], int]], Any]:
    return lambda token: config_class(
        text_config=_text(hf.LlamaConfig),
        vision_config=_tower(vision_class),
        scale_factor=2,
        image_token_id=token("<image>"),
        tie_word_embeddings=False,
    )


def _idefics_pixels(processor_class: Any) -> Callable[[], Any]:
    return lambda: processor_class(size={"longest_edge": 32}, max_image_size={"longest_edge": 32})


def _gemma3(token: Callable[[str], int]) -> Any:
    return hf.Gemma3Config(
        text_config=_text(hf.Gemma3TextConfig, sliding_window=16, query_pre_attn_scalar=8),
        vision_config=_tower(hf.SiglipVisionConfig),
        mm_tokens_per_image=4,
        boi_token_index=token("<start_of_image>"),
        eoi_token_index=token("<end_of_image>"),
        image_token_index=token("<image_soft_token>"),
        tie_word_embeddings=False,
    )


def _paligemma(token: Callable[[str], int]) -> Any:
    return hf.PaliGemmaConfig(
        text_config=_text(hf.GemmaConfig),
        vision_config=_tower(hf.SiglipVisionConfig, projection_dim=C, vision_use_head=False),
        projection_dim=C,
        image_token_index=token("<image>"),
        tie_word_embeddings=False,
    )


def _siglip(**changes: Any) -> Callable[[], Any]:
    def build() -> Any:
        processor = hf.SiglipImageProcessorPil(size={"height": 32, "width": 32})
        for name, value in changes.items():
            setattr(processor, name, value)
        return processor

    return build


def _internvl(token: Callable[[str], int]) -> Any:
    return hf.InternVLConfig(
        text_config=_text(hf.Qwen2Config),
        vision_config=_tower(hf.InternVLVisionConfig, image_size=[32, 32], patch_size=[8, 8]),
        image_token_id=token("<IMG_CONTEXT>"),
        image_seq_length=4,
        tie_word_embeddings=False,
    )


def _got_pixels() -> Any:
    return hf.GotOcr2ImageProcessorPil(size={"height": 32, "width": 32}, crop_to_patches=True)


def _mistral3(token: Callable[[str], int]) -> Any:
    return hf.Mistral3Config(
        text_config=_text(hf.MistralConfig),
        vision_config=hf.PixtralVisionConfig(
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=64,
            patch_size=8,
        ),
        image_token_index=token("[IMG]"),
        spatial_merge_size=2,
        tie_word_embeddings=False,
    )


def _aya(token: Callable[[str], int]) -> Any:
    return hf.AyaVisionConfig(
        text_config=_text(hf.Cohere2Config, sliding_window=64),
        vision_config=_tower(hf.SiglipVisionConfig, vision_use_head=False),
        downsample_factor=2,
        image_token_index=token("<|IMG_PATCH|>"),
        tie_word_embeddings=False,
    )


def _glm4v(token: Callable[[str], int]) -> Any:
    return hf.Glm4vConfig(
        text_config=_text(hf.Glm4vTextConfig, rope_parameters=_MROPE | {"partial_rotary_factor": 1.0}).to_dict(),
        vision_config=dict(
            depth=2, hidden_size=16, num_heads=2, intermediate_size=32, out_hidden_size=C, patch_size=8, image_size=32
        ),
        image_token_id=token("<|image|>"),
        video_token_id=token("<|video|>"),
        image_start_token_id=token("<|begin_of_image|>"),
        image_end_token_id=token("<|end_of_image|>"),
        video_start_token_id=token("<|begin_of_video|>"),
        video_end_token_id=token("<|end_of_video|>"),
        tie_word_embeddings=False,
    )


def _deepseek_vl(token: Callable[[str], int]) -> Any:
    return hf.DeepseekVLConfig(
        text_config=_text(hf.LlamaConfig),
        vision_config=_tower(hf.SiglipVisionConfig, vision_use_head=False),
        image_token_id=token("<image_placeholder>"),
        tie_word_embeddings=False,
    )


def _molmo2(token: Callable[[str], int]) -> Any:
    heads = dict(num_attention_heads=2, num_key_value_heads=2, head_dim=12)
    return hf.Molmo2Config(
        text_config=_text(
            hf.Molmo2TextConfig, additional_vocab_size=8, rope_parameters={"rope_type": "default", "rope_theta": 1e4}
        ),
        vision_config=dict(
            hidden_size=24, intermediate_size=32, num_hidden_layers=LAYERS, image_size=[40, 40], patch_size=8, **heads
        ),
        adapter_config=dict(
            hidden_size=24, intermediate_size=32, text_hidden_size=C, vision_feature_layer=[-1, 0], **heads
        ),
        image_start_token_id=token("<im_start>"),
        low_res_image_start_token_id=token("<low_res_im_start>"),
        image_end_token_id=token("<im_end>"),
        image_patch_id=token("<im_patch>"),
        frame_start_token_id=token("<frame_start>"),
        frame_end_token_id=token("<frame_end>"),
        tie_word_embeddings=False,
    )


_ANYRES: dict[str, Any] = dict(
    image_grid_pinpoints=[[32, 64], [64, 32], [64, 64]], vision_feature_select_strategy="default"
)

TYPES: dict[str, TinyType] = {
    "qwen2_vl": _qwen(_qwen2_vl),
    "qwen2_5_vl": _qwen(_qwen2_5_vl),
    "qwen3_vl": _qwen(_qwen3_vl),
    "internvl": TinyType(
        tokens=("<IMG_CONTEXT>", "<img>", "</img>", "<video>"),
        named={
            "start_image_token": "<img>",
            "end_image_token": "</img>",
            "context_image_token": "<IMG_CONTEXT>",
            "video_token": "<video>",
        },
        media="<IMG_CONTEXT>",
        config=_internvl,
        image_processor=_got_pixels,
        settings=dict(image_seq_length=4),
    ),
    "llava": TinyType(
        **_LLAVA,
        config=_clip_or_siglip_llava(hf.LlavaConfig),
        image_processor=_square_clip,
        settings=_LLAVA_SETTINGS,
    ),
    "vipllava": TinyType(
        **_LLAVA,
        config=_clip_or_siglip_llava(hf.VipLlavaConfig, vision_feature_layers=[-2, -1]),
        image_processor=_square_clip,
        settings=_LLAVA_SETTINGS,
    ),
    "llava_next": TinyType(
        **_LLAVA,
        config=_clip_or_siglip_llava(hf.LlavaNextConfig, **_ANYRES),
        image_processor=lambda: hf.LlavaNextImageProcessorPil(
            size={"shortest_edge": 32},
            crop_size={"height": 32, "width": 32},
            image_grid_pinpoints=_ANYRES["image_grid_pinpoints"],
        ),
        settings=_LLAVA_SETTINGS,
    ),
    "llava_onevision": TinyType(
        tokens=("<image>", "<video>"),
        named={"image_token": "<image>", "video_token": "<video>"},
        media="<image>",
        config=lambda token: hf.LlavaOnevisionConfig(
            text_config=_text(hf.Qwen2Config),
            vision_config=_tower(hf.SiglipVisionConfig, vision_use_head=False),
            image_token_index=token("<image>"),
            video_token_index=token("<video>"),
            image_grid_pinpoints=_ANYRES["image_grid_pinpoints"],
            tie_word_embeddings=False,
        ),
        image_processor=lambda: hf.LlavaOnevisionImageProcessorPil(
            size={"height": 32, "width": 32}, image_grid_pinpoints=_ANYRES["image_grid_pinpoints"]
        ),
        settings=dict(num_image_tokens=16, vision_feature_select_strategy="full"),
    ),
    "smolvlm": TinyType(
        **_IDEFICS,
        config=_idefics3(hf.SmolVLMConfig, hf.SmolVLMVisionConfig),
        image_processor=_idefics_pixels(hf.SmolVLMImageProcessorPil),
    ),
    "idefics3": TinyType(
        **_IDEFICS,
        config=_idefics3(hf.Idefics3Config, hf.Idefics3VisionConfig),
        image_processor=_idefics_pixels(hf.Idefics3ImageProcessorPil),
    ),
    "gemma3": TinyType(
        tokens=("<start_of_image>", "<end_of_image>", "<image_soft_token>"),
        named={
            "boi_token": "<start_of_image>",
            "eoi_token": "<end_of_image>",
            "image_token": "<image_soft_token>",
        },
        media="<start_of_image>",
        config=_gemma3,
        image_processor=lambda: hf.Gemma3ImageProcessorPil(size={"height": 32, "width": 32}),
        settings=dict(image_seq_length=4),
    ),
    "paligemma": TinyType(
        tokens=("<image>",),
        named={"image_token": "<image>"},
        media="<image>",
        config=_paligemma,
        image_processor=_siglip(image_seq_length=16),
        has_chat_template=False,
    ),
    "mistral3": TinyType(
        tokens=("[IMG]", "[IMG_BREAK]", "[IMG_END]"),
        media="[IMG]",
        config=_mistral3,
        image_processor=lambda: _PIXTRAL(size={"longest_edge": 64}, patch_size=16),
        settings=dict(patch_size=8, spatial_merge_size=2),
    ),
    "aya_vision": TinyType(
        tokens=("<image>", "<|START_OF_IMG|>", "<|END_OF_IMG|>", "<|IMG_LINE_BREAK|>", "TILE_GLOBAL", "<|IMG_PATCH|>"),
        media="<image>",
        config=_aya,
        image_processor=_got_pixels,
        settings=dict(patch_size=8, img_size=32, downsample_factor=2),
    ),
    "glm4v": TinyType(
        tokens=(
            "<|image|>",
            "<|video|>",
            "<|begin_of_image|>",
            "<|end_of_image|>",
            "<|begin_of_video|>",
            "<|end_of_video|>",
        ),
        named={"image_token": "<|image|>", "video_token": "<|video|>"},
        media="<|begin_of_image|><|image|><|end_of_image|>",
        config=_glm4v,
        image_processor=lambda: _GLM4V(patch_size=8, size={"shortest_edge": 16 * 16 * 2, "longest_edge": 64 * 64 * 2}),
        bos="",
    ),
    "deepseek_vl": TinyType(
        tokens=("<image_placeholder>",),
        named={"image_token": "<image_placeholder>"},
        media="<image_placeholder>",
        config=_deepseek_vl,
        image_processor=lambda: hf.DeepseekVLImageProcessorPil(size={"height": 32, "width": 32}),
        settings=dict(num_image_tokens=16),
    ),
    "molmo2": TinyType(
        tokens=(
            "<im_start>",
            "<im_end>",
            "<im_patch>",
            "<im_col>",
            "<low_res_im_start>",
            "<|image|>",
            "<im_low>",
            "<frame_start>",
            "<frame_end>",
            "<|video|>",
        ),
        media="<|image|>",
        config=_molmo2,
        # Of an odd number of patches, those at the edges are pooled with none.
        image_processor=lambda: Molmo2BaseTile(size={"height": 40, "width": 40}, patch_size=8),
        bos="",
    ),
}
