"""Published annotation files to one file of LinVT's own format, with media as they lie below a folder."""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from tqdm import tqdm

from linvt.annotations.config import ConvertConfig
from linvt.annotations.duplicates import sample_keys
from linvt.annotations.linvt_format import to_row
from linvt.annotations.media import MediaFolder
from linvt.annotations.reading import read_rows, with_formats
from linvt.annotations.rows import Annotation, Turn, conversations
from linvt.shards.storage import open_storage

_Counts = Counter[str]


def convert(config: ConvertConfig) -> dict[str, Any]:
    """Writes OUT whole or not at all, and returns what became of the rows.

    Raises ValueError at the first broken row or missing medium, unless they are to be skipped.
    """
    if config.out.exists() and config.on_existing == "fail":
        raise ValueError(f"--out {config.out} exists; choose another, or replace it with --on-existing overwrite")
    counts: _Counts = Counter(rows=0, left_out=0, broken=0, missing_media=0, duplicates=0, written=0, samples=0)
    storage = open_storage(str(config.out.parent.resolve()))
    with storage.open_atomic(config.out.name) as file:
        for annotation in _annotations(config, counts):
            file.write(json.dumps(to_row(annotation), ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n")
            counts["written"] += 1
            counts["samples"] += (annotation.caption is not None) + len(annotation.turns)
    return {"out": str(config.out), **counts}


def _annotations(config: ConvertConfig, counts: _Counts) -> Iterator[Annotation]:
    media = MediaFolder(config.media_root) if config.media_root else None
    seen: set[int] = set()
    for path, format in with_formats(config.files, config.format):
        for line, row in tqdm(read_rows(path, format), desc=path.name, unit=" rows", disable=None, mininterval=1):
            counts["rows"] += 1
            if not isinstance(row, Annotation):
                counts["broken" if row.is_broken else "left_out"] += 1
                if row.is_broken and config.on_problem == "fail":
                    raise ValueError(f"{row}; leave such rows out with --on-problem skip")
                continue
            media_id = config.media_prefix + row.media_id
            found = media.find(media_id) if media else media_id
            if found is None:
                counts["missing_media"] += 1
                if config.on_problem == "fail":
                    raise ValueError(
                        f"{path}:{line}: {media_id} is not below {config.media_root}; leave such rows out with "
                        "--on-problem skip"
                    )
                continue
            annotation = replace(row, media_id=found)
            if config.drop_duplicates:
                annotation = _new_part(annotation, seen, counts)
            if annotation is not None:
                yield annotation


def _new_part(annotation: Annotation, seen: set[int], counts: _Counts) -> Annotation | None:
    """The annotation without the samples that were seen; None if it has no other. A conversation stays or goes whole:
    what was said before is part of what is asked."""
    is_new = []
    for key in sample_keys(annotation):
        is_new.append(key not in seen)
        seen.add(key)
    caption = annotation.caption
    if caption is not None and not is_new.pop(0):
        caption = None
    turns: list[Turn] = []
    for conversation in conversations(annotation.turns):
        of_conversation, is_new = is_new[: len(conversation)], is_new[len(conversation) :]
        turns += conversation if any(of_conversation) else ()
    before = (annotation.caption is not None) + len(annotation.turns)
    counts["duplicates"] += before - (caption is not None) - len(turns)
    return replace(annotation, caption=caption, turns=tuple(turns)) if caption is not None or turns else None
