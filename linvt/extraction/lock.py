"""One extraction at a time on one OUT.

On a local disk the operating system holds the lock, so it goes with the process, however that ends. On other storage
it is an object that its owner renews. One that is abandoned is taken over: its owner was a process of this machine that
is gone, or it was not renewed for two minutes and is not while we watch.
"""

import fcntl
import json
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from uuid import uuid4

from linvt.shards.layout import LOCK
from linvt.shards.storage import Storage
from linvt.storage_error import StorageError, explained

logger = logging.getLogger(__name__)

_RENEWED_EVERY_S = 20.0
_ABANDONED_AFTER_S = 120.0
# The tokens of this process: a run of its own that could not remove its lock when it failed is none of them.
_held_here: set[str] = set()


@contextmanager
def exclusive(storage: Storage, *, renewed_every_s: float = _RENEWED_EVERY_S) -> Iterator[Callable[[], None]]:
    """Holds `storage` for the length of the block. Raises ValueError, naming the owner, if it is held already.

    Gives a function to be called now and then: it raises RuntimeError once the lock is lost.
    """
    if storage.is_local:
        with _local_lock(storage):
            yield lambda: None
        return
    lease = _Lease(storage, renewed_every_s)
    lease.take()
    try:
        yield lease.check
    finally:
        lease.release()


def _me() -> str:
    return f"process {os.getpid()} on {socket.gethostname()}"


def _refuse(storage: Storage, owner: str) -> ValueError:
    return ValueError(f"--out {storage.uri} is in use by {owner}; wait until it has finished, or choose another folder")


@contextmanager
def _local_lock(storage: Storage) -> Iterator[None]:
    path = Path(storage.path(LOCK))
    with ExitStack() as opened:
        with explained(str(path), "cannot be written"):
            path.parent.mkdir(parents=True, exist_ok=True)
            file = opened.enter_context(open(path, "a+"))
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise _refuse(storage, file.read().strip() or "another process") from error
        with explained(str(path), "cannot be written"):
            file.truncate(0)
            file.write(_me())
            file.flush()
        # The file stays: removing it would let a third process lock another file of the same name.
        yield


class _Lease:
    """The lock as an object. Where the store knows conditional puts, neither a start nor a takeover can be a tie."""

    def __init__(self, storage: Storage, renewed_every_s: float) -> None:
        self._storage, self._renewed_every_s = storage, renewed_every_s
        self._token = uuid4().hex
        self._held = self._note()
        """What the object should hold."""
        self._renewed_at_s = time.monotonic()
        self._lost_to: str | None = None
        self._finished = threading.Event()
        self._renewing = threading.Thread(target=self._renew, daemon=True)

    def take(self) -> None:
        found = _read(self._storage)
        if found is None:
            taken = self._storage.create(LOCK, self._held)
        else:
            taken = self._is_abandoned(found) and self._storage.replace(LOCK, self._held, expected=found)
        if not taken:
            raise _refuse(self._storage, _owner(_read(self._storage) or found))
        if not self._storage.creates_only_once(LOCK):
            logger.warning(
                "%s: this store knows no conditional puts, so two extractions that start on it in the same moment may "
                "not notice each other; see that only one does",
                self._storage.uri,
            )
        _held_here.add(self._token)
        self._renewing.start()

    def check(self) -> None:
        """Raises RuntimeError if another process has the lock, or may have taken it for abandoned by now."""
        silent_s = time.monotonic() - self._renewed_at_s
        if self._lost_to is None and silent_s < _ABANDONED_AFTER_S:
            return
        how = f"taken by {self._lost_to}" if self._lost_to else f"not renewed for {silent_s:.0f} s and may be another's"
        raise RuntimeError(
            f"{self._storage.uri}: the lock of this extraction was {how}, so it stops; what is committed stays, and "
            "--on-existing resume goes on when the folder is free"
        )

    def release(self) -> None:
        self._finished.set()
        self._renewing.join()
        _held_here.discard(self._token)
        try:
            if self._is_mine(_read(self._storage)):
                self._storage.remove(LOCK)
        except StorageError as error:
            # Whatever ended the block says more, and an object that nobody renews is taken over.
            # As text: a log that keeps the exception keeps what was running when it came.
            logger.warning("%s", str(error))

    def _renew(self) -> None:
        while not self._finished.wait(self._renewed_every_s):
            note = self._note()
            try:
                if self._storage.replace(LOCK, note, expected=self._held):
                    self._held, self._renewed_at_s = note, time.monotonic()
                    continue
                found = _read(self._storage)
            except StorageError as error:
                logger.warning("%s", str(error))
                continue
            if found is None or not self._is_mine(found):
                self._lost_to = _owner(found)
                return
            self._held = found  # A put that was done, though its answer got lost.

    def _note(self) -> bytes:
        note = {"owner": _me(), "token": self._token, "renewed": time.time()}
        return json.dumps(note | {"machine": _machine(), "process": os.getpid()}).encode()

    def _is_mine(self, found: bytes | None) -> bool:
        return found is not None and json.loads(found)["token"] == self._token

    def _is_abandoned(self, found: bytes) -> bool:
        note = json.loads(found)
        if _machine() is not None and note.get("machine") == _machine() and _is_gone(note["process"], note["token"]):
            return True
        if time.time() - note["renewed"] < _ABANDONED_AFTER_S:
            return False
        # Two machines' clocks may differ by more than that. What an owner at work renews meanwhile cannot be replaced.
        logger.info("%s was in use by %s; waiting whether it still is", self._storage.uri, note["owner"])
        time.sleep(1.5 * self._renewed_every_s)
        return True


def _read(storage: Storage) -> bytes | None:
    try:
        return storage.read(LOCK)
    except FileNotFoundError:
        return None


def _owner(note: bytes | None) -> str:
    return "another process" if note is None else json.loads(note)["owner"]


def _machine() -> str | None:
    """Within one machine, from one boot to the next, and one container, a process id says who is meant."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip() + os.readlink("/proc/self/ns/pid")
    except OSError:  # Not Linux.
        return None


def _is_gone(process: int, token: str) -> bool:
    if process == os.getpid():
        return token not in _held_here
    try:
        os.kill(process, 0)
    except OSError as error:
        return isinstance(error, ProcessLookupError)
    return False
