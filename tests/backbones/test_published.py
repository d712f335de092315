"""What every adapter of a published layout must do beside parity: checks that need no reference, parts, training."""

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from linvt import LinVT, LinVTConfig, VideoLLM, load_backbone
from linvt.annotations import Turn
from linvt.backbones import vision_fingerprint
from linvt.backbones.checking import check_backbone
from linvt.lora import add_lora
from linvt.shards import CachedVideo
from linvt.training.batches import Visit, collate
from tests.backbones.text_tokenizer import save_with_text_tokenizer

GOLDEN = Path(__file__).parents[1] / "golden"
SPECIAL_TOKENS = {"aquila": ("<|endoftext|>", "<|im_start|>", "<|im_end|>")}


@pytest.fixture(scope="module", params=SPECIAL_TOKENS)
def directory(request, tmp_path_factory):
    torch.set_num_threads(1)
    return save_with_text_tokenizer(
        GOLDEN / request.param, tmp_path_factory.mktemp(request.param), SPECIAL_TOKENS[request.param]
    )


def test_every_check_passes_in_single_and_half_precision(directory):
    told = []
    report = check_backbone(str(directory), max_new_tokens=4, tell=told.append)
    assert report.failed == [], "\n".join(told)
    assert check_backbone(str(directory), max_new_tokens=4, dtype=torch.bfloat16).failed == []


def test_each_part_reads_its_own_bytes_and_holds_nothing_else(directory):
    whole = load_backbone(str(directory))
    parts = [load_backbone(str(directory), parts={part}) for part in ("vision", "llm")]
    assert parts[0].model is None
    assert parts[1].vision is None
    parameters = [sum(p.numel() for p in part.parameters()) for part in (*parts, whole)]
    assert sum(parameters[:2]) == parameters[2]
    read = [part.checkpoint.bytes_read for part in (*parts, whole)]
    assert read[0] + read[1] == read[2]
    for num_parameters, num_bytes in zip(parameters, read):
        # Rows that are published for padding are read and dropped.
        assert 4 * num_parameters <= num_bytes < 1.1 * 4 * num_parameters
    state = {**parts[0].state_dict(), **parts[1].state_dict()}
    assert all(torch.equal(value, state[name]) for name, value in whole.state_dict().items())


def test_the_fingerprint_follows_the_vision_side_alone(directory, tmp_path):
    before = vision_fingerprint(str(directory))
    whole = load_file(directory / "model.safetensors")
    backbone = load_backbone(str(directory), parts={"llm"})
    rules = backbone.rules(backbone.config)
    for part, changes in (("llm", False), ("vision", True)):
        rule = next(rule for rule in rules if rule.part == part and rule.to is not None)
        name = next(name for name in whole if re.fullmatch(rule.pattern, name))
        copy = tmp_path / part
        copy.mkdir()
        (copy / "config.json").write_bytes((directory / "config.json").read_bytes())
        save_file(whole | {name: whole[name] + 1}, copy / "model.safetensors")
        assert (vision_fingerprint(str(copy)) != before) is changes


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
