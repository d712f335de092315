"""Parity with the original code of the published image-LLMs, on tiny checkpoints in their layouts.

`LINVT_GOLDEN` may name another folder of the same layout: a folder a model, with config.json, model.safetensors and
golden.safetensors.
"""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch._dynamo.testing import CompileCounter

from linvt.backbones import load_backbone

pytestmark = pytest.mark.golden
ROOT = Path(os.environ.get("LINVT_GOLDEN", Path(__file__).parents[1] / "golden"))
MODELS = ("aquila", "blip3", "internvl2_qwen2", "internvl2_internlm2", "mipha", "mipha_phi2", "molmo", "qwen2_vl")
# Summed in another order, single precision differs by this much; end to end, by a little more.
TOLERANCE, END_TO_END = 2e-5, 5e-5


@pytest.fixture(scope="module", params=MODELS)
def golden(request) -> tuple[Any, dict[str, torch.Tensor]]:
    torch.set_num_threads(1)
    directory = ROOT / request.param
    backbone = load_backbone(str(directory))
    return backbone, expected_numbers(directory)


def expected_numbers(directory: Path) -> dict[str, torch.Tensor]:
    """The golden numbers. Molmo's frame tokens were stored before the embedding of `<im_patch>` was added to them."""
    golden = load_file(directory / "golden.safetensors")
    if directory.name == "molmo":
        im_patch_C = load_file(directory / "model.safetensors")["model.transformer.wte.new_embedding"][2]
        golden["features"] = golden["frame_tokens"]
        golden["frame_tokens"] = golden["features"] + im_patch_C
    return golden


def _logits(backbone: Any, embeds: torch.Tensor) -> torch.Tensor:
    return backbone.head(backbone.hidden_states(embeds, torch.ones(embeds.shape[:2], dtype=torch.bool)))


def _assert_equal(actual: torch.Tensor, expected: torch.Tensor, tolerance: float = TOLERANCE) -> None:
    torch.testing.assert_close(actual, expected, atol=tolerance, rtol=0)


def _spliced(backbone: Any, golden: dict[str, torch.Tensor], frame_tokens: torch.Tensor) -> torch.Tensor:
    pieces = [backbone.embed(golden["prefix_ids"]), frame_tokens.flatten(0, 1), backbone.embed(golden["suffix_ids"])]
    return torch.cat(pieces)[None]


def _frame_tokens(backbone: Any, golden: dict[str, torch.Tensor]) -> torch.Tensor:
    if "pixel_patches" in golden:
        return backbone.encode_pixels(golden["pixel_patches"], image_grid_thw=golden["image_grid_thw"])
    return backbone.encode_pixels(golden["pixel_values"])


def test_golden_frame_tokens(golden):
    backbone, expected = golden
    _assert_equal(_frame_tokens(backbone, expected), expected["frame_tokens"])


def test_golden_frame_tokens_of_compiled_blocks(golden, request):
    """Traced, not made faster: what Inductor makes of a trace takes longer, and is tried in an extraction."""
    name = request.node.callspec.params["golden"]
    compiled = load_backbone(str(ROOT / name), parts={"vision"})
    torch.compiler.reset()
    traces = CompileCounter()
    # Qwen2-VL's attention splits its tokens by lengths that only running tells: there, a trace is in pieces.
    compiled.compile_vision(backend=traces, fullgraph=name != "qwen2_vl")
    with torch.no_grad():
        _assert_equal(_frame_tokens(compiled, golden[1]), golden[1]["frame_tokens"])
    assert traces.frame_count >= 1


def test_golden_logits_of_text(golden):
    backbone, expected = golden
    _assert_equal(_logits(backbone, backbone.embed(expected["input_ids"])), expected["logits"])


def test_golden_logits_behind_frame_tokens(golden):
    backbone, expected = golden
    embeds = _spliced(backbone, expected, expected["frame_tokens"])
    _assert_equal(embeds, expected["spliced_embeds"])
    _assert_equal(_logits(backbone, embeds), expected["spliced_logits"])


def test_golden_logits_from_pixels(golden):
    backbone, expected = golden
    embeds = _spliced(backbone, expected, _frame_tokens(backbone, expected))
    _assert_equal(_logits(backbone, embeds), expected["spliced_logits"], END_TO_END)


def test_golden_features_of_molmo_with_padding():
    backbone: Any = load_backbone(str(ROOT / "molmo"), parts={"vision"})
    expected = expected_numbers(ROOT / "molmo")
    pixels, share = expected["pixel_values"], expected["image_masks_padded"]
    _assert_equal(backbone.vision.features(pixels), expected["features"])
    _assert_equal(backbone.vision.features(pixels, torch.ones_like(share)), expected["features"])
    _assert_equal(backbone.vision.features(pixels, share), expected["frame_tokens_padded"])
    added = backbone.encode_pixels(pixels, share) - expected["frame_tokens_padded"]
    _assert_equal(added, (expected["frame_tokens"] - expected["features"])[:1, :1].expand_as(added))


def test_golden_logits_of_images_at_positions_in_a_grid():
    """Qwen2-VL's own way with images: M-RoPE positions, where frames among video tokens go by a running index."""
    torch.set_num_threads(1)
    backbone = load_backbone(str(ROOT / "qwen2_vl"))
    expected = load_file(ROOT / "qwen2_vl" / "golden.safetensors")
    embeds = backbone.embed(expected["mm_input_ids"])
    embeds[expected["mm_token_type_ids"] == 1] = _frame_tokens(backbone, expected).flatten(0, 1)
    hidden = backbone.model.get_decoder()(inputs_embeds=embeds, position_ids=expected["mm_position_ids"])
    _assert_equal(backbone.head(hidden.last_hidden_state), expected["mm_logits"], END_TO_END)
