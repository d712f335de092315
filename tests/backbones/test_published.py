"""What holds for every adapter of a published layout: generation, parts, LoRA targets, bfloat16, images as frames."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from linvt import LinVT, LinVTConfig, VideoLLM
from linvt.annotations import Turn
from linvt.backbones import VisionOptions, load_backbone, vision_fingerprint
from linvt.backbones.checking import check_backbone
from linvt.backbones.checkpoint import rule_for
from linvt.lora import add_lora
from linvt.shards import CachedVideo
from linvt.training.batches import Visit, collate
from tests.backbones.parity import batched, greedy, left_padded, logits
from tests.backbones.published_models import GOLDEN, SPECIAL_TOKENS, save_published
from tests.backbones.test_golden import expected_numbers

_QWEN2 = {f"self_attn.{n}_proj" for n in "qkvo"} | {f"mlp.{n}_proj" for n in ("gate", "up", "down")}
_PHI = {f"self_attn.{n}" for n in ("q_proj", "k_proj", "v_proj", "dense")} | {"mlp.fc1", "mlp.fc2"}
LINEARS = {
    "aquila": _QWEN2,
    "blip3": {"self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj"},
    "internvl2_internlm2": _QWEN2,
    "internvl2_qwen2": _QWEN2,
    "mipha": _PHI,
    "mipha_phi2": _PHI,
    "molmo": _QWEN2,
}


def _load(directory: Path, **options: Any) -> Any:
    return load_backbone(str(directory), **options)


@pytest.fixture(scope="module", params=SPECIAL_TOKENS)
def model(request):
    torch.set_num_threads(1)
    return request.param


@pytest.fixture(scope="module")
def directory(model, tmp_path_factory):
    return save_published(model, tmp_path_factory.mktemp(model))


@pytest.fixture(scope="module")
def backbone(directory):
    return _load(directory)


@pytest.fixture(scope="module")
def golden(model):
    return expected_numbers(GOLDEN / model)


def test_generation_is_greedy_decoding_also_behind_padding(backbone, golden):
    long = golden["spliced_embeds"]
    rows = [long, long[:, 3:17], long[:, -9:]]
    expected = [greedy(backbone, row, steps=12) for row in rows]
    assert len(set(map(tuple, expected))) == 3
    assert max(map(len, expected)) == 12
    assert backbone.generate(*left_padded(rows), max_new_tokens=12) == expected


def test_rows_that_come_and_go_in_a_batch_say_what_they_say_alone(backbone, golden):
    long = golden["spliced_embeds"]
    prompts = [(long, 9), (long[:, 3:17], 4), (long[:, -9:], 12), (long[:, 2:], 7)]
    expected = [greedy(backbone, row, steps=steps) for row, steps in prompts]
    assert batched(backbone, [(row[0], steps) for row, steps in prompts], max_rows=3) == expected


def test_generation_ends_at_a_stop_token(backbone, golden, monkeypatch):
    embeds = golden["spliced_embeds"]
    mask = torch.ones(embeds.shape[:2], dtype=torch.bool)
    (answer,) = backbone.generate(embeds, mask, max_new_tokens=12)
    end = max(answer.index(token) for token in answer)
    monkeypatch.setattr(type(backbone), "stop_ids", property(lambda self: [answer[end]]))
    assert backbone.generate(embeds, mask, max_new_tokens=12) == [answer[:end]]


def test_hidden_states_do_not_depend_on_padding(backbone, golden):
    embeds = golden["spliced_embeds"]
    alone = backbone.hidden_states(embeds, torch.ones(embeds.shape[:2], dtype=torch.bool))
    for padded_on_the_left in (True, False):
        padding, valid = torch.full((1, 5, embeds.shape[-1]), 7.0), torch.ones(1, embeds.shape[1], dtype=torch.bool)
        order = slice(None) if padded_on_the_left else slice(None, None, -1)
        both = torch.cat([padding, embeds][order], dim=1)
        mask = torch.cat([torch.zeros(1, 5, dtype=torch.bool), valid][order], dim=1)
        torch.testing.assert_close(backbone.hidden_states(both, mask)[mask], alone[0], atol=2e-5, rtol=0)


def test_lora_targets_are_the_linear_layers_of_the_llm(model, backbone):
    expected = {f"model.layers.{layer}.{name}" for layer in range(2) for name in LINEARS[model]}
    assert set(backbone.lora_targets()) == expected
    assert all(isinstance(backbone.model.get_submodule(name), nn.Linear) for name in expected)


def test_an_image_goes_the_way_of_a_frame(backbone):
    frames = np.random.default_rng(0).integers(0, 255, (3, 50, 70, 3), dtype=np.uint8)
    together = backbone.encode_frames(frames, batch_size=2)
    for i in range(3):
        alone = backbone.encode_frames(frames[i : i + 1], batch_size=2)
        assert alone.grid == together.grid
        torch.testing.assert_close(alone.tokens[0], together.tokens[i], atol=2e-5, rtol=0)
    text = {"type": "text", "text": "Who?"}
    image, video = ([{"role": "user", "content": [{"type": kind}, text]}] for kind in ("image", "video"))
    assert backbone.prompt(image) == backbone.prompt(video)


def test_each_part_reads_only_its_tensors(directory, backbone, golden):
    vision, llm = (_load(directory, parts={part}) for part in ("vision", "llm"))
    read = [b.checkpoint.tensors_read for b in (vision, llm, backbone)]
    assert read[0] > 0
    assert read[1] > 0
    assert read[0] + read[1] == read[2]
    num_bytes = [b.checkpoint.bytes_read for b in (vision, llm, backbone)]
    assert num_bytes[0] + num_bytes[1] == num_bytes[2]
    assert num_bytes[2] <= sum(t.nbytes for t in load_file(directory / "model.safetensors").values())
    assert (vision.model, llm.vision) == (None, None)
    assert vision.hidden_size == llm.hidden_size == backbone.hidden_size
    assert torch.equal(vision.encode_pixels(golden["pixel_values"]), backbone.encode_pixels(golden["pixel_values"]))
    assert torch.equal(logits(llm, golden["spliced_embeds"]), logits(backbone, golden["spliced_embeds"]))
    with pytest.raises(ValueError, match="without its llm part"):
        vision.embed(golden["input_ids"])
    with pytest.raises(ValueError, match="without its vision part"):
        llm.encode_pixels(golden["pixel_values"])


def test_bfloat16_stays_close(directory, golden):
    half = _load(directory, dtype=torch.bfloat16)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    tokens = half.encode_pixels(golden["pixel_values"])
    half_logits = logits(half, golden["spliced_embeds"].to(torch.bfloat16))
    for actual, name in ((tokens, "frame_tokens"), (half_logits, "spliced_logits")):
        assert actual.dtype == torch.bfloat16
        assert actual.isfinite().all()
        assert torch.cosine_similarity(actual.float().flatten(), golden[name].flatten(), dim=0) > 0.99
    # Tables of frequencies must not be rounded to the model's precision.
    assert {b.dtype for name, b in half.model.named_buffers() if "inv_freq" in name} == {torch.float32}


def test_the_intermediate_layer_can_be_reset(directory, backbone, golden):
    first, again, other = (
        _load(directory, parts={"vision"}, options=VisionOptions(reset_intermediate=seed)) for seed in (0, 0, 1)
    )
    tokens = [b.encode_pixels(golden["pixel_values"]) for b in (first, again, other, backbone)]
    assert torch.equal(tokens[0], tokens[1])
    assert not torch.allclose(tokens[0], tokens[2])
    assert not torch.allclose(tokens[0], tokens[3])
    for name, parameter in first.vision.tower.named_parameters():
        assert torch.equal(parameter, backbone.vision.tower.get_parameter(name))


def test_a_frame_side_is_refused(directory):
    with pytest.raises(ValueError, match="resizes every frame to one size"):
        _load(directory, parts={"vision"}, options=VisionOptions(frame_side=224))


def test_weights_are_frozen(backbone):
    assert not backbone.training
    assert not any(parameter.requires_grad for parameter in backbone.parameters())


def test_every_check_passes_in_single_and_half_precision(directory):
    told = []
    report = check_backbone(str(directory), max_new_tokens=4, tell=told.append)
    assert report.failed == [], "\n".join(told)
    assert check_backbone(str(directory), max_new_tokens=4, dtype=torch.bfloat16).failed == []


def test_the_fingerprint_follows_the_vision_side_alone(directory, tmp_path):
    before = vision_fingerprint(str(directory))
    whole = load_file(directory / "model.safetensors")
    backbone = load_backbone(str(directory), parts={"llm"})
    rules = backbone.rules(backbone.config)
    for part, changes in (("llm", False), ("vision", True)):
        ruled = ((name, rule_for(name, rules)) for name in sorted(whole))
        name = next(name for name, rule in ruled if rule is not None and rule.part == part and rule.to is not None)
        copy = tmp_path / part
        copy.mkdir()
        (copy / "config.json").write_bytes((directory / "config.json").read_bytes())
        save_file(whole | {name: whole[name] + 1}, copy / "model.safetensors")
        assert (vision_fingerprint(str(copy)) != before) is changes


def test_a_conversation_goes_on_with_what_was_said_before(backbone):
    asked = {"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "Who?"}]}
    answered, again = {"role": "assistant", "content": "Ann."}, {"role": "user", "content": "Where?"}
    in_parts = [
        *backbone.prompt([asked]).after,
        *backbone.answer_ids([asked], "Ann."),
        *backbone.question_ids([asked, answered], "Where?"),
    ]
    whole = backbone.prompt([asked, answered, again]).after
    assert backbone.text_tokenizer.decode(in_parts) == backbone.text_tokenizer.decode(list(whole))
    assert in_parts == list(whole)


def _visit(seed: int, kind: str, channels: int) -> Visit:
    generator = torch.Generator().manual_seed(seed)
    frames = 1 if kind == "image" else 3
    video = CachedVideo(
        key=f"{seed:x}".ljust(32, "0"),
        video_id=f"{seed}.mp4",
        uri=f"{seed}.mp4",
        sha256="0" * 64,
        # An image keeps as many tokens as the image-LLM would see of it.
        tokens=torch.randn(frames, 9 if kind == "image" else 4, channels, generator=generator).to(torch.bfloat16),
        grid=(3, 3) if kind == "image" else (2, 2),
        timestamps_s=tuple(float(i) for i in range(frames)),
        duration_s=float(frames),
        shots=((0.0, float(frames)),),
        shot_index=(0,) * frames,
        feature_id="f" * 64,
        kind=kind,
    )
    return Visit(video=video, turns=(Turn(question="Who?", answer="Ann."),), caption=None)


@pytest.mark.parametrize("gradient_checkpointing", [False, True])
def test_linvt_and_lora_train_behind_it(directory, gradient_checkpointing):
    torch.manual_seed(0)
    backbone = load_backbone(str(directory), parts={"llm"})
    config = LinVTConfig(hidden_size=backbone.hidden_size, top_k=8, num_queries=(4, 2, 1), num_layers=1, num_heads=2)
    model = VideoLLM(backbone, LinVT(config))
    if gradient_checkpointing:
        backbone.model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    add_lora(backbone, rank=2, alpha=4, dropout=0.0)
    model.video_tokenizer.requires_grad_(True)
    model.train()
    out = model(collate([_visit(1, "video", backbone.hidden_size), _visit(2, "image", backbone.hidden_size)], backbone))
    (out.answer_nll / out.answer_tokens).backward()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert all(p.grad is not None and p.grad.isfinite().all() for p in trained.values())
    assert any(".lora_B." in name and p.grad.abs().max() > 0 for name, p in trained.items())
    frozen = [name for name, p in backbone.named_parameters() if not p.requires_grad and p.grad is not None]
    assert frozen == []
