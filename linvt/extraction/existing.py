"""What earlier runs left at OUT: going on with it, removing it, and closing an extraction that is complete."""

import io
import logging
from collections.abc import Mapping, Sequence

import pyarrow.parquet as pq

from linvt.extraction.fetch import content_sha256
from linvt.extraction.identity import Extraction, read_extraction
from linvt.extraction.inputs import MediaFile
from linvt.extraction.plan import Plan, changed_inputs, read_plan, with_media
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
) -> Plan:
    """The plan with what it knows of files that were moved or touched brought up to date.

    Raises ValueError naming the files whose content is no longer what was committed. Spooled samples of changed files
    are dropped. A quarantined file that changed stays quarantined, with a warning.
    """
    sha256_of_id = {sample.video_id: sample.sha256 for record in records.values() for sample in record.samples}
    fresh: dict[str, MediaFile] = {}
    replaced: list[str] = []
    still_quarantined: list[str] = []
    for planned, media in changed_inputs(plan, inputs):
        if planned.shard not in records:
            remove_spooled(storage, [planned.slot])
            fresh[media.video_id] = media
        elif media.video_id not in sha256_of_id:
            still_quarantined.append(media.video_id)
        elif media.size_bytes is None:
            continue  # A listed file that is gone: what was made from it stays.
        elif content_sha256(media.uri) == sha256_of_id[media.video_id]:
            fresh[media.video_id] = media
        else:
            replaced.append(media.video_id)
    if replaced:
        raise ValueError(
            f"{len(replaced)} files are not those that {storage.uri} was made from: {_some(replaced)}. Give new "
            "content a new name, restore the old, or extract everything again with --on-existing overwrite"
        )
    if still_quarantined:
        logger.warning(
            "%d quarantined inputs changed since and stay quarantined: %s. Give them new names to have them extracted",
            len(still_quarantined),
            _some(still_quarantined),
        )
    return with_media(plan, fresh)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", …" if len(names) > 5 else "")


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
