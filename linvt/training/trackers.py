"""Where a run's metrics can be watched, besides metrics.jsonl: TensorBoard, Weights & Biases, MLflow.

Each through its own library, which alone decides where things go (WANDB_MODE, WANDB_BASE_URL, MLFLOW_TRACKING_URI, …).
A resumed run goes on with the same run there: its id is in OUT/trackers.json.
"""

import json
import os
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

from linvt.training.config import TrackerName, TrainConfig, to_json

TENSORBOARD_FOLDER = "tensorboard"
TRACKERS_FILE = "trackers.json"
MLFLOW_FILE = "mlflow.db"
_EXTRA = {"tensorboard": "train", "wandb": "wandb", "mlflow": "mlflow"}
_MOST_PARAMS = 100
_MOST_CHARACTERS = 500

Metrics = dict[str, float]


class Tracker(Protocol):
    """Takes a run's numbers. Rank 0's business."""

    def write(self, metrics: Metrics) -> None:
        """`metrics["step"]` says when. Steps that a resumed run takes again come again."""
        ...

    def close(self) -> None: ...


def require_trackers(names: Sequence[TrackerName]) -> None:
    """Raises ValueError where the library of one of them is not installed."""
    for name in names:
        if find_spec(name) is None:
            raise ValueError(
                f"--trackers {name}: its library is not installed; pip install 'linvt[{_EXTRA[name]}]', or leave it out"
            )


def open_trackers(config: TrainConfig, run_dir: Path, *, after_step: int) -> list[Tracker]:
    """The trackers that the config names, for a run that goes on after `after_step`."""
    require_trackers(config.trackers)
    makers = {"tensorboard": TensorBoardTracker, "wandb": WandbTracker, "mlflow": MlflowTracker}
    return [makers[name](config, run_dir, after_step) for name in config.trackers]


class TensorBoardTracker:
    """Event files in OUT/tensorboard."""

    def __init__(self, config: TrainConfig, run_dir: Path, after_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(run_dir / TENSORBOARD_FOLDER), purge_step=after_step + 1)

    def write(self, metrics: Metrics) -> None:
        for name, value in metrics.items():
            if name != "step":
                self._writer.add_scalar(name, value, int(metrics["step"]))

    def close(self) -> None:
        self._writer.close()


class WandbTracker:
    """A run of the project --tracker-project; local files in OUT/wandb."""

    def __init__(self, config: TrainConfig, run_dir: Path, after_step: int) -> None:
        import wandb  # pyright: ignore[reportMissingImports]

        run_id = _remembered(run_dir, "wandb") or uuid4().hex[:12]
        self._run: Any = wandb.init(
            project=config.tracker_project,
            name=run_dir.name,
            id=run_id,
            resume="allow",
            dir=str(run_dir),
            config=to_json(config),
        )
        _remember(run_dir, "wandb", run_id)
        # W&B's own count of steps only grows; a resumed run goes back to its checkpoint.
        self._run.define_metric("*", step_metric="step")

    def write(self, metrics: Metrics) -> None:
        self._run.log(metrics)

    def close(self) -> None:
        self._run.finish()


class MlflowTracker:
    """A run of the experiment --tracker-project; in OUT/mlflow.db where MLFLOW_TRACKING_URI says nothing else."""

    def __init__(self, config: TrainConfig, run_dir: Path, after_step: int) -> None:
        from mlflow.entities import Param  # pyright: ignore[reportMissingImports]
        from mlflow.tracking import MlflowClient  # pyright: ignore[reportMissingImports]

        uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{run_dir / MLFLOW_FILE}"
        self._client = MlflowClient(tracking_uri=uri)
        run_id = _remembered(run_dir, "mlflow")
        if run_id is None:
            experiment = self._client.get_experiment_by_name(config.tracker_project)
            experiment_id = (
                experiment.experiment_id if experiment else self._client.create_experiment(config.tracker_project)
            )
            run_id = self._client.create_run(experiment_id, run_name=run_dir.name).info.run_id
            params = [Param(name, str(value)[:_MOST_CHARACTERS]) for name, value in to_json(config).items()]
            for start in range(0, len(params), _MOST_PARAMS):
                self._client.log_batch(run_id, params=params[start : start + _MOST_PARAMS])
            _remember(run_dir, "mlflow", run_id)
        self._run_id = run_id

    def write(self, metrics: Metrics) -> None:
        from mlflow.entities import Metric  # pyright: ignore[reportMissingImports]

        now_ms, step = int(time.time() * 1000), int(metrics["step"])
        batch = [Metric(name, float(value), now_ms, step) for name, value in metrics.items() if name != "step"]
        self._client.log_batch(self._run_id, metrics=batch)

    def close(self) -> None:
        self._client.set_terminated(self._run_id)


def _remembered(run_dir: Path, tracker: str) -> str | None:
    file = run_dir / TRACKERS_FILE
    return json.loads(file.read_text()).get(tracker) if file.is_file() else None


def _remember(run_dir: Path, tracker: str, run_id: str) -> None:
    file = run_dir / TRACKERS_FILE
    ids = json.loads(file.read_text()) if file.is_file() else {}
    unfinished = file.with_name(f"{file.name}.{uuid4().hex}.tmp")
    unfinished.write_text(json.dumps(ids | {tracker: run_id}) + "\n")
    unfinished.replace(file)
