"""Reading a cache: random access by key, or shard by shard. Only tars, records and the index are read."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property

import pyarrow as pa

from linvt.shards.columns import RowFinder, StringGroups, StringMap, Strings
from linvt.shards.commit import ShardError, read_record, verify_shard
from linvt.shards.index import hash_start, read_index
from linvt.shards.layout import INDEX, LAYOUT_VERSION, tar_name
from linvt.shards.sample import CachedVideo
from linvt.shards.storage import Storage, open_storage

_LOCATION_COLUMNS = (
    "shard",
    "info_offset",
    "info_bytes",
    "info_hash",
    "tokens_offset",
    "tokens_bytes",
    "tokens_hash",
)


class Cache:
    """A finished extraction. Holds the index in memory and opens no shard until a sample is asked for."""

    def __init__(self, storage: Storage, index: pa.Table) -> None:
        self.storage = storage
        self.index = index
        """One row a sample, see `linvt.shards.index.read_index`."""
        self.feature_id: str = (index.schema.metadata or {})[b"feature_id"].decode()
        self.hidden_size: int = index["hidden_size"][0].as_py()
        self.keys: Sequence[str] = Strings(index["key"])
        self._checked_shards: set[int] = set()

    def __len__(self) -> int:
        return len(self.keys)

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and self.row_of(key) is not None

    def __iter__(self) -> Iterator[CachedVideo]:
        """Every sample, in the order of `keys`."""
        return map(self.get, self.keys)

    @cached_property
    def video_ids(self) -> Mapping[str, str]:
        """From a video id to its sample's key."""
        return StringMap(Strings(self.index["video_id"]), Strings(self.index["key"]))

    @cached_property
    def row_of(self) -> RowFinder:
        """From a key to its row of `index`; None for a key that is none."""
        return RowFinder(Strings(self.index["key"]))

    @cached_property
    def shards(self) -> Mapping[int, Sequence[str]]:
        """From a shard's number to its samples' keys, in the order of its tar. All-tombstone shards are left out."""
        return StringGroups(self.index["shard"].to_numpy(), self.index["key"])

    def iter_shard(self, shard: int) -> Iterator[CachedVideo]:
        if shard not in self.shards:
            raise KeyError(f"shard {shard} is not one of the {len(self.shards)} in {self.storage.uri}")
        return map(self.get, self.shards[shard])

    def get(self, key: str) -> CachedVideo:
        """The sample of a key: one ranged read.

        Raises KeyError for an unknown key, and ShardError, naming the file, if the shard was truncated or altered.
        """
        row = self.row_of(key)
        if row is None:
            raise KeyError(f"{key!r} is not a key of {self.storage.uri}; look video ids up in `video_ids`")
        location = {column: self.index[column][row].as_py() for column in _LOCATION_COLUMNS}
        self._check_shard(location["shard"])
        # The two members of a sample follow each other in the tar.
        start = location["info_offset"]
        data = memoryview(
            self.storage.read(tar_name(location["shard"]), start, location["tokens_offset"] + location["tokens_bytes"])
        )
        info_json = data[: location["info_bytes"]]
        tokens = data[location["tokens_offset"] - start :]
        for part, content in (("info", info_json), ("tokens", tokens)):
            if hash_start(hashlib.sha256(content).digest()) != location[f"{part}_hash"]:
                raise ShardError(
                    f"{self.storage.path(tar_name(location['shard']))}: the {part} of sample {key} differ from their "
                    "sha256; the shard was altered: remove it and extract again with --on-existing resume"
                )
        return CachedVideo.from_bytes(bytes(info_json), bytes(tokens))

    def verify(self) -> None:
        """Reads every shard and raises ShardError for the first whose bytes differ from its commit record."""
        for shard in self.shards:
            self._check_shard(shard, contents=True)

    def _check_shard(self, shard: int, *, contents: bool = False) -> None:
        if shard in self._checked_shards and not contents:
            return
        record = read_record(self.storage, shard)
        if record is None:
            raise ShardError(
                f"{self.storage.path(tar_name(shard))}: no commit record beside it; run the extraction again with "
                "--on-existing resume"
            )
        if record.feature_id != self.feature_id:
            raise ShardError(
                f"{self.storage.path(tar_name(shard))}: feature id {record.feature_id}, the index says "
                f"{self.feature_id}; a cache never mixes them"
            )
        verify_shard(self.storage, record, contents=contents)
        self._checked_shards.add(shard)


def read_cache(uri: str) -> Cache:
    """Opens the cache that an extraction left at `uri`: a local folder or any URI that fsspec opens.

    Raises ValueError where there is no finished extraction, or none of its inputs was committed.
    """
    storage = open_storage(uri)
    try:
        index = read_index(storage)
    except FileNotFoundError as error:
        raise ValueError(
            f"{uri}: no {INDEX} there (layout {LAYOUT_VERSION}); expected the --out of a finished "
            "jobs/extract_features.py, or run it again with --on-existing resume"
        ) from error
    if index.num_rows == 0:
        raise ValueError(f"{uri}: no sample was committed; videos.parquet says why each input was quarantined")
    return Cache(storage, index)
