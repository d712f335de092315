"""`spool/`: finished samples, one Arrow file each, until their whole shard is decided.

One file is one atomic write; the assembler maps it and copies the tokens out without parsing them.
"""

from collections.abc import Iterable
from contextlib import contextmanager
from typing import Any

import pyarrow as pa

from linvt.extraction.rows import VIDEOS_SCHEMA, VideoRow, rows_from_table, rows_to_table
from linvt.shards.layout import SPOOL_FOLDER, SPOOL_SUFFIX, spool_name
from linvt.shards.storage import Storage

_PAYLOAD = (pa.field("info_json", pa.large_binary()), pa.field("tokens_safetensors", pa.large_binary()))
_SCHEMA = pa.schema([*VIDEOS_SCHEMA, *_PAYLOAD])
_FEATURE_ID = b"feature_id"


def write_spooled(
    storage: Storage, row: VideoRow, feature_id: str, info_json: bytes | None, tokens_safetensors: bytes | None
) -> None:
    """Spools one decided input; a quarantined one has no payload."""
    table = rows_to_table([row])
    for payload_field, payload in zip(_PAYLOAD, (info_json, tokens_safetensors)):
        table = table.append_column(payload_field, pa.array([payload], payload_field.type))
    table = table.replace_schema_metadata({_FEATURE_ID: feature_id})
    with storage.open_atomic(spool_name(row.slot)) as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)


def read_spooled_row(storage: Storage, slot: int) -> VideoRow:
    with _opened(storage, slot, VIDEOS_SCHEMA.names) as reader:
        return rows_from_table(reader.read_all())[0]


def read_spooled_payload(storage: Storage, slot: int) -> tuple[memoryview, memoryview]:
    """(info JSON, tokens safetensors) of a spooled sample."""
    with _opened(storage, slot, [payload_field.name for payload_field in _PAYLOAD]) as reader:
        batch = reader.get_batch(0)
    info_json, tokens = (memoryview(batch.column(field.name)[0].as_buffer()) for field in _PAYLOAD)
    return info_json, tokens


def spooled_slots(storage: Storage, feature_id: str) -> set[int]:
    """The slots whose spooled samples are whole and of this feature id; others are removed."""
    slots = {int(name.split(".")[0]) for name in storage.names(SPOOL_FOLDER) if name.endswith(SPOOL_SUFFIX)}
    unusable = {slot for slot in slots if not _is_usable(storage, slot, feature_id)}
    remove_spooled(storage, unusable)
    return slots - unusable


def quarantined_spool(storage: Storage, feature_id: str) -> set[int]:
    """The spooled slots whose input was quarantined."""
    slots = spooled_slots(storage, feature_id)
    return {slot for slot in slots if read_spooled_row(storage, slot).status == "quarantined"}


def remove_spooled(storage: Storage, slots: Iterable[int]) -> None:
    for slot in slots:
        storage.remove(spool_name(slot))


def _is_usable(storage: Storage, slot: int, feature_id: str) -> bool:
    try:
        with _opened(storage, slot, VIDEOS_SCHEMA.names) as reader:
            found = (reader.schema.metadata or {}).get(_FEATURE_ID)
            # An earlier version's rows had fewer columns, so that their places now hold others.
            same_columns = reader.schema.names == VIDEOS_SCHEMA.names
            return found == feature_id.encode() and same_columns and reader.num_record_batches == 1
    except pa.ArrowInvalid:
        return False


@contextmanager
def _opened(storage: Storage, slot: int, columns: list[str]) -> Any:
    options = pa.ipc.IpcReadOptions(included_fields=[_SCHEMA.get_field_index(name) for name in columns])
    if storage.is_local:
        source = pa.memory_map(storage.path(spool_name(slot)))
    else:
        # One request. To seek in the object would take five.
        source = pa.BufferReader(storage.read(spool_name(slot)))
    with source, pa.ipc.open_file(source, options=options) as reader:
        yield reader
