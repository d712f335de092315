"""InternVL2: prompts, preprocessing, refused variants, and that wrong steps would show in the golden numbers.

Shape legend: T frames, S×S pixels, P patches a side, D channels of the tower, K key/value heads, G query heads to each.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from einops import rearrange
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor, nn

from linvt.backbones import internvl2, load_backbone
from tests.backbones.test_golden import TOLERANCE, _logits, _spliced
from tests.backbones.text_tokenizer import save_with_text_tokenizer

ROOT = Path(__file__).parents[1] / "golden"
TOKENIZER = Path(__file__).parent / "internlm2_tokenizer"
MODELS = ("internvl2_qwen2", "internvl2_internlm2")
SPECIAL_TOKENS = ("<|endoftext|>", "<s>", "<|im_start|>", "<|im_end|>", "<img>", "</img>")
SYSTEM = "你是由上海人工智能实验室联合商汤科技开发的书生多模态大模型，英文名叫InternVL, 是一个有用无害的人工智能助手。"

State = dict[str, Tensor]


@pytest.fixture(scope="module", params=MODELS)
def directory(request, tmp_path_factory) -> Path:
    torch.set_num_threads(1)
    return save_with_text_tokenizer(
        ROOT / request.param, tmp_path_factory.mktemp(request.param), SPECIAL_TOKENS, eos_token="<|endoftext|>"
    )


@pytest.fixture(scope="module")
def backbone(directory):
    return load_backbone(str(directory))


@pytest.fixture(scope="module")
def frames():
    return np.random.default_rng(0).integers(0, 255, (3, 80, 96, 3), dtype=np.uint8)


# -- prompts -----------------------------------------------------------------------------------------------------------


def _save_qwen2_tokenizer(directory: Path) -> None:
    """In the files of the 1B: one token a byte, and the added tokens."""
    vocabulary = {character: i for i, character in enumerate(sorted(ByteLevel.alphabet()))}
    added = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>"]
    (directory / "vocab.json").write_text(json.dumps(vocabulary))
    (directory / "merges.txt").write_text("#version: 0.2\n")
    (directory / "added_tokens.json").write_text(json.dumps({t: i for i, t in enumerate(added, len(vocabulary))}))
    (directory / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "Qwen2Tokenizer",
                "additional_special_tokens": added[1:],
                "eos_token": "<|im_end|>",
                "pad_token": "<|endoftext|>",
            }
        )
    )


def _save_internlm2_tokenizer(directory: Path) -> None:
    for file in ("tokenizer.model", "tokenizer_config.json", "added_tokens.json"):
        shutil.copyfile(TOKENIZER / file, directory / file)


@pytest.fixture(scope="module", params=MODELS)
def published(request, tmp_path_factory):
    """(LLM with a text tokenizer in the files that are published, how its conversations begin)."""
    directory = tmp_path_factory.mktemp(f"published_{request.param}")
    shutil.copytree(ROOT / request.param, directory, dirs_exist_ok=True)
    is_qwen2 = request.param == "internvl2_qwen2"
    (_save_qwen2_tokenizer if is_qwen2 else _save_internlm2_tokenizer)(directory)
    return load_backbone(str(directory), parts={"llm"}), "" if is_qwen2 else "<s>"


def _texts(backbone, segments) -> list[str]:
    return [backbone.text_tokenizer.decode(segment) for segment in segments]


def test_a_conversation_reads_as_published(published):
    backbone, begin = published
    messages = [
        {"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "Who?"}]},
        {"role": "assistant", "content": "Ann."},
        {"role": "user", "content": [{"type": "image"}, {"type": "video"}, {"type": "text", "text": "And here?"}]},
    ]
    assert _texts(backbone, backbone.prompt(messages).segments) == [
        f"{begin}<|im_start|>system\n{SYSTEM}<|im_end|><|im_start|>user\n<img>",
        "</img>\nWho?<|im_end|><|im_start|>assistant\nAnn.<|im_end|><|im_start|>user\n<img>",
        "</img>\n<img>",
        "</img>\nAnd here?<|im_end|><|im_start|>assistant\n",
    ]
    assert _texts(backbone, [backbone.answer_ids(messages, "Bo.")]) == ["Bo.<|im_end|>"]
    told = [{"role": "system", "content": "Be brief."}, *messages[:1]]
    assert _texts(backbone, [backbone.prompt(told).before]) == [
        f"{begin}<|im_start|>system\nBe brief.<|im_end|><|im_start|>user\n<img>"
    ]
    silent = backbone.prompt([{"role": "user", "content": "Hi"}]).segments
    assert _texts(backbone, silent) == [
        f"{begin}<|im_start|>system\n{SYSTEM}<|im_end|><|im_start|>user\nHi<|im_end|><|im_start|>assistant\n"
    ]


def test_marks_of_the_format_are_one_token_each(published):
    backbone, begin = published
    messages = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "Who?"}]}]
    prompt = backbone.prompt(messages)
    ids = {token: backbone.special_id(token) for token in ("<|im_start|>", "<|im_end|>", "<img>", "</img>")}
    assert [i for i in prompt.before if i in ids.values()] == [
        ids[token] for token in ("<|im_start|>", "<|im_end|>", "<|im_start|>", "<img>")
    ]
    assert [i for i in prompt.after if i in ids.values()] == [
        ids[token] for token in ("</img>", "<|im_end|>", "<|im_start|>")
    ]
    assert prompt.before[0] == (backbone.special_id("<s>") if begin else ids["<|im_start|>"])
    assert ids["<|im_end|>"] in backbone.stop_ids
    # `eos_token_id` of the LLM's configuration.
    assert 2 in backbone.stop_ids
    assert backbone.decode([*backbone.text_ids("Yes"), ids["<|im_end|>"]]) == "Yes"


def test_text_cut_at_a_slot_has_the_ids_of_uncut_text(published):
    backbone, _ = published
    prompt = backbone.prompt([{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "The man"}]}])
    uncut = backbone.text_ids("</img>\nThe man<|im_end|><|im_start|>assistant\n")
    assert list(prompt.after) == uncut


def test_a_system_prompt_of_the_configuration_is_said(directory, tmp_path):
    shutil.copytree(directory, tmp_path, dirs_exist_ok=True)
    config = json.loads((directory / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"system_message": "Be kind."}))
    backbone = load_backbone(str(tmp_path), parts={"llm"})
    (text,) = _texts(backbone, [backbone.prompt([{"role": "user", "content": "Hi"}]).before])
    assert "<|im_start|>system\nBe kind.<|im_end|><|im_start|>user\nHi" in text


def test_no_code_of_a_checkpoint_is_asked_for(published, monkeypatch):
    """The configurations name classes of their own, which Transformers would offer to run."""
    backbone, _ = published

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("asked to run code of a checkpoint")

    monkeypatch.setattr("builtins.input", refuse)
    assert load_backbone(backbone.name, parts={"llm"}).text_ids("Hi") == backbone.text_ids("Hi")


@pytest.mark.parametrize(("model", "named"), list(zip(MODELS, ("merges.txt", "tokenizer.model"))))
def test_a_missing_text_tokenizer_is_told(model, named):
    backbone = load_backbone(str(ROOT / model), parts={"llm"})
    with pytest.raises(ValueError, match=rf"neither tokenizer\.json nor .*{named}.*expected a text tokenizer"):
        backbone.text_ids("Hi")


# -- pixels ------------------------------------------------------------------------------------------------------------


def test_a_frame_is_squeezed_and_normalised(backbone, frames):
    expected = []
    for frame in frames:
        # One tile: resized to the tile, then once more by the transform, which leaves it as it is.
        tile = Image.fromarray(frame).resize((56, 56), Image.Resampling.BICUBIC).resize((56, 56))
        scaled = np.asarray(tile).astype(np.float64) / 255
        expected.append(((scaled - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)).transpose(2, 0, 1))
    pixels = backbone.preprocessing(backbone.config)(frames)
    torch.testing.assert_close(pixels, torch.from_numpy(np.stack(expected)).float(), atol=1e-6, rtol=0)
    encoded = backbone.encode_frames(frames)
    torch.testing.assert_close(encoded.tokens, backbone.encode_pixels(pixels), atol=TOLERANCE, rtol=0)
    assert encoded.grid == (2, 2)
    assert backbone.max_frame_side == 112


def test_an_image_goes_the_way_of_a_frame(backbone, frames):
    video = backbone.encode_frames(frames).tokens
    for frame, tokens in zip(frames, video):
        assert torch.equal(backbone.encode_frames(frame[None]).tokens[0], tokens)
    of_image, of_video = (
        backbone.prompt([{"role": "user", "content": [{"type": kind}, {"type": "text", "text": "Who?"}]}])
        for kind in ("image", "video")
    )
    assert of_image == of_video


def test_each_token_is_a_cell_of_two_by_two_patches():
    patches = torch.arange(16.0)[None, :, None].expand(1, 16, 3)
    shuffled = internvl2.pixel_shuffle(patches)
    assert shuffled.shape == (1, 4, 12)
    assert shuffled[0, :, ::3].tolist() == [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]


# -- the LLM -----------------------------------------------------------------------------------------------------------


def test_generates_as_greedy_decoding_does_also_behind_padding(backbone, frames):
    tokens = backbone.encode_frames(frames).tokens.flatten(0, 1)
    after = backbone.embed(torch.tensor([5, 9, 11, 60]))
    prompts = [torch.cat([tokens, after]), torch.cat([tokens[:4], after])]
    longest = max(map(len, prompts))
    embeds = torch.stack([torch.cat([torch.ones(longest - len(p), p.shape[-1]), p]) for p in prompts])
    mask = torch.stack([torch.arange(longest) >= longest - len(p) for p in prompts])
    answers = backbone.generate(embeds, mask, max_new_tokens=6)
    assert answers == [_greedy(backbone, prompt, num_tokens=6) for prompt in prompts]
    assert all(answers)


def _greedy(backbone, embeds_LC: Tensor, *, num_tokens: int) -> list[int]:
    ids: list[int] = []
    while len(ids) < num_tokens:
        next_id = int(_logits(backbone, embeds_LC[None])[0, -1].argmax())
        if next_id in backbone.stop_ids:
            break
        ids.append(next_id)
        embeds_LC = torch.cat([embeds_LC, backbone.embed(torch.tensor([next_id]))])
    return ids


def test_lora_targets_are_linear_layers_of_the_llm(backbone):
    linear = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"]
    linear += ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]
    expected = [f"model.layers.{i}.{name}" for i in range(2) for name in linear]
    assert sorted(backbone.lora_targets()) == sorted(expected)
    assert all(isinstance(backbone.model.get_submodule(name), nn.Linear) for name in expected)


def test_beyond_its_length_internlm2_stretches_its_rotary_base():
    backbone = load_backbone(str(ROOT / "internvl2_internlm2"), parts={"llm"})
    golden = load_file(ROOT / "internvl2_internlm2/golden.safetensors")
    length, longest, factor, base, head_dim = 600, 512, 2.0, 1e6, 16
    ids = torch.arange(length)[None] % 120
    long = _logits(backbone, backbone.embed(ids))
    stretched = base * (factor * length / longest - (factor - 1)) ** (head_dim / (head_dim - 2))
    expected = stretched ** -(torch.arange(0, head_dim, 2) / head_dim)
    torch.testing.assert_close(backbone.model.model.rotary_emb.inv_freq, expected)
    # A shorter sequence is read as if there had been no longer one, so its logits differ from those it had within.
    short = _logits(backbone, backbone.embed(ids[:, :500]))
    assert (short - long[:, :500]).abs().max() > 100 * TOLERANCE
    logits = _logits(backbone, backbone.embed(golden["input_ids"]))
    torch.testing.assert_close(logits, golden["logits"], atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("model", MODELS)
def test_the_head_is_never_tied(model, tmp_path):
    """Whatever the LLM's own configuration says: the original overrules it."""
    shutil.copytree(ROOT / model, tmp_path, dirs_exist_ok=True)
    config = json.loads((ROOT / model / "config.json").read_text())
    config["llm_config"] |= {"tie_word_embeddings": True, "attn_implementation": "flash_attention_2"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    golden = load_file(ROOT / model / "golden.safetensors")
    backbone = load_backbone(str(tmp_path), parts={"llm"})
    logits = _logits(backbone, backbone.embed(golden["input_ids"]))
    torch.testing.assert_close(logits, golden["logits"], atol=TOLERANCE, rtol=0)


# -- parts, precision --------------------------------------------------------------------------------------------------


def test_parts_read_only_their_tensors_and_agree_with_the_whole(directory, backbone, frames):
    state = load_file(directory / "model.safetensors")
    ids = torch.tensor([[5, 9, 11, 60]])
    for part, prefixes in (("vision", ("vision_model.", "mlp1.")), ("llm", ("language_model.",))):
        own = [tensor for name, tensor in state.items() if name.startswith(prefixes)]
        alone: Any = load_backbone(str(directory), parts={part})
        assert (alone.checkpoint.tensors_read, alone.checkpoint.bytes_read) == (len(own), sum(t.nbytes for t in own))
        if part == "vision":
            assert torch.equal(alone.encode_frames(frames).tokens, backbone.encode_frames(frames).tokens)
            with pytest.raises(ValueError, match="without its llm part"):
                alone.embed(ids)
        else:
            assert torch.equal(_logits(alone, alone.embed(ids)), _logits(backbone, backbone.embed(ids)))
            with pytest.raises(ValueError, match="without its vision part"):
                alone.encode_frames(frames)
    assert backbone.checkpoint.tensors_read == len(state)


@pytest.mark.parametrize("model", MODELS)
def test_bfloat16_stays_close(model):
    golden = load_file(ROOT / model / "golden.safetensors")
    backbone: Any = load_backbone(str(ROOT / model), dtype=torch.bfloat16)
    tokens = backbone.encode_pixels(golden["pixel_values"])
    logits = _logits(backbone, _spliced(backbone, golden, tokens))
    assert {tokens.dtype, logits.dtype} == {torch.bfloat16}
    for actual, expected in ((tokens, golden["frame_tokens"]), (logits, golden["spliced_logits"])):
        assert actual.isfinite().all()
        assert torch.cosine_similarity(actual.float(), expected, dim=-1).min() > 0.99


# -- variants ----------------------------------------------------------------------------------------------------------

VARIANTS = [
    ("internvl2_qwen2", {"llm_config": {"architectures": ["Phi3ForCausalLM"]}}, r"InternVL2 on Phi3ForCausalLM is not"),
    ("internvl2_qwen2", {"llm_config": {"architectures": ["LlamaForCausalLM"]}}, r"InternVL2 on LlamaForCausalLM"),
    ("internvl2_qwen2", {"llm_config": {"architectures": None}}, r"on an LLM without a name is not"),
    ("internvl2_internlm2", {"vision_config": {"qk_normalization": True}}, r"'vision_config.qk_normalization': True"),
    ("internvl2_internlm2", {"vision_config": {"norm_type": "rms_norm"}}, r"'vision_config.norm_type': 'rms_norm'"),
    ("internvl2_internlm2", {"vision_config": {"qkv_bias": False}}, r"'vision_config.qkv_bias': False"),
    ("internvl2_internlm2", {"vision_config": {"hidden_act": "quick_gelu"}}, r"'vision_config.hidden_act': 'quick_"),
    ("internvl2_internlm2", {"llm_config": {"bias": True}}, r"'llm_config.bias': True"),
    ("internvl2_internlm2", {"llm_config": {"rope_scaling": {"type": "linear", "factor": 2.0}}}, r"'type': 'linear'"),
    ("internvl2_qwen2", {"llm_config": {"rope_scaling": {"type": "yarn", "factor": 2.0}}}, r"'type': 'yarn'"),
    ("internvl2_qwen2", {"llm_config": {"use_sliding_window": True}}, r"'llm_config.use_sliding_window': True"),
    ("internvl2_qwen2", {"template": "internvl2_5"}, r"'template': 'internvl2_5'.*expected .*'template': 'Hermes-2'"),
    ("internvl2_internlm2", {"template": "Hermes-2"}, r"'template': 'Hermes-2'.*expected .*'internlm2-chat'"),
    ("internvl2_qwen2", {"ps_version": "v1"}, r"'ps_version': 'v1'"),
    ("internvl2_qwen2", {"select_layer": -4}, r"'select_layer': -4"),
    ("internvl2_qwen2", {"downsample_ratio": 0.25}, r"'downsample_ratio': 0.25"),
    ("internvl2_qwen2", {"force_image_size": 448}, r"'force_image_size': 448.*expected .*'force_image_size': 56"),
    ("internvl2_qwen2", {"pad2square": True}, r"'pad2square': True"),
    ("internvl2_qwen2", {"use_llm_lora": 16}, r"'use_llm_lora': 16"),
    ("internvl2_qwen2", {"use_backbone_lora": 16}, r"'use_backbone_lora': 16"),
    ("internvl2_qwen2", {"vision_config": None}, r"'vision_config.norm_type': None"),
    ("internvl2_qwen2", {"llm_config": {"rope_theta": None}}, r"does not say \['llm_config.rope_theta'\]"),
    ("internvl2_qwen2", {"vision_config": {"intermediate_size": 96}}, r"does not fit.*mis-shaped: .*fc1.*64.*96"),
    ("internvl2_internlm2", {"llm_config": {"num_hidden_layers": 3}}, r"does not fit.*missing: .*layers\.2\."),
    ("internvl2_internlm2", {"llm_config": {"num_hidden_layers": 1}}, r"does not fit.*unexpected: .*layers\.1\."),
]


@pytest.mark.parametrize(("model", "changes", "message"), VARIANTS, ids=lambda v: str(v) if isinstance(v, dict) else "")
def test_another_variant_is_refused_by_name(tmp_path, model, changes, message):
    config = json.loads((ROOT / model / "config.json").read_text())
    for key, value in changes.items():
        config[key] = config[key] | value if isinstance(value, dict) else value
    shutil.copyfile(ROOT / model / "model.safetensors", tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=message):
        load_backbone(str(tmp_path))


def test_other_architectures_are_none_of_ours():
    assert internvl2.InternVL2Backbone.recognises({"model_type": "internvl_chat", "architectures": None})
    # InternVL in Transformers' own layout.
    assert not internvl2.InternVL2Backbone.recognises({"model_type": "internvl"})
    assert not internvl2.InternVL2Backbone.recognises({"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]})


def test_fields_that_the_published_configurations_leave_out_may_be_missing(tmp_path):
    config = json.loads((ROOT / "internvl2_qwen2/config.json").read_text())
    del config["pad2square"], config["llm_config"]["use_sliding_window"]
    shutil.copyfile(ROOT / "internvl2_qwen2/model.safetensors", tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert load_backbone(str(tmp_path)).hidden_size == 64


# -- wrong steps -------------------------------------------------------------------------------------------------------
#
# Each changes a checkpoint as if it had been read wrongly, or the model as if it had been built wrongly.


def _of(*suffixes: str) -> Callable[[State], list[str]]:
    return lambda state: [name for name in state if name.endswith(suffixes)]


def _each(suffix: str, change: Callable[[Tensor], Tensor]) -> Callable[[State], State]:
    def mutate(state: State) -> State:
        names = _of(suffix)(state)
        assert names, suffix
        return state | {name: change(state[name]).contiguous() for name in names}

    return mutate


def _swapped(one: str, other: str) -> Callable[[State], State]:
    def mutate(state: State) -> State:
        assert _of(one)(state), one
        return state | {
            target: state[source]
            for name in _of(one)(state)
            for source, target in (
                (name, name.replace(one, other)),
                (name.replace(one, other), name),
            )
        }

    return mutate


def _regrouped(order: str) -> Callable[[Tensor], Tensor]:
    """A grouped wqkv (2 key/value heads of 16 channels, 2 query heads to each) whose heads were taken in `order`."""
    return lambda wqkv: rearrange(wqkv, "(K heads d) c -> K heads d c", K=2, heads=4)[
        :, [int(i) for i in order]
    ].reshape(wqkv.shape)


def _plain(wqkv: Tensor) -> Tensor:
    """What the right split makes of a wqkv as a plain [q|k|v] split would have read it."""
    q, k, v = wqkv.split((64, 32, 32))
    grouped = [rearrange(rows, "(K heads d) c -> K heads d c", K=2, d=16) for rows in (q, k, v)]
    return torch.cat(grouped, dim=1).flatten(0, 2)


VISION_WEIGHTS = {
    "tower qkv per head": _each(
        "attn.qkv.weight", lambda w: rearrange(w, "(h three d) c -> (three h d) c", h=2, three=3)
    ),
    "tower q and k swapped": _each("attn.qkv.weight", lambda w: torch.cat([*reversed(w.chunk(3)[:2]), w.chunk(3)[2]])),
    "tower qkv without bias": _each("attn.qkv.bias", torch.zeros_like),
    "patch embedding without bias": _each("patch_embedding.bias", torch.zeros_like),
    "patch embedding transposed": _each("patch_embedding.weight", lambda w: w.mT),
    "colours as BGR": _each("patch_embedding.weight", lambda w: w.flip(1)),
    "positions shifted": _each("position_embedding", lambda p: p.roll(1, dims=1)),
    "positions reversed": _each("position_embedding", lambda p: torch.cat([p[:, :1], p[:, 1:].flip(1)], dim=1)),
    "without a class token": _each("class_embedding", torch.zeros_like),
    "layer scales swapped": _swapped("ls1", "ls2"),
    "norms swapped": _swapped("norm1.weight", "norm2.weight"),
    "without layer scales": _each("ls1", torch.ones_like),
    "MLP's second bias missing": _each("mlp1.3.bias", torch.zeros_like),
}
LLM_WEIGHTS = {
    "internvl2_qwen2": {
        "q without bias": _each("q_proj.bias", torch.zeros_like),
        "k without bias": _each("k_proj.bias", torch.zeros_like),
        "v without bias": _each("v_proj.bias", torch.zeros_like),
        "k and v swapped": _swapped("k_proj.weight", "v_proj.weight"),
        "gate and up swapped": _swapped("gate_proj.weight", "up_proj.weight"),
        "norms swapped": _swapped("input_layernorm.weight", "post_attention_layernorm.weight"),
        "head tied": lambda s: s | {"language_model.lm_head.weight": s["language_model.model.embed_tokens.weight"]},
        "without the last norm": _each("model.norm.weight", torch.ones_like),
    },
    "internvl2_internlm2": {
        "wqkv as [q|k|v]": _each("wqkv.weight", _plain),
        "k and v swapped": _each("wqkv.weight", _regrouped("0132")),
        "k first in its group": _each("wqkv.weight", _regrouped("1203")),
        "query heads swapped": _each("wqkv.weight", _regrouped("1023")),
        "gate and up swapped": _swapped("w1.weight", "w3.weight"),
        "norms swapped": _swapped("attention_norm.weight", "ffn_norm.weight"),
        "rows of rotary pairs interleaved": _each(
            "wqkv.weight", lambda w: rearrange(w, "(heads pair two) c -> (heads two pair) c", heads=8, two=2)
        ),
        "head tied": lambda s: s | {"language_model.output.weight": s["language_model.model.tok_embeddings.weight"]},
        "without the last norm": _each("model.norm.weight", torch.ones_like),
    },
}


def _differences(backbone: Any, golden: State) -> dict[str, float]:
    """Largest difference to the golden numbers of each part, in units of the tolerance."""
    tokens = backbone.encode_pixels(golden["pixel_values"])
    pairs = {
        "vision": [(tokens, golden["frame_tokens"])],
        "llm": [
            (_logits(backbone, backbone.embed(golden["input_ids"])), golden["logits"]),
            (_logits(backbone, _spliced(backbone, golden, golden["frame_tokens"])), golden["spliced_logits"]),
        ],
    }
    return {part: max(float((a - b).abs().max()) for a, b in of_part) / TOLERANCE for part, of_part in pairs.items()}


@pytest.mark.parametrize(
    ("model", "part", "mutate"),
    [
        *(
            pytest.param(model, "vision", mutate, id=f"{model}: {step}")
            for model in MODELS
            for step, mutate in VISION_WEIGHTS.items()
        ),
        *(
            pytest.param(model, "llm", mutate, id=f"{model}: {step}")
            for model, steps in LLM_WEIGHTS.items()
            for step, mutate in steps.items()
        ),
    ],
)
def test_weights_read_wrongly_would_show(tmp_path, model, part, mutate):
    golden = load_file(ROOT / model / "golden.safetensors")
    state = load_file(ROOT / model / "model.safetensors")
    shutil.copyfile(ROOT / model / "config.json", tmp_path / "config.json")
    save_file({n: t.clone() for n, t in mutate(state).items()}, tmp_path / "model.safetensors")
    differences = _differences(load_backbone(str(tmp_path)), golden)
    assert differences.pop(part) > 100
    assert all(other < 1 for other in differences.values())


def _transposed_shuffle(patches: Tensor) -> Tensor:
    side = round(patches.shape[1] ** 0.5)
    return rearrange(patches, "T (h a w b) D -> T (w h) (a b D)", h=side // 2, a=2, b=2)


def _column_first_shuffle(patches: Tensor) -> Tensor:
    side = round(patches.shape[1] ** 0.5)
    return rearrange(patches, "T (h a w b) D -> T (h w) (b a D)", h=side // 2, a=2, b=2)


def _without_last_layer(backbone: Any) -> None:
    backbone.vision.tower.encoder.layer = backbone.vision.tower.encoder.layer[:-1]


def _class_token_last(backbone: Any) -> None:
    def roll(_: Any, __: Any, output: Any) -> Any:
        output["last_hidden_state"] = output.last_hidden_state.roll(1, dims=1)
        return output

    backbone.vision.tower.register_forward_hook(roll)


def _with_final_norm(backbone: Any) -> None:
    backbone.vision.tower.layernorm = nn.LayerNorm(32).requires_grad_(False)


def _without_norm(backbone: Any) -> None:
    backbone.vision.intermediate[0] = nn.Identity()


def _relu(backbone: Any) -> None:
    backbone.vision.intermediate[2] = nn.ReLU()


def _all_positions_zero(backbone: Any) -> None:
    backbone.position_ids = lambda mask: torch.zeros(mask.shape, dtype=torch.long)


def _without_last_llm_layer(backbone: Any) -> None:
    backbone.model.model.layers = backbone.model.model.layers[:-1]


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("vision", _without_last_layer),
        ("vision", _class_token_last),
        ("vision", _with_final_norm),
        ("vision", _without_norm),
        ("vision", _relu),
        ("llm", _all_positions_zero),
        ("llm", _without_last_llm_layer),
    ],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_a_model_built_wrongly_would_show(model, part, change):
    backbone = load_backbone(str(ROOT / model))
    change(backbone)
    differences = _differences(backbone, load_file(ROOT / model / "golden.safetensors"))
    assert differences.pop(part) > 100
    assert all(other < 1 for other in differences.values())


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("shuffle", [_transposed_shuffle, _column_first_shuffle])
def test_another_pixel_shuffle_would_show(model, shuffle, monkeypatch):
    monkeypatch.setattr(internvl2, "pixel_shuffle", shuffle)
    differences = _differences(load_backbone(str(ROOT / model)), load_file(ROOT / model / "golden.safetensors"))
    assert differences["vision"] > 100


@pytest.mark.parametrize("model", MODELS)
def test_swapped_frames_would_show(model):
    golden = load_file(ROOT / model / "golden.safetensors")
    swapped = golden | {"pixel_values": golden["pixel_values"][[1, 0, 2]]}
    assert _differences(load_backbone(str(ROOT / model)), swapped)["vision"] > 100
