"""Reading the files in which benchmarks are published. Errors name file and row."""

import csv
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from linvt.annotations.format import raw_rows


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: no JSON: {error}") from None


def read_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """("FILE:LINE", row) of a JSON array, JSON lines or a table. Raises ValueError for a row that cannot be read."""
    for line, row in raw_rows(path):
        if isinstance(row, str):
            raise ValueError(f"{path}:{line}: {row}")
        yield f"{path}:{line}", row


def read_tsv(path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """As `read_rows`, of a table with tabs whose quoted cells may hold line ends, such as VLMEvalKit's."""
    csv.field_size_limit(1 << 30)
    with path.open(encoding="utf-8", newline="") as file:
        table = csv.DictReader(file, delimiter="\t")
        for row in table:
            if None in row or None in row.values():
                raise ValueError(f"{path}:{table.line_num}: expected {len(table.fieldnames or ())} cells")
            yield f"{path}:{table.line_num}", row


def read_parquet(paths: list[Path]) -> Iterator[tuple[str, dict[str, Any]]]:
    """("FILE: row N", row) of parquet files, a batch in memory at a time."""
    import pyarrow.parquet as pq

    for path in paths:
        number = 0
        for batch in pq.ParquetFile(path).iter_batches(batch_size=64):
            for row in batch.to_pylist():
                number += 1
                yield f"{path}: row {number}", row


def parquet_files(folder: Path, *patterns: str) -> list[Path]:
    """The parquet files below `folder` that fit one of the patterns. Raises ValueError without any."""
    if folder.is_file():
        return [folder]
    found = sorted({path for pattern in patterns for path in folder.glob(pattern)})
    if not found:
        raise ValueError(f"--data {folder}: none of the published files is there; expected {' or '.join(patterns)}")
    return found


def unpack_image(image: dict[str, Any], media: Path, stem: str) -> str:
    """Writes an image that a parquet file holds below `media`, unless it is there; returns its name.

    Such images become files once, so that extraction and the endpoint see them as any other.
    """
    content = image.get("bytes")
    if not content:
        raise ValueError(f"{stem}: the published file holds no bytes for this image, only {sorted(image)}")
    name = f"{stem}{_extension(content)}"
    path = media / name
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(path.name + ".tmp")
        partial.write_bytes(content)
        os.replace(partial, path)
    return name


def _extension(content: bytes) -> str:
    if content.startswith(b"\x89PNG"):
        return ".png"
    if content.startswith(b"\xff\xd8"):
        return ".jpg"
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return ".webp"
    raise ValueError(f"an image that is neither PNG, JPEG nor WebP: it begins with {content[:8]!r}")
