"""Taking a committed shard apart, so that some of its inputs are extracted again and the others are not."""

import hashlib
from collections.abc import Collection, Iterable

from linvt.extraction.plan import Plan
from linvt.extraction.rows import read_rows, rows_from_table
from linvt.extraction.spool import write_spooled
from linvt.shards.commit import CommitRecord, Member, ShardError, read_record
from linvt.shards.layout import INDEX, record_name, tar_name
from linvt.shards.storage import Storage


def reopen_shards(storage: Storage, plan: Plan, committed: Collection[int], slots: Iterable[int]) -> set[int]:
    """Makes the inputs of these slots undecided again; returns the shards that lost their commit record by it.

    What else the shards hold goes back to the spool as it is, so that assembling them again gives the same bytes. May
    be killed at any point: a shard is either committed as before, or its spool is complete.
    """
    wanted = set(slots)
    reopened = {slot // plan.samples_per_shard for slot in wanted}.intersection(committed)
    if reopened:
        # It tells where samples lie in tars that are about to change.
        storage.remove(INDEX)
    for shard in sorted(reopened):
        record = committed_record(storage, shard)
        for row in rows_from_table(read_rows(storage, shard)):
            if row.slot not in wanted:
                write_spooled(storage, row, record.feature_id, *read_members(storage, record, row.slot))
        storage.remove(record_name(shard))
    return reopened


def read_members(storage: Storage, record: CommitRecord, slot: int) -> tuple[bytes | None, bytes | None]:
    """(info JSON, tokens safetensors) of a committed sample; of a quarantined input there are none.

    Raises ShardError if the tar was altered: nothing must give altered bytes a new and valid record.
    """
    sample = next((sample for sample in record.samples if sample.slot == slot), None)
    if sample is None:
        return None, None
    info, tokens = (_member(storage, record.shard, member) for member in (sample.info, sample.tokens))
    return info, tokens


def committed_record(storage: Storage, shard: int) -> CommitRecord:
    """Of a shard that is known to be committed."""
    record = read_record(storage, shard)
    if record is None:
        raise RuntimeError(f"{storage.path(record_name(shard))} vanished during the run; was the folder changed?")
    return record


def _member(storage: Storage, shard: int, member: Member) -> bytes:
    data = storage.read(tar_name(shard), member.offset, member.offset + member.size_bytes)
    if hashlib.sha256(data).hexdigest() != member.sha256:
        raise ShardError(
            f"{storage.uri_of(tar_name(shard))}: its bytes differ from a sha256 in its commit record; remove it, then "
            "run the extraction again with --on-existing resume to rebuild the shard"
        )
    return data
