"""When two samples are the same one, also in different sets.

VideoChat2-IT holds rows of Video-ChatGPT, NExT-QA, WebVid and TGIF under paths and instructions of its own, so what is
compared is the file's name without folder and extension, the question, and the answer, but for case, blanks and closing
punctuation. An answer of `_LONG` words or more speaks for itself: the same text about the same video is the same sample
whatever asked for it. The other options of a multiple-choice question do not count.
"""

import os
from array import array
from collections.abc import Iterable, Iterator

import numpy as np

from linvt.annotations.rows import Annotation

_LONG = 6
_BITS = (1 << 64) - 1


def media_key(media_id: str) -> int:
    """64 bits that are equal where two sets mean the same file; within one process."""
    return hash(_stem(media_id)) & _BITS


def sample_keys(annotation: Annotation) -> Iterator[int]:
    """64 bits for the caption, if there is one, and then for each question; equal where the samples are, within one
    process. (Of ten million samples, two different ones have the same bits with a chance of 3 in a million.)"""
    place = (_stem(annotation.media_id), annotation.section_s)
    if annotation.caption is not None:
        yield hash((place, "", _plain(annotation.caption))) & _BITS
    for turn in annotation.turns:
        answer = _plain(turn.answer)
        question = "" if answer.count(" ") >= _LONG - 1 else _plain(turn.question)
        yield hash((place, question, answer)) & _BITS


class Keys:
    """A large bag of 64-bit keys, 8 bytes each."""

    def __init__(self) -> None:
        self._keys = array("Q")

    def add(self, key: int) -> None:
        self._keys.append(key)

    def extend(self, keys: Iterable[int]) -> None:
        self._keys.extend(keys)

    def __len__(self) -> int:
        return len(self._keys)

    def take(self) -> tuple[np.ndarray, np.ndarray]:
        """(the different keys, those that were added more than once), uint64, sorted; the bag is empty afterwards."""
        keys = np.frombuffer(self._keys, np.uint64) if self._keys else np.zeros(0, np.uint64)
        keys.sort()  # In place: copies of millions of keys would be most of the memory.
        is_again = keys[1:] == keys[:-1]
        repeated = np.unique(keys[1:][is_again])
        unique = keys[np.append(np.ones(min(1, len(keys)), bool), ~is_again)]
        self._keys = array("Q")
        return unique, repeated


def _stem(media_id: str) -> str:
    return os.path.splitext(media_id.rpartition("/")[2])[0]


def _plain(text: str) -> str:
    return " ".join(text.casefold().split()).rstrip(" .!?")
