"""One row an input: what videos.parquet tells of it, and what travels between the stages beside its frames."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from linvt.extraction.plan import PlannedInput
from linvt.shards.layout import rows_name
from linvt.shards.storage import Storage

Status = Literal["committed", "quarantined"]

STAGE_SECONDS = {"fetch": "fetch_s", "decode": "decode_s", "shots": "shots_detection_s", "encode": "encode_s"}
"""The stages of the work on an input, and the columns with their seconds: all that differs from run to run."""

VIDEOS_SCHEMA = pa.schema(
    [
        ("slot", pa.int64()),
        ("shard", pa.int32()),
        ("video_id", pa.string()),
        ("uri", pa.string()),
        ("status", pa.string()),
        ("stage", pa.string()),
        ("error_class", pa.string()),
        ("message", pa.string()),
        ("key", pa.string()),
        ("sha256", pa.string()),
        ("size_bytes", pa.int64()),
        ("kind", pa.string()),
        ("container", pa.string()),
        ("codec", pa.string()),
        ("pixel_format", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("rotation_deg", pa.int32()),
        ("num_frames", pa.int64()),
        ("duration_s", pa.float64()),
        ("average_fps", pa.float64()),
        ("start_s", pa.float64()),
        ("num_bad_packets", pa.int32()),
        ("boundary_probabilities", pa.list_(pa.float32())),
        ("timestamps_s", pa.list_(pa.float64())),
        ("candidate_frames", pa.list_(pa.int64())),
        ("shots", pa.list_(pa.list_(pa.int64()))),
        ("shots_s", pa.list_(pa.list_(pa.float64()))),
        ("kept_frames", pa.list_(pa.int64())),
        ("kept_timestamps_s", pa.list_(pa.float64())),
        ("kept_shot_index", pa.list_(pa.int64())),
        ("tokens_per_frame", pa.int32()),
        ("hidden_size", pa.int32()),
        ("grid", pa.list_(pa.int32())),
        ("device", pa.string()),
        ("fetch_s", pa.float64()),
        ("decode_s", pa.float64()),
        ("shots_detection_s", pa.float64()),
        ("encode_s", pa.float64()),
        ("thumbnails", pa.binary()),
    ]
)

_REPETITIVE = ["status", "stage", "error_class", "kind", "container", "codec", "pixel_format", "device"]


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoRow:
    """See `VIDEOS_SCHEMA`. Fields of stages that an input has not passed are None (or empty)."""

    slot: int
    shard: int
    video_id: str
    uri: str
    status: Status = "committed"
    stage: str | None = None
    """Where a quarantined input failed: "fetch", "open", "decode" or "encode"."""
    error_class: str | None = None
    message: str | None = None
    key: str | None = None
    sha256: str | None = None
    """Of the file's bytes; None if it could not be read."""
    size_bytes: int | None = None
    kind: Literal["video", "image"] | None = None
    """By its content, whatever its name says."""
    container: str | None = None
    codec: str | None = None
    pixel_format: str | None = None
    width: int | None = None
    """In pixels as displayed: after rotation and sample aspect ratio."""
    height: int | None = None
    rotation_deg: int | None = None
    num_frames: int | None = None
    """Decoded frames."""
    duration_s: float | None = None
    average_fps: float | None = None
    start_s: float | None = None
    """The file's own time at our time 0."""
    num_bad_packets: int | None = None
    """Packets that the decoder refused: frames are missing."""
    boundary_probabilities: Any = field(default_factory=list)
    """One per decoded frame, as the detector gave it; with the two below, all that a choice of frames depends on."""
    timestamps_s: Any = field(default_factory=list)
    """One per decoded frame. None in rows of an earlier version, as are the candidates."""
    candidate_frames: Any = field(default_factory=list)
    """The frame numbers among which the kept ones are chosen."""
    shots: list[list[int]] = field(default_factory=list)
    """[start, end) in frames."""
    shots_s: list[list[float]] = field(default_factory=list)
    """[start, end) in seconds."""
    kept_frames: list[int] = field(default_factory=list)
    """T frame numbers, those that were encoded."""
    kept_timestamps_s: list[float] = field(default_factory=list)
    kept_shot_index: list[int] = field(default_factory=list)
    tokens_per_frame: int | None = None
    hidden_size: int | None = None
    grid: list[int] | None = None
    device: str | None = None
    """The kind of device that encoded it."""
    fetch_s: float | None = None
    """Seconds to read (and, from remote storage, copy) the file and hash it."""
    decode_s: float | None = None
    shots_detection_s: float | None = None
    encode_s: float | None = None
    thumbnails: bytes | None = None
    """A JPEG of some kept frames side by side, at the few inputs that `linvt.extraction.thumbnails` chooses."""

    @classmethod
    def of(cls, planned: PlannedInput) -> "VideoRow":
        media = planned.media
        return cls(slot=planned.slot, shard=planned.shard, video_id=media.video_id, uri=media.uri)

    def quarantined(self, stage: str, error_class: str, message: str) -> "VideoRow":
        return replace(self, status="quarantined", stage=stage, error_class=error_class, message=message, key=None)


def rows_to_table(rows: Iterable[VideoRow]) -> pa.Table:
    return pa.Table.from_pylist([asdict(row) for row in rows], schema=VIDEOS_SCHEMA)


@contextmanager
def rows_writer(storage: Storage, name: str) -> Iterator[pq.ParquetWriter]:
    """A writer of a parquet file with `VIDEOS_SCHEMA`."""
    # The times of a video's frames are nearly evenly spaced: split by bytes they take a thirtieth of the room.
    split = {"timestamps_s.list.element": "BYTE_STREAM_SPLIT"}
    with (
        storage.open_atomic(name) as file,
        pq.ParquetWriter(
            file,
            VIDEOS_SCHEMA,
            compression="zstd",
            use_dictionary=_REPETITIVE,  # pyright: ignore[reportArgumentType]
            column_encoding=split,
        ) as writer,
    ):
        yield writer


def read_rows(storage: Storage, shard: int) -> pa.Table:
    """The rows of a shard, also those of an earlier version with fewer columns."""
    # Not by read_table: its threads may still hold the buffer when the interpreter ends, and abort the process.
    file = pq.ParquetFile(pa.BufferReader(storage.read(rows_name(shard))))
    tables = [VIDEOS_SCHEMA.empty_table(), file.read(use_threads=False)]
    return pa.concat_tables(tables, promote_options="default").select(VIDEOS_SCHEMA.names)


def rows_from_table(table: pa.Table) -> list[VideoRow]:
    """Columns that `VIDEOS_SCHEMA` does not have are ignored."""
    return [VideoRow(**row) for row in table.select(VIDEOS_SCHEMA.names).to_pylist()]
