"""What earlier runs left at OUT: going on with it, removing it, and closing an extraction that is complete."""

import io
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace

import pyarrow.parquet as pq

from linvt.extraction.fetch import content_sha256
from linvt.extraction.identity import Extraction, read_extraction
from linvt.extraction.inputs import MediaFile
from linvt.extraction.plan import Plan, PlannedInput, changed_inputs, read_plan, with_media
from linvt.extraction.reopening import reopen_shards
from linvt.extraction.rows import VIDEOS_SCHEMA
from linvt.extraction.spool import remove_spooled
from linvt.extraction.strikes import clear_strikes
from linvt.shards.commit import CommitRecord, ShardError, read_record, verify_shard
from linvt.shards.index import write_index
from linvt.shards.layout import (
    EXTRACTION,
    INDEX,
    PLAN,
    ROWS_FOLDER,
    SHARDS_FOLDER,
    SPOOL_FOLDER,
    STRIKES_FOLDER,
    VIDEOS,
    record_name,
    rows_name,
)
from linvt.shards.storage import TEMPORARY_SUFFIX, Storage

logger = logging.getLogger(__name__)


def existing_extraction(storage: Storage) -> tuple[Extraction, Plan] | None:
    """The settings and the plan at OUT, or None where nothing has been extracted yet."""
    try:
        extraction = read_extraction(storage)
    except FileNotFoundError:
        return None
    try:
        return extraction, read_plan(storage)
    except FileNotFoundError:
        # Killed before the plan was written: nothing can have been extracted.
        return extraction, Plan(samples_per_shard=extraction.samples_per_shard, rows=())


def remove_extraction(storage: Storage) -> None:
    """Removes what extractions write at OUT and nothing else; extraction.json last, so a kill leaves no orphans."""
    for name in (INDEX, VIDEOS):
        storage.remove(name)
    for folder in (SHARDS_FOLDER, ROWS_FOLDER, SPOOL_FOLDER, STRIKES_FOLDER):
        for name in storage.names(folder):
            storage.remove(f"{folder}/{name}")
    storage.remove(PLAN)
    storage.remove(EXTRACTION)


def clear_leftovers(storage: Storage) -> None:
    """Removes what a killed run left half-written, and its strikes: they say nothing about this run's workers."""
    clear_strikes(storage)
    for folder in (SHARDS_FOLDER, ROWS_FOLDER, SPOOL_FOLDER):
        for name in storage.names(folder):
            if name.endswith(TEMPORARY_SUFFIX):
                storage.remove(f"{folder}/{name}")


def committed_records(storage: Storage, plan: Plan, feature_id: str, *, contents: bool) -> dict[int, CommitRecord]:
    """The commit records, by shard, of the shards that exist and verify.

    A shard that does not verify (see `verify_shard`) loses its record and is thereby extracted again.
    """
    hashes = plan.hashes()
    records: dict[int, CommitRecord] = {}
    for shard, rows in plan.shards().items():
        try:
            record = read_record(storage, shard)
            if record is not None:
                verify_shard(storage, record, contents=contents)
        except ShardError as error:
            logger.warning("%s; doing so now", error)
            storage.remove(record_name(shard))
            continue
        if record is None:
            continue
        if record.feature_id != feature_id or record.plan_hash != hashes[rows[0].generation]:
            raise ValueError(
                f"{storage.path(record_name(shard))}: committed for feature id {record.feature_id} and plan "
                f"{record.plan_hash[:8]}…, but the folder's are {feature_id} and {hashes[rows[0].generation][:8]}…: it "
                "mixes two extractions; replace it with --on-existing overwrite"
            )
        records[shard] = record
    return records


def refresh_media(
    storage: Storage, plan: Plan, inputs: Sequence[MediaFile], records: Mapping[int, CommitRecord]
) -> tuple[Plan, set[int]]:
    """The plan with what it knows of moved, touched and replaced files brought up to date, and the reopened shards.

    A file whose content is no longer what was committed, or that was quarantined and has changed, is undecided again,
    and its shard with it (`reopen_shards`); spooled samples of changed files are dropped. The plan must be written
    after this: until then, a run that was killed finds the same changes again.
    """
    sha256_of_slot = {sample.slot: sample.sha256 for record in records.values() for sample in record.samples}
    fresh: dict[str, MediaFile] = {}
    replaced: list[PlannedInput] = []
    for planned, media in changed_inputs(plan, inputs):
        if planned.shard not in records:
            remove_spooled(storage, [planned.slot])
        elif media.size_bytes is None:
            continue  # A listed file that is gone: what was made from it stays.
        elif planned.slot in sha256_of_slot:
            if content_sha256(media.uri) != sha256_of_slot[planned.slot]:
                replaced.append(planned)
        elif replace(media, uri=planned.media.uri) != planned.media:  # Quarantined, and not just moved.
            replaced.append(planned)
        fresh[media.video_id] = media
    if replaced:
        names = ", ".join(planned.media.video_id for planned in replaced[:5]) + (", …" if len(replaced) > 5 else "")
        logger.info("%d files were replaced and are extracted again: %s", len(replaced), names)
    reopened = reopen_shards(storage, records, (planned.slot for planned in replaced))
    return with_media(plan, fresh), reopened


def finish_extraction(storage: Storage, plan: Plan, records: Mapping[int, CommitRecord]) -> None:
    """Writes index.parquet and videos.parquet of a complete extraction.

    Raises RuntimeError unless every planned input is exactly one sample or one tombstone.
    """
    decided = [
        (one.slot, one.video_id)
        for record in records.values()
        for decisions in (record.samples, record.tombstones)
        for one in decisions
    ]
    planned = [(one.slot, one.media.video_id) for one in plan.rows]
    if sorted(decided) != planned:
        missing = sorted(set(planned) - set(decided))
        extra = sorted(set(decided) - set(planned))
        raise RuntimeError(
            f"{storage.uri}: {len(planned)} inputs were planned and {len(decided)} decided; undecided: {missing[:5]}, "
            f"not planned: {extra[:5]}. Run again with --on-existing resume"
        )
    with storage.open_atomic(VIDEOS) as file, pq.ParquetWriter(file, VIDEOS_SCHEMA) as writer:
        for shard in sorted(records):
            writer.write_table(pq.read_table(io.BytesIO(storage.read(rows_name(shard))), schema=VIDEOS_SCHEMA))
    # Last: whoever can open the index finds everything else.
    write_index(storage, records.values())
