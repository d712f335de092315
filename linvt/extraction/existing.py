"""What earlier runs left at OUT: going on with it, removing it, and closing an extraction that is complete."""

import logging
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial

import pyarrow as pa

from linvt.extraction.fetch import content_sha256, names_no_file
from linvt.extraction.identity import Extraction, read_extraction
from linvt.extraction.inputs import Listing, MediaFile
from linvt.extraction.plan import Plan, PlannedInput, changed_inputs, read_plan, with_media
from linvt.extraction.reopening import committed_record, reopen_shards
from linvt.extraction.report import write_report
from linvt.extraction.rows import read_rows, rows_writer
from linvt.extraction.spool import remove_spooled
from linvt.extraction.strikes import clear_strikes
from linvt.read_ahead import read_ahead
from linvt.shards.commit import CommitRecord, CommittedShard, ShardError, read_record, verify_shard
from linvt.shards.index import write_index
from linvt.shards.layout import (
    EXTRACTION,
    INDEX,
    PLAN,
    REPORT,
    ROWS_FOLDER,
    SHARDS_FOLDER,
    SPOOL_FOLDER,
    STRIKES_FOLDER,
    VIDEOS,
    record_name,
)
from linvt.shards.storage import TEMPORARY_SUFFIX, Storage

logger = logging.getLogger(__name__)

# Records and rows are small files, and on an object store each is a round trip.
_READERS = 16
_SHARDS_IN_A_ROW_GROUP = 128
_ROW_GROUP_BYTES = 64 << 20


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
        return extraction, Plan(samples_per_shard=extraction.samples_per_shard)


def remove_extraction(storage: Storage) -> None:
    """Removes what extractions write at OUT and nothing else; extraction.json last, so a kill leaves no orphans."""
    for name in (INDEX, REPORT, VIDEOS):
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


def committed_shards(
    storage: Storage, plan: Plan, feature_id: str, *, contents: bool, outdated: Collection[str] = ()
) -> dict[int, CommittedShard]:
    """The shards that exist and verify, by their numbers, also those of the `outdated` feature ids.

    A shard that does not verify (see `verify_shard`) loses its record and is thereby extracted again.
    """

    def look(shard: int) -> CommittedShard | None:
        try:
            record = read_record(storage, shard)
            if record is not None:
                verify_shard(storage, record, contents=contents)
        except ShardError as error:
            logger.warning("%s; doing so now", error)
            storage.remove(record_name(shard))
            return None
        if record is None:
            return None
        planned_hash = plan.hashes[plan.shards[shard][0].generation]
        if record.feature_id not in (feature_id, *outdated) or record.plan_hash != planned_hash:
            raise ValueError(
                f"{storage.path(record_name(shard))}: committed for feature id {record.feature_id} and plan "
                f"{record.plan_hash[:8]}…, but the folder's are {feature_id} and {planned_hash[:8]}…: it mixes two "
                "extractions; replace it with --on-existing overwrite"
            )
        return CommittedShard.of(record)

    found = read_ahead(look, plan.shards, depth=4 * _READERS, threads=_READERS)
    return {shard.shard: shard for shard in found if shard is not None}


def refresh_media(
    storage: Storage, plan: Plan, inputs: Listing, shards: Mapping[int, CommittedShard]
) -> tuple[Plan, set[int]]:
    """The plan with what it knows of moved, touched and replaced files brought up to date, and the reopened shards.

    A file whose content is no longer what was committed, or that was quarantined and has changed, is undecided again,
    and its shard with it (`reopen_shards`); spooled samples of changed files are dropped. The plan must be written
    after this: until then, a run that was killed finds the same changes again.
    """
    changed = changed_inputs(plan, inputs)
    sha256_of_slot = {
        sample.slot: sample.sha256
        for shard in sorted({planned.shard for planned, _ in changed} & shards.keys())
        for sample in committed_record(storage, shard).samples
    }
    fresh: dict[str, MediaFile] = {}
    replaced: list[PlannedInput] = []
    for planned, media in changed:
        if planned.shard not in shards:
            remove_spooled(storage, [planned.slot])
        elif media.size_bytes is None:
            continue  # A listed file that is gone: what was made from it stays.
        elif planned.slot in sha256_of_slot:
            sha256 = _sha256(media)
            if sha256 is None:
                continue  # What lies there now is no readable file: as good as gone.
            if sha256 != sha256_of_slot[planned.slot]:
                replaced.append(planned)
        elif replace(media, uri=planned.media.uri) != planned.media:  # Quarantined, and not just moved.
            replaced.append(planned)
        fresh[media.video_id] = media
    if replaced:
        names = ", ".join(planned.media.video_id for planned in replaced[:5]) + (", …" if len(replaced) > 5 else "")
        logger.info("%d files were replaced and are extracted again: %s", len(replaced), names)
    reopened = reopen_shards(storage, plan, shards.keys(), (planned.slot for planned in replaced))
    return with_media(plan, fresh), reopened


def _sha256(media: MediaFile) -> str | None:
    """Of the content, or None where there is no readable file."""
    try:
        return content_sha256(media.uri)
    except OSError as error:
        if not names_no_file(error):
            raise
        return None


def finish_extraction(storage: Storage, plan: Plan, shards: Mapping[int, CommittedShard]) -> None:
    """Writes videos.parquet, report.html and index.parquet of a complete extraction.

    Raises RuntimeError unless every planned input is exactly one sample or one tombstone.
    """
    undecided = plan.shards.keys() - shards.keys()
    if undecided:
        raise RuntimeError(
            f"{storage.uri}: {len(undecided)} of {len(plan.shards)} planned shards are not committed, the first is "
            f"{min(undecided)}. Run again with --on-existing resume"
        )
    with rows_writer(storage, VIDEOS) as writer:
        tables = read_ahead(partial(read_rows, storage), sorted(plan.shards), depth=_READERS, threads=_READERS)
        for group in _row_groups(tables):
            writer.write_table(group)
    write_report(storage, num_shards=len(shards), shard_bytes=sum(one.tar_size_bytes for one in shards.values()))
    # Last: whoever can open the index finds everything else.
    records = read_ahead(partial(_reconciled, storage, plan), sorted(plan.shards), depth=4 * _READERS, threads=_READERS)
    write_index(storage, records)


def _row_groups(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Neighbouring tables joined: few groups for many short videos, and no large ones for long videos."""
    group: list[pa.Table] = []
    for table in tables:
        group.append(table)
        if len(group) == _SHARDS_IN_A_ROW_GROUP or sum(one.nbytes for one in group) > _ROW_GROUP_BYTES:
            yield pa.concat_tables(group)
            group = []
    if group:
        yield pa.concat_tables(group)


def _reconciled(storage: Storage, plan: Plan, shard: int) -> CommitRecord:
    """The record of a shard. Raises RuntimeError unless each of its inputs is exactly one sample or one tombstone."""
    record = committed_record(storage, shard)
    decided = sorted((one.slot, one.video_id) for one in (*record.samples, *record.tombstones))
    planned = [(one.slot, one.media.video_id) for one in plan.shards[shard]]
    if decided != planned:
        missing, extra = sorted(set(planned) - set(decided)), sorted(set(decided) - set(planned))
        raise RuntimeError(
            f"{storage.path(record_name(shard))}: {len(planned)} inputs were planned and {len(decided)} decided; "
            f"undecided: {missing[:5]}, not planned: {extra[:5]}. Remove it and run again with --on-existing resume"
        )
    return record
