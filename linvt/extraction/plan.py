"""Which input goes into which slot of which shard, decided before any decoding so that nothing later can change it.

Inputs sorted by video id fill shards of N slots. Inputs that come later open new shards, as a new generation, and no
input that was planned ever moves:

    generation 0:  shard 0 [a b c]  shard 1 [d e]     generation 1:  shard 2 [aa f]
"""

import hashlib
import io
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace

import pyarrow as pa
import pyarrow.parquet as pq

from linvt.extraction.inputs import MediaFile
from linvt.shards.layout import PLAN
from linvt.shards.storage import Storage

_SCHEMA = pa.schema(
    [
        ("slot", pa.int64()),
        ("shard", pa.int32()),
        ("generation", pa.int32()),
        ("video_id", pa.string()),
        ("uri", pa.string()),
        ("size_bytes", pa.int64()),
        ("modified", pa.string()),
    ]
)


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedInput:
    slot: int
    """shard · samples_per_shard + position in the shard."""
    shard: int
    generation: int
    media: MediaFile


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    samples_per_shard: int
    rows: tuple[PlannedInput, ...]
    """In the order of their slots."""

    @property
    def num_generations(self) -> int:
        return self.rows[-1].generation + 1 if self.rows else 0

    def shards(self) -> dict[int, tuple[PlannedInput, ...]]:
        rows_of_shard: dict[int, list[PlannedInput]] = {}
        for row in self.rows:
            rows_of_shard.setdefault(row.shard, []).append(row)
        return {shard: tuple(rows) for shard, rows in rows_of_shard.items()}

    def hashes(self) -> tuple[str, ...]:
        """Per generation, the sha256 over samples_per_shard and every (slot, video id) up to and including it."""
        digest = hashlib.sha256(f"{self.samples_per_shard}\n".encode())
        hashes: list[str] = []
        generation = 0
        for row in self.rows:
            if row.generation != generation:
                hashes.append(digest.hexdigest())
                generation = row.generation
            digest.update((json.dumps([row.slot, row.media.video_id]) + "\n").encode())
        return (*hashes, digest.hexdigest())


def grow_plan(plan: Plan, inputs: Iterable[MediaFile]) -> Plan:
    """The plan with the inputs that it does not know yet appended as one more generation; itself if there are none."""
    known = {row.media.video_id for row in plan.rows}
    new = sorted((media for media in inputs if media.video_id not in known), key=lambda media: media.video_id)
    first_shard = plan.rows[-1].shard + 1 if plan.rows else 0
    first_slot = first_shard * plan.samples_per_shard
    appended = tuple(
        PlannedInput(
            slot=first_slot + i,
            shard=first_shard + i // plan.samples_per_shard,
            generation=plan.num_generations,
            media=media,
        )
        for i, media in enumerate(new)
    )
    return replace(plan, rows=plan.rows + appended)


def make_plan(inputs: Iterable[MediaFile], samples_per_shard: int) -> Plan:
    return grow_plan(Plan(samples_per_shard=samples_per_shard, rows=()), inputs)


def changed_inputs(plan: Plan, inputs: Iterable[MediaFile]) -> list[tuple[PlannedInput, MediaFile]]:
    """Planned inputs that the listing now finds elsewhere, or with another size or modification time."""
    listed = {media.video_id: media for media in inputs}
    pairs = [(row, listed[row.media.video_id]) for row in plan.rows if row.media.video_id in listed]
    return [(row, media) for row, media in pairs if row.media != media]


def with_media(plan: Plan, media_of_id: Mapping[str, MediaFile]) -> Plan:
    """The plan with what it remembers about some files brought up to date; their slots stay."""
    rows = tuple(replace(row, media=media_of_id.get(row.media.video_id, row.media)) for row in plan.rows)
    return replace(plan, rows=rows)


def planned_to_table(planned: Iterable[PlannedInput]) -> pa.Table:
    rows = [asdict(one) for one in planned]
    return pa.Table.from_pylist([row | row.pop("media") for row in rows], schema=_SCHEMA)


def planned_from_table(table: pa.Table) -> list[PlannedInput]:
    return [
        PlannedInput(
            slot=row.pop("slot"), shard=row.pop("shard"), generation=row.pop("generation"), media=MediaFile(**row)
        )
        for row in table.to_pylist()
    ]


def write_plan(storage: Storage, plan: Plan) -> None:
    metadata = {"samples_per_shard": str(plan.samples_per_shard), "plan_hash": plan.hashes()[-1]}
    with storage.open_atomic(PLAN) as file:
        pq.write_table(planned_to_table(plan.rows).replace_schema_metadata(metadata), file)


def read_plan(storage: Storage) -> Plan:
    """Raises FileNotFoundError where there is no plan, ValueError for one that does not match its own hash."""
    table = pq.read_table(io.BytesIO(storage.read(PLAN)))
    metadata = table.schema.metadata or {}
    plan = Plan(samples_per_shard=int(metadata.get(b"samples_per_shard", b"0")), rows=tuple(planned_from_table(table)))
    if plan.hashes()[-1] != metadata.get(b"plan_hash", b"").decode():
        raise ValueError(f"{storage.path(PLAN)}: its rows do not match its hash; it was altered by hand or damaged")
    return plan
