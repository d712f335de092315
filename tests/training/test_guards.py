import json
from dataclasses import asdict

import pytest
import torch
from safetensors.torch import load_file, save_file

from linvt.training.guards import Guards, GuardState, TrainingFailed
from linvt.training.metrics import read_metrics
from tests.training.inputs import small_config
from tests.training.test_loop import run


def _watch(config, losses, state=None) -> tuple[int, Guards]:
    """The step at which they stop (0: never), and the guards."""
    guards = Guards(config, state or GuardState())
    for step, loss in enumerate(losses, start=1):
        try:
            guards.check(step, loss=loss, videos_selecting=0, videos_parted=0)
        except TrainingFailed:
            return step, guards
    return 0, guards


def test_a_loss_that_runs_away_is_told_from_a_spike_and_from_noise(inputs, tmp_path):
    config = small_config(inputs, tmp_path, divergence_steps=5, divergence_factor=2.0)
    falling = [10.0 - step / 10 for step in range(50)]
    assert _watch(config, falling)[0] == 0
    assert _watch(config, [*falling, 20.0, *falling[-20:]])[0] == 0
    assert _watch(config, [0.05] * 20 + [0.2, 0.4, 0.9] * 10)[0] == 0
    # The lowest mean is 5.3; that of 5.1 and four losses of 13 is the first beyond its double.
    assert _watch(config, [*falling, *[13.0] * 20])[0] == 54
    assert _watch(small_config(inputs, tmp_path, divergence_steps=0), [1.0] * 50 + [100.0] * 50)[0] == 0


def test_guards_go_on_where_they_were(inputs, tmp_path):
    config = small_config(inputs, tmp_path, divergence_steps=5)
    losses = [2.0] * 30 + [3.0, 4.0, 5.0, 6.0, 7.0, 8.0]
    stopped_at, _ = _watch(config, losses)
    _, first_half = _watch(config, losses[:32])
    saved = json.loads(json.dumps(asdict(first_half.state)))
    state = GuardState(**saved | {"recent_losses": tuple(saved["recent_losses"])})
    assert state == first_half.state
    assert 32 + _watch(config, losses[32:], state)[0] == stopped_at > 32


def test_a_scorer_that_is_a_constant_is_noticed_where_it_has_to_choose(inputs, tmp_path):
    # Every video has at least 12 tokens. A refiner whose last norm is zero gives its bias for each of them, and at this
    # learning rate nothing moves away from that.
    start = run(small_config(inputs, tmp_path / "start", steps=1, save_every=1))
    weights = load_file(start / "model" / "linvt.safetensors")
    weights["refiner.head_norm.weight"] = torch.zeros_like(weights["refiner.head_norm.weight"])
    weights["refiner.head_norm.bias"] = torch.zeros_like(weights["refiner.head_norm.bias"])
    save_file(weights, start / "model" / "linvt.safetensors")
    config = small_config(
        inputs, tmp_path / "out", steps=8, init_from=str(start / "model"), learning_rate=1e-12, collapse_steps=3
    )
    with pytest.raises(TrainingFailed, match="scores every token alike: for 3 steps up to step 5 no video's scores"):
        run(config)
    assert {line["score_spread"] for line in read_metrics(tmp_path / "out" / "metrics.jsonl")} == {0.0}

    # Told not to look, it goes on; and where every token is kept, nothing depends on the scores.
    run(small_config(inputs, tmp_path / "on", init_from=config.init_from, learning_rate=1e-12, collapse_steps=0))
    healthy = run(small_config(inputs, tmp_path / "healthy", steps=8, collapse_steps=3))
    assert all(line["score_spread"] > 0 for line in read_metrics(healthy / "metrics.jsonl")[1:])
    out = run(small_config(inputs, tmp_path / "all", steps=8, linvt_top_k=100, learning_rate=1e-12, collapse_steps=3))
    assert not any("score_spread" in line for line in read_metrics(out / "metrics.jsonl"))
