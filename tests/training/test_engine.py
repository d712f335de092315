import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from safetensors.torch import load_file, save_file
from torch import nn

from linvt.training.config import TrainConfig
from linvt.training.context import plain_context
from linvt.training.engine import Engine, end_process_group

MODES = [(0, "fp32"), (1, "fp32"), (1, "bf16"), (2, "bf16"), (3, "bf16")]
NUM_WORKERS = 2


def _config(zero_stage=0, precision="fp32", **fields: Any) -> TrainConfig:
    return TrainConfig(
        stage=1,
        cache="",
        annotations=("a",),
        backbone="",
        out="",
        zero_stage=zero_stage,
        precision=precision,
        clip_grad_norm=0.5,
        **fields,
    )


def _engine(zero_stage, precision, **fields: Any) -> Engine:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.LayerNorm(7), nn.Linear(7, 3), nn.Linear(3, 3))
    model[0].requires_grad_(False)
    return Engine(
        model.to(torch.bfloat16 if precision == "bf16" else torch.float32), _config(zero_stage, precision, **fields)
    )


def _take_steps(engine, first, last, *, rank, num_workers, precision) -> list[tuple[float, float]]:
    """(loss over all workers, gradient norm) of each step."""
    taken = []
    for step in range(first, last):
        generator = torch.Generator().manual_seed(step)
        inputs, targets = torch.randn(12, 5, generator=generator), torch.randn(12, 3, generator=generator)
        mine = slice(rank, None, num_workers)
        outputs = engine.forward(inputs[mine].to(torch.bfloat16 if precision == "bf16" else torch.float32)).float()
        loss = (outputs - targets[mine]).pow(2).mean()
        norm = engine.step(loss, 1e-2 * (step + 1))
        engine.average(step + 1)
        total = loss.detach().clone()
        dist.all_reduce(total)
        taken.append((total.item() / num_workers, norm))
    return taken


def _work(rank: int, folder: str) -> None:
    """One of two workers: six steps at once, and three, a checkpoint, three more in a fresh engine; the same bits."""
    os.environ |= {"LOCAL_RANK": str(rank), "RANK": str(rank), "WORLD_SIZE": str(NUM_WORKERS)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=NUM_WORKERS)
    for zero_stage, precision in MODES:
        where = {"rank": rank, "num_workers": NUM_WORKERS, "precision": precision}
        whole = _engine(zero_stage, precision, ema_decay=0.9)
        untrained = whole.gather_state()
        steps = _take_steps(whole, 0, 6, **where)
        final = whole.gather_state()

        half = _engine(zero_stage, precision, ema_decay=0.9)
        _take_steps(half, 0, 3, **where)
        saved = half.gather_state()
        resumed = _engine(zero_stage, precision, ema_decay=0.9)
        resumed.load_state(saved, step=3)
        assert _take_steps(resumed, 3, 6, **where) == steps[3:]
        for name, tensor in resumed.gather_state().items():
            assert torch.equal(tensor, final[name]), (zero_stage, precision, name)
            assert tensor.dtype == torch.float32
            assert not torch.equal(tensor, untrained[name])
        with resumed.gathered_weights():
            for name, parameter in resumed.trainable.items():
                whole_weight = final[f"weights.{name}"].to(parameter.dtype)
                assert torch.equal(parameter.detach(), whole_weight), (zero_stage, precision, name)
        with resumed.averaged(), resumed.gathered_weights():
            for name, parameter in resumed.trainable.items():
                average = final[f"average.{name}"].to(parameter.dtype)
                assert torch.equal(parameter.detach(), average), (zero_stage, precision, name)
        assert all(torch.equal(tensor, final[name]) for name, tensor in resumed.gather_state().items())
        if rank == 0:
            losses = {"losses": torch.tensor([loss for loss, _ in steps[3:]])}
            save_file(saved, f"{folder}/saved-{zero_stage}-{precision}.safetensors")
            save_file(final | losses, f"{folder}/final-{zero_stage}-{precision}.safetensors")
        dist.barrier()
    end_process_group()


@pytest.fixture(scope="module")
def two_workers(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("two-workers")
    torch.multiprocessing.spawn(_work, args=(str(folder),), nprocs=NUM_WORKERS)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(("zero_stage", "precision"), MODES)
def test_a_state_goes_on_under_any_zero_stage_and_on_another_number_of_workers(zero_stage, precision, two_workers):
    saved = load_file(two_workers / f"saved-{zero_stage}-{precision}.safetensors")
    final = load_file(two_workers / f"final-{zero_stage}-{precision}.safetensors")
    losses = final.pop("losses")
    other_stage = {0: 1, 1: 0, 2: 1, 3: 2}[zero_stage] if precision == "fp32" else {1: 2, 2: 3, 3: 1}[zero_stage]
    for stage in (zero_stage, other_stage):
        with plain_context(two_workers):
            engine = _engine(stage, precision, ema_decay=0.9)
            engine.load_state(saved, step=3)
            alone = _take_steps(engine, 3, 6, rank=0, num_workers=1, precision=precision)
            # The first loss knows only the weights, so it is the same to the last digits; then bf16 rounds.
            assert alone[0][0] == pytest.approx(losses[0].item(), rel=1e-6 if precision == "fp32" else 1e-2)
            state = engine.gather_state()
        tolerance = {"rtol": 1e-4, "atol": 1e-6} if precision == "fp32" else {"rtol": 0.1, "atol": 2e-2}
        for name, tensor in state.items():
            torch.testing.assert_close(tensor, final[name], **tolerance)


def test_a_state_of_another_model_is_refused(tmp_path):
    with plain_context(tmp_path):
        state = _engine(0, "fp32").gather_state()
        state["weights.2.weight"] = torch.zeros(4, 7)
        del state["exp_avg.3.bias"]
        with pytest.raises(ValueError, match=r"2 tensors differ: exp_avg\.3\.bias is None there and \(3,\) here; weig"):
            _engine(0, "fp32").load_state(state, step=1)


def test_the_update_is_adamw_s(tmp_path):
    with plain_context(tmp_path):
        engine = _engine(0, "fp32")
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(5, 7), nn.LayerNorm(7), nn.Linear(7, 3), nn.Linear(3, 3))
        matrices, vectors = [model[2].weight, model[3].weight], [*model[1].parameters(), model[2].bias, model[3].bias]
        groups = [{"params": matrices, "weight_decay": 0.01}, {"params": vectors, "weight_decay": 0.0}]
        reference = torch.optim.AdamW(groups, betas=(0.9, 0.999))
        for step in range(3):
            generator = torch.Generator().manual_seed(step)
            inputs, targets = torch.randn(12, 5, generator=generator), torch.randn(12, 3, generator=generator)
            reference.zero_grad()
            (model(inputs) - targets).pow(2).mean().backward()
            torch.nn.utils.clip_grad_norm_([*matrices, *vectors], 0.5)
            for group in reference.param_groups:
                group["lr"] = 1e-2 * (step + 1)
            reference.step()
        _take_steps(engine, 0, 3, rank=0, num_workers=1, precision="fp32")
        for name, parameter in engine.trainable.items():
            torch.testing.assert_close(parameter, model.get_parameter(name))


def test_the_average_is_that_of_the_weights_after_each_step(tmp_path):
    with plain_context(tmp_path):
        engine = _engine(0, "fp32", ema_decay=0.3)
        average = engine.gather_state()["weights.2.weight"]
        for step in range(6):
            _take_steps(engine, step, step + 1, rank=0, num_workers=1, precision="fp32")
            decay = min(0.3, (2 + step) / (11 + step))
            average = decay * average + (1 - decay) * engine.gather_state()["weights.2.weight"]
        state = engine.gather_state()
        torch.testing.assert_close(state["average.2.weight"], average)
        assert not torch.allclose(state["weights.2.weight"], average)
        with pytest.raises(ValueError, match=r"6 tensors differ: average\.1\.bias is \(7,\) there and None here"):
            _engine(0, "fp32").load_state(state, step=6)


def test_a_gradient_that_is_not_finite_changes_no_weight(tmp_path):
    with plain_context(tmp_path):
        engine = _engine(0, "fp32")
        before = engine.gather_state()
        loss = engine.forward(torch.ones(2, 5)).sum() * float("inf")
        with pytest.raises(FloatingPointError, match=r"the gradient's norm is (nan|inf)"):
            engine.step(loss, 1e-2)
        assert all(torch.equal(tensor, before[name]) for name, tensor in engine.gather_state().items())
