"""A decoding child whose decoder does what the file's content says: crash, hang, or eat memory."""

import ctypes
import sys
import time
from pathlib import Path

import numpy as np

from linvt.extraction import decode_process, reading


def _stream(path, **_):
    wish = Path(path).read_text()
    if wish == "crash":
        ctypes.string_at(0)
    if wish == "hang":
        time.sleep(10**6)
    while wish == "never end":
        yield np.zeros((1, 27, 48, 3), np.uint8)
    if wish == "eat memory":
        hoard = []
        while True:
            hoard.append(bytearray(1 << 24))
    if wish == "stumble":
        raise ZeroDivisionError("a surprise")
    raise AssertionError(wish)
    yield


if __name__ == "__main__":
    reading.stream_video = _stream
    decode_process.main(*map(int, sys.argv[1:]))
