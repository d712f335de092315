"""Molmo: prompts, letterboxed frames, refused variants, what wrong steps would do. Parity is in test_golden.py."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from einops import rearrange
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import cosine_similarity

from linvt.backbones import load_backbone, molmo_vision
from linvt.backbones.fingerprint import vision_fingerprint
from linvt.backbones.frozen import FrozenBackbone
from linvt.backbones.letterbox import Letterbox
from linvt.backbones.loading import max_frame_side, published_layout
from linvt.backbones.molmo import MolmoBackbone
from linvt.backbones.preprocessing import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD
from tests.backbones.published_models import MOLMO_EMBEDDING_SIZE, add_molmo_tokens
from tests.backbones.test_golden import TOLERANCE, _logits, _spliced, expected_numbers
from tests.backbones.text_tokenizer import save_with_text_tokenizer

GOLDEN = Path(__file__).parents[1] / "golden/molmo"
LETTERBOX = Letterbox(side=56, patch=14, mean=OPENAI_CLIP_MEAN, std=OPENAI_CLIP_STD)

# The config.json files on the hub, of what they say about the model.
PUBLISHED_7B_D: dict[str, Any] = {
    "architectures": ["MolmoForCausalLM"],
    "attention_layer_norm": False,
    "auto_map": {"AutoModelForCausalLM": "modeling_molmo.MolmoForCausalLM"},
    "clip_qkv": None,
    "embedding_size": 152064,
    "hidden_size": 3584,
    "intermediate_size": 37888,
    "layer_norm_eps": 1e-06,
    "layer_norm_type": "rms",
    "max_position_embeddings": 4096,
    "model_type": "molmo",
    "norm_after": False,
    "num_attention_heads": 28,
    "num_hidden_layers": 28,
    "num_key_value_heads": 4,
    "qkv_bias": True,
    "rope_theta": 1000000.0,
    "tie_word_embeddings": False,
    "use_position_ids": True,
    "vocab_size": 152064,
    "weight_tying": False,
}
PUBLISHED_72B = PUBLISHED_7B_D | {
    "hidden_size": 8192,
    "intermediate_size": 59136,
    "layer_norm_eps": 1e-05,
    "num_attention_heads": 64,
    "num_hidden_layers": 80,
    "num_key_value_heads": 8,
}
PUBLISHED_7B_O = PUBLISHED_7B_D | {
    "attention_layer_norm": True,
    "embedding_size": 100352,
    "hidden_size": 4096,
    "intermediate_size": 22016,
    "norm_after": True,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": None,
    "qkv_bias": False,
    "rope_theta": 500000.0,
    "vocab_size": 100278,
}
PUBLISHED_E_1B = PUBLISHED_7B_D | {
    "auto_map": {"AutoModelForCausalLM": "modeling_molmoe.MolmoForCausalLM"},
    "embedding_size": 50304,
    "hidden_size": 2048,
    "intermediate_size": 1024,
}


def _save(directory: Path, *, first_new_token: int = MOLMO_EMBEDDING_SIZE) -> Path:
    save_with_text_tokenizer(GOLDEN, directory, ("<|endoftext|>",))
    add_molmo_tokens(directory, first=first_new_token)
    return directory


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    torch.set_num_threads(1)
    return _save(tmp_path_factory.mktemp("molmo"))


@pytest.fixture(scope="module")
def backbone(directory) -> Any:
    return load_backbone(str(directory))


@pytest.fixture(scope="module")
def expected():
    return expected_numbers(GOLDEN)


def _frames(num: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (num, height, width, 3), dtype=np.uint8)


# -- prompts -----------------------------------------------------------------------------------------------------------


def _segments(backbone, messages):
    return [backbone.text_tokenizer.decode(segment) for segment in backbone.prompt(messages).segments]


def test_a_question_reads_as_published(backbone):
    asked = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "Who?"}]}]
    assert _segments(backbone, asked) == ["<|endoftext|><im_start>", "<im_end> User: Who? Assistant:"]
    assert backbone.prompt(asked).before == (0, MOLMO_EMBEDDING_SIZE)
    assert backbone.prompt(asked).after[0] == MOLMO_EMBEDDING_SIZE + 1
    assert backbone.text_tokenizer.decode(backbone.answer_ids(asked, "Ann.")) == " Ann.<|endoftext|>"
    assert backbone.stop_ids == [0]
    assert _segments(backbone, [{"role": "user", "content": "Who?"}]) == ["<|endoftext|> User: Who? Assistant:"]


def test_media_come_first_wherever_they_are_said(backbone):
    first = {"role": "user", "content": [{"type": "text", "text": "Who?"}, {"type": "video"}]}
    answer = {"role": "assistant", "content": "Ann."}
    second = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "And here?"}]}
    assert _segments(backbone, [first, answer, second]) == [
        "<|endoftext|><im_start>",
        "<im_end><im_start>",
        "<im_end> User: Who? Assistant: Ann.<|endoftext|> User: And here? Assistant:",
    ]
    ids = backbone.answer_ids([first, answer, second], "Bo.")
    assert backbone.text_tokenizer.decode(ids) == " Bo.<|endoftext|>"
    assert first["content"][0] == {"type": "text", "text": "Who?"}


def test_a_system_turn_opens_the_first_question(backbone):
    system, user = {"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who?"}
    assert _segments(backbone, [system, user]) == ["<|endoftext|> User: Be brief. Who? Assistant:"]
    with pytest.raises(ValueError, match="system turn without a user turn behind it"):
        backbone.prompt([system])
    with pytest.raises(ValueError, match="'tool'"):
        backbone.prompt([user, {"role": "tool", "content": "?"}])


def test_a_tokenizer_of_another_layout_is_refused(tmp_path):
    _save(tmp_path, first_new_token=MOLMO_EMBEDDING_SIZE - 1)
    with pytest.raises(ValueError, match=r"has \{'<im_start>': 159.*expected \{'<im_start>': 160"):
        load_backbone(str(tmp_path), parts={"vision"})
    _save(tmp_path)
    tokenizer = (tmp_path / "tokenizer.json").read_text()
    (tmp_path / "tokenizer.json").write_text(tokenizer.replace("<im_patch>", "<im_other>"))
    with pytest.raises(ValueError, match="does not know the token '<im_patch>'"):
        load_backbone(str(tmp_path), parts={"llm"})


# -- frames ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("height", "width"), [(120, 200), (200, 75), (40, 40), (30, 50), (56, 56), (640, 3)])
def test_frames_are_resized_padded_and_normalised_as_published(height, width):
    frames = _frames(2, height, width)
    scale = min(56 / height, 56 / width)
    size = (max(1, int(width * scale)), max(1, int(height * scale)))
    canvas = np.zeros((2, 56, 56, 3))
    left, top = (56 - size[0]) // 2, (56 - size[1]) // 2
    for t, frame in enumerate(frames):
        for c in range(3):
            channel = Image.fromarray(frame[..., c].astype(np.float32) / 255).resize(size, Image.Resampling.BILINEAR)
            canvas[t, top : top + size[1], left : left + size[0], c] = np.asarray(channel)
    expected_T3SS = (canvas - OPENAI_CLIP_MEAN).transpose(0, 3, 1, 2) / np.array(OPENAI_CLIP_STD)[:, None, None]
    pixels = LETTERBOX(frames)
    assert pixels.dtype == torch.float32
    np.testing.assert_allclose(pixels.numpy(), expected_T3SS, atol=1e-5)

    shown = np.zeros((56, 56))
    shown[top : top + size[1], left : left + size[0]] = 1
    shares = [shown[i : i + 14, j : j + 14].mean() for i in range(0, 56, 14) for j in range(0, 56, 14)]
    np.testing.assert_allclose(LETTERBOX.image_share(height, width).numpy(), shares, atol=1e-6)


@pytest.mark.parametrize(
    ("height", "width", "rows"), [(720, 1280, 188), (480, 640, 251), (131, 131, 335), (1080, 1920, 189), (79, 79, 336)]
)
def test_sizes_are_cut_in_single_precision(height, width, rows):
    """In double precision, all but 1080p would have one row more or less."""
    letterbox = Letterbox(side=336, patch=14, mean=OPENAI_CLIP_MEAN, std=OPENAI_CLIP_STD)
    columns = rows if height == width else 336
    assert letterbox.image_share(height, width).sum() * 14 * 14 == pytest.approx(rows * columns)


def test_padding_reaches_the_tokens(backbone):
    frames = _frames(3, 27, 56)
    tokens = backbone.encode_frames(frames)
    assert tokens.grid == (2, 2)
    share = LETTERBOX.image_share(27, 56).expand(3, -1)
    assert sorted(set(share.flatten().tolist())) == pytest.approx([0, 13 / 14, 1])
    torch.testing.assert_close(tokens.tokens, backbone.encode_pixels(LETTERBOX(frames), share))
    assert (tokens.tokens - backbone.encode_pixels(LETTERBOX(frames))).abs().max() > 0.1


def test_an_image_goes_the_way_of_a_frame(backbone):
    frames = _frames(3, 80, 60)
    torch.testing.assert_close(backbone.encode_frames(frames[1:2]).tokens, backbone.encode_frames(frames).tokens[1:2])


def test_the_frame_side_is_twice_the_towers(directory, backbone):
    assert max_frame_side(str(directory)) == backbone.max_frame_side == 112
    assert MolmoBackbone.frame_side(PUBLISHED_7B_D) == 672


# -- what is loaded ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (PUBLISHED_72B, "Molmo-72B"),
        (PUBLISHED_7B_O, "Molmo-7B-O"),
        (PUBLISHED_E_1B, "MolmoE-1B"),
        (PUBLISHED_7B_D | {"moe_num_experts": 64}, "MolmoE-1B"),
        (PUBLISHED_7B_D | {"clip_qkv": 8.0}, r"Molmo with \{'clip_qkv': 8.0\}"),
        (PUBLISHED_7B_D | {"quantization_config": {"quant_method": "bitsandbytes"}}, "quantization_config"),
        (PUBLISHED_7B_D | {"architectures": ["MolmoForConditionalGeneration"]}, "MolmoForConditionalGeneration"),
    ],
)
def test_other_molmos_are_refused_by_name(config, message, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=f"{message}.* is not supported"):
        load_backbone(str(tmp_path))


def test_molmo_2_is_left_to_transformers(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "molmo2"}))
    assert published_layout(tmp_path) is None
    (tmp_path / "config.json").write_text(json.dumps(PUBLISHED_7B_D))
    assert published_layout(tmp_path) is MolmoBackbone


def test_the_published_config_gives_the_published_shapes():
    MolmoBackbone.check(PUBLISHED_7B_D)
    with torch.device("meta"):
        model: Any = MolmoBackbone.build_llm(PUBLISHED_7B_D)
        vision: Any = molmo_vision.MolmoVision(PUBLISHED_7B_D)
    assert model.get_input_embeddings().weight.shape == (152192, 3584)
    assert model.get_output_embeddings().weight.shape == (152064, 3584)
    assert model.model.layers[27].mlp.gate_proj.weight.shape == (18944, 3584)
    assert model.model.layers[27].self_attn.k_proj.weight.shape == (512, 3584)
    assert len(vision.tower.model.encoder.layers) == 22  # Of 23, read at the 22nd and the 15th.
    assert vision.tower.read == [21, 14]
    assert vision.tower.model.embeddings.position_embedding.weight.shape == (577, 1024)
    assert vision.intermediate.query.weight.shape == (1024, 2048)
    assert vision.intermediate.down.weight.shape == (3584, 18944)


def test_each_part_reads_its_own_tensors(directory, backbone):
    tensors = load_file(GOLDEN / "model.safetensors")
    vision: Any = load_backbone(str(directory), parts={"vision"})
    llm: Any = load_backbone(str(directory), parts={"llm"})
    of_vision = {n: t for n, t in tensors.items() if "vision_backbone" in n and "resblocks.9." not in n}
    of_llm = {n: t for n, t in tensors.items() if "vision_backbone" not in n}
    # And one row of the LLM's embedding: what frame tokens are added to.
    row = tensors["model.transformer.wte.new_embedding"][2]
    assert vision.checkpoint.tensors_read == len(of_vision) + 1
    assert vision.checkpoint.bytes_read == sum(t.nbytes for t in of_vision.values()) + row.nbytes
    assert llm.checkpoint.tensors_read == len(of_llm)
    assert llm.checkpoint.bytes_read == sum(t.nbytes for t in of_llm.values())

    frames, ids = _frames(2, 50, 70), torch.arange(12)[None]
    assert torch.equal(vision.encode_frames(frames).tokens, backbone.encode_frames(frames).tokens)
    assert torch.equal(_logits(llm, llm.embed(ids)), _logits(backbone, backbone.embed(ids)))
    with pytest.raises(ValueError, match="without its vision part"):
        llm.encode_frames(frames)


def test_the_fingerprint_covers_the_token_that_frame_tokens_hold(tmp_path):
    def fingerprint(change: Callable[[dict[str, Tensor]], None]) -> str:
        return vision_fingerprint(str(_changed(tmp_path, change)))

    def change(name: str) -> Callable[[dict[str, Tensor]], None]:
        return lambda tensors: tensors.update({name: tensors[name] + 1})

    same = fingerprint(lambda tensors: None)
    assert fingerprint(change("model.transformer.wte.new_embedding")) != same
    assert fingerprint(change("model.vision_backbone.pad_embed")) != same
    assert fingerprint(change("model.transformer.ln_f.weight")) == same


def test_a_checkpoint_without_the_image_token_is_refused(tmp_path):
    _changed(tmp_path, lambda tensors: tensors.pop("model.transformer.wte.new_embedding"))
    with pytest.raises(ValueError, match=r"missing: model\.transformer\.wte\.new_embedding"):
        load_backbone(str(tmp_path), parts={"vision"})
    with pytest.raises(ValueError, match=r"missing: model\.model\.embed_tokens\.weight \(160 of 288 rows\)"):
        load_backbone(str(tmp_path))
    name = "model.transformer.wte.new_embedding"
    _changed(tmp_path, lambda tensors: tensors.update({name: tensors[name][:2].clone()}))
    with pytest.raises(ValueError, match="expected at least 3 rows"):
        load_backbone(str(tmp_path), parts={"vision"})


def test_lora_targets_are_the_llms_linear_layers(backbone):
    names = backbone.lora_targets()
    assert len(names) == 2 * 7
    assert all(name.startswith("model.layers.") for name in names)
    assert {name.split(".")[-1] for name in names} == {
        *("q_proj", "k_proj", "v_proj", "o_proj"),
        *("gate_proj", "up_proj", "down_proj"),
    }


# -- generation --------------------------------------------------------------------------------------------------------


def test_generate_is_greedy_decoding_also_behind_left_padding(backbone, expected):
    embeds = expected["spliced_embeds"]
    wanted: list[int] = []
    grown = embeds
    for _ in range(8):
        token = int(_logits(backbone, grown)[0, -1].argmax())
        if token in backbone.stop_ids:
            break
        wanted.append(token)
        grown = torch.cat([grown, backbone.embed(torch.tensor([[token]]))], dim=1)
    assert len(set(wanted)) > 2

    short = torch.cat([torch.full((1, 4, 64), 9.0), embeds[:, 4:]], dim=1)
    mask = torch.ones(2, embeds.shape[1], dtype=torch.bool)
    mask[1, :4] = False
    both = backbone.generate(torch.cat([embeds, short]), mask, max_new_tokens=8)
    alone = backbone.generate(embeds[:, 4:], mask[:1, 4:], max_new_tokens=8)
    assert both == [wanted, alone[0]]
    assert alone[0] != wanted


def test_bfloat16_stays_close(expected):
    half: Any = load_backbone(str(GOLDEN), dtype=torch.bfloat16)
    tokens = half.encode_pixels(expected["pixel_values"])
    logits = _logits(half, half.embed(expected["input_ids"]))
    assert tokens.dtype == logits.dtype == torch.bfloat16
    assert cosine_similarity(tokens.float(), expected["frame_tokens"], dim=-1).min() > 0.99
    assert cosine_similarity(logits.float(), expected["logits"], dim=-1).min() > 0.99


# -- wrong steps -------------------------------------------------------------------------------------------------------


def _changed(directory: Path, change: Callable[[dict[str, Tensor]], Any], **config: Any) -> Path:
    """The golden checkpoint with other tensors: loaded rightly, they stand for the golden one loaded wrongly."""
    tensors = load_file(GOLDEN / "model.safetensors")
    change(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, directory / "model.safetensors")
    (directory / "config.json").write_text(json.dumps(json.loads((GOLDEN / "config.json").read_text()) | config))
    return directory


def _differences(backbone: Any, expected: dict[str, Tensor]) -> dict[str, float]:
    """Largest differences from the golden numbers."""
    frame_tokens = backbone.encode_pixels(expected["pixel_values"])
    padded = backbone.vision.features(expected["pixel_values"], expected["image_masks_padded"])
    spliced = _spliced(backbone, expected, expected["frame_tokens"])
    pairs = {
        "frame_tokens": (frame_tokens, expected["frame_tokens"]),
        "frame_tokens_padded": (padded, expected["frame_tokens_padded"]),
        "logits": (_logits(backbone, backbone.embed(expected["input_ids"])), expected["logits"]),
        "spliced_logits": (_logits(backbone, spliced), expected["spliced_logits"]),
    }
    return {name: (actual - wanted).abs().max().item() for name, (actual, wanted) in pairs.items()}


LAYER, POOL = "model.transformer.blocks.0.", "model.vision_backbone.image_pooling_2d."
VIT, PROJECTOR = "model.vision_backbone.image_vit.", "model.vision_backbone.image_projector."


def _on(*names: str, do: Callable[[Tensor], Tensor]) -> Callable[[dict[str, Tensor]], None]:
    return lambda tensors: tensors.update({name: do(tensors[name]) for name in names})


def _swap(one: str, other: str) -> Callable[[dict[str, Tensor]], None]:
    return lambda tensors: tensors.update({one: tensors[other], other: tensors[one]})


ATTENTION = (f"{LAYER}att_proj.weight", f"{LAYER}att_proj.bias")
WRONG_WEIGHTS: dict[str, tuple[str, Callable[[dict[str, Tensor]], None]]] = {
    "k before q": ("logits", _on(*ATTENTION, do=lambda t: torch.cat([t[64:96], t[:64], t[96:]]))),
    "k and v swapped": ("logits", _on(*ATTENTION, do=lambda t: torch.cat([t[:64], t[96:], t[64:96]]))),
    "no bias of q, k, v": ("logits", _on(ATTENTION[1], do=torch.zeros_like)),
    "gate before up": ("logits", _on(f"{LAYER}ff_proj.weight", do=lambda t: torch.cat([t[96:], t[:96]]))),
    "norms swapped": ("logits", _swap(f"{LAYER}attn_norm.weight", f"{LAYER}ff_norm.weight")),
    "no last norm": ("logits", _on("model.transformer.ln_f.weight", do=torch.ones_like)),
    "head tied": ("logits", _swap("model.transformer.ff_out.weight", "model.transformer.wte.embedding")),
    "image token shifted": ("frame_tokens", _on("model.transformer.wte.new_embedding", do=lambda t: t.roll(1, 0))),
    "no image token": ("frame_tokens", _on("model.transformer.wte.new_embedding", do=torch.zeros_like)),
    "projector gate and up swapped": ("frame_tokens", _swap(f"{PROJECTOR}w1.weight", f"{PROJECTOR}w3.weight")),
    "pooling query and key swapped": ("frame_tokens", _swap(f"{POOL}wq.weight", f"{POOL}wk.weight")),
    "pooling key and value swapped": ("frame_tokens", _swap(f"{POOL}wk.weight", f"{POOL}wv.weight")),
    "pooling without biases": ("frame_tokens", _on(f"{POOL}wv.bias", f"{POOL}wo.bias", do=torch.zeros_like)),
    "layers read in the other order": (
        "frame_tokens",
        _on(*(f"{POOL}w{n}.weight" for n in "qkv"), do=lambda t: torch.cat([t[:, 32:], t[:, :32]], dim=1)),
    ),
    "patches channel first": (
        "frame_tokens",
        _on(f"{VIT}patch_embedding.weight", do=lambda t: rearrange(t, "d (i j c) -> d (c i j)", i=14, j=14)),
    ),
    "patches column first": (
        "frame_tokens",
        _on(f"{VIT}patch_embedding.weight", do=lambda t: rearrange(t, "d (i j c) -> d (j i c)", i=14, j=14)),
    ),
    "positions shifted": ("frame_tokens", _on(f"{VIT}positional_embedding", do=lambda t: t.roll(1, 0))),
    "positions reversed": ("frame_tokens", _on(f"{VIT}positional_embedding", do=lambda t: t.flip(0))),
    "no class token": ("frame_tokens", _on(f"{VIT}class_embedding", do=torch.zeros_like)),
    "no norm before the layers": (
        "frame_tokens",
        lambda tensors: tensors.update(
            {f"{VIT}pre_ln.weight": torch.ones(32), f"{VIT}pre_ln.bias": torch.zeros(32)},
        ),
    ),
    "padding kinds swapped": ("frame_tokens_padded", _on("model.vision_backbone.pad_embed", do=lambda t: t.flip(0))),
    "padding ignored": ("frame_tokens_padded", _on("model.vision_backbone.pad_embed", do=torch.zeros_like)),
}


@pytest.mark.parametrize("step", WRONG_WEIGHTS)
def test_a_wrong_weight_shows(step, tmp_path, expected):
    where, change = WRONG_WEIGHTS[step]
    wrong = load_backbone(str(_changed(tmp_path, change)))
    assert _differences(wrong, expected)[where] > 100 * TOLERANCE


@pytest.mark.parametrize(
    ("config", "where"),
    [
        ({"rope_theta": 10000.0}, "logits"),
        ({"num_key_value_heads": 2, "num_attention_heads": 2, "intermediate_size": 192}, None),
        ({"vision_backbone": {"image_mlp_activations": "gelu"}}, "frame_tokens"),
        ({"vision_backbone": {"image_num_heads": 4}}, "frame_tokens"),
    ],
)
def test_a_wrong_setting_shows(config, where, tmp_path, expected):
    golden = json.loads((GOLDEN / "config.json").read_text())
    if "vision_backbone" in config:
        config = {"vision_backbone": golden["vision_backbone"] | config["vision_backbone"]}
    directory = _changed(tmp_path, lambda tensors: None, **config)
    if where is None:
        with pytest.raises(ValueError, match="mis-shaped"):
            load_backbone(str(directory))
    else:
        assert _differences(load_backbone(str(directory)), expected)[where] > 100 * TOLERANCE


@pytest.mark.parametrize("read", [(-2, -8), (-3, -9), (-2, -2), (-9, -2)])
def test_a_wrong_layer_shows(read, monkeypatch, expected):
    monkeypatch.setattr(molmo_vision, "_READ", read)
    assert _differences(load_backbone(str(GOLDEN)), expected)["frame_tokens"] > 100 * TOLERANCE


def test_wrong_positions_show(monkeypatch, expected):
    backbone = load_backbone(str(GOLDEN))
    assert max(_differences(backbone, expected).values()) < TOLERANCE
    monkeypatch.setattr(FrozenBackbone, "position_ids", lambda self, mask: torch.zeros_like(mask, dtype=torch.long))
    differences = _differences(backbone, expected)
    assert min(differences["logits"], differences["spliced_logits"]) > 100 * TOLERANCE
