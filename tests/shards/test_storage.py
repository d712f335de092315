"""Disks that refuse: the real thing, as far as an ordinary user can bring it about."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from linvt.shards.storage import open_storage
from linvt.storage_error import StorageError

_WRITE_WITH_A_LIMIT = """
import resource, sys
from linvt.shards.storage import open_storage
storage = open_storage(sys.argv[1])
storage.names("shards")
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))
with storage.open_atomic("shards/000000.tar") as file:
    file.write(bytes(1 << 20))
"""


@contextmanager
def _as_an_ordinary_user() -> Iterator[None]:
    """Root may write anywhere."""
    user = os.geteuid()
    os.seteuid(user or 65534)
    try:
        yield
    finally:
        os.seteuid(user)


def _write_with_a_limit(uri: str) -> str:
    """The last line of a process that may write no more than 64 kB into any one file, and writes a tar of 1 MB."""
    command = [sys.executable, "-c", _WRITE_WITH_A_LIMIT, uri]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    return done.stderr.splitlines()[-1]


def test_no_room_is_told_and_leaves_nothing(tmp_path):
    storage = open_storage(str(tmp_path / "out"))
    told = _write_with_a_limit(storage.uri)
    assert f"StorageError: {storage.uri}/shards/000000.tar: cannot be written: no room left (" in told
    assert told.endswith("make room, then run the same command again with --on-existing resume")
    assert storage.names("shards") == []


def test_no_room_for_a_copy_on_its_way_to_s3_is_told_of_the_right_disk(s3):
    bucket = s3.make_bucket()
    told = _write_with_a_limit(f"s3://{bucket}/out")
    assert "StorageError: the folder for temporary files (TMPDIR): nothing can be written there on its way to" in told
    assert f"s3://{bucket}/out/shards/000000.tar: no room left (" in told
    assert s3.client().find(bucket) == []


def test_a_folder_that_is_not_ours_is_told(tmp_path):
    storage = open_storage(str(tmp_path / "out"))
    storage.write("extraction.json", b"{}")
    (tmp_path / "out").chmod(0o555)
    try:
        with (
            _as_an_ordinary_user(),
            pytest.raises(StorageError, match=r"plan\.parquet: cannot be written: permission denied"),
        ):
            storage.write("plan.parquet", b"")
    finally:
        (tmp_path / "out").chmod(0o755)
    assert storage.filesystem.ls(storage.root, detail=False) == [storage.path("extraction.json")]


def test_a_file_in_the_place_of_a_folder_is_told(tmp_path):
    (tmp_path / "out").write_bytes(b"")
    with pytest.raises(StorageError, match=r"out/plan\.parquet: cannot be written: (NotADirectory|FileExists)Error"):
        open_storage(str(tmp_path / "out")).write("plan.parquet", b"")
