"""Which input goes into which slot of which shard, decided before any decoding so that nothing later can change it.

Inputs sorted by video id fill shards of N slots. Inputs that come later open new shards, as a new generation, and no
input that was planned ever moves:

    generation 0:  shard 0 [a b c]  shard 1 [d e]     generation 1:  shard 2 [aa f]

Plans may have millions of rows, so they are Arrow tables; single rows are made on demand.
"""

import hashlib
import io
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq

from linvt.extraction.inputs import MEDIA_SCHEMA, Listing, MediaFile
from linvt.shards.layout import PLAN
from linvt.shards.storage import Storage

pc: Any = pyarrow.compute  # its functions are made when it is imported, which no type checker sees

_SCHEMA = pa.schema([("slot", pa.int64()), ("shard", pa.int32()), ("generation", pa.int32()), *MEDIA_SCHEMA])
_HASHED_AT_ONCE = 10_000


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedInput:
    slot: int
    """shard · samples_per_shard + position in the shard."""
    shard: int
    generation: int
    media: MediaFile


class PlannedRows(Sequence[PlannedInput]):
    """Rows of a plan; `table` has them as columns."""

    def __init__(self, table: pa.Table) -> None:
        self.table = table

    def __len__(self) -> int:
        return self.table.num_rows

    @overload
    def __getitem__(self, index: int) -> PlannedInput: ...
    @overload
    def __getitem__(self, index: slice) -> "PlannedRows": ...
    def __getitem__(self, index: int | slice) -> "PlannedInput | PlannedRows":
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            assert step == 1, "rows are taken in their order"
            return PlannedRows(self.table.slice(start, max(0, stop - start)))
        at = range(len(self))[index]
        return planned_from_table(self.table.slice(at, 1))[0]

    def __iter__(self) -> Iterator[PlannedInput]:
        for batch in self.table.to_batches(max_chunksize=_HASHED_AT_ONCE):
            yield from planned_from_table(pa.Table.from_batches([batch]))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PlannedRows) and self.table.equals(other.table)


class Plan:
    """Immutable; equal where samples_per_shard and all rows are."""

    def __init__(self, *, samples_per_shard: int, table: pa.Table | None = None) -> None:
        self.samples_per_shard = samples_per_shard
        self.table = _SCHEMA.empty_table() if table is None else table
        """In the order of slots."""

    def __len__(self) -> int:
        return self.table.num_rows

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Plan)
            and self.samples_per_shard == other.samples_per_shard
            and self.table.equals(other.table)
        )

    @property
    def rows(self) -> PlannedRows:
        return PlannedRows(self.table)

    @property
    def num_generations(self) -> int:
        return self.table["generation"][-1].as_py() + 1 if len(self) else 0

    @cached_property
    def shards(self) -> Mapping[int, PlannedRows]:
        """The rows of each shard."""
        shards = self.table["shard"].to_numpy()
        numbers, starts = np.unique(shards, return_index=True)
        ends = np.append(starts[1:], len(shards))
        return {
            int(shard): PlannedRows(self.table.slice(start, end - start))
            for shard, start, end in zip(numbers, starts.tolist(), ends.tolist())
        }

    @cached_property
    def hashes(self) -> tuple[str, ...]:
        """Per generation, the sha256 over samples_per_shard and every (slot, video id) up to and including it."""
        digest = hashlib.sha256(f"{self.samples_per_shard}\n".encode())
        hashes: list[str] = []
        generations = self.table["generation"].to_numpy()
        borders = [0, *(np.flatnonzero(np.diff(generations)) + 1).tolist(), len(self)]
        for start, end in itertools.pairwise(borders):
            for at in range(start, end, _HASHED_AT_ONCE):
                part = self.table.slice(at, min(_HASHED_AT_ONCE, end - at))
                pairs = zip(part["slot"].to_pylist(), part["video_id"].to_pylist())
                digest.update("".join(json.dumps(pair) + "\n" for pair in pairs).encode())
            hashes.append(digest.hexdigest())
        return tuple(hashes)

    @property
    def hash(self) -> str:
        """Of the whole plan."""
        return self.hashes[-1]


def grow_plan(plan: Plan, inputs: Listing) -> Plan:
    """The plan with the inputs that it does not know yet appended as one more generation; itself if there are none."""
    known = pc.is_in(inputs.table["video_id"], value_set=plan.table["video_id"])
    new = inputs.table.filter(pc.invert(known))
    if new.num_rows == 0:
        return plan
    new = new.sort_by("video_id")
    first_shard = plan.table["shard"][-1].as_py() + 1 if len(plan) else 0
    number = np.arange(new.num_rows, dtype=np.int64)
    columns = {
        "slot": first_shard * plan.samples_per_shard + number,
        "shard": first_shard + number // plan.samples_per_shard,
        "generation": np.full(new.num_rows, plan.num_generations),
        **{name: new[name] for name in MEDIA_SCHEMA.names},
    }
    table = pa.concat_tables([plan.table, pa.table(columns).cast(_SCHEMA)])
    return Plan(samples_per_shard=plan.samples_per_shard, table=table)


def make_plan(inputs: Iterable[MediaFile], samples_per_shard: int) -> Plan:
    listing = inputs if isinstance(inputs, Listing) else Listing.of(inputs)
    return grow_plan(Plan(samples_per_shard=samples_per_shard), listing)


def changed_inputs(plan: Plan, inputs: Listing) -> list[tuple[PlannedInput, MediaFile]]:
    """Planned inputs that the listing now finds elsewhere, or with another size or modification time."""
    listed_at = pc.index_in(plan.table["video_id"], value_set=inputs.table["video_id"].combine_chunks())
    is_listed = listed_at.is_valid().to_numpy()
    before = plan.table.filter(pa.array(is_listed))
    now = inputs.table.take(listed_at.drop_null())
    differs = np.zeros(before.num_rows, bool)
    for name in ("uri", "size_bytes", "modified"):
        same = pc.fill_null(pc.equal(before[name], now[name]), False).to_numpy()
        both_missing = pc.and_(before[name].is_null(), now[name].is_null()).to_numpy()
        differs |= ~(same | both_missing)
    changed = pa.array(differs)
    return list(zip(PlannedRows(before.filter(changed)), Listing(now.filter(changed))))


def with_media(plan: Plan, media_of_id: Mapping[str, MediaFile]) -> Plan:
    """The plan with what it remembers about some files brought up to date; their slots stay."""
    if not media_of_id:
        return plan
    found = [media_of_id.get(video_id) for video_id in plan.table["video_id"].to_pylist()]
    table = plan.table
    for name in ("uri", "size_bytes", "modified"):
        values = zip(table[name].to_pylist(), found)
        column = [value if media is None else getattr(media, name) for value, media in values]
        field = table.schema.field(name)
        table = table.set_column(table.schema.get_field_index(name), field, pa.array(column, field.type))
    return Plan(samples_per_shard=plan.samples_per_shard, table=table)


def planned_from_table(table: pa.Table) -> list[PlannedInput]:
    return [
        PlannedInput(
            slot=row.pop("slot"), shard=row.pop("shard"), generation=row.pop("generation"), media=MediaFile(**row)
        )
        for row in table.to_pylist()
    ]


def write_plan(storage: Storage, plan: Plan) -> None:
    metadata = {"samples_per_shard": str(plan.samples_per_shard), "plan_hash": plan.hash}
    with storage.open_atomic(PLAN) as file:
        pq.write_table(plan.table.replace_schema_metadata(metadata), file)


def read_plan(storage: Storage) -> Plan:
    """Raises FileNotFoundError where there is no plan, ValueError for one that does not match its own hash."""
    table = pq.read_table(io.BytesIO(storage.read(PLAN)))
    metadata = table.schema.metadata or {}
    samples_per_shard = int(metadata.get(b"samples_per_shard", b"0"))
    plan = Plan(samples_per_shard=samples_per_shard, table=table.replace_schema_metadata().cast(_SCHEMA))
    if plan.hash != metadata.get(b"plan_hash", b"").decode():
        raise ValueError(f"{storage.path(PLAN)}: its rows do not match its hash; it was altered by hand or damaged")
    return plan
