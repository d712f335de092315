"""Frozen parts cost no gradient, no optimizer state and no arithmetic for either; the vision side is never there."""

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from linvt.shards import read_cache
from linvt.training.batches import collate
from linvt.training.context import plain_context
from linvt.training.engine import Engine
from linvt.training.loop import load_visits
from linvt.training.model import build_model
from tests.training.inputs import small_config


@pytest.mark.parametrize("stage", [1, 2])
def test_a_step_leaves_gradients_and_states_of_what_trains_alone(stage, inputs, tmp_path):
    config = small_config(inputs, tmp_path, stage=stage)
    model: Any = build_model(config, torch.device("cpu"))
    visits = load_visits(config)
    with plain_context(tmp_path):
        engine = Engine(model, config)
        out = engine.forward(collate([visits.load(number) for number in range(4)], model.backbone))
        loss = out.answer_nll / out.answer_tokens + (out.contrastive if stage == 1 else 0.0)
        engine.engine.backward(loss)
        with_gradient = {name for name, p in model.named_parameters() if p.grad is not None}
        states = engine.engine.optimizer.state
        with_state = {name for name, p in model.named_parameters() if p in states}
        assert with_gradient == with_state == set(engine.trainable)

    linvt = sum(p.numel() for p in model.video_tokenizer.parameters())
    counted = sum(p.numel() for p in engine.trainable.values())
    layers = 2 * 7  # q, k, v, o, gate, up, down of two layers
    adapters = [p.numel() for name, p in engine.trainable.items() if "lora" in name]
    if stage == 1:
        assert not adapters
        assert counted == linvt + sum(p.numel() for p in model.contrastive.parameters())
    else:
        assert len(adapters) == 2 * layers
        assert counted == linvt + sum(adapters)
    assert counted < sum(p.numel() for p in model.parameters())


def test_the_vision_side_is_never_there(inputs, tmp_path):
    model: Any = build_model(small_config(inputs, tmp_path), torch.device("cpu"))
    assert model.backbone.parts == {"llm"}
    names = [name for name, _ in model.named_parameters()]
    assert not [name for name in names if "vision" in name or "projector" in name]
    assert read_cache(inputs.cache).hidden_size == model.backbone.hidden_size


def _matrix_flops(model: Any, *, backward: bool) -> int:
    """Of products with weights, in the LLM's layers."""
    embeds = torch.randn(2, 6, model.backbone.hidden_size, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        hidden = model.backbone.hidden_states(embeds, torch.ones(2, 6, dtype=torch.bool))
        if backward:
            hidden.sum().backward()
    counts = counter.get_flop_counts()["Global"]
    return sum(flops for op, flops in counts.items() if op in (torch.ops.aten.mm, torch.ops.aten.addmm))


@pytest.mark.parametrize("gradient_checkpointing", [False, True])
def test_the_frozen_llm_s_backward_computes_no_weight_gradient(gradient_checkpointing, inputs, tmp_path):
    config = small_config(inputs, tmp_path, gradient_checkpointing=gradient_checkpointing)
    model = build_model(config, torch.device("cpu"))
    forward = _matrix_flops(model, backward=False)
    assert forward > 0
    frozen = _matrix_flops(model, backward=True)
    # Once forward and once for the gradient of the activations. Recomputed, up to once more: without what a layer ends
    # with, unless something in the process has told torch to go on to the end.
    if gradient_checkpointing:
        assert 2 * forward < frozen <= 3 * forward
    else:
        assert frozen == 2 * forward
    # It would have shown: gradients of the weights cost as much again.
    model.backbone.requires_grad_(True)
    assert _matrix_flops(model, backward=True) == frozen + forward
