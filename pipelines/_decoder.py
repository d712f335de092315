"""Decode + shots as a Ray Data actor. Imports no image-LLM: decoders start faster and smaller without."""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import torch

from linvt.extraction.decode import decode_input
from linvt.extraction.decode_process import DecodeProcess, DecoderDied
from linvt.extraction.identity import Extraction
from linvt.extraction.plan import PlannedInput, planned_from_table
from linvt.extraction.rows import VideoRow, rows_to_table
from linvt.extraction.strikes import MAX_STRIKES, absolve, struck_out
from linvt.extraction.thumbnails import has_thumbnails
from linvt.shards.storage import open_storage
from linvt.shots import load_detector
from linvt.storage_error import StorageError
from pipelines._metrics import StageMetrics


class Decoder:
    """Planned inputs in; `VideoRow`s with frames (null where quarantined) out.

    Storage that fails is told in the column "failure", not raised: Ray Data ends a run at once that its driver fails,
    but not one that a worker does, whose CPUs a next run in the driver's process would wait for.
    """

    def __init__(
        self,
        detector: str,
        detector_weights: str | None,
        asked: Extraction,
        uri: str,
        decode_stall_timeout_s: float,
        decode_memory_mb: int,
    ) -> None:
        torch.set_num_threads(asked.threads_per_worker)
        self._detector = load_detector(detector, weights=detector_weights, dtype=asked.detector_dtype)
        if self._detector.fingerprint != asked.feature.detector:
            raise ValueError(
                f"shot detector {detector!r} is another on this node than where the extraction was started "
                f"({self._detector.fingerprint}, there {asked.feature.detector}): the same weights must lie everywhere"
            )
        self._asked, self._storage = asked, open_storage(uri)
        self._metrics = StageMetrics("decode")
        self._process = DecodeProcess(stall_timeout_s=decode_stall_timeout_s, memory_mb=decode_memory_mb)

    def __call__(self, table: pa.Table) -> Iterator[pa.Table]:
        for planned in planned_from_table(table):
            try:
                row, frames = self._decode(planned)
                absolve(self._storage, planned.slot, "decode")
            except StorageError as error:
                yield _with_frames(VideoRow.of(planned), None, failure=str(error))
                return
            seconds = sum(value or 0.0 for value in (row.fetch_s, row.decode_s, row.shots_detection_s))
            self._metrics.count(row, seconds=seconds, frames=row.num_frames or 0)
            yield _with_frames(row, frames)

    def _decode(self, planned: PlannedInput) -> tuple[VideoRow, np.ndarray | None]:
        """Tries until there is an outcome or the input has killed its decoder, or this process, too often."""
        error_class, message = "WorkerDied", "the process that decoded it died"
        while not struck_out(self._storage, planned.slot, "decode"):
            try:
                return decode_input(
                    planned,
                    self._detector,
                    self._asked.feature,
                    self._process,
                    thumbnails=has_thumbnails(planned, self._asked.samples_per_shard),
                )
            except DecoderDied as death:
                error_class, message = death.error_class, death.message
        return VideoRow.of(planned).quarantined("decode", error_class, f"{message} ({MAX_STRIKES} attempts)"), None


def _with_frames(row: VideoRow, frames: np.ndarray | None, *, failure: str | None = None) -> pa.Table:
    pixels = pa.array([None if frames is None else frames.data], pa.large_binary())
    shape = pa.array([None if frames is None else frames.shape], pa.list_(pa.int32()))
    table = rows_to_table([row]).append_column("frames", pixels).append_column("frames_shape", shape)
    return table.append_column("failure", pa.array([failure], pa.string()))
