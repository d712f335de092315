"""Names and keys of a cache. `LAYOUT_VERSION` counts the changes that old readers would not understand.

OUT/extraction.json            what was asked for: the fields of the feature id, and those that fix the last bits
OUT/extraction.lock            held by the extraction at work
OUT/plan.parquet               every input and its slot, decided before any decoding
OUT/spool/000000000000.arrow   a finished sample that waits for the rest of its shard
OUT/shards/000000.tar          <key>.json and <key>.tokens.safetensors of each sample, sorted by name
OUT/shards/000000.json         the commit record: the shard exists only if this verifies
OUT/rows/000000.parquet        the shard's rows of videos.parquet
OUT/index.parquet              one row a sample: where its bytes lie
OUT/videos.parquet             one row an input: committed, or quarantined and why
OUT/report.html                what the extraction did, for people; made from videos.parquet
"""

import hashlib
from typing import Literal

LAYOUT_VERSION = 1

CacheDtype = Literal["bf16", "int8"]
"""How tokens are stored: bfloat16, or int8 with one scale a token."""

Sampling = Literal["shots", "uniform", "fps"]
"""Which frames stand for a video: some of every shot, evenly spread ones, or so many a second."""

EXTRACTION = "extraction.json"
LOCK = "extraction.lock"
PLAN = "plan.parquet"
INDEX = "index.parquet"
VIDEOS = "videos.parquet"
REPORT = "report.html"
SHARDS_FOLDER = "shards"
ROWS_FOLDER = "rows"
SPOOL_FOLDER = "spool"
STRIKES_FOLDER = "strikes"

SPOOL_SUFFIX = ".arrow"
JSON_SUFFIX = "json"
TOKENS_SUFFIX = "tokens.safetensors"


def tar_name(shard: int) -> str:
    return f"{SHARDS_FOLDER}/{shard:06d}.tar"


def record_name(shard: int) -> str:
    return f"{SHARDS_FOLDER}/{shard:06d}.json"


def rows_name(shard: int) -> str:
    return f"{ROWS_FOLDER}/{shard:06d}.parquet"


def spool_name(slot: int) -> str:
    return f"{SPOOL_FOLDER}/{slot:012d}{SPOOL_SUFFIX}"


def strikes_name(slot: int, stage: str) -> str:
    return f"{STRIKES_FOLDER}/{slot:012d}.{stage}"


def sample_key(content_sha256: str, video_id: str, start_s: float | None = None, end_s: float | None = None) -> str:
    """32 hex characters that stand for one stretch of one input; None for its beginning or end.

    Equal contents under two ids are two samples: an annotation finds its own, and no input vanishes.
    """
    start, end = ("" if time_s is None else repr(float(time_s)) for time_s in (start_s, end_s))
    return hashlib.sha256("|".join((content_sha256, start, end, video_id)).encode()).hexdigest()[:32]
