"""Annotation files, ours and published ones, read into one row type."""

from linvt.annotations.reading import FORMATS, read_annotations
from linvt.annotations.rows import Annotation, Turn

__all__ = ["FORMATS", "Annotation", "Turn", "read_annotations"]
