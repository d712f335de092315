"""Which file an annotation means, where its set does not say the extension: `v_abc.*` is the one file of that name."""

import os
from collections.abc import Iterator, Mapping
from functools import cached_property, lru_cache
from typing import TypeVar

from linvt.annotations.rows import ANY_EXTENSION

ValueT = TypeVar("ValueT")


class AnyExtension(Mapping[str, ValueT]):
    """A mapping from media ids, in which `v_abc.*` finds the one id of that name with any extension.

    Where two ids differ in nothing but their extension, such a key raises ValueError.
    """

    def __init__(self, values: Mapping[str, ValueT]) -> None:
        self._values = values

    @cached_property
    def _ids_of_stem(self) -> dict[str, list[str]]:
        ids: dict[str, list[str]] = {}
        for media_id in self._values:
            ids.setdefault(os.path.splitext(media_id)[0], []).append(media_id)
        return ids

    def __getitem__(self, media_id: str) -> ValueT:
        if not media_id.endswith(ANY_EXTENSION):
            return self._values[media_id]
        return self._values[_only(self._ids_of_stem.get(media_id.removesuffix(ANY_EXTENSION), []), media_id)]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)


class MediaFolder:
    """The media below a local folder. What it found in a folder it remembers."""

    def __init__(self, root: str | os.PathLike[str]) -> None:
        """Raises ValueError where there is no such folder."""
        if not os.path.isdir(root):
            raise ValueError(
                f"{os.fspath(root)}: no such folder; expected the local folder that media paths start from"
            )
        self._root = root
        # Sets with many folders have few files in each.
        self._names_of_stem = lru_cache(maxsize=256)(_names_of_stem)

    def find(self, media_id: str) -> str | None:
        """The media id, with its extension, if there is such a file or folder of frames; else None.

        Raises ValueError where several files have the name of an id without extension.
        """
        if not media_id.endswith(ANY_EXTENSION):
            return media_id if os.path.exists(os.path.join(self._root, media_id)) else None
        folder, _, name = media_id.rpartition("/")
        stems = self._names_of_stem(os.path.join(self._root, folder))
        found = stems.get(name.removesuffix(ANY_EXTENSION), [])
        if not found:
            return None
        return f"{folder}/{_only(found, media_id)}" if folder else _only(found, media_id)


def _names_of_stem(folder: str) -> dict[str, list[str]]:
    names: dict[str, list[str]] = {}
    if os.path.isdir(folder):
        for name in sorted(os.listdir(folder)):
            names.setdefault(os.path.splitext(name)[0], []).append(name)
    return names


def _only(names: list[str], media_id: str) -> str:
    if not names:
        raise KeyError(media_id)
    if len(names) > 1:
        raise ValueError(f"{media_id} may be any of {names}; leave one of them")
    return names[0]
