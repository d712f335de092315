"""`index.parquet`: one row a sample, in the order of shards and, within a shard, of the tar."""

import itertools
from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq

from linvt.shards.commit import CommitRecord
from linvt.shards.layout import INDEX, LAYOUT_VERSION
from linvt.shards.storage import Storage

pc: Any = pyarrow.compute  # its functions are made when it is imported, which no type checker sees

_SHARDS_IN_A_ROW_GROUP = 128
_ROWS_AT_ONCE = 50_000

INDEX_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("video_id", pa.string()),
        ("uri", pa.string()),
        ("sha256", pa.string()),
        ("kind", pa.string()),
        ("shard", pa.int32()),
        ("slot", pa.int64()),
        ("num_frames", pa.int32()),
        ("tokens_per_frame", pa.int32()),
        ("hidden_size", pa.int32()),
        ("grid_rows", pa.int32()),
        ("grid_columns", pa.int32()),
        ("duration_s", pa.float64()),
        ("info_offset", pa.int64()),
        ("info_bytes", pa.int64()),
        ("info_sha256", pa.string()),
        ("tokens_offset", pa.int64()),
        ("tokens_bytes", pa.int64()),
        ("tokens_sha256", pa.string()),
    ]
)


def write_index(storage: Storage, records: Iterable[CommitRecord]) -> None:
    """Writes the index of shards that come in their order, a few at a time.

    Raises ValueError, and writes nothing, if the shards disagree about the feature id or repeat a video id.
    """
    records = iter(records)
    first = next(records, None)
    feature_id = "" if first is None else first.feature_id
    schema = INDEX_SCHEMA.with_metadata({"feature_id": feature_id, "layout_version": str(LAYOUT_VERSION)})
    records = itertools.chain([] if first is None else [first], records)
    ids = []
    with storage.open_atomic(INDEX) as file, pq.ParquetWriter(file, schema) as writer:
        while some := list(itertools.islice(records, _SHARDS_IN_A_ROW_GROUP)):
            other = [record.feature_id for record in some if record.feature_id != feature_id]
            if other:
                raise ValueError(f"a cache never mixes feature ids; its shards have {sorted({feature_id, *other})}")
            table = _rows(some).cast(schema)
            ids.append(table["video_id"])
            writer.write_table(table)
        _check_unique(ids)


def _check_unique(ids: list[pa.ChunkedArray]) -> None:
    column = pa.chunked_array([chunk for chunked in ids for chunk in chunked.chunks], pa.string())
    if pc.count_distinct(column).as_py() != len(column):
        counts = pc.value_counts(column)
        repeated = counts.field("values").filter(pc.greater(counts.field("counts"), 1)).to_pylist()
        raise ValueError(f"a video id must be unique in a cache; repeated: {repeated[:3]}")


def _rows(records: Iterable[CommitRecord]) -> pa.Table:
    rows = [
        {
            "key": sample.key,
            "video_id": sample.video_id,
            "uri": sample.uri,
            "sha256": sample.sha256,
            "kind": sample.kind,
            "shard": record.shard,
            "slot": sample.slot,
            "num_frames": sample.shape[0],
            "tokens_per_frame": sample.shape[1],
            "hidden_size": sample.shape[2],
            "grid_rows": sample.grid[0] if sample.grid else None,
            "grid_columns": sample.grid[1] if sample.grid else None,
            "duration_s": sample.duration_s,
            "info_offset": sample.info.offset,
            "info_bytes": sample.info.size_bytes,
            "info_sha256": sample.info.sha256,
            "tokens_offset": sample.tokens.offset,
            "tokens_bytes": sample.tokens.size_bytes,
            "tokens_sha256": sample.tokens.sha256,
        }
        for record in records
        for sample in record.samples
    ]
    return pa.Table.from_pylist(rows, schema=INDEX_SCHEMA)


def read_index(storage: Storage) -> pa.Table:
    """What reading samples takes of an index: it is in the memory of every worker, and may have millions of rows.

    Without uri and sha256; instead of info_sha256 and tokens_sha256, uint64 info_hash and tokens_hash (`hash_start`).
    Raises FileNotFoundError where there is none, ValueError for one of another layout.
    """
    with storage.open(INDEX) as file, pq.ParquetFile(file) as parquet:
        metadata = parquet.schema_arrow.metadata or {}
        version = metadata.get(b"layout_version", b"").decode()
        if version != str(LAYOUT_VERSION):
            raise ValueError(f"{storage.path(INDEX)}: layout version {version!r}, this code reads {LAYOUT_VERSION}")
        names = [name for name in INDEX_SCHEMA.names if name not in ("uri", "sha256")]
        batches = [_with_short_hashes(batch) for batch in parquet.iter_batches(_ROWS_AT_ONCE, columns=names)]
    empty = _with_short_hashes(pa.RecordBatch.from_pylist([], schema=pa.schema(map(INDEX_SCHEMA.field, names))))
    return pa.Table.from_batches([empty, *batches]).replace_schema_metadata(metadata)


def hash_start(sha256: bytes) -> int:
    """The first 64 bits of a sha256: enough to tell damaged or foreign bytes from the right ones."""
    return int.from_bytes(sha256[:8], "big")


def _with_short_hashes(batch: pa.RecordBatch) -> pa.RecordBatch:
    columns = {
        name.replace("_sha256", "_hash"): _short(batch[name]) if name.endswith("_sha256") else batch[name]
        for name in batch.schema.names
    }
    return pa.record_batch(columns)


def _short(hex_digests: pa.Array) -> pa.Array:
    start = "".join(pc.utf8_slice_codeunits(hex_digests, 0, 16).to_pylist())
    return pa.array(np.frombuffer(bytes.fromhex(start), ">u8").astype(np.uint64))
