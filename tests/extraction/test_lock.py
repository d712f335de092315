import subprocess
import sys
import time

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from linvt.extraction import lock
from linvt.extraction.lock import exclusive
from linvt.shards.layout import LOCK
from linvt.shards.storage import open_storage

_HOLD = (
    "import sys, time; from linvt.extraction.lock import exclusive; from linvt.shards.storage import open_storage\n"
    "with exclusive(open_storage(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
)


def test_a_second_process_is_refused_until_the_first_is_gone_however_it_went(tmp_path):
    storage = open_storage(str(tmp_path / "out"))
    command = [sys.executable, "-c", _HOLD, storage.uri]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        with pytest.raises(ValueError, match=rf"out is in use by process {holder.pid} on "), exclusive(storage):
            pytest.fail("two at once")
        holder.kill()
    with exclusive(storage):
        pass
    with exclusive(storage):
        pass


def test_on_other_storage_an_object_that_is_renewed_is_the_lock(monkeypatch):
    MemoryFileSystem.store.clear()
    storage = open_storage("memory://bucket/out")
    with exclusive(storage, renewed_every_s=0.02):
        first = storage.read(LOCK)
        with pytest.raises(ValueError, match=r"memory://.*out is in use by process"), exclusive(storage):
            pytest.fail("two at once")
        deadline = time.monotonic() + 30
        while storage.read(LOCK) == first:
            assert time.monotonic() < deadline, "never renewed"
    assert storage.size_bytes(LOCK) is None

    storage.write(LOCK, first)
    monkeypatch.setattr(lock, "_ABANDONED_AFTER_S", 0.0)
    with exclusive(storage):
        pass
