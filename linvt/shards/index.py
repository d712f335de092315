"""`index.parquet`: one row a sample, in the order of shards and, within a shard, of the tar."""

import io
from collections import Counter
from collections.abc import Iterable

import pyarrow as pa
import pyarrow.parquet as pq

from linvt.shards.commit import CommitRecord
from linvt.shards.layout import INDEX, LAYOUT_VERSION
from linvt.shards.storage import Storage

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


def index_table(records: Iterable[CommitRecord]) -> pa.Table:
    """The index of a cache. Raises ValueError if its shards disagree about the feature id or repeat an id or a key."""
    records = sorted(records, key=lambda record: record.shard)
    feature_ids = {record.feature_id for record in records}
    if len(feature_ids) > 1:
        raise ValueError(f"a cache never mixes feature ids; its shards have {sorted(feature_ids)}")
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
    for column in ("key", "video_id"):
        repeated = [value for value, count in Counter(row[column] for row in rows).items() if count > 1]
        if repeated:
            raise ValueError(f"{column} must be unique in a cache; repeated: {repeated[:3]}")
    metadata = {"feature_id": "".join(feature_ids), "layout_version": str(LAYOUT_VERSION)}
    return pa.Table.from_pylist(rows, schema=INDEX_SCHEMA.with_metadata(metadata))


def write_index(storage: Storage, records: Iterable[CommitRecord]) -> None:
    with storage.open_atomic(INDEX) as file:
        pq.write_table(index_table(records), file)


def read_index(storage: Storage) -> pa.Table:
    """Raises FileNotFoundError where there is none, ValueError for one of another layout."""
    table = pq.read_table(io.BytesIO(storage.read(INDEX)))
    version = (table.schema.metadata or {}).get(b"layout_version", b"").decode()
    if version != str(LAYOUT_VERSION):
        raise ValueError(f"{storage.path(INDEX)}: layout version {version!r}, this code reads {LAYOUT_VERSION}")
    return table
