"""Inputs that kill their worker: Ray would try them forever, so each attempt is written down before it is made.

A crash, or the kernel killing a process for its memory, leaves the note; an attempt that ends removes it. Notes of an
earlier run are no evidence (the whole job may have been killed) and are cleared when a run starts.
"""

import os

from linvt.shards.layout import STRIKES_FOLDER, strikes_name
from linvt.shards.storage import Storage

MAX_STRIKES = 3


def struck_out(storage: Storage, slot: int, stage: str) -> bool:
    """Whether an input killed its worker MAX_STRIKES times in this run; if not, notes that it is tried once more."""
    name = strikes_name(slot, stage)
    try:
        strikes = storage.read(name)
    except FileNotFoundError:
        strikes = b""
    if strikes.count(b"\n") >= MAX_STRIKES:
        return True
    storage.write(name, strikes + f"process {os.getpid()}\n".encode(), durable=False)
    return False


def absolve(storage: Storage, slot: int, stage: str) -> None:
    """Notes that the attempt ended, whatever came of it."""
    storage.remove(strikes_name(slot, stage))


def clear_strikes(storage: Storage) -> None:
    for name in storage.names(STRIKES_FOLDER):
        storage.remove(f"{STRIKES_FOLDER}/{name}")
