"""A step in parts is the step at once, but for rounding."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.multiprocessing
from torch.profiler import ProfilerActivity, profile

from linvt.losses import ContrastiveHead
from linvt.training.accumulation import split_share
from linvt.training.context import PlainContext
from linvt.training.engine import end_process_group
from linvt.training.loop import train
from linvt.training.metrics import read_metrics
from tests.training.inputs import Inputs, small_config, write_inputs
from tests.training.test_loop import final_tensors, run

NUM_WORKERS = 2


def _lines(out):
    names = ("loss", "loss_answer", "loss_contrastive", "grad_norm")
    lines = [line for line in read_metrics(Path(out) / "metrics.jsonl") if "loss" in line]
    return [[line[name] for name in names if name in line] for line in lines]


def test_a_share_is_cut_evenly():
    share = np.arange(10)
    for micro_batch, sizes in ((None, [10]), (10, [10]), (4, [4, 3, 3]), (3, [3, 3, 2, 2]), (1, [1] * 10)):
        parts = split_share(share, micro_batch)
        assert [len(part) for part in parts] == sizes
        assert sorted(np.concatenate(parts)) == list(share)


@pytest.mark.parametrize("stage", [1, 2])
@pytest.mark.parametrize("micro_batch", [1, 3])
def test_parts_give_the_same_run(stage, micro_batch, inputs, tmp_path):
    config = small_config(inputs, tmp_path / "whole", stage=stage, steps=4, visits_per_batch=6, linvt_gumbel_noise=0.0)
    whole = run(config)
    parts = run(replace(config, out=str(tmp_path / "parts"), micro_batch=micro_batch))
    assert len(_lines(whole)[0]) == (4 if stage == 1 else 3)
    np.testing.assert_allclose(_lines(parts), _lines(whole), rtol=2e-4)
    expected = final_tensors(whole)
    for name, tensor in final_tensors(parts).items():
        if name.startswith("exp_avg."):  # The gradients' mean; Adam makes steps of one size of the smallest of them.
            atol = 1e-4 * float(expected[name].abs().max()) + 1e-6
            torch.testing.assert_close(tensor, expected[name], rtol=1e-2, atol=atol, msg=name)


def test_images_and_videos_in_parts_give_the_same_run(tmp_path):
    inputs = write_inputs(tmp_path, num_videos=6, num_images=6)
    config = small_config(inputs, tmp_path / "whole", stage=2, steps=3, visits_per_batch=6)
    whole, parts = run(config), run(replace(config, out=str(tmp_path / "parts"), micro_batch=2))
    np.testing.assert_allclose(_lines(parts), _lines(whole), rtol=2e-4)


@pytest.mark.parametrize(("zero_stage", "precision"), [(1, "fp32"), (1, "bf16"), (2, "bf16"), (3, "bf16")])
def test_parts_give_the_same_run_under_any_zero_stage(zero_stage, precision, inputs, tmp_path):
    config = small_config(inputs, tmp_path / "whole", steps=2, zero_stage=zero_stage, precision=precision)
    whole, parts = run(config), run(replace(config, out=str(tmp_path / "parts"), micro_batch=1))
    np.testing.assert_allclose(_lines(parts), _lines(whole), rtol=2e-4 if precision == "fp32" else 5e-2)


def _work(rank: int, folder: str, inputs: Inputs) -> None:
    os.environ |= {"LOCAL_RANK": str(rank), "RANK": str(rank), "WORLD_SIZE": str(NUM_WORKERS)}
    for name, settings in _RUNS.items():
        out = Path(folder) / name
        out.mkdir(exist_ok=True)
        where = {"rank": rank, "world_size": NUM_WORKERS}
        torch.distributed.init_process_group("gloo", init_method=f"file://{out}.meet", **where)
        train(
            small_config(inputs, out, **settings),
            PlainContext(**where, local_rank=rank, device=torch.device("cpu"), run_dir=out),
        )
        end_process_group()


_RUNS = {
    "whole": {"steps": 3, "visits_per_batch": 8},
    "parts": {"steps": 3, "visits_per_batch": 8, "micro_batch": 2},
    "bf16": {"steps": 2, "visits_per_batch": 8, "micro_batch": 2, "zero_stage": 2, "precision": "bf16"},
}


@pytest.mark.slow
def test_negatives_of_all_workers_and_parts_count(inputs, tmp_path):
    torch.multiprocessing.spawn(_work, args=(str(tmp_path), inputs), nprocs=NUM_WORKERS)
    alone = _lines(run(small_config(inputs, tmp_path / "alone", **_RUNS["whole"])))
    for name in ("whole", "parts"):
        np.testing.assert_allclose(_lines(tmp_path / name), alone, rtol=5e-4, err_msg=name)
    np.testing.assert_allclose(_lines(tmp_path / "bf16"), alone[:2], rtol=5e-2)


def _compare(rank: int, folder: str, ids: torch.Tensor) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=NUM_WORKERS)
    torch.manual_seed(0)
    head = ContrastiveHead(8)
    videos, captions = torch.randn(6, 8), torch.randn(6, 8)
    mine = slice(rank, None, NUM_WORKERS)
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        loss = head(videos[mine], captions[mine], ids[mine])
    sent = [event.name for event in profiled.events() if event.name.startswith("gloo:")]
    assert sent == ["gloo:all_gather"], sent
    total = loss.detach().clone()
    torch.distributed.all_reduce(total)
    torch.distributed.destroy_process_group()
    torch.testing.assert_close(total / NUM_WORKERS, head(videos, captions, ids).detach())


@pytest.mark.slow
def test_one_collective_brings_the_negatives_of_a_step(tmp_path):
    # Two visits to one video whose id needs all its bits, on two workers; another id differs in the highest bit alone.
    ids = torch.tensor([2**59 + 1, 5, 7, 2**59 + 1, 1, 2**31])
    torch.multiprocessing.spawn(_compare, args=(str(tmp_path), ids), nprocs=NUM_WORKERS)
