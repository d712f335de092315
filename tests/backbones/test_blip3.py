"""BLIP-3: prompts, its text tokenizer, refused variants, steps that parity must notice."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from einops import rearrange
from PIL import Image
from safetensors.torch import load_file
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers
from torch import nn
from transformers import PreTrainedTokenizerFast

from linvt.backbones import load_backbone
from tests.backbones.parity import altered, distance, greedy, left_padded
from tests.backbones.test_golden import TOLERANCE
from tests.backbones.text_tokenizer import save_with_text_tokenizer

GOLDEN = Path(__file__).parents[1] / "golden/blip3"
SPECIAL_TOKENS = ("<pad>", "<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>")
SYSTEM = (
    " <|system|>\nA chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions.<|end|>\n"
)


def _load(directory: Path, **options: Any) -> Any:
    return load_backbone(str(directory), **options)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    torch.set_num_threads(1)
    return save_with_text_tokenizer(GOLDEN, tmp_path_factory.mktemp("blip3"), SPECIAL_TOKENS)


@pytest.fixture(scope="module")
def backbone(directory):
    return _load(directory)


def _text(backbone, ids):
    return backbone.text_tokenizer.decode(ids)


def _image(text):
    return {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}


def test_a_conversation_reads_as_published(backbone):
    messages = [
        {"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "Who?"}]},
        {"role": "assistant", "content": "Ann."},
        _image("And here?"),
    ]
    assert [_text(backbone, s) for s in backbone.prompt(messages).segments] == [
        f"{SYSTEM}<|user|>\n",
        "\nWho?<|end|>\n<|assistant|>\nAnn.<|end|>\n<|user|>\n",
        "\nAnd here?<|end|>\n<|assistant|>\n",
    ]
    assert _text(backbone, backbone.answer_ids(messages, "Bo.")) == "Bo.<|end|>\n"
    told = [{"role": "system", "content": "Be brief."}, _image("Who?")]
    assert _text(backbone, backbone.prompt(told).before) == " <|system|>\nBe brief.<|end|>\n<|user|>\n"
    plain = backbone.prompt([{"role": "user", "content": "Hi {x}"}])
    assert [_text(backbone, s) for s in plain.segments] == [f"{SYSTEM}<|user|>\nHi {{x}}<|end|>\n<|assistant|>\n"]


def test_each_of_several_media_has_its_slot(backbone):
    content = [{"type": "image"}, {"type": "text", "text": "or "}, {"type": "image"}, {"type": "text", "text": "?"}]
    segments = backbone.prompt([{"role": "user", "content": content}]).segments
    assert [_text(backbone, s) for s in segments[1:]] == ["\nor ", "\n?<|end|>\n<|assistant|>\n"]


def test_the_end_of_a_turn_and_of_the_text_stop_an_answer(directory, tmp_path):
    copy = altered(directory, tmp_path)
    (copy / "generation_config.json").write_text(json.dumps({"eos_token_id": 1}))
    assert _load(copy, parts={"llm"}).stop_ids == [SPECIAL_TOKENS.index("<|end|>"), 1]


def _save_llama_like_tokenizer(directory):
    """As published: a space is put before any text, special tokens swallow the blanks behind them."""
    vocabulary = ["<unk>", "▁", *"\nABCWhoinswer?.:'", "▁A", "▁W"]
    ids = {token: i for i, token in enumerate(dict.fromkeys(vocabulary))}
    bpe = models.BPE(ids, [("▁", "A"), ("▁", "W")], unk_token="<unk>")
    tokenizer = Tokenizer(bpe)  # pyright: ignore[reportCallIssue]
    tokenizer.normalizer = normalizers.Sequence(  # pyright: ignore[reportAttributeAccessIssue]
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Fuse()  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.add_special_tokens([AddedToken(t, rstrip=t != "<|endoftext|>", normalized=False) for t in SPECIAL_TOKENS])
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>").save_pretrained(directory)


def test_text_is_tokenized_as_in_training(tmp_path):
    directory = altered(GOLDEN, tmp_path)
    _save_llama_like_tokenizer(directory)
    backbone = _load(directory, parts={"llm"})
    messages = [{"role": "system", "content": "A W"}, _image("Who A?")]

    def tokens(ids):
        return backbone.text_tokenizer.convert_ids_to_tokens(list(ids))

    before, after = backbone.prompt(messages).segments
    # A space stands first of all, none behind a special token or behind the image.
    assert tokens(before) == ["▁", "<|system|>", "A", "▁W", "<|end|>", "<|user|>"]
    assert tokens(after) == ["\n", "W", "h", "o", "▁A", "?", "<|end|>", "<|assistant|>"]
    assert tokens(backbone.answer_ids(messages, "A W.")) == ["A", "▁W", ".", "<|end|>"]


def test_the_whole_frame_is_squeezed_into_one_tile(backbone):
    frames = np.random.default_rng(0).integers(0, 255, (2, 40, 91, 3), dtype=np.uint8)
    pixels = backbone.preprocessing(backbone.config)(frames)
    for i, frame in enumerate(frames):
        resized = np.asarray(Image.fromarray(frame).resize((56, 56), Image.Resampling.BICUBIC), np.float64)
        expected = torch.from_numpy((resized - 127.5) / 127.5).permute(2, 0, 1)
        torch.testing.assert_close(pixels[i].double(), expected, atol=1e-6, rtol=0)
    encoded = backbone.encode_frames(frames)
    torch.testing.assert_close(encoded.tokens, backbone.encode_pixels(pixels))
    assert (encoded.grid, tuple(encoded.tokens.shape), backbone.max_frame_side) == (None, (2, 8, 64), 112)


def test_generation_keeps_to_the_sliding_window(directory, tmp_path):
    # Published: 2047 of 4096 positions, which a long video outgrows.
    backbone = _load(altered(directory, tmp_path, config={"text_config": {"sliding_window": 12}}), parts={"llm"})
    long = load_file(GOLDEN / "golden.safetensors")["spliced_embeds"]
    rows = [long, long[:, :20], long[:, -5:]]
    expected = [greedy(backbone, row, steps=12) for row in rows]
    assert max(map(len, expected)) == 12
    assert backbone.generate(*left_padded(rows), max_new_tokens=12) == expected


def test_latents_do_not_depend_on_the_order_of_patches(backbone):
    patches = torch.randn(2, 16, 32, generator=torch.Generator().manual_seed(0))
    resampler = backbone.vision.intermediate
    torch.testing.assert_close(resampler(patches), resampler(patches.flip(1)), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"vision_encoder_config": {"model_name": "ViT-H-14-378-quickgelu"}},
            "the tower 'ViT-H-14-378-quickgelu' is not supported; expected google/siglip-so400m-patch14-384, r-v1.5",
        ),
        ({"text_config": {"model_type": "llama"}}, "is not supported; expected phi3"),
        ({"text_config": {"initial_tokenizer_len": None}}, "is not supported; expected phi3"),
    ],
)
def test_another_variant_is_refused_by_name(directory, tmp_path, config, message):
    with pytest.raises(ValueError, match=rf"xgen-mm \(BLIP-3\) with .*{message}"):
        _load(altered(directory, tmp_path, config=config))


@pytest.mark.parametrize("parts", [{"vision"}, {"llm"}])
def test_version_1_is_refused_by_its_tower_where_its_config_is_silent(directory, tmp_path, parts):
    def another_tower(tensors):
        for name in [name for name in tensors if "vision_encoder" in name]:
            tensors[name.replace("vision_encoder.", "vision_encoder.visual.")] = tensors.pop(name)

    with pytest.raises(
        ValueError, match=r"an xgen-mm on another tower than SigLIP \(r-v1\) is not supported; use r-v1\.5"
    ):
        _load(altered(directory, tmp_path, tensors=another_tower), parts=parts)


def test_more_base_tokens_than_the_checkpoint_has_are_refused(directory, tmp_path):
    with pytest.raises(ValueError, match=r"missing: .*embed_tokens"):
        _load(altered(directory, tmp_path, config={"text_config": {"initial_tokenizer_len": 130}}))


def _edit(pattern, change):
    def edit(tensors):
        names = [name for name in tensors if pattern in name]
        assert names
        for name in names:
            tensors[name] = change(tensors[name])

    return edit


def _exchange(first, second):
    def edit(tensors):
        names = [name for name in tensors if first in name]
        assert names
        for name in names:
            other = name.replace(first, second)
            tensors[name], tensors[other] = tensors[other], tensors[name]

    return edit


def _as_padded_rows(tensors):
    lm = "vlm.lang_model."
    tensors[f"{lm}model.embed_tokens.additional_embedding.weight"] = tensors[f"{lm}model.embed_tokens.weight"][110:113]
    tensors[f"{lm}lm_head.additional_fc.weight"] = tensors[f"{lm}lm_head.weight"][110:113]
    tensors[f"{lm}lm_head.additional_fc.bias"] = tensors[f"{lm}lm_head.bias"][110:113]


def _flip_groups(groups):
    return lambda t: rearrange(rearrange(t, "(g n) ... -> g n ...", g=groups).flip(0), "g n ... -> (g n) ...")


def _interleave(groups, heads):
    return lambda t: rearrange(t, "(A g D) ... -> (g A D) ...", g=groups, A=heads)


WRONG_TENSORS = {
    "rows of qkv_proj as [v|k|q]": _edit("qkv_proj", _flip_groups(3)),
    "rows of qkv_proj by head": _edit("qkv_proj", _interleave(3, 4)),
    "gate and up swapped": _edit("gate_up_proj", _flip_groups(2)),
    "added ids from the padded base rows": _as_padded_rows,
    "no bias of the head": _edit("lm_head.bias", torch.zeros_like),
    "no bias of the added head": _edit("additional_fc.bias", torch.zeros_like),
    "rows of to_kv as [v|k]": _edit("to_kv", _flip_groups(2)),
    "rows of to_kv by head": _edit("to_kv", _interleave(2, 4)),
    "norms of patches and latents swapped": _exchange("norm_media", "norm_latents"),
    "layers of the resampler swapped": _exchange("vision_tokenizer.layers.0.", "vision_tokenizer.layers.1."),
    "no bias of the projection": _edit("projection.bias", torch.zeros_like),
    "latents reversed": _edit("latents", lambda t: t.flip(0)),
    "vision positions reversed": _edit("position_embedding", lambda t: t.flip(0)),
    "layers of the LLM swapped": _exchange("model.layers.0.", "model.layers.1."),
}
WRONG_CONFIGS = {
    "one head of the resampler": {"vision_tokenizer_config": {"heads": 1, "dim_head": 48}},
    "one layer of the resampler": {"vision_tokenizer_config": {"depth": 1}},
    "heads of the tower": {"vision_encoder_config": {"num_hidden_layers": 2, "num_attention_heads": 1}},
    "a layer less of the tower": {"vision_encoder_config": {"num_hidden_layers": 1}},
    "heads of the LLM": {"text_config": {"num_attention_heads": 2, "num_key_value_heads": 2}},
    "rope theta": {"text_config": {"rope_theta": 500.0}},
    "activation": {"text_config": {"hidden_act": "gelu"}},
    "a short sliding window": {"text_config": {"sliding_window": 4}},
}


def _drop_post_norm(backbone):
    backbone.vision.tower.model.post_layernorm = nn.Identity()


def _drop_final_norm_of_the_resampler(backbone):
    backbone.vision.intermediate.norm = nn.Identity()


def _drop_norm_before_the_resamplers_mlp(backbone):
    for layer in backbone.vision.intermediate.layers:
        layer.feed_forward[0] = nn.Identity()


def _attend_to_patches_only(backbone):
    for layer in backbone.vision.intermediate.layers:
        attention = layer.attention
        attention.forward = lambda latents, patches, a=attention: _attention_to_patches(a, latents, patches)


def _attention_to_patches(attention, latents, patches):
    query = rearrange(attention.to_q(attention.norm_latents(latents)), "t l (a e) -> t a l e", a=attention.num_heads)
    key, value = rearrange(
        attention.to_kv(attention.norm_media(patches)), "t k (two a e) -> two t a k e", two=2, a=attention.num_heads
    )
    attended = nn.functional.scaled_dot_product_attention(query, key, value)
    return attention.to_out(rearrange(attended, "t a l e -> t l (a e)"))


def _forget_positions(backbone):
    backbone.position_ids = lambda mask: torch.zeros_like(mask, dtype=torch.long)


WRONG_MODULES = [
    _drop_post_norm,
    _drop_final_norm_of_the_resampler,
    _drop_norm_before_the_resamplers_mlp,
    _attend_to_patches_only,
    _forget_positions,
]


def _assert_far(directory, alter=None):
    torch.set_num_threads(1)
    backbone = _load(directory)
    if alter is not None:
        alter(backbone)
    assert distance(backbone, load_file(GOLDEN / "golden.safetensors")) > 100 * TOLERANCE


@pytest.mark.parametrize("edit", WRONG_TENSORS.values(), ids=WRONG_TENSORS)
def test_parity_notices_wrong_tensors(tmp_path, edit):
    _assert_far(altered(GOLDEN, tmp_path, tensors=edit))


@pytest.mark.parametrize("config", WRONG_CONFIGS.values(), ids=WRONG_CONFIGS)
def test_parity_notices_a_wrong_configuration(tmp_path, config):
    def fewer(tensors):
        if config.get("vision_tokenizer_config", {}).get("depth") == 1:
            for name in [name for name in tensors if "vision_tokenizer.layers.1." in name]:
                del tensors[name]

    _assert_far(altered(GOLDEN, tmp_path, config=config, tensors=fewer))


@pytest.mark.parametrize("alter", WRONG_MODULES)
def test_parity_notices_a_wrong_module(alter):
    _assert_far(GOLDEN, alter)


def test_parity_holds_for_an_unaltered_copy(tmp_path):
    copy = _load(altered(GOLDEN, tmp_path))
    assert distance(copy, load_file(GOLDEN / "golden.safetensors")) < TOLERANCE
