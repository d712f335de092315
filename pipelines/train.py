"""Training on Ray Train: the same loop as without Ray, on as many workers as asked for.

Everything that decides a weight is in `linvt.training`; here workers are placed on a cluster, started again when one is
lost, and the outcome is collected. Checkpoints are the loop's own, in OUT/checkpoints: every worker finds the latest by
itself, so a lost worker, a resized group and a new run with --on-existing resume are one and the same thing.
"""

import json
import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from linvt.command import Stopped
from linvt.model_card import CARD_FILE, Training, model_card
from linvt.training.best import BEST_LINK
from linvt.training.checkpoint import latest_checkpoint, step_of
from linvt.training.config import TrainConfig
from linvt.training.context import on_first_worker, plain_context
from linvt.training.engine import end_process_group
from linvt.training.guards import TrainingFailed
from linvt.training.loop import MODEL_FOLDER, count_steps, first_and_last_loss, load_held_out_visits, load_visits
from linvt.training.loop import train as run_loop
from linvt.training.metrics import METRICS_FILE, last_training_line, read_metrics
from linvt.training.report import write_report
from linvt.training.run_folder import (
    LEFT_OUT_FILE,
    MIXTURE_FILE,
    RAY_FOLDER,
    STOP_FILE,
    SUMMARY_FILE,
    open_run_folder,
    write_json,
    write_text,
)
from linvt.training.stopping import noticing_sigterm
from linvt.video_llm import read_model_config
from pipelines._progress import Progress

logger = logging.getLogger(__name__)

# Importing torch on every worker of a busy machine can take longer than Ray's 60 s.
_REPORTS_FETCHED_EVERY_S = 0.25
_START_TIMEOUT_S = 600
_SECONDS_BETWEEN_LOOKS = 1.0


def train(config: TrainConfig) -> dict[str, Any]:
    """Run a training to its end and return its outcome.

    Raises ValueError for a configuration or data that cannot be trained on, FloatingPointError where the loss stops
    being finite, TrainingFailed for a run that goes nowhere, Stopped after a SIGTERM. Stopped or killed at any point,
    the same call with on_existing="resume" goes on from its latest checkpoint.
    """
    run = _Run(_with_absolute_paths(config))
    if config.worker_range == (0, 0):
        with plain_context(run.folder) as context:
            config.check_workers(context.world_size, context.world_size)
            on_first_worker(context, run.prepare)
            if run.outcome() is None:
                with run.reported(writes=context.rank == 0):
                    if not run_loop(run.config, context):
                        raise run.stopped()
                on_first_worker(context, run.conclude)
    else:
        if "TORCHELASTIC_RUN_ID" in os.environ:
            raise ValueError(f"--num-workers {config.num_workers} asks for Ray; under torchrun, ask for 0")
        run.prepare()
        if run.outcome() is None:
            with run.reported():
                with ExitStack() as ray_session, _progress(run.folder, run.num_steps):
                    _run_on_ray(run.config, ray_session)
                if run.steps_done() < run.num_steps:
                    raise run.stopped()
            run.conclude()
    outcome = run.outcome()
    assert outcome is not None
    return outcome


class _Run:
    """What is done once for a run, before and after the workers' work."""

    def __init__(self, config: TrainConfig) -> None:
        self.config, self.folder = config, Path(config.out)
        self.started = time.monotonic()

    def prepare(self) -> None:
        """Look at what is there and at the data: what is wrong with them is the user's to hear at once."""
        if open_run_folder(self.config) is not None:
            logger.info("%s holds this run, finished", self.folder)
            return
        (self.folder / STOP_FILE).unlink(missing_ok=True)
        visits = load_visits(self.config)
        load_held_out_visits(self.config)
        self.num_steps, self.num_visits = count_steps(self.config, visits), len(visits)
        self.num_left_out = len(visits.left_out)
        lines = [json.dumps(asdict(item)) + "\n" for item in visits.left_out]
        write_text(self.folder / LEFT_OUT_FILE, "".join(lines))
        write_json(self.folder / MIXTURE_FILE, visits.mixture())
        if visits.left_out:
            logger.warning("%d annotated media are left out; %s says why", len(lines), self.folder / LEFT_OUT_FILE)

    @contextmanager
    def reported(self, *, writes: bool = True) -> Iterator[None]:
        """Around the work: whatever its end, OUT/report.html tells of it."""
        ended = "Finished."
        try:
            yield
        except BaseException as error:
            ended = f"{type(error).__name__}: {error}"
            raise
        finally:
            if writes:
                write_report(self.folder, ended=ended)

    def conclude(self) -> None:
        """The cards of the models, and the outcome, written last: a run without it is not finished."""
        metrics = read_metrics(self.folder / METRICS_FILE)
        for folder in (self.folder / MODEL_FOLDER, self.folder / BEST_LINK):
            if folder.is_dir():
                step = self.num_steps if folder.name == MODEL_FOLDER else int(folder.resolve().name.split("-")[-1])
                training = Training(
                    config=self.config,
                    step=step,
                    num_visits=self.num_visits,
                    num_left_out=self.num_left_out,
                    metrics=[line for line in metrics if line["step"] <= step],
                )
                write_text(folder / CARD_FILE, model_card(read_model_config(folder), training))
        seconds = time.monotonic() - self.started
        summary = _summarise(self.config, self.num_steps, self.num_left_out, seconds=seconds)
        write_json(self.folder / SUMMARY_FILE, summary)

    def steps_done(self) -> int:
        """Of the latest checkpoint."""
        found = latest_checkpoint(self.folder)
        return step_of(found) if found is not None else 0

    def stopped(self) -> Stopped:
        return Stopped(
            f"asked to stop (SIGTERM): {self.folder} has a checkpoint of step {self.steps_done()}; "
            "run the same command with --on-existing resume to go on"
        )

    def outcome(self) -> dict[str, Any] | None:
        """The summary of a finished run."""
        file = self.folder / SUMMARY_FILE
        return json.loads(file.read_text()) if file.is_file() else None


def _run_on_ray(config: TrainConfig, ray_session: ExitStack) -> None:
    # Read when Ray Train is imported or its controller starts.
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", str(_START_TIMEOUT_S))
    # A worker's report waits until its last one was fetched, and the controller fetches them this often. At Ray's own
    # two seconds, steps that are quicker than that would stand still for it.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", str(_REPORTS_FETCHED_EVERY_S))
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig, WorkerGroupError
    from ray.train.torch import TorchConfig, TorchTrainer

    if not ray.is_initialized():
        # Joins the cluster of RAY_ADDRESS, as `ray job submit` sets it, or starts a local one. Workers' output would
        # mix with the outcome on stdout; it is in Ray's own logs, and what matters of it in OUT/metrics.jsonl.
        ray.init(log_to_driver=False, logging_level=logging.WARNING)
        ray_session.callback(ray.shutdown)
    fewest, most = config.worker_range
    trainer = TorchTrainer(
        _train_on_worker,
        train_loop_config={"config": config},
        scaling_config=ScalingConfig(
            num_workers=most if fewest == most else (fewest, most),
            use_gpu=config.use_gpu,
            # Pinned: with another thread count a sum may have other last bits.
            resources_per_worker={"CPU": config.threads_per_worker, **({"GPU": 1} if config.use_gpu else {})},
        ),
        torch_config=TorchConfig(backend="nccl" if config.use_gpu else "gloo"),
        # The same path and name again continue the run, as Ray sees it.
        run_config=RunConfig(
            storage_path=config.out,
            name=RAY_FOLDER,
            failure_config=FailureConfig(max_failures=config.max_failures),
        ),
    )
    stop_file = Path(config.out) / STOP_FILE
    # After ray.init, which sets a handler of its own.
    with noticing_sigterm(on_signal=stop_file.touch):
        try:
            trainer.fit()
        except WorkerGroupError as error:
            raise _first_cause(error) from error


def _train_on_worker(loop_config: dict[str, Any]) -> None:
    """What each Ray Train worker runs."""
    import ray.train
    from ray.train.torch import get_device

    logging.basicConfig(level="INFO", format="%(asctime)s %(levelname)s %(message)s")
    config: TrainConfig = loop_config["config"]
    ray_context = ray.train.get_context()
    context = RayContext(
        rank=ray_context.get_world_rank(),
        world_size=ray_context.get_world_size(),
        local_rank=ray_context.get_local_rank(),
        device=get_device(),
        run_dir=Path(config.out),
    )
    run_loop(config, context)
    # Ray began the process group; a worker that exits with it open can abort.
    end_process_group()


@dataclass(frozen=True, kw_only=True, slots=True)
class RayContext:
    """A Ray Train worker's place in the run, see `linvt.training.context.TrainContext`."""

    rank: int
    world_size: int
    local_rank: int
    device: Any
    run_dir: Path

    def stop_requested(self) -> bool:
        # Workers are not told: the driver is, and leaves a file.
        return self.rank == 0 and (self.run_dir / STOP_FILE).exists()

    def report(self, metrics: dict[str, float]) -> None:
        import ray.train

        ray.train.report(metrics)


def _first_cause(error: Any) -> BaseException:
    """What a worker raised, where it is one of the loop's own errors; the other workers only lost their peer."""
    for failure in error.worker_failures.values():
        cause = failure
        while cause is not None:
            if isinstance(cause, ValueError | FloatingPointError | TrainingFailed):
                return type(cause)(str(cause))
            cause = getattr(cause, "cause", None) or cause.__cause__
    return error


def _with_absolute_paths(config: TrainConfig) -> TrainConfig:
    """Ray workers start in folders of their own."""
    return replace(
        config,
        out=config.out if "://" in config.out else os.path.abspath(config.out),
        cache=_absolute(config.cache),
        eval_cache=_absolute(config.eval_cache) if config.eval_cache else None,
        init_from=_absolute(config.init_from) if config.init_from else None,
        backbone=os.path.abspath(config.backbone) if os.path.isdir(config.backbone) else config.backbone,
        annotations=tuple(map(_absolute, config.annotations)),
        eval_annotations=tuple(map(_absolute, config.eval_annotations)),
    )


def _absolute(uri: str) -> str:
    return uri if "://" in uri else os.path.abspath(uri)


@contextmanager
def _progress(run_dir: Path, num_steps: int) -> Iterator[None]:
    """Shows how far the workers are, by the lines that the first of them writes."""
    done = threading.Event()
    thread = threading.Thread(target=_follow, args=(run_dir / METRICS_FILE, num_steps, done), daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _follow(metrics_path: Path, num_steps: int, done: threading.Event) -> None:
    with Progress(num_steps, unit="step") as progress:
        shown = 0
        while not done.wait(_SECONDS_BETWEEN_LOOKS):
            line = last_training_line(metrics_path)
            if line is not None and line["step"] > shown:
                progress.advance(line["step"] - shown, loss=round(line["loss"], 4))
                shown = line["step"]


def _summarise(config: TrainConfig, num_steps: int, num_left_out: int, *, seconds: float) -> dict[str, Any]:
    metrics = read_metrics(Path(config.out) / METRICS_FILE)
    loss_first, loss_last = first_and_last_loss(metrics)
    summary = {
        "stage": config.stage,
        "steps": num_steps,
        "samples": num_steps * config.visits_per_batch,
        "left_out": num_left_out,
        "loss_first": loss_first,
        "loss_last": loss_last,
        "model": str(Path(config.out) / MODEL_FOLDER),
        "seconds": round(seconds, 3),
    }
    validations = [line for line in metrics if "eval_loss" in line]
    if validations:
        summary |= {name: value for name, value in validations[-1].items() if name.startswith("eval_")}
    return summary
