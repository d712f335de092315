import json

import pytest
import torch

from linvt.training.checkpoint import CheckpointState, Cursor, latest_checkpoint, load_checkpoint, save_checkpoint


def _state(step):
    return CheckpointState(cursor=Cursor(step=step, samples_consumed=4 * step, epoch=step // 3), data_fingerprint="f")


def _tensors(value):
    names = [f"{kind}.layer.{part}" for kind in ("weights", "exp_avg", "exp_avg_sq") for part in ("weight", "bias")]
    return {name: torch.full((3, 2), value) + i for i, name in enumerate(names)}


def test_a_checkpoint_comes_back_as_it_was(tmp_path):
    path = save_checkpoint(tmp_path, _state(5), _tensors(0.5))
    assert latest_checkpoint(tmp_path) == path
    state, tensors = load_checkpoint(path)
    assert state == _state(5)
    assert tensors.keys() == _tensors(0.5).keys()
    assert all(torch.equal(tensors[name], value) for name, value in _tensors(0.5).items())
    assert json.loads((path / "state.json").read_text())["cursor"] == {"step": 5, "samples_consumed": 20, "epoch": 1}


def test_the_one_before_goes_when_the_next_is_complete(tmp_path):
    first = save_checkpoint(tmp_path, _state(9), _tensors(1.0))
    broken = _tensors(2.0) | {"exp_avg.extra": torch.zeros(2, device="meta")}  # Its values cannot be written.
    with pytest.raises((NotImplementedError, RuntimeError)):
        save_checkpoint(tmp_path, _state(10), broken)
    assert latest_checkpoint(tmp_path) == first
    assert load_checkpoint(first)[0] == _state(9)

    second = save_checkpoint(tmp_path, _state(10), _tensors(2.0))
    assert latest_checkpoint(tmp_path) == second
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000010"]


def test_there_may_be_none(tmp_path):
    assert latest_checkpoint(tmp_path) is None


def test_a_checkpoint_that_lost_a_file_says_so(tmp_path):
    path = save_checkpoint(tmp_path, _state(1), _tensors(1.0))
    (path / "optimizer.safetensors").unlink()
    with pytest.raises(ValueError, match=r"step-00000001: no optimizer\.safetensors; remove this folder"):
        load_checkpoint(path)
