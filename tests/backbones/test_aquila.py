"""Aquila-VL: prompts, pooled frames, refused variants. Parity with the original code is in test_golden.py."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from linvt.backbones import VisionOptions, load_backbone
from tests.backbones.parity import Tensors, altered, distance
from tests.backbones.test_golden import TOLERANCE
from tests.backbones.text_tokenizer import save_with_text_tokenizer

GOLDEN = Path(__file__).parents[1] / "golden/aquila"
SHOWS = 100 * TOLERANCE
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    torch.set_num_threads(1)
    return save_with_text_tokenizer(GOLDEN, tmp_path_factory.mktemp("aquila"), SPECIAL_TOKENS)


@pytest.fixture(scope="module")
def backbone(directory):
    return load_backbone(str(directory))


def _text(backbone, ids):
    return backbone.text_tokenizer.decode(ids)


def test_a_conversation_reads_as_published(backbone):
    messages = [
        {"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "Who?"}]},
        {"role": "assistant", "content": "Ann."},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "And here?"}]},
    ]
    assert [_text(backbone, s) for s in backbone.prompt(messages).segments] == [
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n",
        "\nWho?<|im_end|>\n<|im_start|>assistant\nAnn.<|im_end|>\n<|im_start|>user\n",
        "\nAnd here?<|im_end|>\n<|im_start|>assistant\n",
    ]
    assert _text(backbone, backbone.answer_ids(messages, "Bo.")) == "Bo.<|im_end|>\n"
    told = [{"role": "system", "content": "Be brief."}, *messages[:1]]
    assert _text(backbone, backbone.prompt(told).before).startswith("<|im_start|>system\nBe brief.<|im_end|>\n")
    assert SPECIAL_TOKENS.index("<|im_end|>") in backbone.stop_ids


def test_frames_of_a_video_are_pooled_to_half_the_grid_unless_asked_otherwise(directory, backbone):
    frames = np.random.default_rng(0).integers(0, 255, (3, 80, 96, 3), dtype=np.uint8)
    pooled = backbone.encode_frames(frames)
    full = load_backbone(str(directory), options=VisionOptions(full_grid=True)).encode_frames(frames)
    assert (pooled.grid, full.grid) == ((2, 2), (4, 4))
    # Halving an even grid, bilinear interpolation averages 2×2 cells.
    cells_TNC = full.tokens.unflatten(1, (2, 2, 2, 2)).mean((2, 4)).flatten(1, 2)
    torch.testing.assert_close(pooled.tokens, cells_TNC)


def test_another_projector_or_tower_is_refused(directory, tmp_path):
    config = json.loads((directory / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"mm_projector_type": "linear"}))
    with pytest.raises(ValueError, match=r"Aquila-VL with \{'mm_projector_type': 'linear'\} is not supported"):
        load_backbone(str(tmp_path))


def _on(name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Tensors], None]:
    def edit(stored: Tensors) -> None:
        found = [key for key in stored if re.fullmatch(name, key)]
        assert found
        stored.update({key: change(stored[key]) for key in found})

    return edit


def _swap(one: str, other: str) -> Callable[[Tensors], None]:
    def edit(stored: Tensors) -> None:
        names = [name for name in stored if one in name]
        assert names
        for name in names:
            pair = name.replace(one, other)
            stored[name], stored[pair] = stored[pair], stored[name]

    return edit


WRONG_TENSORS: dict[str, Callable[[Tensors], None]] = {
    "gate and up swapped": _swap("gate_proj", "up_proj"),
    "keys and values swapped": _swap("self_attn.k_proj", "self_attn.v_proj"),
    "norms of a block swapped": _swap("input_layernorm", "post_attention_layernorm"),
    "LLM biases missing": _on(r"model\.layers\..*_proj\.bias", torch.zeros_like),
    "tower biases missing": _on(r".*vision_model.*bias", torch.zeros_like),
    "projector biases missing": _on(r"model\.mm_projector\.\d\.bias", torch.zeros_like),
    "ViT positions shifted": _on(r".*position_embedding\.weight", lambda table: table.roll(1, 0)),
    "patches transposed": _on(r".*patch_embedding\.weight", lambda kernel: kernel.mT),
    "colours reversed": _on(r".*patch_embedding\.weight", lambda kernel: kernel.flip(1)),
    "heads in another order": _on(r"model\.layers\..*q_proj\.weight", lambda rows: rows.roll(16, 0)),
    "the head is not tied": lambda stored: stored.update(
        {"model.embed_tokens.weight": stored["model.embed_tokens.weight"].roll(1, 0)}
    ),
}


@pytest.mark.parametrize("step", WRONG_TENSORS)
def test_a_wrong_weight_shows(step, tmp_path):
    backbone = load_backbone(str(altered(GOLDEN, tmp_path, tensors=WRONG_TENSORS[step])))
    assert distance(backbone, load_file(GOLDEN / "golden.safetensors")) > SHOWS


@pytest.mark.parametrize(
    "config",
    [{"rope_theta": 1e4}, {"rms_norm_eps": 1e-2}, {"hidden_act": "gelu"}, {"vision_config": {"hidden_act": "relu"}}],
    ids=str,
)
def test_a_wrong_setting_shows(config, tmp_path):
    backbone = load_backbone(str(altered(GOLDEN, tmp_path, config=config)))
    assert distance(backbone, load_file(GOLDEN / "golden.safetensors")) > SHOWS


def test_a_post_norm_shows(tmp_path):
    backbone = load_backbone(str(GOLDEN))
    stored = load_file(GOLDEN / "model.safetensors")
    norm = torch.nn.LayerNorm(32)
    prefix = "model.vision_tower.vision_tower.vision_model.post_layernorm."
    norm.load_state_dict({name: stored[prefix + name] for name in ("weight", "bias")})
    backbone.vision.tower.model.post_layernorm = norm
    assert distance(backbone, load_file(GOLDEN / "golden.safetensors")) > SHOWS


def test_an_unaltered_copy_shows_nothing(tmp_path):
    backbone = load_backbone(str(altered(GOLDEN, tmp_path)))
    assert distance(backbone, load_file(GOLDEN / "golden.safetensors")) < TOLERANCE
