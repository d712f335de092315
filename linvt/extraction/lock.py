"""One extraction at a time on one OUT.

On a local disk the operating system holds the lock, so it goes with the process, however that ends. On other storage
it is an object that its owner renews; one that was not renewed for a while is taken over.
"""

import fcntl
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from linvt.shards.layout import LOCK
from linvt.shards.storage import Storage

_RENEWED_EVERY_S = 20.0
_ABANDONED_AFTER_S = 120.0


@contextmanager
def exclusive(storage: Storage, *, renewed_every_s: float = _RENEWED_EVERY_S) -> Iterator[None]:
    """Holds `storage` for the length of the block. Raises ValueError, naming the owner, if it is held already."""
    with _local_lock(storage) if storage.is_local else _renewed_object(storage, renewed_every_s):
        yield


def _me() -> str:
    return f"process {os.getpid()} on {socket.gethostname()}"


def _refuse(storage: Storage, owner: str) -> ValueError:
    return ValueError(f"--out {storage.uri} is in use by {owner}; wait until it has finished, or choose another folder")


@contextmanager
def _local_lock(storage: Storage) -> Iterator[None]:
    path = Path(storage.path(LOCK))
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise _refuse(storage, file.read().strip() or "another process") from error
        file.truncate(0)
        file.write(_me())
        file.flush()
        # The file stays: removing it would let a third process lock another file of the same name.
        yield


@contextmanager
def _renewed_object(storage: Storage, renewed_every_s: float) -> Iterator[None]:
    token = uuid4().hex

    def write() -> None:
        storage.write(LOCK, json.dumps({"owner": _me(), "token": token, "renewed": time.time()}).encode())

    found = _read(storage)
    if found is not None and time.time() - found["renewed"] < _ABANDONED_AFTER_S:
        raise _refuse(storage, found["owner"])
    write()
    # Object stores have no atomic "create": of two that write at once, the last one stays.
    found = _read(storage)
    if found is None or found["token"] != token:
        raise _refuse(storage, "another process" if found is None else found["owner"])
    finished = threading.Event()

    def renew() -> None:
        while not finished.wait(renewed_every_s):
            write()

    renewing = threading.Thread(target=renew, daemon=True)
    renewing.start()
    try:
        yield
    finally:
        finished.set()
        renewing.join()
        storage.remove(LOCK)


def _read(storage: Storage) -> dict | None:
    try:
        return json.loads(storage.read(LOCK))
    except FileNotFoundError:
        return None
