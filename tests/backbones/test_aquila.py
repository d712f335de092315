"""Aquila-VL: prompts, pooled frames, refused variants. Parity with the original code is in test_golden.py."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from linvt.backbones import VisionOptions, load_backbone
from tests.backbones.text_tokenizer import save_with_text_tokenizer

GOLDEN = Path(__file__).parents[1] / "golden/aquila"
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
