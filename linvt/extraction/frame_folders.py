"""A folder of frames as one input. Its URI says all that its tokens depend on: `/data/v_abc/@2fps`."""

import hashlib
import os
import re
from typing import Any

from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem

from linvt.video import is_frame

_RATE = re.compile(r"(?P<folder>.+)/@(?P<fps>[0-9]+(\.[0-9]+)?(e[+-][0-9]+)?)fps", re.DOTALL)


def frame_folder_uri(folder: str, fps: float) -> str:
    """The URI of the video that a folder's frames make at `fps` frames a second."""
    return f"{folder}/@{fps:g}fps"


def split_frame_folder_uri(uri: str) -> tuple[str, float] | None:
    """(folder, frames a second) of such a URI; None for any other."""
    match = _RATE.fullmatch(uri)
    return (match["folder"], float(match["fps"])) if match else None


def frame_folder_info(filesystem: AbstractFileSystem, folder: str, info: dict[str, Any]) -> dict[str, Any] | None:
    """A folder's `info`, so that it differs where its frames do; None if it holds no frames.

    On a local disk that is the folder's own modification time, which tells of frames that come, go or are renamed, and
    not of one that is overwritten in place: to look at each would take as long as to read them.
    """
    if isinstance(filesystem, LocalFileSystem):
        try:
            with os.scandir(folder) as entries:
                return info if any(is_frame(entry.name) for entry in entries) else None
        except PermissionError:
            return None  # Reading it will say so of this input alone.
    files: list[dict[str, Any]] = filesystem.ls(folder, detail=True)  # pyright: ignore[reportAssignmentType]
    frames = sorted(_facts(file) for file in files if is_frame(file["name"].rpartition("/")[2]))
    if not frames:
        return None
    return info | {"size": 0, "ETag": hashlib.sha256("\n".join(frames).encode()).hexdigest()}


def _facts(file: dict[str, Any]) -> str:
    changes = [str(file[field]) for field in ("ETag", "etag", "md5Hash", "LastModified", "created") if field in file]
    return " ".join([file["name"], str(file.get("size")), *changes])
