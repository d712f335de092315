"""Extraction on Ray Data: list -> plan -> decode + shots -> encode -> spool -> assemble.

Everything that decides a byte is in `linvt.extraction` and `linvt.shards`; here work is placed on a cluster. Decoders
hold a shot detector on CPUs, encoders hold the vision tower on GPUs where there are any. Frames cross the object store
once, tokens never: an encoder spools them, and an assembler task turns the spool into a shard.
"""

import gc
import json
import logging
import math
import os
import re
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.data
import ray.exceptions
from ray._private.state import state as ray_state

from linvt.backbones import VisionOptions, max_frame_side, vision_fingerprint
from linvt.extraction.assembly import assemble_shard
from linvt.extraction.config import ExtractConfig
from linvt.extraction.existing import (
    clear_leftovers,
    committed_shards,
    existing_extraction,
    finish_extraction,
    refresh_media,
    remove_extraction,
)
from linvt.extraction.identity import Extraction, FeatureSpec, require_same, rethresholded
from linvt.extraction.inputs import Listing, list_inputs
from linvt.extraction.lock import exclusive
from linvt.extraction.plan import Plan, PlannedInput, grow_plan, write_plan
from linvt.extraction.reopening import reopen_shards
from linvt.extraction.rethreshold import bring_over
from linvt.extraction.spool import quarantined_spool, remove_spooled, spooled_slots
from linvt.extraction.tally import Tally
from linvt.shards.commit import CommitRecord, CommittedShard, ShardError
from linvt.shards.layout import EXTRACTION, VIDEOS
from linvt.shards.storage import Storage, open_storage
from linvt.shots import detector_fingerprint, fast_detector_dtype, published_threshold
from linvt.storage_error import StorageError
from pipelines._assembler import assemble
from pipelines._decoder import Decoder
from pipelines._encoder import Encoder
from pipelines._progress import Progress

logger = logging.getLogger(__name__)

# Shards that are being assembled while more videos are decoded.
_MAX_ASSEMBLIES = 2
# Ray's driver keeps a few kB of each task.
_MAX_TASKS = 20_000


def extract(config: ExtractConfig) -> dict[str, Any]:
    """Runs an extraction to its end and returns its counts.

    Raises ValueError for a configuration or inputs that cannot be worked on, RuntimeError if the counts do not
    reconcile or more inputs are quarantined than the configuration allows. Killed at any point, the same call with
    on_existing="resume" goes on where it stopped.
    """
    started = time.monotonic()
    storage = open_storage(config.out)
    found = _found(config, storage)
    inputs = list_inputs(config.videos, config.media_root, config.frames_fps)[: config.limit]
    with ExitStack() as session:
        asked = _resolve(config, found, session)
        check_lock = session.enter_context(exclusive(storage))
        # Again, because whoever held OUT until now may have changed it.
        existing = _found(config, storage)

        # 1. The plan: old slots stay, new inputs are appended. It is written before any work, so no crash changes it.
        committed: dict[int, CommittedShard] = {}
        clear_leftovers(storage)
        if existing is None:
            remove_extraction(storage)
            storage.write(EXTRACTION, asked.to_json())
            plan = grow_plan(Plan(samples_per_shard=config.samples_per_shard), inputs)
        else:
            require_same(existing[0], asked, storage.uri, rethreshold=config.rethreshold)
            asked = rethresholded(existing[0], asked)
            plan, committed = _reopened(config, storage, existing[1], asked, inputs, check_lock)
        if existing is None or plan != existing[1]:
            write_plan(storage, plan)

        # 2. The work that is left.
        shards = _Shards(storage, plan, asked.feature.feature_id, committed)
        logger.info(
            "%d inputs in %d shards; committed already: %d shards; to extract: %d inputs",
            len(plan),
            len(plan.shards),
            len(committed),
            len(shards.pending),
        )
        if len(shards.pending):
            _start_ray(session)
            with _workers_errors_in_short(), _no_worker_outlives_an_error():
                _run_stages(config, asked, shards, check_lock)
        check_lock()
        if asked.outdated_feature_ids:
            storage.write(EXTRACTION, replace(asked, outdated_feature_ids=()).to_json())

        # 3. Every input is a sample or a tombstone, or this raises.
        finish_extraction(storage, plan, shards.committed)
    summary = {
        "inputs": len(plan),
        "committed": sum(shard.num_samples for shard in shards.committed.values()),
        "quarantined": sum(len(shard.quarantined_slots) for shard in shards.committed.values()),
        "shards": len(shards.committed),
        "bytes": sum(shard.tar_size_bytes for shard in shards.committed.values()),
        "seconds": round(time.monotonic() - started, 3),
    }
    if config.strict and summary["quarantined"]:
        raise RuntimeError(
            f"{summary['quarantined']} of {summary['inputs']} inputs are quarantined, and --strict allows none; "
            f"{storage.path(VIDEOS)} says why. The others are committed"
        )
    return summary


def _found(config: ExtractConfig, storage: Storage) -> tuple[Extraction, Plan] | None:
    """What there is to go on with. Raises ValueError where something is and was not expected."""
    existing = existing_extraction(storage)
    if existing is not None and config.on_existing == "fail":
        raise ValueError(
            f"--out {config.out} already holds an extraction; go on with it by --on-existing resume, replace it by "
            "--on-existing overwrite, or choose another folder"
        )
    return existing if config.on_existing == "resume" else None


def _reopened(
    config: ExtractConfig,
    storage: Storage,
    plan: Plan,
    asked: Extraction,
    inputs: Listing,
    check_lock: Callable[[], None],
) -> tuple[Plan, dict[int, CommittedShard]]:
    """The plan with what is new, and the shards that need no work."""
    feature_id, outdated = asked.feature.feature_id, asked.outdated_feature_ids
    committed = committed_shards(storage, plan, feature_id, contents=config.verify_shards, outdated=outdated)
    if outdated:
        committed = bring_over(storage, plan, inputs, asked, committed, check_lock)
    reopened: set[int] = set()
    if config.retry_quarantined:
        remove_spooled(storage, quarantined_spool(storage, feature_id))
        slots = [slot for shard in committed.values() for slot in shard.quarantined_slots]
        reopened = reopen_shards(storage, plan, committed.keys(), slots)
    committed = {number: shard for number, shard in committed.items() if number not in reopened}
    plan, reopened = refresh_media(storage, plan, inputs, committed)
    committed = {number: shard for number, shard in committed.items() if number not in reopened}
    return grow_plan(plan, inputs), committed


def _resolve(config: ExtractConfig, existing: tuple[Extraction, Plan] | None, ray_session: ExitStack) -> Extraction:
    """The configuration with its defaults filled in; on a resume, `auto` is what it was."""
    encode_dtype = config.encode_dtype
    if encode_dtype == "auto" and existing is not None:
        encode_dtype = existing[0].encode_dtype
    if encode_dtype == "auto":
        _start_ray(ray_session)
        encode_dtype = "bfloat16" if _resources().get("GPU") else "float32"
    detector_dtype = config.detector_dtype
    if detector_dtype == "auto":
        detector_dtype = existing[0].detector_dtype if existing is not None else fast_detector_dtype(config.detector)
    options = VisionOptions(**{field.name: getattr(config, field.name) for field in fields(VisionOptions)})
    return Extraction(
        feature=FeatureSpec(
            vision_fingerprint=vision_fingerprint(config.backbone, options),
            max_side=config.max_side or max_frame_side(config.backbone),
            max_candidates=config.max_candidates,
            cache_dtype=config.cache_dtype,
            num_frames=config.num_frames,
            detector=detector_fingerprint(config.detector, config.detector_weights),
            shot_threshold=config.shot_threshold or published_threshold(config.detector),
            sampling=config.sampling,
            fps=config.fps,
            **asdict(options),
        ),
        samples_per_shard=config.samples_per_shard,
        encode_batch_size=config.encode_batch_size,
        encode_dtype=encode_dtype,
        compile_encoder=config.compile_encoder,
        detector_dtype=detector_dtype,
        threads_per_worker=config.threads_per_worker,
    )


class _Shards:
    """Which inputs of the shards that are not committed yet are decided, that is, spooled."""

    def __init__(self, storage: Storage, plan: Plan, feature_id: str, committed: Mapping[int, CommittedShard]) -> None:
        self.storage = storage
        self.committed = dict(committed)
        self._plan, self._feature_id = plan, feature_id
        slots = plan.table["slot"].to_numpy()
        is_open = ~np.isin(plan.table["shard"].to_numpy(), list(committed))
        spooled = spooled_slots(storage, feature_id)
        # A kill can come between a commit and the clearing of its spool.
        remove_spooled(storage, spooled.difference(slots[is_open].tolist()))
        is_undecided = is_open & ~np.isin(slots, list(spooled))
        self.pending = plan.table.filter(pa.array(is_undecided))
        """In the order of slots, so that shards fill one after the other and the spool stays small."""
        self._num_undecided = Counter(self.pending["shard"].to_numpy().tolist())
        for shard in [shard for shard in plan.shards if shard not in committed and not self._num_undecided[shard]]:
            self.note(assemble_shard(storage, *self.assembly_arguments(shard)))

    def note(self, record: CommitRecord) -> None:
        """Notes that a shard is committed."""
        self.committed[record.shard] = CommittedShard.of(record)

    def decide(self, slots: Iterable[int]) -> list[int]:
        """Notes that `slots` are spooled; returns the shards that this completed."""
        completed: list[int] = []
        for slot in slots:
            shard = slot // self._plan.samples_per_shard
            self._num_undecided[shard] -= 1
            if not self._num_undecided[shard]:
                completed.append(shard)
        return completed

    def assembly_arguments(self, shard: int) -> tuple[tuple[PlannedInput, ...], str, str]:
        planned = tuple(self._plan.shards[shard])
        return planned, self._plan.hashes[planned[0].generation], self._feature_id


def _start_ray(ray_session: ExitStack) -> None:
    """Joins the cluster of RAY_ADDRESS, as `ray job submit` sets it, or starts a local one for this session."""
    # Whoever called this tells what a worker raised. Ray Data would tell it first, as a fault of Ray's to be reported.
    logging.getLogger("ray.data.exceptions").setLevel(logging.CRITICAL)
    if ray.is_initialized():
        return
    # Workers' output would mix with the outcome on stdout; it is in Ray's own logs.
    ray.init(log_to_driver=False, logging_level=logging.WARNING)
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    ray_session.callback(ray.shutdown)


def _resources() -> Mapping[str, float]:
    """What the cluster has, and more where an autoscaler may add nodes: a fresh cluster has but its head."""
    now = ray.cluster_resources()
    # Not in Ray's public API, though Ray Train and Ray Data ask for it as well. None: nobody adds nodes.
    limits = ray_state.get_max_resources_from_cluster_config() or {}
    return now | {name: max(now.get(name, 0), limit) for name, limit in limits.items() if limit < sys.maxsize}


@dataclass(frozen=True, kw_only=True, slots=True)
class _Placement:
    """How many workers of each kind, and what each of them claims of the cluster."""

    num_decoders: int
    num_encoders: int
    cpus_per_worker: float
    gpus_per_encoder: float


def _place_workers(config: ExtractConfig, resources: Mapping[str, float], *, num_tasks: int) -> _Placement:
    """Never claims more than there is, so that every worker starts: on few CPUs they share. Nor are there by default
    more workers of a kind than tasks: machines would be rented for nothing."""
    cpus, gpus = resources.get("CPU", 0), resources.get("GPU", 0)
    share = config.gpus_per_encode_worker
    num_encoders = config.num_encode_workers or min(int(gpus / (share or 1)) or max(1, int(cpus) // 4), num_tasks)
    if share is not None and num_encoders * share > gpus:
        raise ValueError(
            f"{num_encoders} encoders with {share:g} of a GPU each do not fit on this cluster's {gpus:g} GPUs; lower "
            "--num-encode-workers or --gpus-per-encode-worker"
        )
    # A process that feeds a GPU keeps a CPU busy; without GPUs shot detection takes most of the time.
    num_decoders = config.num_decode_workers or min(max(1, int(cpus - gpus)), num_tasks)
    return _Placement(
        num_decoders=num_decoders,
        num_encoders=num_encoders,
        # Rounded down, or the sum of the claims could exceed the whole by a rounding error.
        cpus_per_worker=min(1.0, math.floor(100 * cpus / (num_decoders + num_encoders)) / 100),
        gpus_per_encoder=min(1.0, math.floor(100 * gpus / num_encoders) / 100) if share is None else share,
    )


def _run_stages(config: ExtractConfig, asked: Extraction, shards: _Shards, check_lock: Callable[[], None]) -> None:
    """Decodes, encodes and assembles everything that is pending."""
    # One block a task: a task is one call of a decoder, and its outcome one call of an encoder.
    total = shards.pending.num_rows
    size = max(config.videos_per_task, math.ceil(total / _MAX_TASKS))
    placement = _place_workers(config, _resources(), num_tasks=math.ceil(total / size))
    logger.info("%d decoders and %d encoders", placement.num_decoders, placement.num_encoders)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_no_progress_timeout_s = config.stall_timeout_s

    decided = (
        ray.data.from_arrow([shards.pending.slice(start, size).combine_chunks() for start in range(0, total, size)])
        .map_batches(
            Decoder,
            fn_constructor_args=(
                config.detector,
                # Workers need not have this process's working directory.
                config.detector_weights and os.path.abspath(config.detector_weights),
                asked,
                shards.storage.uri,
                config.decode_stall_timeout_s,
                config.decode_memory_mb,
            ),
            batch_size=None,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(size=placement.num_decoders),
            num_cpus=placement.cpus_per_worker,
        )
        .map_batches(
            Encoder,
            fn_constructor_args=(config.backbone, asked, shards.storage.uri),
            batch_size=None,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(size=placement.num_encoders),
            num_cpus=placement.cpus_per_worker,
            num_gpus=placement.gpus_per_encoder,
        )
    )
    remote_assemble = ray.remote(num_cpus=0, scheduling_strategy="SPREAD")(assemble)
    assemblies: list[ray.ObjectRef] = []
    tally = Tally(num_decoders=placement.num_decoders, num_encoders=placement.num_encoders)
    started = time.monotonic()
    # Closed, so that an error in here ends the run's workers at once.
    iterator: Any = iter(decided.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0))
    with Progress(total, unit="video") as progress, closing(iterator) as batches:
        for batch in batches:
            check_lock()
            columns = batch.to_pydict()
            if failures := [told for told in columns.pop("failure") if told is not None]:
                raise StorageError(failures[0])
            for shard in shards.decide(columns["slot"]):
                assemblies.append(remote_assemble.remote(shards.storage.uri, *shards.assembly_arguments(shard)))
            assemblies = _collect(assemblies, shards, leave=_MAX_ASSEMBLIES)
            tally.add(columns)
            progress.advance(
                len(columns["slot"]), shards_committed=len(shards.committed), **tally.facts(time.monotonic() - started)
            )
            if config.max_errors is not None and tally.num_quarantined > config.max_errors:
                raise RuntimeError(
                    f"{tally.num_quarantined} inputs were quarantined in this run, more than --max-errors "
                    f"{config.max_errors}: {dict(tally.quarantined)}. What is done stays; --on-existing resume goes on"
                )
        _collect(assemblies, shards, leave=0)
    resources = ray.cluster_resources()
    facts = tally.summary(time.monotonic() - started, cpus=resources.get("CPU", 0), gpus=resources.get("GPU", 0))
    logger.info("this run: %s", json.dumps(facts))


@contextmanager
def _no_worker_outlives_an_error() -> Iterator[None]:
    """Ends the workers of a run that fails, or a next one in this process would wait for their CPUs.

    Where a worker raised the error, Ray ends the others when nothing refers to them any more; a traceback's local
    variables do, for as long as somebody keeps the error.
    """
    try:
        yield
    except BaseException as error:
        for thread in threading.enumerate():
            if thread.name.startswith("StreamingExecutor"):  # Ray Data's, which ends with its run.
                thread.join(timeout=30)
        chain: list[BaseException | None] = [error]
        for each in chain:
            if each is not None:
                traceback.clear_frames(each.__traceback__)
                chain += [other for other in (each.__cause__, each.__context__) if other not in chain]
        gc.collect()
        raise


@contextmanager
def _workers_errors_in_short() -> Iterator[None]:
    """Raises a worker's StorageError or ShardError as such. Of what Ray Data's workers raise, only the text arrives."""
    try:
        yield
    except ray.exceptions.RayTaskError as error:
        for kind in (StorageError, ShardError):
            told = re.search(rf"^{kind.__module__}\.{kind.__qualname__}: (.+)$", str(error), re.MULTILINE)
            if told is not None:
                raise kind(told[1]) from None
        raise


def _collect(assemblies: list[ray.ObjectRef], shards: _Shards, *, leave: int) -> list[ray.ObjectRef]:
    """Waits until at most `leave` assemblies are running and returns those."""
    while len(assemblies) > leave:
        finished, assemblies = ray.wait(assemblies, num_returns=1)
        for record in ray.get(finished):
            shards.note(record)
    return assemblies
