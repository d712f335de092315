"""Taking a committed shard apart, so that some of its inputs are extracted again and the others are not."""

import io
from collections.abc import Iterable, Mapping

import pyarrow.parquet as pq

from linvt.extraction.rows import rows_from_table
from linvt.extraction.spool import write_spooled
from linvt.shards.commit import CommitRecord, Member
from linvt.shards.layout import INDEX, record_name, rows_name, tar_name
from linvt.shards.storage import Storage


def reopen_shards(storage: Storage, records: Mapping[int, CommitRecord], slots: Iterable[int]) -> set[int]:
    """Makes the inputs of these slots undecided again; returns the shards that lost their commit record by it.

    What else the shards hold goes back to the spool as it is, so that assembling them again gives the same bytes. May
    be killed at any point: a shard is either committed as before, or its spool is complete.
    """
    wanted = set(slots)
    reopened = {shard for shard, record in records.items() if wanted.intersection(_slots(record))}
    if reopened:
        # It tells where samples lie in tars that are about to change.
        storage.remove(INDEX)
    for shard in sorted(reopened):
        record = records[shard]
        samples = {sample.slot: sample for sample in record.samples}
        for row in rows_from_table(pq.read_table(io.BytesIO(storage.read(rows_name(shard))))):
            if row.slot in wanted:
                continue
            sample = samples.get(row.slot)
            info = None if sample is None else _member(storage, shard, sample.info)
            tokens = None if sample is None else _member(storage, shard, sample.tokens)
            write_spooled(storage, row, record.feature_id, info, tokens)
        storage.remove(record_name(shard))
    return reopened


def quarantined_slots(records: Mapping[int, CommitRecord]) -> set[int]:
    return {tombstone.slot for record in records.values() for tombstone in record.tombstones}


def _slots(record: CommitRecord) -> set[int]:
    return {decided.slot for decisions in (record.samples, record.tombstones) for decided in decisions}


def _member(storage: Storage, shard: int, member: Member) -> bytes:
    return storage.read(tar_name(shard), member.offset, member.offset + member.size_bytes)
