"""Qwen2-VL's golden numbers would show the usual wrong steps, far beyond the tolerance."""

import shutil
from collections.abc import Callable
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from linvt.backbones import load_backbone
from tests.backbones.test_golden import ROOT, TOLERANCE, _frame_tokens, _logits, _spliced

pytestmark = pytest.mark.golden
Tensors = dict[str, torch.Tensor]


def _swap(one: str, other: str) -> Callable[[Tensors], None]:
    def wrong(tensors: Tensors) -> None:
        for name in [name for name in tensors if one in name]:
            twin = name.replace(one, other)
            tensors[name], tensors[twin] = tensors[twin], tensors[name]

    return wrong


def _fill(part: str, value: float) -> Callable[[Tensors], None]:
    def wrong(tensors: Tensors) -> None:
        for name in [name for name in tensors if part in name]:
            tensors[name] = torch.full_like(tensors[name], value)

    return wrong


def _fused_as_interleaved(tensors: Tensors) -> None:
    for name in [name for name in tensors if "attn.qkv.weight" in name]:
        rows = tensors[name]
        tensors[name] = rows.reshape(-1, 3, rows.shape[1]).transpose(0, 1).reshape(rows.shape).contiguous()


WRONG_WEIGHTS = {
    "gate and up swapped": _swap("gate_proj", "up_proj"),
    "layers swapped": _swap("model.layers.0.", "model.layers.1."),
    "towers' layers swapped": _swap("visual.blocks.0.", "visual.blocks.1."),
    "norms of a layer swapped": _swap("input_layernorm", "post_attention_layernorm"),
    "no biases of q": _fill("q_proj.bias", 0.0),
    "no biases of the tower": _fill("attn.qkv.bias", 0.0),
    "no last norm": _fill("model.norm.weight", 1.0),
    "no norm of the merger": _fill("merger.ln_q.weight", 1.0),
    "fused q, k, v taken for interleaved": _fused_as_interleaved,
}


@pytest.mark.parametrize("wrong", WRONG_WEIGHTS)
@torch.no_grad()
def test_wrong_weights_show(wrong, tmp_path):
    torch.set_num_threads(1)
    shutil.copyfile(ROOT / "qwen2_vl" / "config.json", tmp_path / "config.json")
    tensors = load_file(ROOT / "qwen2_vl" / "model.safetensors")
    WRONG_WEIGHTS[wrong](tensors)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    backbone = load_backbone(str(tmp_path))
    expected = load_file(ROOT / "qwen2_vl" / "golden.safetensors")
    embeds = _spliced(backbone, expected, _frame_tokens(backbone, expected))
    assert (_logits(backbone, embeds) - expected["spliced_logits"]).abs().max() > 1000 * TOLERANCE


@torch.no_grad()
def test_wrong_steps_show(monkeypatch):
    torch.set_num_threads(1)
    backbone: Any = load_backbone(str(ROOT / "qwen2_vl"))
    expected = load_file(ROOT / "qwen2_vl" / "golden.safetensors")
    raster = expected["pixel_patches"].reshape(3, 2, 2, 2, 2, -1).transpose(2, 3).reshape_as(expected["pixel_patches"])
    tokens = backbone.encode_pixels(raster, image_grid_thw=expected["image_grid_thw"])
    assert (tokens - expected["frame_tokens"]).abs().max() > 1000 * TOLERANCE
    swapped = _spliced(backbone, expected, expected["frame_tokens"][[1, 0, 2]])
    assert (_logits(backbone, swapped) - expected["spliced_logits"]).abs().max() > 1000 * TOLERANCE
    right = _spliced(backbone, expected, expected["frame_tokens"])
    monkeypatch.setattr(backbone, "position_ids", lambda mask: torch.zeros(3, *mask.shape, dtype=torch.long))
    assert (_logits(backbone, right) - expected["spliced_logits"]).abs().max() > 1000 * TOLERANCE


def test_parts_read_nothing_of_each_other(tmp_path):
    torch.set_num_threads(1)
    expected = load_file(ROOT / "qwen2_vl" / "golden.safetensors")
    tensors = load_file(ROOT / "qwen2_vl" / "model.safetensors")
    for part, is_vision in (("vision", True), ("llm", False)):
        directory = tmp_path / part
        directory.mkdir()
        shutil.copyfile(ROOT / "qwen2_vl" / "config.json", directory / "config.json")
        own = {k: v for k, v in tensors.items() if k.startswith("visual.") is is_vision}
        save_file(own, directory / "model.safetensors", metadata={"format": "pt"})
    vision = load_backbone(str(tmp_path / "vision"), parts={"vision"})
    llm = load_backbone(str(tmp_path / "llm"), parts={"llm"})
    embeds = _spliced(llm, expected, _frame_tokens(vision, expected))
    torch.testing.assert_close(_logits(llm, embeds), expected["spliced_logits"], atol=5e-5, rtol=0)
