"""Annotation files, ours and published ones, read into one row type."""

from linvt.annotations.media import AnyExtension, MediaFolder
from linvt.annotations.reading import FORMATS, detect_format, read_annotations, read_rows
from linvt.annotations.rows import Annotation, RowProblem, Turn, conversations

__all__ = [
    "FORMATS",
    "Annotation",
    "AnyExtension",
    "MediaFolder",
    "RowProblem",
    "Turn",
    "conversations",
    "detect_format",
    "read_annotations",
    "read_rows",
]
