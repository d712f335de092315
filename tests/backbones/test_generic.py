"""The generic adapter on a tiny random LLaVA: parts, prompts, splicing, generation."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

from linvt.backbones import VisionOptions, load_backbone, vision_fingerprint
from linvt.backbones.frozen import attention_for
from tests.tiny_models import save_tiny_llava

QUESTION = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "what color is the star ?"}]}]


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    torch.set_num_threads(1)
    return save_tiny_llava(tmp_path_factory.mktemp("llava"))


@pytest.fixture(scope="module")
def whole(directory):
    return load_backbone(str(directory))


@pytest.fixture
def frames():
    return np.random.default_rng(0).integers(0, 255, (5, 80, 96, 3), dtype=np.uint8)


def test_parts_hold_only_their_weights_and_agree_with_the_whole(directory, whole, frames):
    vision, llm = load_backbone(str(directory), parts={"vision"}), load_backbone(str(directory), parts={"llm"})
    total = sum(p.numel() for p in whole.parameters())
    assert sum(p.numel() for p in vision.parameters()) + sum(p.numel() for p in llm.parameters()) == total
    assert torch.equal(vision.encode_frames(frames).tokens, whole.encode_frames(frames).tokens)
    ids = torch.tensor([[5, 6, 7]])
    mask = torch.ones(1, 3, dtype=torch.bool)
    assert torch.equal(
        llm.head(llm.hidden_states(llm.embed(ids), mask)), whole.head(whole.hidden_states(whole.embed(ids), mask))
    )
    with pytest.raises(ValueError, match="without its vision part"):
        llm.encode_frames(frames)
    with pytest.raises(ValueError, match="without its llm part"):
        vision.embed(ids)


def test_frame_tokens_do_not_depend_on_how_many_frames_come_along(whole, frames):
    together = whole.encode_frames(frames, batch_size=2).tokens
    assert torch.equal(together[:1], whole.encode_frames(frames[:1], batch_size=2).tokens)
    assert torch.equal(together[4:], whole.encode_frames(frames[4:], batch_size=2).tokens)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 64), (3, 3), (3, 64), (4, 4)])
def test_few_rows_of_pixels_are_not_taken_for_channels(whole, height, width):
    red = np.zeros((1, height, width, 3), np.uint8)
    red[..., 0] = 255
    large = np.broadcast_to(red[:, :1, :1], (1, 64, 64, 3))
    assert torch.equal(whole.encode_frames(red).tokens, whole.encode_frames(large).tokens)


def test_spliced_frame_tokens_give_the_models_own_image_logits(directory, whole, frames):
    """Embedding text around our frame tokens must be what the model itself does with pixels and a prompt."""
    model = AutoModelForImageTextToText.from_pretrained(directory).eval()
    content = [{"type": "image"}, QUESTION[0]["content"][1]]
    messages = [{"role": "user", "content": content}]
    text = whole.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    inputs = whole.processor(text=text, images=[frames[0]], return_tensors="pt")
    with torch.no_grad():
        own = model(**inputs).logits[0]
    prompt = whole.prompt(QUESTION)
    pieces = [whole.embed(torch.tensor(prompt.before)), whole.encode_frames(frames[:1], batch_size=1).tokens[0]]
    embeds = torch.cat([*pieces, whole.embed(torch.tensor(prompt.after))])[None]
    ours = whole.head(whole.hidden_states(embeds, torch.ones(embeds.shape[:2], dtype=torch.bool)))[0]
    torch.testing.assert_close(ours, own, atol=2e-5, rtol=1e-4)


def test_generate_is_greedy_decoding_also_behind_left_padding(whole, frames):
    prompt = whole.prompt(QUESTION)
    row = torch.cat([whole.embed(torch.tensor(prompt.before)), whole.embed(torch.tensor(prompt.after))])
    expected, embeds = [], row[None]
    for _ in range(6):
        mask = torch.ones(embeds.shape[:2], dtype=torch.bool)
        next_id = int(whole.head(whole.hidden_states(embeds, mask))[0, -1].argmax())
        if next_id in whole.stop_ids:
            break
        expected.append(next_id)
        embeds = torch.cat([embeds, whole.embed(torch.tensor([[next_id]]))], dim=1)
    padded = torch.cat([torch.zeros(4, row.shape[1]), row])
    mask = torch.tensor([[False] * 4 + [True] * len(row)])
    assert whole.generate(row[None], mask[:, 4:], max_new_tokens=6) == [expected]
    assert whole.generate(padded[None], mask, max_new_tokens=6) == [expected]


def test_the_answer_continues_the_prompt(whole):
    ids = whole.answer_ids(QUESTION, "red")
    assert ids[-1] in whole.stop_ids
    assert whole.decode(ids) == "red"


def test_lora_targets_are_the_decoders_linears(whole):
    targets = whole.lora_targets()
    assert targets
    assert all("language_model" in name and "vision" not in name for name in targets)


def test_fingerprint_follows_the_vision_weights_alone(directory, tmp_path):
    before = vision_fingerprint(str(directory))
    for part, changes in (("language_model", False), ("vision_tower", True)):
        copy = tmp_path / part
        copy.mkdir()
        for file in directory.iterdir():
            (copy / file.name).write_bytes(file.read_bytes())
        state = load_file(copy / "model.safetensors")
        name = next(name for name in state if part in name)
        state[name] = state[name] + 1
        save_file(state, copy / "model.safetensors", metadata={"format": "pt"})
        assert (vision_fingerprint(str(copy)) != before) is changes


@pytest.mark.parametrize("kind", ["missing", "unexpected", "mismatched"])
@pytest.mark.parametrize("part", ["vision", "llm"])
def test_a_checkpoint_that_does_not_fit_is_refused_by_name(directory, tmp_path, kind, part):
    for file in directory.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    state = load_file(tmp_path / "model.safetensors")
    name = next(name for name in state if ("projector" if part == "vision" else "up_proj") in name)
    if kind == "missing":
        del state[name]
    elif kind == "unexpected":
        name = "stray.weight"
        state[name] = torch.ones(1)
    else:
        state[name] = torch.zeros(3, 3)
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=rf"does not fit its architecture.*{kind}.*{name.split('.')[-2]}"):
        load_backbone(str(tmp_path), parts={part})


def test_a_model_without_a_known_intermediate_layer_says_so(directory, monkeypatch):
    monkeypatch.setattr("linvt.backbones.generic._INTERMEDIATE", ("elsewhere",))
    with pytest.raises(ValueError, match=r"llava.*no intermediate layer found"):
        load_backbone(str(directory), options=VisionOptions(reset_intermediate=1))


def test_attention_is_the_fastest_that_the_model_and_the_device_have(monkeypatch):
    class Model:
        _supports_sdpa = _supports_flash_attn = True

    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    monkeypatch.setattr("linvt.backbones.frozen.find_spec", lambda name: object())
    assert attention_for(Model, torch.bfloat16, gpu) == "flash_attention_2"
    assert attention_for(Model, torch.float32, gpu) == "sdpa"
    assert attention_for(Model, torch.bfloat16, cpu) == "sdpa"
    monkeypatch.setattr("linvt.backbones.frozen.find_spec", lambda name: None)
    assert attention_for(Model, torch.bfloat16, gpu) == "sdpa"
    monkeypatch.setattr(Model, "_supports_sdpa", False)
    assert attention_for(Model, torch.bfloat16, gpu) == "eager"


def test_wrong_names_and_models_are_refused(directory, tmp_path):
    with pytest.raises(ValueError, match="no such directory"):
        load_backbone("./nowhere")
    with pytest.raises(ValueError, match="parts must be"):
        load_backbone(str(directory), parts={"audio"})
    for file in directory.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())["text_config"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="not an image-text-to-text model"):
        load_backbone(str(tmp_path))
