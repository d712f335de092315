"""Decoding in a process of its own: a crash, a hang or a memory bomb ends that process and nothing else.

The two sides talk over a socket: messages are JSON and plain arrays, never pickles.

    parent                                  child (`python -m linvt.extraction.decode_process FD PARENT BYTES`)
                                           <-  {"alive"}, once it can serve
    {"uri", "max_side", …, "limits"}       ->
                                           <-  {"chunk": shape} + uint8 frames of the detector, or {"alive"}, repeated
                                           <-  {"read": facts} + float64 times + int64 candidates, or {"failed": …}
    {"take": indices}                      ->
                                           <-  {"frames": shape} + uint8 frames
"""

import json
import math
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Generator
from dataclasses import asdict
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from linvt.extraction.reading import MediaRead, Unreadable, read_media
from linvt.storage_error import StorageError
from linvt.video import NO_LIMITS, MediaInfo, MediaLimits

_SECONDS_BETWEEN_SIGNS_OF_LIFE = 1.0
# On a busy machine a child's imports can take longer than an impatient caller grants an input, which isn't to blame.
_START_TIMEOUT_S = 120.0


class DecoderDied(Exception):
    """The process ended, or had to be ended, while it worked on an input.

    error_class: "DecoderCrashed", "DecoderStalled", "DecoderTooSlow" or "DecoderOutOfMemory".
    """

    def __init__(self, error_class: str, message: str) -> None:
        super().__init__(error_class, message)
        self.error_class = error_class
        self.message = message


class DecodeProcess:
    """A `Reader` whose work happens in a child, which is started when needed and again after it died."""

    child_module = "linvt.extraction.decode_process"

    def __init__(
        self,
        *,
        stall_timeout_s: float,
        memory_mb: int,
        timeout_s: float = math.inf,
        limits: MediaLimits = NO_LIMITS,
    ) -> None:
        """stall_timeout_s: longest silence of a child at work. memory_mb: how much its address space may grow.
        timeout_s: longest work on one input, the caller's between two chunks included."""
        self._stall_timeout_s, self._memory_mb = stall_timeout_s, memory_mb
        self._timeout_s, self._limits = timeout_s, limits
        self._deadline = math.inf
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None

    def __call__(self, uri: str, max_side: int, max_candidates: int) -> Generator[np.ndarray, None, MediaRead]:
        """Raises Unreadable or StorageError as `read_media` does, and DecoderDied."""
        self._start()
        finished = False
        self._deadline = time.monotonic() + self._timeout_s
        asked = {"uri": uri, "max_side": max_side, "max_candidates": max_candidates, "limits": asdict(self._limits)}
        try:
            self._ask(asked)
            while True:
                message = self._received()
                if "chunk" in message:
                    yield self._array(np.uint8, message["chunk"])
                elif "read" in message:
                    facts = message["read"]
                    media = MediaRead(
                        **facts["media"],
                        info=MediaInfo(**facts["info"]),
                        timestamps_s=self._array(np.float64, [facts["info"]["num_frames"]]),
                        candidates=self._array(np.int64, [facts["num_candidates"]]),
                        take=self._take,
                    )
                    finished = True
                    return media
                elif "failed" in message:
                    finished = True
                    raise self._error(message["failed"])
        finally:
            # Whoever stops reading half-way leaves a child that goes on talking.
            if not finished:
                self.close()

    def close(self) -> None:
        """Ends the child."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        if self._connection is not None:
            self._connection.close()
        self._process = self._connection = None

    def __enter__(self) -> "DecodeProcess":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    def _start(self) -> None:
        if self._process is None or self._connection is None:
            ours, theirs = socket.socketpair()
            with theirs:
                self._connection = Connection(ours.detach())
                self._process = subprocess.Popen(
                    [
                        sys.executable,
                        *("-m", self.child_module, str(theirs.fileno())),
                        *(str(os.getpid()), str(self._memory_mb << 20)),
                    ],
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    # The modules that this process found must be those that the child finds.
                    env=os.environ | {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)},
                )
            self._deadline = math.inf
            self._bytes(max(self._stall_timeout_s, _START_TIMEOUT_S))

    def _ask(self, message: dict[str, Any]) -> None:
        assert self._connection is not None
        try:
            _send(self._connection, message)
        except OSError as error:
            raise self._death() from error

    def _take(self, indices: np.ndarray) -> np.ndarray:
        self._ask({"take": np.asarray(indices).tolist()})
        return self._array(np.uint8, self._received()["frames"])

    def _received(self) -> dict[str, Any]:
        return json.loads(self._bytes(self._stall_timeout_s))

    def _array(self, dtype: Any, shape: list[int]) -> np.ndarray:
        return np.frombuffer(self._bytes(self._stall_timeout_s), dtype).reshape(shape)

    def _bytes(self, timeout_s: float) -> bytes:
        assert self._connection is not None
        left_s = self._deadline - time.monotonic()
        try:
            if self._connection.poll(max(0.0, min(timeout_s, left_s))) and left_s > 0:
                return self._connection.recv_bytes()
        except (EOFError, OSError) as error:
            raise self._death() from error
        self.close()
        if left_s < timeout_s:
            raise DecoderDied("DecoderTooSlow", f"not done after {self._timeout_s:g} s; the process was ended")
        raise DecoderDied("DecoderStalled", f"no sign of life for {timeout_s:g} s; the process was ended")

    def _death(self) -> DecoderDied:
        assert self._process is not None
        code = self._process.wait()
        self.close()
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        return DecoderDied("DecoderCrashed", f"the decoding process ended by {how}")

    def _error(self, failed: dict[str, Any]) -> Exception:
        kind = failed.pop("kind")
        if kind == "unreadable":
            return Unreadable(**failed)
        if kind == "storage":
            return StorageError(failed["message"])
        self.close()  # Its heap is in pieces.
        return DecoderDied("DecoderOutOfMemory", f"it takes more than {self._memory_mb} MB to decode")


def _send(connection: Connection, message: dict[str, Any], *arrays: np.ndarray) -> None:
    connection.send_bytes(json.dumps(message).encode())
    for array in arrays:
        connection.send_bytes(np.ascontiguousarray(array).data.cast("B"))


# -- the child ---------------------------------------------------------------------------------------------------------


def _serve(connection: Connection) -> None:
    """Reads one input after the other until the parent hangs up."""
    while True:
        try:
            request = json.loads(connection.recv_bytes())
        except EOFError:
            return
        try:
            media = _read(connection, request)
        except Unreadable as error:
            _fail(connection, "unreadable", **asdict(error))
        except MemoryError:
            _fail(connection, "memory")
        except StorageError as error:
            _fail(connection, "storage", message=str(error))
        except Exception as error:
            # Nothing that one file does to a library may stop a run over a million others.
            traceback.print_exc()
            unexpected = Unreadable("decode", type(error).__name__, f"unexpected: {error}")
            _fail(connection, "unreadable", **asdict(unexpected))
        else:
            indices = np.array(json.loads(connection.recv_bytes())["take"])
            frames = media.take(indices)
            _send(connection, {"frames": frames.shape}, frames)


def _read(connection: Connection, request: dict[str, Any]) -> MediaRead:
    last_sign = time.monotonic()

    def alive() -> None:
        nonlocal last_sign
        if time.monotonic() - last_sign > _SECONDS_BETWEEN_SIGNS_OF_LIFE:
            _send(connection, {"alive": True})
            last_sign = time.monotonic()

    limits = MediaLimits(**request["limits"])
    chunks = read_media(request["uri"], request["max_side"], request["max_candidates"], alive=alive, limits=limits)
    while True:
        try:
            chunk = next(chunks)
        except StopIteration as end:
            media: MediaRead = end.value
            break
        _send(connection, {"chunk": chunk.shape}, chunk)
    names = ("sha256", "size_bytes", "fetch_s", "decode_s")
    facts = {
        "media": {name: getattr(media, name) for name in names},
        "info": asdict(media.info),
        "num_candidates": len(media.candidates),
    }
    _send(connection, {"read": facts}, media.timestamps_s, media.candidates)
    return media


def _fail(connection: Connection, kind: str, **facts: Any) -> None:
    _send(connection, {"failed": {"kind": kind, **facts}})


def _limit_memory(bytes_more: int) -> None:
    """More than this makes allocations fail, which ends as a MemoryError here and not as a kill somewhere else."""
    try:
        with open("/proc/self/statm") as file:
            now = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + bytes_more, now + bytes_more))
    except (OSError, ValueError):
        return  # Not Linux: the operating system's own limits have to do.


def _die_with(parent: int) -> None:
    """A hanging child would outlive a parent that was killed."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def main(descriptor: int, parent: int, memory_bytes: int) -> None:
    """The child: serves the socket of that number until the parent hangs up, is gone, or memory runs out."""
    _die_with(parent)
    # Ctrl-C reaches the whole group; the parent decides.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _limit_memory(memory_bytes)
    with Connection(descriptor) as connection:
        _send(connection, {"alive": True})
        _serve(connection)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
