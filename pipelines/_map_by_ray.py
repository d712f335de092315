"""Work on text, spread over a pool of Ray actors that each hold a model."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any

from linvt.evaluation.config import EvaluateConfig


def map_by_ray(
    config: EvaluateConfig,
    worker: Callable[[EvaluateConfig, int], Callable[[str], str]],
    pieces: Sequence[str],
    session: ExitStack,
) -> Iterator[str]:
    """What `worker(config, number of threads)` makes of every piece, in the order in which they are ready.

    Starts a local Ray where none runs; `session` ends it.
    """
    import ray
    import ray.data

    if not ray.is_initialized():
        ray.init(log_to_driver=False, logging_level=logging.WARNING)
        session.callback(ray.shutdown)
    resources = ray.cluster_resources()
    gpus = config.gpus_per_worker
    if gpus is None:
        gpus = min(1.0, resources.get("GPU", 0) / config.num_workers)
    cpus = max(1, int(resources["CPU"] // config.num_workers))
    ray.data.DataContext.get_current().enable_progress_bars = False
    done = ray.data.from_items([{"piece": piece} for piece in pieces], override_num_blocks=len(pieces)).map(
        _Actor,  # pyright: ignore[reportArgumentType]
        fn_constructor_args=(worker, config, config.threads_per_worker or cpus),
        compute=ray.data.ActorPoolStrategy(size=config.num_workers),
        # Rounded down, so that the claims never exceed what there is.
        num_cpus=int(100 * min(1.0, resources["CPU"] / config.num_workers)) / 100,
        num_gpus=gpus,
    )
    for row in done.iter_rows():
        yield row["done"]


class _Actor:
    """A Ray Data actor: `{"piece": text}` in, `{"done": text}` out."""

    def __init__(
        self,
        worker: Callable[[EvaluateConfig, int], Callable[[str], str]],
        config: EvaluateConfig,
        num_threads: int,
    ) -> None:
        self._work = worker(config, num_threads)

    def __call__(self, row: dict[str, Any]) -> dict[str, str]:
        return {"done": self._work(row["piece"])}
