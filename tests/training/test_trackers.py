"""W&B and MLflow run for real, offline, where their libraries are installed; TensorBoard always."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from linvt.training.metrics import read_metrics
from linvt.training.trackers import require_trackers
from tests.training.inputs import small_config
from tests.training.test_loop import run


def _losses(out: Path) -> dict[int, float]:
    return {line["step"]: line["loss"] for line in read_metrics(out / "metrics.jsonl")}


def test_a_tracker_without_its_library_is_refused_by_name(monkeypatch):
    monkeypatch.setattr("linvt.training.trackers.find_spec", lambda name: None)
    with pytest.raises(
        ValueError, match=r"--trackers wandb: its library is not installed; pip install 'linvt\[wandb\]'"
    ):
        require_trackers(["wandb"])


def test_tensorboard_has_each_step_once_also_after_a_resume(inputs, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = small_config(inputs, tmp_path / "out")
    run(config, lost_at=5)
    run(config)
    events = EventAccumulator(str(tmp_path / "out" / "tensorboard"))
    events.Reload()
    written = {event.step: event.value for event in events.Scalars("loss")}
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3, 4, 5, 6]
    assert written == pytest.approx(_losses(tmp_path / "out"))


def test_without_trackers_there_are_none(inputs, tmp_path):
    out = run(small_config(inputs, tmp_path / "out", trackers=(), steps=1))
    assert not (out / "tensorboard").exists()
    assert list(_losses(out)) == [1]


def test_mlflow_goes_on_with_its_run(inputs, tmp_path, monkeypatch):
    pytest.importorskip("mlflow")
    from mlflow.tracking import MlflowClient

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    config = small_config(inputs, tmp_path / "out", trackers=("mlflow",), tracker_project="trial")
    run(config, lost_at=5)
    run(config)
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/out/mlflow.db")
    experiment = client.get_experiment_by_name("trial")
    assert experiment is not None
    (mlflow_run,) = client.search_runs([experiment.experiment_id])
    assert mlflow_run.info.status == "FINISHED"
    assert mlflow_run.data.params["visits_per_batch"] == "4"
    history = client.get_metric_history(mlflow_run.info.run_id, "loss")
    # Step 5 was taken twice, to the same loss.
    assert sorted(metric.step for metric in history) == [1, 2, 3, 4, 5, 5, 6]
    assert {metric.step: metric.value for metric in history} == pytest.approx(_losses(tmp_path / "out"))


def test_wandb_goes_on_with_its_run(inputs, tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    config = small_config(inputs, tmp_path / "out", trackers=("wandb", "tensorboard"), tracker_project="trial")
    run(config)
    run_id = json.loads((tmp_path / "out" / "trackers.json").read_text())["wandb"]
    run(replace(config, steps=6))
    assert json.loads((tmp_path / "out" / "trackers.json").read_text())["wandb"] == run_id
    files = list((tmp_path / "out" / "wandb").glob(f"offline-run-*-{run_id}/run-{run_id}.wandb"))
    assert files
    assert sum(b"grad_norm" in file.read_bytes() for file in files) >= 1
