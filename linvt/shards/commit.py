"""Writing a shard: the tar first, its commit record last. Without a record that verifies there is no shard."""

import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import IO, Any

from linvt.shards.layout import JSON_SUFFIX, LAYOUT_VERSION, TOKENS_SUFFIX, record_name, tar_name
from linvt.shards.storage import Storage


class ShardError(Exception):
    """A shard is truncated, altered or missing; the message names its file and says what to do."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Member:
    """Where a file lies inside its tar."""

    offset: int
    """Of the content's first byte, from the tar's beginning."""
    size_bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True, slots=True)
class CommittedSample:
    """One sample of a shard: what an index needs, so that reading it costs one ranged read."""

    slot: int
    key: str
    video_id: str
    uri: str
    sha256: str
    """Of the media file."""
    kind: str
    shape: tuple[int, int, int]
    """[T, N, C] of its tokens."""
    grid: tuple[int, int] | None
    duration_s: float
    info: Member
    tokens: Member


@dataclass(frozen=True, kw_only=True, slots=True)
class Tombstone:
    """A slot whose input was quarantined; rows/ and videos.parquet hold the message."""

    slot: int
    video_id: str
    stage: str
    error_class: str


@dataclass(frozen=True, kw_only=True, slots=True)
class CommitRecord:
    """What `shards/NNNNNN.json` holds. Every slot of the shard is a sample or a tombstone."""

    shard: int
    generation: int
    plan_hash: str
    """Of the plan up to and including this generation."""
    feature_id: str
    devices: tuple[str, ...]
    """Kinds of device that encoded it: bytes are reproducible on the same kind."""
    num_slots: int
    tar_size_bytes: int
    tar_sha256: str
    samples: tuple[CommittedSample, ...]
    """In the order of the tar."""
    tombstones: tuple[Tombstone, ...]
    layout_version: int = LAYOUT_VERSION

    def __post_init__(self) -> None:
        if len(self.samples) + len(self.tombstones) != self.num_slots:
            raise ValueError(
                f"shard {self.shard}: {len(self.samples)} samples + {len(self.tombstones)} tombstones, "
                f"expected {self.num_slots} slots"
            )

    def to_json(self) -> bytes:
        return (json.dumps(asdict(self), sort_keys=True, indent=1) + "\n").encode()

    @classmethod
    def from_json(cls, data: bytes) -> "CommitRecord":
        fields = json.loads(data)
        if fields.get("layout_version") != LAYOUT_VERSION:
            raise ValueError(f"layout version {fields.get('layout_version')}, this code reads {LAYOUT_VERSION}")
        samples = tuple(_sample_from_json(sample) for sample in fields.pop("samples"))
        tombstones = tuple(Tombstone(**tombstone) for tombstone in fields.pop("tombstones"))
        return cls(**fields | {"devices": tuple(fields["devices"])}, samples=samples, tombstones=tombstones)


@dataclass(frozen=True, kw_only=True, slots=True)
class CommittedShard:
    """What a driver remembers of a shard: records of millions of samples would not fit into its memory."""

    shard: int
    feature_id: str
    num_samples: int
    quarantined_slots: tuple[int, ...]
    tar_size_bytes: int

    @classmethod
    def of(cls, record: CommitRecord) -> "CommittedShard":
        return cls(
            shard=record.shard,
            feature_id=record.feature_id,
            num_samples=len(record.samples),
            quarantined_slots=tuple(tombstone.slot for tombstone in record.tombstones),
            tar_size_bytes=record.tar_size_bytes,
        )


def _sample_from_json(fields: dict[str, Any]) -> CommittedSample:
    return CommittedSample(
        **fields
        | {
            "shape": tuple(fields["shape"]),
            "grid": None if fields["grid"] is None else tuple(fields["grid"]),
            "info": Member(**fields["info"]),
            "tokens": Member(**fields["tokens"]),
        }
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class PendingSample:
    """A finished sample on its way into a tar."""

    slot: int
    key: str
    video_id: str
    uri: str
    sha256: str
    kind: str
    shape: tuple[int, int, int]
    grid: tuple[int, int] | None
    duration_s: float
    load: Callable[[], tuple[bytes | memoryview, bytes | memoryview]]
    """Its two members, info JSON and tokens safetensors; called once, so a shard is never in memory whole."""


def write_shard(
    storage: Storage,
    *,
    shard: int,
    generation: int,
    plan_hash: str,
    feature_id: str,
    devices: Iterable[str],
    samples: Iterable[PendingSample],
    tombstones: Iterable[Tombstone],
    num_slots: int,
) -> CommitRecord:
    """Writes the tar and returns the record to commit with `commit_shard`. Equal samples give equal bytes."""
    committed: list[CommittedSample] = []
    with storage.open_atomic(tar_name(shard)) as file:
        hashing = _HashingWriter(file)
        # The end of the tar is written on close, so it must come before the file is published.
        with tarfile.open(fileobj=hashing, mode="w", format=tarfile.PAX_FORMAT) as tar:  # pyright: ignore[reportArgumentType, reportCallIssue]
            for sample in sorted(samples, key=lambda sample: sample.key):
                info_json, tokens_safetensors = sample.load()
                info = _add_member(tar, f"{sample.key}.{JSON_SUFFIX}", info_json)
                tokens = _add_member(tar, f"{sample.key}.{TOKENS_SUFFIX}", tokens_safetensors)
                committed.append(
                    CommittedSample(
                        slot=sample.slot,
                        key=sample.key,
                        video_id=sample.video_id,
                        uri=sample.uri,
                        sha256=sample.sha256,
                        kind=sample.kind,
                        shape=sample.shape,
                        grid=sample.grid,
                        duration_s=sample.duration_s,
                        info=info,
                        tokens=tokens,
                    )
                )
    return CommitRecord(
        shard=shard,
        generation=generation,
        plan_hash=plan_hash,
        feature_id=feature_id,
        devices=tuple(sorted(set(devices))),
        num_slots=num_slots,
        tar_size_bytes=hashing.size_bytes,
        tar_sha256=hashing.digest.hexdigest(),
        samples=tuple(committed),
        tombstones=tuple(sorted(tombstones, key=lambda tombstone: tombstone.slot)),
    )


def commit_shard(storage: Storage, record: CommitRecord) -> None:
    """Makes a written shard exist. Everything that belongs to it must be in place already.

    A record is never overwritten. Raises ShardError where there is one that says something else: the last workers of an
    extraction that lost its lock, on another kind of device, may have come first or be at work still.
    """
    if not storage.create(record_name(record.shard), record.to_json()):
        raise ShardError(
            f"{storage.uri_of(record_name(record.shard))}: committed by somebody else with other contents, while this "
            "extraction made the same shard; see that only one is running, then run it again with "
            "--on-existing resume --verify-shards"
        )


def read_record(storage: Storage, shard: int) -> CommitRecord | None:
    """The commit record of a shard, or None where there is none. Raises ShardError for one that cannot be read."""
    try:
        data = storage.read(record_name(shard))
    except FileNotFoundError:
        return None
    try:
        return CommitRecord.from_json(data)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ShardError(
            f"{storage.uri_of(record_name(shard))}: not a commit record ({error}); run the extraction again with "
            "--on-existing resume to rebuild the shard"
        ) from error


def verify_shard(storage: Storage, record: CommitRecord, *, contents: bool) -> None:
    """Raises ShardError unless the tar has the size in its record and, with `contents`, the sha256 too."""
    path = storage.uri_of(tar_name(record.shard))
    advice = "run the extraction again with --on-existing resume to rebuild the shard"
    size_bytes = storage.size_bytes(tar_name(record.shard))
    if size_bytes is None:
        raise ShardError(f"{path}: missing, though its commit record exists; {advice}")
    if size_bytes != record.tar_size_bytes:
        raise ShardError(f"{path}: {size_bytes} bytes, its commit record says {record.tar_size_bytes}; {advice}")
    if contents and _sha256_of(storage, tar_name(record.shard)) != record.tar_sha256:
        raise ShardError(f"{path}: its bytes differ from the sha256 in its commit record; remove it, then {advice}")


def _sha256_of(storage: Storage, name: str) -> str:
    with storage.open(name) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()  # pyright: ignore[reportArgumentType]


def _add_member(tar: tarfile.TarFile, name: str, data: bytes | memoryview) -> Member:
    # A fresh TarInfo has mode 0644, mtime 0, uid = gid = 0 and no user names: nothing of the machine that wrote it.
    header = tarfile.TarInfo(name)
    header.size = len(data)
    tar.addfile(header, io.BytesIO(data))
    padded = -(-header.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
    return Member(
        offset=tar.offset - padded,  # pyright: ignore[reportAttributeAccessIssue]
        size_bytes=header.size,
        sha256=hashlib.sha256(data).hexdigest(),
    )


class _HashingWriter:
    """Counts and hashes what passes on its way into a file; tarfile writes strictly forward."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.digest = hashlib.sha256()
        self.size_bytes = 0

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        self.size_bytes += len(data)
        return self._file.write(data)

    def tell(self) -> int:
        return self.size_bytes
