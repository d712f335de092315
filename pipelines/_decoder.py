"""Decode + shots as a Ray Data actor. Imports no image-LLM: decoders start faster and smaller without."""

from collections.abc import Iterator

import pyarrow as pa
import torch

from linvt.extraction.decode import decode_input
from linvt.extraction.identity import Extraction
from linvt.extraction.plan import planned_from_table
from linvt.extraction.rows import VideoRow, rows_to_table
from linvt.extraction.strikes import MAX_STRIKES, absolve, struck_out
from linvt.shards.storage import open_storage
from linvt.shots import load_detector


class Decoder:
    """Planned inputs in; `VideoRow`s with frames (null where quarantined) out."""

    def __init__(self, detector: str, asked: Extraction, uri: str) -> None:
        torch.set_num_threads(asked.threads_per_worker)
        self._detector, self._spec, self._storage = load_detector(detector), asked.feature, open_storage(uri)

    def __call__(self, table: pa.Table) -> Iterator[pa.Table]:
        for planned in planned_from_table(table):
            row, frames = VideoRow.of(planned), None
            if struck_out(self._storage, planned.slot, "decode"):
                row = row.quarantined("decode", "WorkerDied", f"{MAX_STRIKES} processes died while they decoded it")
            else:
                row, frames = decode_input(planned, self._detector, self._spec)
            absolve(self._storage, planned.slot, "decode")
            pixels = pa.array([None if frames is None else frames.data], pa.large_binary())
            shape = pa.array([None if frames is None else frames.shape], pa.list_(pa.int32()))
            yield rows_to_table([row]).append_column("frames", pixels).append_column("frames_shape", shape)
