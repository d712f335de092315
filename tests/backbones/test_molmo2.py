"""Molmo 2 beside what test_model_types.py shows: its base tile, the token that features are added to, its prompts."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from linvt.backbones import load_backbone, max_frame_side, vision_fingerprint
from linvt.backbones.checkpoint import Checkpoint
from linvt.backbones.generic_processor import load_image_processor
from linvt.backbones.molmo2 import Molmo2Backbone
from linvt.backbones.molmo2_processor import Molmo2BaseTile
from tests.backbones.parity import altered
from tests.backbones.tiny_types import save_tiny

QUESTION: Any = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what color ?"}]}
TEXT: Any = {"role": "user", "content": "here ?"}
ANSWER: Any = {"role": "assistant", "content": "red"}
# As published ones are: media first, nothing to begin with, and an answer ends only when a question follows.
CHAT_TEMPLATE = (
    "{% for m in messages %}{% for part in m['content'] %}{% if part['type'] == 'image' %}<|image|>{% endif %}"
    "{% endfor %}{% endfor %}{% for m in messages %}{{ '<eos> ' if m['role'] == 'user' and not loop.first }}"
    "{{ m['role'] }} : {% for part in m['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }} {% endif %}"
    "{% endfor %}{% endfor %}{{ 'assistant : ' if add_generation_prompt }}"
)
OLD, NEW = "model.transformer.wte.embedding", "model.transformer.wte.new_embedding"
# Pixel values of the 4×4 patches of a ramp of 5×11 pixels, as Transformers' Molmo2ImageProcessor makes them on
# torchvision 0.28: 8×8 pixels in patches of 2×2, three channels each.
TILE = [
    [21, 58, 95, 173, 66, 103, 86, 123, 69, 148, 104, 141],
    [86, 107, 144, 143, 180, 41, 60, 88, 125, 152, 154, 92],
    [119, 156, 193, 16, 53, 90, 128, 130, 168, 95, 132, 64],
    [169, 94, 131, 113, 102, 139, 143, 117, 154, 87, 97, 134],
    [169, 203, 45, 118, 148, 185, 162, 166, 138, 151, 111, 148],
    [38, 75, 97, 160, 122, 159, 152, 188, 60, 123, 135, 172],
    [137, 99, 136, 193, 230, 42, 100, 112, 149, 156, 193, 155],
    [106, 143, 180, 64, 88, 124, 69, 106, 143, 157, 51, 88],
    [140, 144, 166, 149, 109, 111, 104, 138, 130, 112, 142, 74],
    [190, 227, 99, 86, 123, 160, 153, 190, 212, 49, 86, 123],
    [118, 100, 137, 124, 162, 194, 191, 63, 100, 98, 135, 157],
    [77, 114, 106, 185, 79, 116, 130, 167, 69, 148, 172, 209],
    [67, 104, 120, 156, 112, 100, 41, 78, 115, 193, 86, 123],
    [125, 153, 190, 112, 148, 86, 106, 127, 164, 163, 200, 61],
    [165, 125, 162, 62, 99, 129, 139, 176, 213, 36, 73, 110],
    [165, 139, 113, 138, 148, 185, 189, 114, 151, 133, 122, 159],
]


@pytest.fixture(scope="module")
def directory(tmp_path_factory) -> Path:
    torch.set_num_threads(1)
    return save_tiny("molmo2", tmp_path_factory.mktemp("molmo2"))


def _published(directory: Path, target: Path, change: Any = lambda tensors: None, *, token: int = 66) -> Path:
    """A copy with its embedding cut as published: 64 old tokens and 8 new ones, the image token being one of these."""

    def cut(tensors: dict[str, Tensor]) -> None:
        whole = torch.cat([tensors[OLD], tensors[NEW]])
        tensors[OLD], tensors[NEW] = whole[:64], whole[64:]
        change(tensors)

    return altered(directory, target, config={"image_patch_id": token}, tensors=cut)


def test_the_base_tile_is_transformers_own():
    ramp = (np.arange(5 * 11 * 3) * 37 % 256).astype(np.uint8).reshape(5, 11, 3)
    tile = Molmo2BaseTile(size={"height": 8, "width": 8}, patch_size=2)(images=[ramp], return_tensors="pt")
    expected = (torch.tensor(TILE) / 255 - 0.5) / 0.5
    torch.testing.assert_close(tile["pixel_values"], expected[None], atol=1e-6, rtol=0)


def test_tokens_pool_two_by_two_patches_of_their_own_image():
    images = [np.zeros((6, 6, 3), np.uint8)] * 2
    tile = Molmo2BaseTile(size={"height": 6, "width": 6}, patch_size=2)(images=images, return_tensors="pt")
    first = [[0, 1, 3, 4], [2, -1, 5, -1], [6, 7, -1, -1], [8, -1, -1, -1]]
    second = [[i + 9 if i >= 0 else -1 for i in token] for token in first]
    assert tile["image_token_pooling"].tolist() == first + second
    assert tile["image_grids"].tolist() == [[2, 2, 0, 0]] * 2


def test_published_preprocessing_settings_are_read_and_others_refused(directory, tmp_path):
    published = {"image_processor_type": "Molmo2ImageProcessor", "max_crops": 8, "overlap_margins": [4, 4]}
    published |= {"patch_size": 14, "pooling_size": [2, 2], "size": {"height": 378, "width": 378}, "resample": 2}
    copy = altered(directory, tmp_path)
    (copy / "preprocessor_config.json").write_text(json.dumps(published))
    tile = load_image_processor(copy)(images=[np.zeros((50, 90, 3), np.uint8)], return_tensors="pt")
    assert tile["pixel_values"].shape == (1, 27 * 27, 14 * 14 * 3)
    assert tile["image_token_pooling"].shape == (14 * 14, 4)
    assert max_frame_side(str(copy)) == 756
    for other in ({"resample": 3}, {"do_normalize": False}, {"size": {"height": 378, "width": 364}}):
        (copy / "preprocessor_config.json").write_text(json.dumps(published | other))
        with pytest.raises(ValueError, match="Molmo 2's preprocessing with"):
            load_image_processor(copy)(images=[np.zeros((50, 90, 3), np.uint8)], return_tensors="pt")


def test_frame_tokens_hold_the_embedding_of_the_image_token_and_the_vision_part_reads_no_other(directory, tmp_path):
    """Its part loads from vision tensors and tables of which nothing else is a number."""

    def only_row(tensors: dict[str, Tensor]) -> None:
        for name in [n for n in tensors if "vision_backbone" not in n and n not in (OLD, NEW)]:
            del tensors[name]
        row = tensors[NEW][2].clone()
        for table in (OLD, NEW):
            tensors[table] = torch.full_like(tensors[table], torch.nan)
        tensors[NEW][2] = row

    frames = np.random.default_rng(0).integers(0, 256, (2, 30, 50, 3), dtype=np.uint8)
    whole = torch.cat([load_file(directory / "model.safetensors")[table] for table in (OLD, NEW)])
    new: Any = load_backbone(str(_published(directory, tmp_path / "new", only_row)), parts={"vision"})
    old: Any = load_backbone(str(_published(directory, tmp_path / "old", token=6)), parts={"vision"})
    pixels = new.image_processor(images=list(frames), return_tensors="pt")
    with torch.no_grad():
        features = torch.stack(new.model.get_image_features(**pixels).pooler_output)
    for backbone, token in ((new, 66), (old, 6)):
        assert type(backbone) is Molmo2Backbone
        assert torch.equal(backbone.encode_frames(frames, batch_size=2).tokens, features + whole[token])


def test_the_fingerprint_covers_the_image_tokens_row_alone(directory, tmp_path):
    def fingerprint(change: Any = lambda tensors: None) -> str:
        return vision_fingerprint(str(_published(directory, tmp_path, change)))

    same = fingerprint()
    assert fingerprint(lambda tensors: tensors[NEW][2].add_(1)) != same
    assert fingerprint(lambda tensors: tensors["model.vision_backbone.image_projector.w1.weight"].add_(1)) != same
    assert fingerprint(lambda tensors: (tensors[NEW][1].add_(1), tensors[NEW][3].add_(1), tensors[OLD].add_(1))) == same
    assert fingerprint(lambda tensors: tensors["model.transformer.ln_f.weight"].add_(1)) == same

    checkpoint = Checkpoint(_published(directory, tmp_path))
    config = json.loads((tmp_path / "config.json").read_text())
    read = dict(Molmo2Backbone.vision_tensors(config, checkpoint))
    assert read[NEW].shape == (1, 32)
    assert checkpoint.bytes_read == sum(tensor.nbytes for tensor in read.values())
    with pytest.raises(ValueError, match="no embedding of the image token 72"):
        vision_fingerprint(str(_published(directory, tmp_path, token=72)))


def test_conversations_begin_and_end_where_the_published_chat_template_does_not(directory, tmp_path):
    copy = altered(directory, tmp_path)
    (copy / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    backbone = load_backbone(str(copy), parts={"llm"})

    def read(*messages: Any) -> list[str]:
        return [backbone.text_tokenizer.decode(list(s)).strip() for s in backbone.prompt(messages).segments]

    asked = "<im_end> user : what color ? assistant :"
    assert read(QUESTION) == ["<bos> <low_res_im_start>", asked]
    assert read(QUESTION, ANSWER, QUESTION) == [
        "<bos> <low_res_im_start>",
        "<im_end> <low_res_im_start>",
        f"{asked} red <eos> user : what color ? assistant :",
    ]
    assert read(TEXT) == ["<bos> user : here ? assistant :"]
    answer = backbone.answer_ids([TEXT], "red")
    assert answer == backbone.text_ids("red <eos>")
    so_far = [*backbone.prompt([TEXT]).before, *answer]
    assert list(backbone.prompt([TEXT, ANSWER, TEXT]).before[: len(so_far)]) == so_far

    backbone.text_tokenizer.bos_token = None
    assert read(TEXT) == ["<eos> user : here ? assistant :"]
    assert read(QUESTION) == ["<eos> <low_res_im_start>", asked]
