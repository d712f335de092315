"""Another shot threshold for what is extracted: frames are chosen again from what the rows say, without decoding.

A video that keeps the same frames keeps its tokens and gets its new shots. The others are undecided again, so that the
extraction that follows decodes them. The result is what a fresh extraction gives, byte for byte.

All of it may be killed at any point. While there may be shards of two thresholds, there is no index, so nobody reads
them, and extraction.json has the new feature id and the outdated ones.
"""

import logging
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pyarrow as pa

from linvt.extraction.assembly import assemble_shard
from linvt.extraction.choice import choose_frames
from linvt.extraction.config import ExtractConfig
from linvt.extraction.existing import existing_extraction
from linvt.extraction.fetch import filesystem_of
from linvt.extraction.identity import Extraction, FeatureSpec, rethresholded
from linvt.extraction.inputs import Listing
from linvt.extraction.plan import Plan, PlannedRows, changed_inputs, with_media
from linvt.extraction.reopening import committed_record, read_members
from linvt.extraction.rows import VideoRow, read_rows, rows_from_table
from linvt.extraction.spool import write_spooled
from linvt.read_ahead import read_ahead
from linvt.shards.commit import CommitRecord, CommittedShard, read_record
from linvt.shards.layout import EXTRACTION, INDEX, record_name
from linvt.shards.sample import SampleInfo
from linvt.shards.storage import Storage, open_storage
from linvt.shots import published_threshold
from linvt.storage_error import explained

logger = logging.getLogger(__name__)

_READERS = 16
# Each holds the tokens of one sample, a few times over.
_WRITERS = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Rechoice:
    """What another threshold means for inputs that are committed or quarantined."""

    num_kept: int
    """Inputs that keep their tokens, or stay quarantined."""
    decoded_again: frozenset[int]
    """Slots: they keep other frames, or their rows are of a version that did not note what a choice needs."""


def forecast(config: ExtractConfig) -> dict[str, int]:
    """What --rethreshold would do to the extraction at `config.out`; nothing is changed.

    Raises ValueError where there is none.
    """
    storage = open_storage(config.out)
    existing = existing_extraction(storage)
    if existing is None:
        raise ValueError(f"--out {config.out} holds no extraction whose threshold could be changed by --rethreshold")
    extraction, plan = existing
    threshold = config.shot_threshold or published_threshold(config.detector)
    spec = replace(extraction.feature, shot_threshold=threshold)
    outdated = rethresholded(extraction, replace(extraction, feature=spec)).outdated_feature_ids

    def is_outdated(shard: int) -> bool:
        record = read_record(storage, shard)
        return record is not None and record.feature_id in outdated

    answers = read_ahead(is_outdated, plan.shards, depth=_READERS, threads=_READERS)
    rechoice = rechoose(storage, [shard for answer, shard in zip(answers, plan.shards) if answer], spec)
    return {"inputs": len(plan), "kept": rechoice.num_kept, "decoded_again": len(rechoice.decoded_again)}


def bring_over(
    storage: Storage,
    plan: Plan,
    inputs: Listing,
    asked: Extraction,
    committed: Mapping[int, CommittedShard],
    check_lock: Callable[[], None] = lambda: None,
) -> dict[int, CommittedShard]:
    """Brings shards of `asked.outdated_feature_ids` over to the threshold of `asked`; returns the committed ones.

    The others are open: what else they hold is spooled, as `reopen_shards` does it. Raises ValueError, before anything
    is changed, if a video that must be decoded again is gone.
    """
    feature_id = asked.feature.feature_id
    brought = {number: shard for number, shard in committed.items() if shard.feature_id == feature_id}
    outdated = [number for number in committed if number not in brought]
    rechoice = rechoose(storage, outdated, asked.feature)
    _require_files(rechoice.decoded_again, plan, inputs)
    logger.info(
        "shot threshold %g: %d inputs keep their frames, %d are decoded again",
        asked.feature.shot_threshold,
        rechoice.num_kept,
        len(rechoice.decoded_again),
    )
    storage.remove(INDEX)
    storage.write(EXTRACTION, asked.to_json())
    bring = partial(_bring_shard_over, storage, plan, asked.feature, rechoice.decoded_again)
    for record in read_ahead(bring, outdated, depth=_WRITERS, threads=_WRITERS):
        check_lock()
        if record is not None:
            brought[record.shard] = CommittedShard.of(record)
    return brought


def rechoose(storage: Storage, shards: Iterable[int], spec: FeatureSpec) -> Rechoice:
    """What the threshold of `spec` means for these committed shards. Reads their rows and changes nothing."""

    def look(shard: int) -> tuple[int, list[int]]:
        rows = rows_from_table(read_rows(storage, shard))
        again = [row.slot for row in rows if _is_decoded_again(row, spec)]
        return len(rows) - len(again), again

    num_kept, decoded_again = 0, set[int]()
    for kept, again in read_ahead(look, shards, depth=_READERS, threads=_READERS):
        num_kept += kept
        decoded_again.update(again)
    return Rechoice(num_kept=num_kept, decoded_again=frozenset(decoded_again))


def _is_decoded_again(row: VideoRow, spec: FeatureSpec) -> bool:
    if not row.num_frames:
        return False  # Quarantined before it had any.
    return row.timestamps_s is None or choose_frames(row, spec).kept_frames != row.kept_frames


def _bring_shard_over(
    storage: Storage, plan: Plan, spec: FeatureSpec, decoded_again: Collection[int], shard: int
) -> CommitRecord | None:
    """The record of the shard as it is committed again; None if some of it is to be decoded again."""
    record = committed_record(storage, shard)
    planned = tuple(plan.shards[shard])
    for row in rows_from_table(read_rows(storage, shard)):
        if row.slot in decoded_again:
            continue
        if row.num_frames:
            row = choose_frames(row, spec)
        info, tokens = read_members(storage, record, row.slot)
        write_spooled(storage, row, spec.feature_id, None if info is None else _with_shots(info, row, spec), tokens)
    storage.remove(record_name(shard))
    if any(one.slot in decoded_again for one in planned):
        return None
    return assemble_shard(storage, planned, plan.hashes[planned[0].generation], spec.feature_id)


def _with_shots(info_json: bytes, row: VideoRow, spec: FeatureSpec) -> bytes:
    """All of a sample's JSON that depends on shots."""
    info = replace(
        SampleInfo.from_json(info_json),
        shots=tuple((start_s, end_s) for start_s, end_s in row.shots_s),
        shot_index=tuple(row.kept_shot_index),
        feature_id=spec.feature_id,
    )
    return info.to_json()


def _require_files(slots: Collection[int], plan: Plan, inputs: Listing) -> None:
    """Raises ValueError if files of these slots are not there: decoding them would lose what was made of them."""
    moved = with_media(plan, {media.video_id: media for _, media in changed_inputs(plan, inputs)})
    wanted = PlannedRows(moved.table.filter(pa.array(np.isin(moved.table["slot"].to_numpy(), list(slots)))))

    def is_there(uri: str) -> bool:
        with explained(uri, "cannot be looked up"):
            filesystem, path = filesystem_of(uri)
            return filesystem.exists(path)

    answers = read_ahead(is_there, wanted.table["uri"].to_pylist(), depth=_READERS, threads=_READERS)
    gone = [video_id for answer, video_id in zip(answers, wanted.table["video_id"].to_pylist()) if not answer]
    if gone:
        names = ", ".join(gone[:5]) + (", …" if len(gone) > 5 else "")
        raise ValueError(
            f"--rethreshold: videos that keep other frames at this threshold must be decoded again, but {len(gone)} "
            f"are gone: {names}. Bring them back, or ask for another threshold; nothing was changed"
        )
