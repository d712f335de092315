"""Encode + spool as a Ray Data actor, on a GPU where Ray gives it one."""

import numpy as np
import pyarrow as pa
import torch

from linvt.backbones import load_backbone
from linvt.extraction.encode import encode_input
from linvt.extraction.identity import Extraction
from linvt.extraction.rows import VideoRow, rows_from_table, rows_to_table
from linvt.extraction.spool import write_spooled
from linvt.extraction.strikes import MAX_STRIKES, absolve, struck_out
from linvt.extraction.tally import TALLIED_COLUMNS
from linvt.shards.storage import open_storage
from linvt.storage_error import StorageError
from pipelines._metrics import StageMetrics


class Encoder:
    """`VideoRow`s with frames in; spools each and tells only what is tallied, and "failure", as decoders do."""

    def __init__(self, backbone: str, asked: Extraction, uri: str) -> None:
        torch.set_num_threads(asked.threads_per_worker)
        on_gpu = torch.cuda.is_available()
        self._device = torch.cuda.get_device_name() if on_gpu else f"cpu {torch.backends.cpu.get_cpu_capability()}"
        self._backbone = load_backbone(
            backbone,
            parts={"vision"},
            dtype=getattr(torch, asked.encode_dtype),
            device="cuda" if on_gpu else "cpu",
            options=asked.feature.vision_options,
        )
        if asked.compile_encoder:
            self._backbone.compile_vision()
        self._asked, self._storage = asked, open_storage(uri)
        self._metrics = StageMetrics("encode")

    def __call__(self, table: pa.Table) -> pa.Table:
        rows = rows_from_table(table)
        # A decoder's, if it has one: then nothing of this task is encoded, and the driver ends the run.
        failure: str | None = next((told for told in table["failure"].to_pylist() if told is not None), None)
        if failure is None:
            try:
                rows = [self._encode(row, table, i) for i, row in enumerate(rows)]
            except StorageError as error:
                failure = str(error)
        failures = pa.array([failure] * len(rows), pa.string())
        return rows_to_table(rows).select(TALLIED_COLUMNS).append_column("failure", failures)

    def _encode(self, row: VideoRow, table: pa.Table, i: int) -> VideoRow:
        slot, info_json, tokens = row.slot, None, None
        if row.status == "committed" and struck_out(self._storage, slot, "encode"):
            row = row.quarantined("encode", "WorkerDied", f"{MAX_STRIKES} processes died while they encoded it")
        elif row.status == "committed":
            shape = table["frames_shape"][i].as_py()
            frames = np.frombuffer(table["frames"][i].as_buffer(), np.uint8).reshape(shape)
            row, info_json, tokens = encode_input(
                row,
                frames,
                self._backbone,
                self._asked.feature,
                batch_size=self._asked.encode_batch_size,
                device=self._device,
            )
        self._metrics.count(row, seconds=row.encode_s or 0.0, frames=len(row.kept_frames))
        write_spooled(self._storage, row, self._asked.feature.feature_id, info_json, tokens)
        absolve(self._storage, slot, "encode")
        return row
