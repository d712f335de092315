"""Mipha: prompts, image preprocessing, refused variants, steps that parity must notice."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from einops import rearrange
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from linvt.backbones import load_backbone
from tests.backbones.parity import altered, distance
from tests.backbones.test_golden import TOLERANCE
from tests.backbones.text_tokenizer import save_with_text_tokenizer

GOLDEN = Path(__file__).parents[1] / "golden"
SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)


def _load(directory: Path, **options: Any) -> Any:
    return load_backbone(str(directory), **options)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    torch.set_num_threads(1)
    return save_with_text_tokenizer(GOLDEN / "mipha", tmp_path_factory.mktemp("mipha"), ("<pad>", "<|endoftext|>"))


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
    # Two roles, each turn followed by its separator: a space, or the end of the text.
    assert [_text(backbone, s) for s in backbone.prompt(messages).segments] == [
        f"{SYSTEM} USER: ",
        "\nWho? ASSISTANT: Ann.<|endoftext|>USER: ",
        "\nAnd here? ASSISTANT:",
    ]
    assert _text(backbone, backbone.answer_ids(messages, "Bo.")) == " Bo.<|endoftext|>"
    told = [{"role": "system", "content": "Be brief."}, _image("Who?")]
    assert [_text(backbone, s) for s in backbone.prompt(told).segments] == ["Be brief. USER: ", "\nWho? ASSISTANT:"]
    plain = backbone.prompt([{"role": "user", "content": "Hi {x}"}])
    assert [_text(backbone, s) for s in plain.segments] == [f"{SYSTEM} USER: Hi {{x}} ASSISTANT:"]


def test_each_of_several_media_has_its_slot(backbone):
    content = [{"type": "image"}, {"type": "text", "text": "or "}, {"type": "image"}, {"type": "text", "text": "?"}]
    segments = backbone.prompt([{"role": "user", "content": content}]).segments
    assert [_text(backbone, s) for s in segments] == [f"{SYSTEM} USER: ", "\nor ", "\n? ASSISTANT:"]


def test_only_the_end_of_text_stops_an_answer(backbone):
    # The config's eos_token_id, 2, is a word of this vocabulary.
    assert backbone.model.generation_config.eos_token_id == 2
    assert backbone.stop_ids == [backbone.text_tokenizer.convert_tokens_to_ids("<|endoftext|>")]


def _preprocessed(image: Image.Image) -> torch.Tensor:
    """[3, 56, 56]: Pillow's bicubic filter whatever the shape, then (value - 127.5) / 127.5."""
    resized = np.asarray(image.resize((56, 56), Image.Resampling.BICUBIC), np.float64)
    return torch.from_numpy((resized - 127.5) / 127.5).permute(2, 0, 1)


@pytest.mark.parametrize("size", [(40, 91), (91, 40), (70, 70)])
def test_frames_are_padded_to_a_square_where_the_config_says_so(directory, tmp_path, size):
    frame = np.random.default_rng(0).integers(0, 255, (*size, 3), dtype=np.uint8)
    squeezed = _load(directory, parts={"vision"})
    padded = _load(altered(directory, tmp_path, config={"image_aspect_ratio": "pad"}), parts={"vision"})
    square = Image.new("RGB", (max(size), max(size)), (127, 127, 127))
    square.paste(Image.fromarray(frame), ((max(size) - size[1]) // 2, (max(size) - size[0]) // 2))
    for loaded, image in ((squeezed, Image.fromarray(frame)), (padded, square)):
        pixels = loaded.preprocessing(loaded.config)(frame[None])
        assert pixels.dtype == torch.float32
        torch.testing.assert_close(pixels[0].double(), _preprocessed(image), atol=1e-6, rtol=0)
        tokens = loaded.encode_frames(frame[None])
        torch.testing.assert_close(tokens.tokens, loaded.encode_pixels(pixels))
        assert (tokens.grid, loaded.max_frame_side) == ((4, 4), 112)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"architectures": ["MiphaGemmaForCausalLM"], "model_type": "mipha_gemma"}, r"MiphaGemmaForCausalLM"),
        ({"architectures": ["MiphaPhi3ForCausalLM"], "model_type": "mipha_phi3"}, r"MiphaPhi3ForCausalLM"),
        ({"vision_config": {"mm_projector": {"mm_projector_type": "linear"}}}, r"'mm_projector_type': 'linear'"),
        ({"vision_config": {"vision_tower": {"mm_vision_select_layer": -1}}}, r"'mm_vision_select_layer': -1"),
        ({"mm_use_im_start_end": True}, r"'mm_use_im_start_end': True"),
        (
            {"vision_config": {"vision_tower": {"vision_model_name_or_path": "openai/clip-vit-large-patch14-336"}}},
            r"vision tower 'openai/clip-vit-large-patch14-336' is not supported; expected SigLIP",
        ),
    ],
)
def test_another_variant_is_refused_by_name(directory, tmp_path, config, message):
    with pytest.raises(ValueError, match=rf"Mipha .*{message}"):
        _load(altered(directory, tmp_path, config=config))


def test_an_architecture_that_the_weights_do_not_have_is_refused(directory, tmp_path):
    wider = altered(directory, tmp_path, config={"intermediate_size": 96})
    with pytest.raises(ValueError, match=r"mis-shaped: .*fc1.*missing: .*fc1"):
        _load(wider)


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


def _as_plain_thirds(tensor):
    # Read by heads, this gives what [q | k | v] would.
    return rearrange(tensor, "(three A D) ... -> (A three D) ...", three=3, A=4)


def _as_reversed_thirds(tensor):
    return rearrange(
        rearrange(tensor, "(A three D) ... -> three A D ...", three=3, A=4).flip(0), "t A D ... -> (A t D) ..."
    )


BOTH = ("mipha", "mipha_phi2")
WRONG_TENSORS = [
    ("mipha", "rows as [q|k|v]", _edit("query_key_value", _as_plain_thirds)),
    ("mipha", "rows as v, k, q", _edit("query_key_value", _as_reversed_thirds)),
    ("mipha", "no q/k/v bias", _edit("query_key_value.bias", torch.zeros_like)),
    ("mipha_phi2", "q and k swapped", _exchange("q_proj", "k_proj")),
    ("mipha_phi2", "k and v swapped", _exchange("layers.0.self_attn.k_proj", "layers.0.self_attn.v_proj")),
    *((model, f"no bias of {name}", _edit(f"{name}.bias", torch.zeros_like)) for model in BOTH for name in (
        "self_attn.dense", "mlp.fc1", "mlp.fc2", "lm_head", "final_layernorm", "input_layernorm", "mm_projector.0",
        "mm_projector.2", "patch_embedding")),
    *((model, "vision positions reversed", _edit("position_embedding", lambda t: t.flip(0))) for model in BOTH),
    *((model, "layers of the LLM swapped", _exchange("model.layers.0.", "model.layers.1.")) for model in BOTH),
    *((model, "layers of the tower swapped", _exchange("encoder.layers.0.", "encoder.layers.1.")) for model in BOTH),
]  # fmt: skip
WRONG_CONFIGS = [
    ({"vision_config": {"vision_tower": {"num_hidden_layers": 4}}}, "select layer -1"),
    ({"vision_config": {"vision_tower": {"num_hidden_layers": 2}}}, "select layer -3"),
    ({"vision_config": {"vision_tower": {"num_attention_heads": 1}}}, "heads of the tower"),
    ({"vision_config": {"vision_tower": {"hidden_act": "quick_gelu"}}}, "activation of the tower"),
    ({"partial_rotary_factor": 1.0}, "full rotary"),
    ({"rope_theta": 500.0}, "rope theta"),
    ({"num_attention_heads": 2, "num_key_value_heads": 2}, "heads"),
    ({"hidden_act": "silu"}, "activation"),
]


def _swap_activation(backbone):
    backbone.vision.intermediate[1] = nn.ReLU()


def _add_post_norm(backbone):
    norm = nn.LayerNorm(32)
    published = backbone.checkpoint
    norm.weight.data = published.read("model.vision_tower.vision_model.post_layernorm.weight")
    norm.bias.data = published.read("model.vision_tower.vision_model.post_layernorm.bias")
    backbone.vision.tower.model.post_layernorm = norm


def _drop_final_norm(backbone):
    backbone.model.model.final_layernorm = nn.Identity()


def _forget_positions(backbone):
    backbone.position_ids = lambda mask: torch.zeros_like(mask, dtype=torch.long)


WRONG_MODULES = [_swap_activation, _add_post_norm, _drop_final_norm, _forget_positions]


def _assert_far(directory, model, alter=None):
    torch.set_num_threads(1)
    backbone = _load(directory)
    if alter is not None:
        alter(backbone)
    assert distance(backbone, load_file(GOLDEN / model / "golden.safetensors")) > 100 * TOLERANCE


@pytest.mark.parametrize(("model", "step", "edit"), WRONG_TENSORS, ids=[f"{m}: {s}" for m, s, _ in WRONG_TENSORS])
def test_parity_notices_wrong_tensors(tmp_path, model, step, edit):
    _assert_far(altered(GOLDEN / model, tmp_path, tensors=edit), model)


@pytest.mark.parametrize("model", BOTH)
@pytest.mark.parametrize(("config", "step"), WRONG_CONFIGS, ids=[step for _, step in WRONG_CONFIGS])
def test_parity_notices_a_wrong_configuration(tmp_path, model, config, step):
    _assert_far(altered(GOLDEN / model, tmp_path, config=config), model)


@pytest.mark.parametrize("model", BOTH)
@pytest.mark.parametrize("alter", WRONG_MODULES)
def test_parity_notices_a_wrong_module(model, alter):
    _assert_far(GOLDEN / model, model, alter)


@pytest.mark.parametrize("model", BOTH)
def test_parity_holds_for_an_unaltered_copy(tmp_path, model):
    copy = _load(altered(GOLDEN / model, tmp_path))
    assert distance(copy, load_file(GOLDEN / model / "golden.safetensors")) < TOLERANCE
