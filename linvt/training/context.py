"""Where a training loop runs: its place among the workers. One protocol, so the loop knows nothing of Ray."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch
import torch.distributed as dist

from linvt.training.engine import end_process_group
from linvt.training.stopping import StopRequest, noticing_sigterm


class TrainContext(Protocol):
    """A worker's place in a run. The process group exists as long as the context does."""

    @property
    def rank(self) -> int: ...

    @property
    def world_size(self) -> int: ...

    @property
    def local_rank(self) -> int: ...

    @property
    def device(self) -> torch.device: ...

    @property
    def run_dir(self) -> Path:
        """The run's folder, absolute, the same for every worker: checkpoints, metrics and the model go there."""
        ...

    def stop_requested(self) -> bool:
        """Whether this worker was asked to stop; one that was is enough for all."""
        ...

    def report(self, metrics: dict[str, float]) -> None:
        """Tell whoever started the run; all ranks call it together."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class PlainContext:
    """One process of torchrun, or a process alone."""

    rank: int
    world_size: int
    local_rank: int
    device: torch.device
    run_dir: Path
    stop: StopRequest = field(default_factory=StopRequest)

    def stop_requested(self) -> bool:
        return self.stop.received

    def report(self, metrics: dict[str, float]) -> None:
        del metrics  # They are in metrics.jsonl; nobody else is listening.


def on_first_worker(context: TrainContext, work: Callable[[], None]) -> None:
    """`work` on the first worker, while the others wait. Where it raises, all do. Collective."""
    failed = torch.ones(1, device=context.device)
    try:
        if context.rank == 0:
            work()
            failed.zero_()
    finally:
        dist.broadcast(failed, src=0)
    if failed.item():
        raise RuntimeError("the first worker stopped, and says why")


@contextmanager
def plain_context(run_dir: str | Path) -> Iterator[PlainContext]:
    """The context of a run without Ray: of this process alone, or of torchrun's workers if it started this one."""
    rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed asks for it.
    if world_size == 1:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    else:
        dist.init_process_group(backend)
    if torch.cuda.is_available():
        torch.cuda.set_device(local_rank)
    try:
        with noticing_sigterm() as stop:
            yield PlainContext(
                rank=rank,
                world_size=world_size,
                local_rank=local_rank,
                device=torch.device("cuda", local_rank) if torch.cuda.is_available() else torch.device("cpu"),
                run_dir=Path(run_dir).absolute(),
                stop=stop,
            )
    finally:
        end_process_group()
